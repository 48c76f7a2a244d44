//! Streams that are not what was sent: every single one is refused, and nothing of it stays in a device.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::support::engine::Error;
use crate::support::wire::{boundaries, crc32c, frames, kind};
use crate::support::{Cut, Rig, Shape, proxy, try_all};

fn shape() -> Shape {
    Shape { size: 3, initial: 2, ..Shape::default() }
}

/// What a source sends in a whole migration, memory included.
fn recorded() -> Vec<u8> {
    let rig = Rig::new(&shape()).with_memory(&[(0, 0x1000)]);
    let (left, right, recording) = proxy(Cut::Never);
    let ended = rig.migrate_over(left, right);
    ended.sent.unwrap();
    recording.end().0
}

/// Plays a stream to a destination, which is given its time after each frame that is answered.
fn receive(stream: &[u8]) -> Result<(), Error> {
    let mut rig = Rig::new(&shape()).with_memory(&[(0, 0x1000)]);
    let (mut near, far) = UnixStream::pair().unwrap();
    near.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let stream = stream.to_vec();
    let playing = std::thread::spawn(move || {
        let mut at = 0;
        let mut has_heard = false;
        while at < stream.len() {
            let length = match stream.get(at..at + 24) {
                _ if at == 0 => 16,
                Some(header) => 24 + u32::from_le_bytes(header[4..8].try_into().unwrap()) as usize,
                None => 24,
            };
            let end = at.saturating_add(length).min(stream.len());
            if near.write_all(&stream[at..end]).is_err() {
                return;
            }
            let answers = [kind::HELLO, kind::TABLE, kind::ROUND, kind::PING, kind::END];
            let is_whole = at > 0 && end == at + length;
            if is_whole && answers.contains(&u16::from_le_bytes([stream[at], stream[at + 1]])) {
                // Whatever the answer is.
                let header = if std::mem::replace(&mut has_heard, true) { 24 } else { 40 };
                let mut bytes = vec![0; header];
                if std::io::Read::read_exact(&mut near, &mut bytes).is_err() {
                    return;
                }
                let length = u32::from_le_bytes(bytes[header - 20..header - 16].try_into().unwrap());
                let mut payload = vec![0; length as usize];
                if std::io::Read::read_exact(&mut near, &mut payload).is_err() {
                    return;
                }
            }
            at = end;
        }
        let _ = near.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut near, &mut std::io::sink());
    });
    let received = rig.receive_from(far.into()).map(drop);
    playing.join().unwrap();
    match &received {
        Ok(()) => assert_eq!(rig.there.control().state(), [1, 2, 3]),
        Err(error) => rig.assert_destination_is_fresh(&error.to_string()),
    }
    received
}

#[test]
fn every_single_bit_flip_is_refused() {
    let stream = recorded();
    receive(&stream).expect("the whole stream");
    try_all(0..stream.len() * 8, |bit| {
        let mut flipped = stream.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = receive(&flipped).expect_err(&format!("bit {bit} of {}", stream.len() * 8));
        assert!(matches!(error, Error::Malformed(_) | Error::Lost { .. }), "bit {bit}: {error}");
    });
}

#[test]
fn a_stream_that_ends_at_any_byte_before_its_last_is_refused() {
    let stream = recorded();
    try_all(0..stream.len(), |length| {
        assert!(receive(&stream[..length]).is_err(), "{length} of {} bytes", stream.len());
    });
}

#[test]
fn frames_that_are_missing_doubled_or_swapped_are_refused() {
    let stream = recorded();
    let at = boundaries(&stream);
    let whole: Vec<&[u8]> = at.windows(2).map(|at| &stream[at[0]..at[1]]).collect();
    assert_eq!(frames(&stream).len(), whole.len());
    let rebuild = |frames: &[&[u8]]| [&stream[..16], &frames.concat()].concat();
    for index in 0..whole.len() {
        let mut dropped = whole.clone();
        dropped.remove(index);
        assert!(receive(&rebuild(&dropped)).is_err(), "without frame {index}");
        if index + 1 < whole.len() {
            let mut doubled = whole.clone();
            doubled.insert(index, whole[index]);
            assert!(receive(&rebuild(&doubled)).is_err(), "frame {index} doubled");
            let mut swapped = whole.clone();
            swapped.swap(index, index + 1);
            assert!(receive(&rebuild(&swapped)).is_err(), "frames {index} and the next swapped");
        }
    }
}

#[test]
fn the_tests_own_checksum_is_crc_32c() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}
