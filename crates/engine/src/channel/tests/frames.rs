//! A sender and a receiver: whole streams, broken ones, and waits that end early.

use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::{pair, soon, tcp_pair, write_all};
use crate::channel::{
    Channel, ChannelError, Interrupt, Readiness, Received, Receiver, Sender, Stream, Until,
};
use crate::proto::control::Control;
use crate::proto::frame::{CHUNK, FrameHeader, HEADER_BYTES, Kind, PREAMBLE_BYTES, Preamble};
use crate::proto::message::Message;
use crate::proto::problem::Problem;

pub(super) fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// A receiver's result, without a borrow from it.
#[derive(Debug, PartialEq)]
enum Found {
    Control(Control),
    Memory(u64, Vec<u8>),
    State(u32, Vec<u8>),
    Padding(usize),
}

fn next(receiver: &mut Receiver, until: Until<'_>) -> Result<Found, ChannelError> {
    Ok(match receiver.next(until)? {
        Received::Message(Message::Control(control)) => Found::Control(control),
        Received::Message(Message::DeviceState { device, data, .. }) => Found::State(device, data.to_vec()),
        Received::Message(Message::Padding { data }) => Found::Padding(data.len()),
        Received::Message(other) => panic!("{other:?}"),
        Received::Memory(mut memory) => {
            let (address, mut data) = (memory.address(), vec![0; memory.len()]);
            // In two pieces, like memory of two regions.
            let (first, second) = data.split_at_mut(memory.len() / 3);
            memory.read_into(first, until)?;
            memory.read_into(second, until)?;
            memory.finish(until)?;
            Found::Memory(address, data)
        }
    })
}

fn send(sender: &mut Sender, found: &Found) {
    let padding;
    let message = match found {
        Found::Control(control) => Message::Control(control.clone()),
        Found::Memory(address, data) => Message::Memory { address: *address, data },
        Found::State(device, data) => Message::DeviceState { device: *device, ends: false, data },
        Found::Padding(length) => {
            padding = noise(*length);
            Message::Padding { data: &padding }
        }
    };
    sender.send(&message, soon()).unwrap();
}

/// A channel that reads and writes only a few bytes at a time, and often nothing.
#[derive(Debug)]
struct Stingy {
    inner: Arc<Stream>,
    most: Vec<usize>,
    calls: AtomicUsize,
}

impl Stingy {
    fn new(inner: Arc<Stream>, most: Vec<usize>) -> Stingy {
        Stingy { inner, most, calls: AtomicUsize::new(0) }
    }

    fn allow(&self) -> io::Result<usize> {
        match self.most[self.calls.fetch_add(1, Ordering::Relaxed) % self.most.len()] {
            0 => Err(io::ErrorKind::Interrupted.into()),
            most => Ok(most),
        }
    }
}

impl Channel for Stingy {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = self.allow()?.min(buffer.len());
        self.inner.try_read(&mut buffer[..most])
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let most = self.allow()?;
        let some: Vec<u8> = data.iter().flat_map(|slice| slice.iter().copied()).take(most).collect();
        self.inner.try_write(&[IoSlice::new(&some)])
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.inner.readiness_fd()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.inner.shutdown_write()
    }
}

fn any_frame() -> impl Strategy<Value = Found> {
    let length = prop_oneof![1..40_usize, 16_000..17_000_usize, 32_000..34_000_usize, Just(CHUNK)];
    (0..4, any::<u64>(), length).prop_map(|(which, number, length)| match which {
        0 => Found::Control(Control::Ping { id: number as u32 }),
        1 => Found::Memory(number, noise(length)),
        2 => Found::State(number as u32, noise(length)),
        _ => Found::Padding(length),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_frame_arrives_as_it_was_sent_however_short_reads_and_writes_are(
        is_tcp: bool,
        frames in prop::collection::vec(any_frame(), 0..12),
        mut reads in prop::collection::vec(prop_oneof![0..2_usize, 1..100_usize, 10_000..200_000_usize], 1..8),
        mut writes in prop::collection::vec(prop_oneof![0..2_usize, 1..100_usize, 10_000..2_000_000_usize], 1..8),
    ) {
        // Byte by byte alone, a megabyte takes too long.
        reads.push(100_000);
        writes.push(100_000);
        let (left, right) = if is_tcp { tcp_pair() } else { pair() };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut sender = Sender::new(Arc::new(Stingy::new(left, writes)));
                for frame in &frames {
 send(&mut sender, frame);
 }
                sender.finish(soon()).unwrap();
            });
            let mut receiver = Receiver::new(Arc::new(Stingy::new(right, reads)));
            for frame in &frames {
                assert_eq!(&next(&mut receiver, soon()).unwrap(), frame);
            }
            assert!(matches!(next(&mut receiver, soon()), Err(ChannelError::Closed)));
        });
    }
}

#[test]
fn both_sides_count_the_same_bytes() {
    let (left, right) = pair();
    let (mut sender, mut receiver) = (Sender::new(left), Receiver::new(right));
    sender.send(&Message::Memory { address: 0x1000, data: &noise(5000) }, soon()).unwrap();
    assert_eq!(sender.unsent() as u64, sender.bytes(), "small frames are gathered");
    sender.send_now(&Control::Handover.into(), soon()).unwrap();
    assert_eq!(sender.unsent(), 0);
    next(&mut receiver, soon()).unwrap();
    next(&mut receiver, soon()).unwrap();
    assert_eq!(sender.bytes(), receiver.bytes());
    assert_eq!(receiver.bytes(), (PREAMBLE_BYTES + 2 * HEADER_BYTES + 8 + 5000) as u64);
}

/// Fills the connection until it accepts no more, and returns the number of frames that are part of the stream.
pub(super) fn fill(sender: &mut Sender, until: Until<'_>) -> (u32, ChannelError) {
    let mut frames = 0;
    loop {
        match sender.send(&Message::Memory { address: u64::from(frames), data: &noise(CHUNK) }, until) {
            Ok(()) => frames += 1,
            Err(error) => return (frames, error),
        }
    }
}

/// Receives the frames that [`fill`] has sent, and a PING after them.
fn expect_filled(receiver: &mut Receiver, frames: u32) {
    for address in 0..frames {
        assert_eq!(next(receiver, soon()).unwrap(), Found::Memory(address.into(), noise(CHUNK)));
    }
    assert_eq!(next(receiver, soon()).unwrap(), Found::Control(Control::Ping { id: 7 }));
}

#[test]
fn an_interrupt_ends_a_write_to_a_peer_that_does_not_read_and_the_stream_goes_on_whole() {
    [pair(), tcp_pair()].into_iter().for_each(interrupt_a_stuck_write);
}

fn interrupt_a_stuck_write((left, right): (Arc<Stream>, Arc<Stream>)) {
    let interrupt = Interrupt::new().unwrap();
    std::thread::scope(|scope| {
        let (elsewhere, peer) = (interrupt.clone(), left.clone());
        scope.spawn(move || {
            // Until the socket accepts no more data.
            while Until::timeout(Duration::from_millis(20))
                .wait(peer.readiness_fd(), Readiness::Writable)
                .is_ok()
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            elsewhere.set();
        });
        let mut sender = Sender::new(left.clone());
        let (frames, error) = fill(&mut sender, Until::interrupted(&interrupt));
        assert!(matches!(error, ChannelError::Interrupted), "{error}");
        assert!(sender.unsent() > 0 && sender.unsent() < 2 * CHUNK, "{}", sender.unsent());

        let unsent = sender.unsent();
        let error = sender.flush(Until::interrupted(&interrupt)).unwrap_err();
        assert!(matches!(error, ChannelError::Interrupted), "it stays set");
        assert_eq!(sender.unsent(), unsent);
        assert!(sender.is_behind());

        interrupt.clear();
        scope.spawn(move || expect_filled(&mut Receiver::new(right), frames));
        let until = Until::interrupted(&interrupt).at_most(Instant::now() + Duration::from_mins(1));
        sender.send_now(&Control::Ping { id: 7 }.into(), until).unwrap();
        assert!(!sender.is_behind());
    });
}

#[test]
fn a_deadline_ends_a_write_to_a_slow_peer_and_is_not_moved_by_what_the_peer_takes() {
    [pair(), tcp_pair()].into_iter().for_each(write_to_a_slow_peer);
}

fn write_to_a_slow_peer((left, right): (Arc<Stream>, Arc<Stream>)) {
    let mut sender = Sender::new(left);
    // So there is something to take, however late the rest begins.
    sender.send_now(&Control::Ping { id: 7 }.into(), soon()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(300);
    std::thread::scope(|scope| {
        let taker = scope.spawn({
            let right = right.clone();
            move || {
                // A little is read all the time, until well after the deadline.
                let (mut taken, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
                while taken.is_empty() || Instant::now() < deadline + Duration::from_millis(200) {
                    if let Ok(count) = right.try_read(&mut buffer) {
                        taken.extend_from_slice(&buffer[..count]);
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                taken
            }
        });
        let (_, error) = fill(&mut sender, Until::deadline(deadline));
        assert!(matches!(error, ChannelError::TimedOut), "{error}");
        assert!(Instant::now() >= deadline);
        assert!(!taker.join().unwrap().is_empty());
    });
}

#[test]
fn a_frame_whose_bytes_arrive_one_at_a_time_is_received_by_as_many_calls() {
    let (left, right) = pair();
    let mut receiver = Receiver::new(right);
    let mut stream = Preamble::CURRENT.as_bytes().to_vec();
    let payload = [&7_u64.to_le_bytes(), &noise(30)[..]].concat();
    stream.extend(FrameHeader::for_payload(Kind::DeviceState, 0, &[&payload]).to_bytes());
    stream.extend(payload);
    for byte in &stream {
        assert!(matches!(next(&mut receiver, Until::now()), Err(ChannelError::TimedOut)));
        write_all(&*left, &[*byte]);
    }
    assert_eq!(next(&mut receiver, Until::now()).unwrap(), Found::State(7, noise(30)));
}

#[test]
fn bytes_that_trickle_in_do_not_move_the_deadline() {
    let (left, right) = pair();
    let mut receiver = Receiver::new(right);
    let header = FrameHeader::for_payload(Kind::Padding, 0, &[&noise(CHUNK)]).to_bytes();
    write_all(&*left, &[Preamble::CURRENT.as_bytes(), &header].concat());
    let (is_over, deadline) = (AtomicUsize::new(0), Instant::now() + Duration::from_millis(100));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while is_over.load(Ordering::Relaxed) == 0 {
                write_all(&*left, &[0]);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let result = next(&mut receiver, Until::deadline(deadline));
        is_over.store(1, Ordering::Relaxed);
        assert!(matches!(result, Err(ChannelError::TimedOut)));
        assert!(Instant::now() >= deadline);
    });
}

#[test]
fn what_has_arrived_is_received_even_after_the_deadline() {
    let (left, right) = pair();
    let mut sender = Sender::new(left);
    sender.send(&Message::Memory { address: 1, data: &noise(100_000) }, soon()).unwrap();
    sender.send_now(&Control::Ping { id: 7 }.into(), soon()).unwrap();
    let mut receiver = Receiver::new(right);
    assert_eq!(next(&mut receiver, Until::now()).unwrap(), Found::Memory(1, noise(100_000)));
    assert_eq!(next(&mut receiver, Until::now()).unwrap(), Found::Control(Control::Ping { id: 7 }));
    assert!(matches!(next(&mut receiver, Until::now()), Err(ChannelError::TimedOut)));
}

#[test]
fn an_interrupt_is_seen_between_two_frames_however_many_have_arrived() {
    let (left, right) = pair();
    let interrupt = Interrupt::new().unwrap();
    let mut sender = Sender::new(left);
    sender.send(&Control::Ping { id: 1 }.into(), soon()).unwrap();
    sender.send_now(&Control::Ping { id: 2 }.into(), soon()).unwrap();
    let mut receiver = Receiver::new(right);
    next(&mut receiver, Until::interrupted(&interrupt)).unwrap();
    interrupt.set();
    let error = next(&mut receiver, Until::interrupted(&interrupt)).unwrap_err();
    assert!(matches!(error, ChannelError::Interrupted));
    interrupt.clear();
    let found = next(&mut receiver, Until::interrupted(&interrupt)).unwrap();
    assert_eq!(found, Found::Control(Control::Ping { id: 2 }));
}

#[test]
fn memory_that_is_not_read_is_skipped_and_checked_all_the_same() {
    let (left, right) = pair();
    let mut receiver = Receiver::new(right);
    let mut stream = Preamble::CURRENT.as_bytes().to_vec();
    let data = noise(70_000);
    for (sequence, is_damaged) in [(0, false), (1, true)] {
        let payload = [&7_u64.to_le_bytes(), &data[..]].concat();
        stream.extend(FrameHeader::for_payload(Kind::Memory, sequence, &[&payload]).to_bytes());
        stream.extend(payload);
        *stream.last_mut().unwrap() ^= u8::from(is_damaged);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| write_all(&*left, &stream));
        let Received::Memory(mut memory) = receiver.next(soon()).unwrap() else { panic!() };
        assert_eq!((memory.address(), memory.len()), (7, data.len()));
        let mut place = vec![0; 33_333];
        memory.read_into(&mut place, soon()).unwrap();
        assert_eq!(place, data[..33_333]);
        let Received::Memory(mut memory) = receiver.next(soon()).unwrap() else { panic!() };
        let too_large = memory.read_into(&mut vec![0; data.len() + 1], soon()).unwrap_err();
        assert!(
            matches!(&too_large, ChannelError::Failed(error) if error.kind() == io::ErrorKind::InvalidInput)
        );
        for _ in 0..2 {
            let ChannelError::Malformed(error) = receiver.next(soon()).map(|_| ()).unwrap_err() else {
                panic!()
            };
            assert_eq!(error.problem, Problem::PayloadChecksum(Some(Kind::Memory)), "and stays so");
            assert_eq!(error.offset, (PREAMBLE_BYTES + HEADER_BYTES + 8 + data.len()) as u64);
        }
    });
}

#[test]
fn a_memory_frame_without_data_is_refused_without_waiting_for_more() {
    for length in 0..=8_usize {
        let (left, right) = pair();
        let payload = vec![0; length];
        let header = FrameHeader::for_payload(Kind::Memory, 0, &[&payload]).to_bytes();
        write_all(&*left, &[Preamble::CURRENT.as_bytes(), &header, &payload].concat());
        let mut receiver = Receiver::new(right);
        let error = receiver.next(soon()).map(|_| ()).unwrap_err();
        assert!(matches!(error, ChannelError::Malformed(_)), "{length}: {error}");
    }
}

#[test]
fn a_peer_that_is_gone_is_closed_at_either_end_wherever_the_stream_stands() {
    let payload = noise(100);
    let header = FrameHeader::for_payload(Kind::Padding, 0, &[&payload]).to_bytes();
    let stream = [Preamble::CURRENT.as_bytes(), &header, &payload].concat();
    for length in 0..=stream.len() {
        let (left, right) = pair();
        write_all(&*left, &stream[..length]);
        drop(left);
        let mut receiver = Receiver::new(right.clone());
        if length == stream.len() {
            next(&mut receiver, soon()).unwrap();
        }
        let error = next(&mut receiver, soon()).unwrap_err();
        assert!(matches!(error, ChannelError::Closed), "{length}: {error}");
        let error = Sender::new(right).flush(soon()).unwrap_err();
        assert!(matches!(error, ChannelError::Closed), "{length}: {error}");
    }
}

#[test]
fn a_message_that_no_receiver_would_take_is_not_sent() {
    let (left, _right) = pair();
    let mut sender = Sender::new(left);
    let before = sender.bytes();
    sender.send(&Message::Padding { data: &noise(CHUNK + 1) }, soon()).unwrap_err();
    sender.send(&Message::Setup { device: 0, data: &noise(70_000) }, soon()).unwrap_err();
    assert_eq!(sender.bytes(), before);
}
