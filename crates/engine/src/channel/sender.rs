//! Frames onto a channel.

use std::io::{self, IoSlice};
use std::sync::Arc;

use super::{Channel, ChannelError, Readiness, Until};
use crate::proto::frame::{CHUNK, FrameHeader, HEADER_BYTES, PREAMBLE_BYTES, Preamble};
use crate::proto::message::Message;

/// The size from which data is sent directly, without a copy; less is gathered.
const LARGE: usize = 32 << 10;
/// The size from which gathered bytes are sent.
const GATHER: usize = 256 << 10;

/// A sender of frames. Small ones are gathered until [`Sender::flush`]; large ones are sent at once, without a copy.
///
/// The stream stays intact when a wait ends early: the unsent part of a frame is kept, and sent before everything that
/// follows.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use std::sync::Arc;
/// use std::time::Duration;
/// use whimbrel_engine::channel::{Received, Receiver, Sender, Stream, Until};
/// use whimbrel_engine::proto::message::Message;
///
/// let (left, right) = UnixStream::pair()?;
/// let mut sender = Sender::new(Arc::new(Stream::from(left)));
/// let mut receiver = Receiver::new(Arc::new(Stream::from(right)));
/// let until = Until::timeout(Duration::from_secs(10));
///
/// sender.send_now(&Message::Memory { address: 0x1000, data: &[7; 4096] }, until)?;
/// let Received::Memory(mut memory) = receiver.next(until)? else { panic!() };
/// let mut place = vec![0; memory.len()];
/// memory.read_into(&mut place, until)?;
/// memory.finish(until)?;
/// assert_eq!(place, [7; 4096]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Sender {
    channel: Arc<dyn Channel>,
    /// Bytes that belong to the stream; those before `sent` have been sent. Holds at most the gathered bytes and one
    /// frame.
    queue: Vec<u8>,
    sent: usize,
    /// Set if a wait ended early with bytes left to send.
    is_behind: bool,
    sequence: u64,
    bytes: u64,
}

impl Sender {
    /// Returns a sender to `channel`, whose stream begins with the preamble.
    pub fn new(channel: Arc<dyn Channel>) -> Sender {
        let queue = zerocopy::IntoBytes::as_bytes(&Preamble::CURRENT).to_vec();
        Sender { channel, queue, sent: 0, is_behind: false, sequence: 0, bytes: PREAMBLE_BYTES as u64 }
    }

    /// Returns the size of the stream so far, including unsent bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of bytes that the channel has taken.
    pub(crate) fn written(&self) -> u64 {
        self.bytes - self.unsent() as u64
    }

    /// Returns the number of bytes that the channel has not taken yet.
    pub fn unsent(&self) -> usize {
        self.queue.len() - self.sent
    }

    /// Returns whether a wait has ended early since all bytes were last sent: the peer is too slow.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Adds a message to the stream.
    ///
    /// Once this returns `Ok`, the message is part of the stream, although it may be unsent ([`Sender::is_behind`]
    /// returns whether time has run out). After an error that [is a wait](ChannelError::is_wait), no byte of the
    /// message is part of it: bytes from earlier messages could not be sent in time.
    pub fn send(&mut self, message: &Message<'_>, until: Until<'_>) -> Result<(), ChannelError> {
        // More than the gathered bytes is left only if an earlier wait ended early.
        if self.unsent() >= GATHER {
            self.flush(until)?;
        }
        let (kind, (first, data)) = (message.kind(), message.payload());
        if data.len() > CHUNK || first.len() + data.len() > kind.max_payload() as usize {
            let error = format!("a {kind} frame of {} bytes is too long", first.len() + data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, error).into());
        }
        let header = FrameHeader::for_payload(kind, self.sequence, &[&first, data]);
        self.sequence += 1;
        self.bytes += (HEADER_BYTES + first.len() + data.len()) as u64;
        self.queue.extend_from_slice(&header.to_bytes());
        self.queue.extend_from_slice(&first);
        let result = if data.len() >= LARGE {
            let mut sent = 0;
            let result = self.write(data, &mut sent, until);
            self.queue.extend_from_slice(&data[sent..]);
            result
        } else {
            self.queue.extend_from_slice(data);
            if self.unsent() >= GATHER { self.flush(until) } else { Ok(()) }
        };
        match result {
            Err(error) if error.is_wait() => Ok(()),
            other => other,
        }
    }

    /// Adds a message to the stream and sends everything.
    pub fn send_now(&mut self, message: &Message<'_>, until: Until<'_>) -> Result<(), ChannelError> {
        self.send(message, until)?;
        self.flush(until)
    }

    /// Sends everything.
    pub fn flush(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        self.write(&[], &mut 0, until)
    }

    /// Sends everything, and ends the stream.
    pub fn finish(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        self.flush(until)?;
        Ok(self.channel.shutdown_write()?)
    }

    /// Sends the queue, then `data`, and counts how much of `data` is sent.
    fn write(&mut self, data: &[u8], done: &mut usize, until: Until<'_>) -> Result<(), ChannelError> {
        while self.unsent() > 0 || *done < data.len() {
            let (queue, rest) = (&self.queue[self.sent..], &data[*done..]);
            let result = match (queue, rest) {
                ([], rest) => self.channel.try_write(&[IoSlice::new(rest)]),
                (queue, []) => self.channel.try_write(&[IoSlice::new(queue)]),
                (queue, rest) => self.channel.try_write(&[IoSlice::new(queue), IoSlice::new(rest)]),
            };
            match result {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) if count > queue.len() + rest.len() => {
                    return Err(io::Error::from(io::ErrorKind::InvalidData).into());
                }
                Ok(count) => {
                    let of_queue = count.min(queue.len());
                    *done += count - of_queue;
                    self.sent += of_queue;
                }
                Err(error) => self.wait_after(error, until)?,
            }
            if self.sent == self.queue.len() {
                self.queue.clear();
                self.sent = 0;
            }
        }
        while let Err(error) = self.channel.try_flush() {
            self.wait_after(error, until)?;
        }
        self.is_behind = false;
        Ok(())
    }

    /// Waits after a call that would have blocked. Any other error is returned.
    fn wait_after(&mut self, error: io::Error, until: Until<'_>) -> Result<(), ChannelError> {
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                let wait = until.wait(self.channel.readiness_fd(), Readiness::Writable);
                self.is_behind |= wait.is_err();
                Ok(wait?)
            }
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error.into()),
        }
    }
}
