//! The stream's loader: validates the stream as it arrives, in pieces of any size.
//!
//! Block data goes straight into the state, so that it is never in memory twice. The load is complete only once the
//! end record was validated: [`Loader::finish`] returns `None` before that.

use crc_fast::Digest;
use whimbrel_protocol::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::super::own_state::{Blocks, OwnState};
use super::{
    CHECKSUM, End, Final, Head, KIND_BLOCK, KIND_END, KIND_FINAL, KIND_ZEROS, LONGEST, Machine,
    RECORD_HEAD_BYTES, RecordHead,
};

/// A resuming session, over a state that was empty when it began.
pub(in super::super) struct Loader {
    blocks: Blocks,
    expected: Expected,
    /// The received part of the expected record, unless that is block data.
    text: [u8; LONGEST],
    text_length: usize,
    /// The first block that the first pass has not reached.
    cursor: u64,
    machine: Option<Machine>,
    checksum: Digest,
    taken: u64,
    poisoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Head,
    Record,
    Data { offset: u64, left: usize },
    Final,
    End,
    Nothing,
}

impl Expected {
    /// Returns the size of the expected record; 0 for block data.
    const fn text_bytes(self) -> usize {
        match self {
            Expected::Head => size_of::<Head>(),
            Expected::Record => RECORD_HEAD_BYTES,
            Expected::Final => size_of::<Final>(),
            Expected::End => size_of::<End>(),
            Expected::Data { .. } | Expected::Nothing => 0,
        }
    }
}

/// The reason why a stream is rejected. It goes to the trace; the errno is always EINVAL.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Refused {
    #[error("header does not match this device")]
    Head,
    #[error("unknown record, or not allowed at this position")]
    Record,
    #[error("invalid final record")]
    Final,
    #[error("length or checksum differs from the end record")]
    End,
}

impl Loader {
    pub(in super::super) fn new(blocks: Blocks) -> Loader {
        Loader {
            blocks,
            expected: Expected::Head,
            text: [0; LONGEST],
            text_length: 0,
            cursor: 0,
            machine: None,
            checksum: Digest::new(CHECKSUM),
            taken: 0,
            poisoned: false,
        }
    }

    /// Takes the next bytes and returns how many: all of them, unless the stream ends before.
    ///
    /// Fails with EINVAL from the first invalid byte on, and with ENOMEM past the end.
    pub(in super::super) fn write(&mut self, state: &mut OwnState, data: &[u8]) -> Result<usize, Errno> {
        if self.poisoned {
            return Err(Errno::EINVAL);
        }
        if self.expected == Expected::Nothing && !data.is_empty() {
            return Err(Errno::ENOMEM);
        }
        let mut rest = data;
        while !rest.is_empty() && self.expected != Expected::Nothing {
            rest = match self.expected {
                Expected::Data { offset, left } => self.take_data(state, offset, left, rest),
                _ => self.take_text(rest).map_err(|reason| {
                    tracing::debug!(%reason, at = self.taken, "rejected invalid accel state");
                    self.poisoned = true;
                    Errno::EINVAL
                })?,
            };
        }
        Ok(data.len() - rest.len())
    }

    fn take_data<'a>(&mut self, state: &mut OwnState, offset: u64, left: usize, data: &'a [u8]) -> &'a [u8] {
        let (now, rest) = data.split_at(left.min(data.len()));
        state.write(offset, now);
        self.checksum.update(now);
        self.taken += now.len() as u64;
        self.expected = match left - now.len() {
            0 => Expected::Record,
            left => Expected::Data { offset: offset + now.len() as u64, left },
        };
        rest
    }

    fn take_text<'a>(&mut self, data: &'a [u8]) -> Result<&'a [u8], Refused> {
        let wanted = self.expected.text_bytes();
        let (now, rest) = data.split_at((wanted - self.text_length).min(data.len()));
        self.text[self.text_length..self.text_length + now.len()].copy_from_slice(now);
        self.text_length += now.len();
        self.taken += now.len() as u64;
        if self.expected == Expected::Head
            && self.text[..self.text_length] != Head::of(self.blocks).as_bytes()[..self.text_length]
        {
            return Err(Refused::Head);
        }
        if self.text_length == wanted {
            self.text_length = 0;
            let text = self.text;
            self.expected = self.judge(&text[..wanted])?;
        }
        Ok(rest)
    }

    /// Validates a complete record and returns what must follow it.
    fn judge(&mut self, text: &[u8]) -> Result<Expected, Refused> {
        if self.expected == Expected::End {
            return self.judge_end(text);
        }
        self.checksum.update(text);
        match self.expected {
            Expected::Record => {
                let head = RecordHead::read_from_bytes(text).map_err(|_| Refused::Record)?;
                self.judge_record(head).ok_or(Refused::Record)
            }
            Expected::Final => {
                let record = Final::read_from_bytes(text).map_err(|_| Refused::Final)?;
                let machine = Machine::from_record(&record, self.blocks.state_bytes());
                self.machine = Some(machine.ok_or(Refused::Final)?);
                Ok(Expected::Record)
            }
            // The bytes were compared as they arrived.
            _ => Ok(Expected::Record),
        }
    }

    fn judge_record(&mut self, head: RecordHead) -> Option<Expected> {
        let RecordHead { kind, count, index } = head;
        let first_pass = self.cursor < self.blocks.count();
        let in_turn = if first_pass { index == self.cursor } else { index < self.blocks.count() };
        let closes = |bytes: usize| !first_pass && index == 0 && count as usize == bytes;
        match (kind, self.machine.is_some()) {
            (KIND_BLOCK, false) if in_turn && u64::from(count) == self.blocks.length(index) => {
                self.cursor += u64::from(first_pass);
                Some(Expected::Data { offset: self.blocks.start(index), left: count as usize })
            }
            (KIND_ZEROS, false)
                if first_pass && in_turn && (1..=self.blocks.count() - index).contains(&count.into()) =>
            {
                self.cursor += u64::from(count);
                Some(Expected::Record)
            }
            (KIND_FINAL, false) if closes(size_of::<Final>()) => Some(Expected::Final),
            (KIND_END, true) if closes(size_of::<End>()) => Some(Expected::End),
            _ => None,
        }
    }

    fn judge_end(&mut self, text: &[u8]) -> Result<Expected, Refused> {
        let end = End::read_from_bytes(text).map_err(|_| Refused::End)?;
        self.checksum.update(end.total.as_bytes());
        let before = self.taken - size_of::<End>() as u64;
        if end.total != before || end.checksum != self.checksum.finalize() {
            return Err(Refused::End);
        }
        Ok(Expected::Nothing)
    }

    /// Returns the engine's state apart from its memory; `None` unless the stream is complete and valid.
    pub(in super::super) fn finish(&self) -> Option<Machine> {
        if self.poisoned || self.expected != Expected::Nothing { None } else { self.machine }
    }
}

impl std::fmt::Debug for Loader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loader")
            .field("expected", &self.expected)
            .field("taken", &self.taken)
            .field("poisoned", &self.poisoned)
            .finish_non_exhaustive()
    }
}
