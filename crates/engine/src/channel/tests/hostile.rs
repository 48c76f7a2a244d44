//! Peers that stop, die or send false data, and channels that return false results.

use std::io::{self, IoSlice};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use rustix::process::{Pid, Signal, kill_process};
use zerocopy::IntoBytes;

use super::frames::{fill, noise};
use super::{pair, soon, write_all};
use crate::channel::{Channel, ChannelError, Interrupt, Received, Receiver, Sender, Stream, Until};
use crate::proto::control::Control;
use crate::proto::frame::{FrameHeader, Kind, Preamble, crc32c};
use crate::proto::message::Message;

/// A process that reads a connection. It is killed when this is dropped.
struct Reader(Child);

impl Reader {
    fn start() -> (Reader, Arc<Stream>) {
        let (left, right) = UnixStream::pair().unwrap();
        let child = Command::new("cat")
            .stdin(OwnedFd::from(right))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        (Reader(child.unwrap()), Arc::new(left.into()))
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_stopped_peer_ends_a_send_at_its_deadline_and_takes_the_rest_once_it_goes_on() {
    let (reader, stream) = Reader::start();
    let mut sender = Sender::new(stream);
    sender.send_now(&Control::Ping { id: 1 }.into(), soon()).unwrap();
    reader.signal(Signal::STOP);
    let began = Instant::now();
    let (_, error) = fill(&mut sender, Until::timeout(Duration::from_millis(200)));
    assert!(matches!(error, ChannelError::TimedOut), "{error}");
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert!(sender.unsent() > 0);
    reader.signal(Signal::CONT);
    sender.finish(soon()).unwrap();
    assert_eq!(sender.unsent(), 0);
}

#[test]
fn a_peer_that_is_killed_ends_a_send_at_once() {
    let (reader, stream) = Reader::start();
    reader.signal(Signal::STOP);
    let mut sender = Sender::new(stream);
    fill(&mut sender, Until::timeout(Duration::from_millis(50)));
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || sender.flush(soon()).unwrap_err());
        drop(reader);
        let error = sending.join().unwrap();
        assert!(matches!(error, ChannelError::Closed), "{error}");
    });
}

/// Receives a stream to its end, and returns the error that ended it.
fn receive_all(receiver: &mut Receiver) -> ChannelError {
    let mut place = [0; 1000];
    loop {
        match receiver.next(soon()) {
            Ok(Received::Message(_)) => {}
            Ok(Received::Memory(mut memory)) => {
                let length = memory.len().min(place.len());
                let result =
                    memory.read_into(&mut place[..length], soon()).and_then(|()| memory.finish(soon()));
                if let Err(error) = result {
                    return error;
                }
            }
            Err(error) => return error,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_damaged_stream_is_refused_wherever_the_damage_is(at: prop::sample::Index, bit in 0..8_u8, cut: bool) {
        let mut stream = Preamble::CURRENT.as_bytes().to_vec();
        let messages = [
            Message::Memory { address: 0x1000, data: &noise(5000) },
            Message::from(Control::Ping { id: 1 }),
            Message::DeviceState { device: 0, ends: false, data: &noise(300) },
            Message::MemoryZero { address: 0, length: 4096 },
        ];
        for (sequence, message) in (0..).zip(&messages) {
            let (first, data) = message.payload();
            stream.extend(FrameHeader::for_payload(message.kind(), sequence, &[&first, data]).to_bytes());
            stream.extend([&first, data].concat());
        }
        let at = at.index(stream.len());
        if cut {
            stream.truncate(at);
        } else {
            stream[at] ^= 1 << bit;
        }
        let (left, right) = pair();
        write_all(&*left, &stream);
        drop(left);
        let error = receive_all(&mut Receiver::new(right));
        // The flags of a frame are protected by its checksum like all other fields.
        prop_assert!(matches!(error, ChannelError::Closed) == cut, "{error}");
        prop_assert!(cut || matches!(error, ChannelError::Malformed(_)), "{error}");
    }

    #[test]
    fn whatever_follows_a_preamble_is_an_error_and_nothing_worse(
        bytes in prop::collection::vec(any::<u8>(), 0..500),
        kind in 0..Kind::ALL.len(),
        has_header: bool,
    ) {
        let mut stream = Preamble::CURRENT.as_bytes().to_vec();
        if has_header {
            // Bytes that pass all checksums.
            stream.extend(FrameHeader::for_payload(Kind::ALL[kind], 0, &[&bytes]).to_bytes());
        }
        stream.extend(&bytes);
        let (left, right) = pair();
        write_all(&*left, &stream);
        drop(left);
        let error = receive_all(&mut Receiver::new(right));
        prop_assert!(matches!(error, ChannelError::Closed | ChannelError::Malformed(_)), "{error}");
    }
}

/// A channel whose answers are wrong.
#[derive(Debug)]
struct Liar(UnixStream);

impl Channel for Liar {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(buffer.len() + 1)
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(data.iter().map(|slice| slice.len()).sum::<usize>() + 1)
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_channel_that_claims_more_than_there_is_is_broken() {
    let channel = Arc::new(Liar(UnixStream::pair().unwrap().0));
    let invalid =
        |error| matches!(&error, ChannelError::Failed(error) if error.kind() == io::ErrorKind::InvalidData);
    assert!(invalid(Sender::new(channel.clone()).flush(soon()).unwrap_err()));
    let error = Receiver::new(channel).next(soon()).map(|_| ()).unwrap_err();
    assert!(invalid(error));
}

#[test]
fn draining_ends_when_the_peer_closes() {
    let (left, right) = pair();
    let mut receiver = Receiver::new(right);
    assert!(matches!(receiver.drain(Until::now()), Err(ChannelError::TimedOut)));
    write_all(&*left, &noise(100_000));
    drop(left);
    receiver.drain(soon()).unwrap();
}

/// A frame of an unknown kind that may be skipped.
fn skippable(sequence: u64) -> Vec<u8> {
    let mut frame = FrameHeader::for_payload(Kind::Padding, sequence, &[b"what"]).to_bytes();
    frame[..4].copy_from_slice(&[40, 0, 1, 0]);
    let crc = crc32c(&[&frame[..20]]);
    frame[20..].copy_from_slice(&crc.to_le_bytes());
    [&frame[..], b"what"].concat()
}

#[test]
fn frames_that_may_be_skipped_are_skipped_and_checked() {
    let (left, right) = pair();
    let (first, _) = Message::from(Control::Ping { id: 5 }).payload();
    let header = FrameHeader::for_payload(Kind::Ping, 2, &[&first]).to_bytes();
    let mut damaged = skippable(3);
    *damaged.last_mut().unwrap() ^= 1;
    let stream =
        [Preamble::CURRENT.as_bytes(), &skippable(0), &skippable(1), &header, &first, &damaged].concat();
    write_all(&*left, &stream);
    let mut receiver = Receiver::new(right);
    let Received::Message(Message::Control(found)) = receiver.next(soon()).unwrap() else { panic!() };
    assert_eq!(found, Control::Ping { id: 5 });
    assert!(matches!(receiver.next(soon()).map(|_| ()), Err(ChannelError::Malformed(_))));
}

/// A channel whose peer sends without a pause.
#[derive(Debug)]
struct Flood {
    stream: UnixStream,
    /// The bytes sent so far.
    sent: Mutex<(u64, Vec<u8>)>,
}

impl Channel for Flood {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (sequence, rest) = &mut *self.sent.lock().unwrap();
        if rest.is_empty() {
            *rest = skippable(*sequence);
            *sequence += 1;
        }
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        rest.drain(..count);
        Ok(count)
    }

    fn try_write(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.stream)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_peer_that_sends_without_a_pause_moves_neither_deadline_nor_interrupt() {
    let sent = Mutex::new((0, Preamble::CURRENT.as_bytes().to_vec()));
    let mut receiver = Receiver::new(Arc::new(Flood { stream: UnixStream::pair().unwrap().0, sent }));
    let error = receiver.next(Until::timeout(Duration::from_millis(50))).map(|_| ()).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut), "{error}");
    let error = receiver.drain(Until::timeout(Duration::from_millis(50))).unwrap_err();
    assert!(matches!(error, ChannelError::TimedOut), "{error}");
    let interrupt = Interrupt::new().unwrap();
    interrupt.set();
    let error = receiver.drain(Until::interrupted(&interrupt)).unwrap_err();
    assert!(matches!(error, ChannelError::Interrupted), "{error}");
}
