//! The stream's loader: validates the stream as it arrives, in pieces of any size.

use crc_fast::{CrcAlgorithm, checksum};
use whimbrel_protocol::Errno;
use zerocopy::FromBytes;

use super::super::limits::Limits;
use super::{
    End, KIND_END, KIND_STATE_V1, MAGIC, Machine, OPENING_BYTES, Opening, RECORD_HEAD_BYTES, RecordHead,
    VERSION, v1,
};

/// A resuming session.
#[derive(Debug)]
pub(in super::super) struct Loader {
    limits: Limits,
    /// The bytes so far: no more than a record of the largest state.
    bytes: Vec<u8>,
    /// Bytes before the part that is expected.
    start: usize,
    expected: Expected,
    machine: Option<Machine>,
    is_poisoned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Opening,
    StateHead,
    State { length: usize },
    EndHead,
    End,
    Nothing,
}

/// The reason why a stream is rejected. It goes to the trace; the errno is always EINVAL.
#[derive(Clone, Copy, Debug, thiserror::Error)]
enum Refused {
    #[error("unknown magic, version or flags")]
    Opening,
    #[error("the number of blocks or queues, or the write protection, differs from this device's")]
    OtherDevice,
    #[error("unknown record, or not allowed at this position")]
    Record,
    #[error("a state that no controller can have")]
    State,
    #[error("length or checksum differs from the end record")]
    End,
}

impl Loader {
    pub(in super::super) fn new(limits: Limits) -> Loader {
        Loader {
            limits,
            bytes: Vec::new(),
            start: 0,
            expected: Expected::Opening,
            machine: None,
            is_poisoned: false,
        }
    }

    /// Takes the next bytes and returns how many: all of them, unless the stream ends before.
    ///
    /// Fails with EINVAL from the first invalid part on, and with ENOMEM past the end.
    pub(in super::super) fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        if self.is_poisoned {
            return Err(Errno::EINVAL);
        }
        if self.expected == Expected::Nothing && !data.is_empty() {
            return Err(Errno::ENOMEM);
        }
        let mut rest = data;
        while !rest.is_empty() && self.expected != Expected::Nothing {
            let missing = self.start + self.expected_bytes() - self.bytes.len();
            let (now, later) = rest.split_at(missing.min(rest.len()));
            self.bytes.extend_from_slice(now);
            rest = later;
            if now.len() == missing {
                self.expected = self.judge().map_err(|reason| {
                    tracing::debug!(%reason, at = self.bytes.len(), "rejected invalid nvme state");
                    self.is_poisoned = true;
                    Errno::EINVAL
                })?;
                self.start = self.bytes.len();
            }
        }
        Ok(data.len() - rest.len())
    }

    fn expected_bytes(&self) -> usize {
        match self.expected {
            Expected::Opening => OPENING_BYTES,
            Expected::StateHead | Expected::EndHead => RECORD_HEAD_BYTES,
            Expected::State { length } => length,
            Expected::End => size_of::<End>(),
            Expected::Nothing => 0,
        }
    }

    /// Validates a complete part, and returns what must follow it.
    fn judge(&mut self) -> Result<Expected, Refused> {
        let part = &self.bytes[self.start..];
        match self.expected {
            Expected::Opening => {
                let opening = Opening::read_from_bytes(part).map_err(|_| Refused::Opening)?;
                self.judge_opening(&opening)?;
                self.limits.serial = opening.serial;
                Ok(Expected::StateHead)
            }
            Expected::StateHead => {
                let length = record(part, KIND_STATE_V1).ok_or(Refused::Record)?;
                let fits = (v1::MIN_BYTES..=v1::MAX_BYTES).contains(&length);
                if fits { Ok(Expected::State { length }) } else { Err(Refused::Record) }
            }
            Expected::State { .. } => {
                self.machine = Some(v1::decode(part, &self.limits).ok_or(Refused::State)?);
                Ok(Expected::EndHead)
            }
            Expected::EndHead => match record(part, KIND_END) {
                Some(length) if length == size_of::<End>() => Ok(Expected::End),
                _ => Err(Refused::Record),
            },
            Expected::End => {
                let end = End::read_from_bytes(part).map_err(|_| Refused::End)?;
                let before = &self.bytes[..self.start + size_of::<u64>()];
                let is_right = end.total == self.start as u64
                    && end.checksum == checksum(CrcAlgorithm::Crc64Nvme, before);
                if is_right { Ok(Expected::Nothing) } else { Err(Refused::End) }
            }
            Expected::Nothing => Ok(Expected::Nothing),
        }
    }

    fn judge_opening(&self, opening: &Opening) -> Result<(), Refused> {
        let Opening { magic, version, flags, serial, queues, is_read_only, reserved, blocks } = *opening;
        if magic != MAGIC || version != VERSION || flags != 0 || reserved != 0 {
            return Err(Refused::Opening);
        }
        let Limits { queues: own_queues, blocks: own_blocks, is_read_only: own_protection, .. } = self.limits;
        let is_text = serial.iter().all(|byte| (b' '..=b'~').contains(byte));
        let is_same =
            queues == own_queues && blocks == own_blocks && is_read_only == u8::from(own_protection);
        if is_same && is_text { Ok(()) } else { Err(Refused::OtherDevice) }
    }

    /// Returns the state; `None` unless the stream is complete and valid.
    pub(in super::super) fn finish(&self) -> Option<&Machine> {
        if self.is_poisoned || self.expected != Expected::Nothing { None } else { self.machine.as_ref() }
    }
}

/// Returns the length of a record of this kind; `None` for another kind.
fn record(head: &[u8], kind: u32) -> Option<usize> {
    let head = RecordHead::read_from_bytes(head).ok().filter(|head| head.kind == kind)?;
    usize::try_from(head.length).ok()
}
