//! Frames from a channel, checked, one at a time.

use std::io;
use std::sync::Arc;

use crc_fast::{CrcAlgorithm, Digest};

use super::input::Input;
use super::{Channel, ChannelError, Until};
use crate::proto::control::Control;
use crate::proto::frame::{FrameHeader, HEADER_BYTES, Kind, PREAMBLE_BYTES, Preamble, is_tls};
use crate::proto::message::{MEMORY_HEAD, Message, memory_head};
use crate::proto::problem::{Problem, StreamError};

/// A receiver of frames. Holds one payload at a time, which is no larger than its kind allows.
///
/// A wait that ends early loses nothing: the next call continues where the last one ended.
#[derive(Debug)]
pub struct Receiver {
    input: Input,
    /// Shrinks only when it is exchanged, so that a large payload after a small one needs no clearing.
    payload: Vec<u8>,
    state: State,
    /// The digest of the bytes read so far of the current frame.
    digest: Digest,
    offset: u64,
    sequence: u64,
}

/// The next part of the stream.
#[derive(Debug)]
enum State {
    Preamble,
    Header,
    /// A payload, with the number of bytes already in `payload`.
    Payload {
        header: FrameHeader,
        filled: usize,
    },
    /// The data of a MEMORY frame, with the number of bytes left. It is skipped once it has been offered to the caller.
    Memory {
        header: FrameHeader,
        address: u64,
        left: usize,
        offered: bool,
    },
}

/// A frame.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a frame is read as a whole or piece by piece")]
pub enum Received<'a> {
    /// A whole message.
    Message(Message<'a>),
    /// A MEMORY frame, whose data is still to be read.
    Memory(MemoryData<'a>),
}

/// The data of a MEMORY frame, to be read into its place: [`read_into`](MemoryData::read_into), then
/// [`finish`](MemoryData::finish).
///
/// Data that is not read is skipped, but still checked before the next frame.
#[derive(Debug)]
pub struct MemoryData<'a> {
    receiver: &'a mut Receiver,
    address: u64,
    length: usize,
}

/// The minimum to skip at a time, in bytes.
const SCRAP: usize = 64 << 10;
/// The maximum of a stream up to the last frame that is skipped in a greeting, in bytes.
const MAX_SKIPPED: u64 = 1 << 20;

impl Receiver {
    /// Returns a receiver from `channel`, whose stream begins with the preamble.
    pub fn new(channel: Arc<dyn Channel>) -> Receiver {
        Receiver {
            input: Input::new(channel),
            payload: Vec::new(),
            state: State::Preamble,
            digest: crc(),
            offset: 0,
            sequence: 0,
        }
    }

    /// Returns the number of bytes received so far, in whole frames.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// Returns whether data may have arrived that [`Receiver::next`] returns without a wait, although polling the
    /// channel reports nothing.
    pub fn has_buffered(&self) -> bool {
        !self.input.buffered().is_empty()
    }

    /// Returns what identifies the peer, if the channel knows that.
    pub(crate) fn peer_identity(&self) -> Option<Vec<u8>> {
        self.input.channel().peer_identity()
    }

    /// Returns whether a frame has arrived so far: the peer speaks the protocol.
    pub(super) fn has_message(&self) -> bool {
        self.sequence > 0
    }

    /// Receives the next frame. A frame that has arrived is received even after the deadline, but not once the
    /// interrupt is set: a peer that sends without a pause must not delay an interrupt.
    pub fn next(&mut self, until: Until<'_>) -> Result<Received<'_>, ChannelError> {
        loop {
            match &mut self.state {
                State::Preamble => self.preamble(until)?,
                State::Header => {
                    until.check_interrupt()?;
                    self.begin_frame(until)?;
                }
                State::Memory { offered: true, .. } => self.skip(until)?,
                State::Memory { address, left, offered, .. } => {
                    *offered = true;
                    let (address, length) = (*address, *left);
                    return Ok(Received::Memory(MemoryData { receiver: self, address, length }));
                }
                State::Payload { .. } => {
                    let header = self.fill_payload(until)?;
                    let offset = self.offset;
                    self.end_frame(&header);
                    let Some(kind) = header.kind else {
                        // A frame that may be skipped. There may be any number of them.
                        until.check()?;
                        continue;
                    };
                    return Message::parse(kind, &self.payload[..header.length as usize])
                        .map(Received::Message)
                        .map_err(|problem| ChannelError::Malformed(StreamError::new(offset, problem)));
                }
            }
        }
    }

    /// Returns the buffer with the payload of the last message, in exchange for another one: a caller that keeps the
    /// payload need not copy it. The payload lies at its start, and other bytes may follow.
    pub(crate) fn exchange_payload(&mut self, spare: Vec<u8>) -> Vec<u8> {
        debug_assert!(matches!(self.state, State::Header));
        std::mem::replace(&mut self.payload, spare)
    }

    /// Reads and ignores everything until the peer closes the connection, so that closing this side does not make the peer
    /// lose what it has not read yet.
    pub fn drain(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        let mut scrap = vec![0; SCRAP];
        loop {
            match self.input.discard_some(&mut scrap, until) {
                // The peer may send without a pause.
                Ok(()) => until.check()?,
                Err(ChannelError::Closed) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Receives the next message of a greeting: `expected`, or ABORT. Any other frame is refused by its header, and its
    /// payload is not waited for. Frames that may be skipped are skipped, as long as the stream does not exceed
    /// [`MAX_SKIPPED`] with them.
    pub(super) fn greeting(&mut self, expected: Kind, until: Until<'_>) -> Result<Control, ChannelError> {
        loop {
            match &self.state {
                State::Preamble => self.preamble(until)?,
                State::Header => {
                    let header = self.header(until)?;
                    let is_taken = match header.kind {
                        Some(kind) => kind == expected || kind == Kind::Abort,
                        None => self.offset + HEADER_BYTES as u64 + u64::from(header.length) <= MAX_SKIPPED,
                    };
                    if !is_taken {
                        return Err(self.malformed(Problem::Unexpected { found: header.kind, expected }));
                    }
                    self.begin_frame(until)?;
                }
                State::Payload { .. } | State::Memory { .. } => {
                    let header = self.fill_payload(until)?;
                    let offset = self.offset;
                    self.end_frame(&header);
                    let Some(kind) = header.kind else { continue };
                    match Message::parse(kind, &self.payload[..header.length as usize]) {
                        Ok(Message::Control(control)) => return Ok(control),
                        // Neither kind is one of data.
                        Ok(other) => {
                            let problem = Problem::Unexpected { found: Some(other.kind()), expected };
                            return Err(ChannelError::Malformed(StreamError::new(offset, problem)));
                        }
                        Err(problem) => {
                            return Err(ChannelError::Malformed(StreamError::new(offset, problem)));
                        }
                    }
                }
            }
        }
    }

    fn preamble(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        let bytes = self.input.peek::<PREAMBLE_BYTES>(until).map_err(|error| match error {
            // An alert of TLS is shorter.
            ChannelError::Closed if is_tls(self.input.buffered()) => self.malformed(Problem::Tls),
            other => other,
        })?;
        Preamble::check(&bytes).map_err(|problem| self.malformed(problem))?;
        self.input.consume(PREAMBLE_BYTES);
        self.offset += PREAMBLE_BYTES as u64;
        self.state = State::Header;
        Ok(())
    }

    /// Reads the header ahead.
    fn header(&mut self, until: Until<'_>) -> Result<FrameHeader, ChannelError> {
        let bytes = self.input.peek::<HEADER_BYTES>(until)?;
        FrameHeader::parse(&bytes, self.sequence).map_err(|problem| self.malformed(problem))
    }

    fn begin_frame(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        let header = self.header(until)?;
        let length = header.length as usize;
        if header.kind == Some(Kind::Memory) {
            // The head of a frame that is too short is not waited for.
            let wrong = |problem| ChannelError::Malformed(StreamError::new(self.offset, problem));
            memory_head(&[0; MEMORY_HEAD], header.length).map_err(wrong)?;
            let bytes = self.input.peek::<{ HEADER_BYTES + MEMORY_HEAD }>(until)?;
            let (_, head) = bytes.split_last_chunk().unwrap_or((&[], &[0; MEMORY_HEAD]));
            let (address, left) = memory_head(head, header.length).map_err(wrong)?;
            self.digest = crc();
            self.digest.update(head);
            self.input.consume(bytes.len());
            self.state = State::Memory { header, address, left, offered: false };
        } else {
            self.input.consume(HEADER_BYTES);
            self.digest = crc();
            if self.payload.len() < length {
                // No more than is needed, so that the bound of what is held is exact.
                self.payload.reserve_exact(length - self.payload.len());
                self.payload.resize(length, 0);
            }
            self.state = State::Payload { header, filled: 0 };
        }
        Ok(())
    }

    /// Reads data of a MEMORY frame into its place, or as much as is left.
    fn read_memory(&mut self, into: &mut [u8], until: Until<'_>) -> Result<(), ChannelError> {
        let mut filled = 0;
        while filled < into.len() {
            let State::Memory { left, .. } = &mut self.state else { break };
            let most = (into.len() - filled).min(*left);
            if most == 0 {
                break;
            }
            let count =
                read_digested(&mut self.input, &mut self.digest, &mut into[filled..filled + most], until)?;
            *left -= count;
            filled += count;
        }
        Ok(())
    }

    /// Reads the rest of a MEMORY frame, and checks all of it.
    fn skip(&mut self, until: Until<'_>) -> Result<(), ChannelError> {
        let mut scrap = std::mem::take(&mut self.payload);
        scrap.resize(scrap.len().max(SCRAP), 0);
        while let State::Memory { left: 1.., .. } = self.state {
            if let Err(error) = self.read_memory(&mut scrap, until) {
                self.payload = scrap;
                return Err(error);
            }
        }
        self.payload = scrap;
        let State::Memory { header, .. } = self.state else { return Ok(()) };
        self.check_digest(&header)?;
        self.end_frame(&header);
        Ok(())
    }

    /// Reads the rest of a payload, and checks it.
    fn fill_payload(&mut self, until: Until<'_>) -> Result<FrameHeader, ChannelError> {
        let State::Payload { header, filled } = &mut self.state else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        };
        let payload = &mut self.payload[..header.length as usize];
        while *filled < payload.len() {
            *filled += read_digested(&mut self.input, &mut self.digest, &mut payload[*filled..], until)?;
        }
        let header = *header;
        self.check_digest(&header)?;
        Ok(header)
    }

    fn check_digest(&self, header: &FrameHeader) -> Result<(), ChannelError> {
        header.check_crc(self.digest.finalize() as u32).map_err(|problem| self.malformed(problem))
    }

    fn end_frame(&mut self, header: &FrameHeader) {
        self.offset += HEADER_BYTES as u64 + u64::from(header.length);
        self.sequence += 1;
        self.state = State::Header;
    }

    fn malformed(&self, problem: Problem) -> ChannelError {
        ChannelError::Malformed(StreamError::new(self.offset, problem))
    }
}

impl MemoryData<'_> {
    /// Returns the guest physical address of the first byte. The sender chose it, and it may lie outside of the memory.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Returns the size in bytes, at least 1 and at most 1 MiB.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Reads the next bytes directly into `place`, and fills it. They are not checked yet:
    /// [`finish`](MemoryData::finish) checks them.
    ///
    /// Fails with [`InvalidInput`](io::ErrorKind::InvalidInput) if `place` is larger than the data left.
    pub fn read_into(&mut self, place: &mut [u8], until: Until<'_>) -> Result<(), ChannelError> {
        let State::Memory { left, .. } = self.receiver.state else { return Ok(()) };
        if place.len() > left {
            return Err(io::Error::from(io::ErrorKind::InvalidInput).into());
        }
        self.receiver.read_memory(place, until)
    }

    /// Skips the data not read yet, and checks the whole frame.
    pub fn finish(self, until: Until<'_>) -> Result<(), ChannelError> {
        self.receiver.skip(until)
    }
}

/// Reads at least one byte, of the `into.len()` bytes that the peer is about to send, and adds it to the digest at once, while
/// the data is in the cache.
fn read_digested(
    input: &mut Input,
    digest: &mut Digest,
    into: &mut [u8],
    until: Until<'_>,
) -> Result<usize, ChannelError> {
    let count = input.read_some(into, until)?;
    digest.update(&into[..count]);
    Ok(count)
}

fn crc() -> Digest {
    Digest::new(CrcAlgorithm::Crc32Iscsi)
}
