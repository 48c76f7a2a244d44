//! The pace on the clock: threads that send wait for their places, and data goes in pieces that fit it.
//!
//! The rule is that of `proto::pace`. What counts are the bytes of the frames, before TLS adds its own.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::channel::{Interrupt, Until, WaitError};
use crate::proto::frame::HEADER_BYTES;
use crate::proto::message::Message;
use crate::proto::pace;

/// A limit on the bytes sent in a second, by all threads together.
#[derive(Debug)]
pub(super) struct Pace {
    rule: Mutex<pace::Pace>,
    began: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_second: NonZeroU64) -> Pace {
        Pace { rule: Mutex::new(pace::Pace::new(bytes_per_second)), began: Instant::now() }
    }

    /// Returns the most data of one frame, if so many lanes share the limit.
    pub(super) fn piece(&self, lanes: u32) -> usize {
        self.rule.lock().piece(lanes)
    }

    /// Waits until a message may be sent.
    pub(super) fn wait(&self, message: &Message<'_>, interrupt: &Interrupt) -> Result<(), WaitError> {
        let (first, data) = message.payload();
        let bytes = HEADER_BYTES + first.len() + data.len();
        let now = Instant::now();
        let pause = self.rule.lock().reserve(bytes, now - self.began);
        if pause.is_zero() {
            return Ok(());
        }
        // A pause that no clock can tell is as good as none: it does not end.
        let until = Until::new(now.checked_add(pause).unwrap_or(now + Duration::from_hours(24)), interrupt);
        match until.sleep() {
            WaitError::TimedOut => Ok(()),
            error => Err(error),
        }
    }
}

/// Returns whether the limit counts a message. Others are small, and urgent.
pub(super) const fn counts(message: &Message<'_>) -> bool {
    !matches!(message, Message::Control(_))
}

/// Returns the messages that carry the same with at most so much data each. State stays as it was read, and a setup is whole.
pub(super) fn pieces<'a>(message: &Message<'a>, most: usize) -> Vec<Message<'a>> {
    let parts = |data: &'a [u8]| {
        data.chunks(most).scan(0, |at, part| {
            let start = *at;
            *at += part.len() as u64;
            Some((start, part))
        })
    };
    match *message {
        Message::Memory { address, data } if data.len() > most => {
            parts(data).map(|(at, data)| Message::Memory { address: address + at, data }).collect()
        }
        Message::Padding { data } if data.len() > most => {
            parts(data).map(|(_, data)| Message::Padding { data }).collect()
        }
        Message::Blob { name, version, last, data } if data.len() > most => {
            let total = data.len() as u64;
            let is_last = |at: u64, part: &[u8]| last && at + part.len() as u64 == total;
            let blob = |(at, data)| Message::Blob { name, version, last: is_last(at, data), data };
            parts(data).map(blob).collect()
        }
        _ => vec![message.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_carry_the_same_bytes_to_the_same_places() {
        let data: Vec<u8> = (0..10).collect();
        let memory = pieces(&Message::Memory { address: 100, data: &data }, 4);
        let expected = [(100, &data[..4]), (104, &data[4..8]), (108, &data[8..])];
        assert_eq!(memory, expected.map(|(address, data)| Message::Memory { address, data }));
        let padding = pieces(&Message::Padding { data: &data }, 5);
        assert_eq!(padding, [&data[..5], &data[5..]].map(|data| Message::Padding { data }));
    }

    #[test]
    fn only_the_last_piece_of_a_blob_ends_it() {
        let data: Vec<u8> = (0..10).collect();
        let blob = |last, data| Message::Blob { name: "cpu", version: 3, last, data };
        assert_eq!(pieces(&blob(true, &data), 5), [blob(false, &data[..5]), blob(true, &data[5..])]);
        assert_eq!(pieces(&blob(false, &data), 5), [blob(false, &data[..5]), blob(false, &data[5..])]);
        assert_eq!(pieces(&blob(true, &[]), 5), [blob(true, &[])]);
    }

    #[test]
    fn what_fits_and_what_must_stay_whole_is_one_piece() {
        for message in [
            Message::Memory { address: 0, data: &[7; 4] },
            Message::MemoryZero { address: 0, length: 1 << 30 },
            Message::DeviceState { device: 1, ends: true, data: &[7; 100] },
            Message::Setup { device: 1, data: &[7; 100] },
        ] {
            assert_eq!(pieces(&message, 4), [message]);
        }
    }
}
