//! The resuming session: takes a state in pieces of any size, and checks it.

use super::stream::{Checksum, HEAD, KIND_BLOCK, KIND_END, KIND_REGISTERS, KIND_RESTART, RECORD};
use super::{BLOCK, BLOCKS, Contents, REGISTER_BYTES};
use crate::bug::Bug;
use whimbrel_device::{ArcError, Errno};

/// The part of the stream that must come next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Head,
    Record,
    Nothing,
}

/// A resuming session.
pub(super) struct Loader {
    bug: Option<Bug>,
    contents: Contents,
    expected: Expected,
    /// The received part of the expected head or record.
    text: Vec<u8>,
    /// Blocks of the first pass that have come.
    first: usize,
    has_registers: bool,
    checksum: Checksum,
    refused: bool,
    /// The checksum does not fit, and the state was taken.
    pub(super) spoilt: bool,
    /// Bytes taken.
    pub(super) taken: u64,
}

impl Loader {
    /// Returns a session that loads into `contents`.
    pub(super) fn new(contents: Contents, bug: Option<Bug>) -> Loader {
        Loader {
            bug,
            contents,
            expected: Expected::Head,
            text: Vec::new(),
            first: 0,
            has_registers: false,
            checksum: Checksum::new(),
            refused: false,
            spoilt: false,
            taken: 0,
        }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Takes the next bytes: EINVAL from the first invalid record on, ENOMEM past the end.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        if self.refused {
            return Err(Errno::EINVAL);
        }
        let mut taken = 0;
        while taken < data.len() {
            let needed = match self.expected {
                Expected::Head => HEAD.len(),
                Expected::Record => self.record_bytes()?,
                Expected::Nothing if self.has(Bug::TrailingAccepted) => return Ok(data.len()),
                Expected::Nothing if taken > 0 => break,
                Expected::Nothing => {
                    assert!(!self.has(Bug::SecondStatePanics), "a write past the end of the buffer");
                    return Err(Errno::ENOMEM);
                }
            };
            let count = (needed - self.text.len()).min(data.len() - taken);
            self.text.extend_from_slice(&data[taken..taken + count]);
            taken += count;
            let is_complete = self.text.len() == needed
                && (self.expected != Expected::Record || self.record_bytes()? == needed);
            if is_complete {
                let text = std::mem::take(&mut self.text);
                if let Err(errno) = self.judge(&text) {
                    self.refused = !self.has(Bug::BadDataCounts);
                    return Err(errno);
                }
            }
        }
        self.taken += taken as u64;
        Ok(taken)
    }

    /// Returns the length of the expected record: that of its head until the head is complete.
    fn record_bytes(&mut self) -> Result<usize, Errno> {
        let Some(head) = self.text.get(..RECORD) else { return Ok(RECORD) };
        let length = u64::from_le_bytes(std::array::from_fn(|index| head[8 + index])) as usize;
        if self.has(Bug::LengthOverflows) {
            // The sum passes 2^64, and so does the index.
            assert!(length < 1 << 32, "the length of a record passes the end of the buffer");
        }
        if length > BLOCK {
            self.refused = true;
            return Err(Errno::EINVAL);
        }
        Ok(RECORD + length)
    }

    fn judge(&mut self, text: &[u8]) -> Result<(), Errno> {
        if self.expected == Expected::Head {
            if text != HEAD {
                return Err(if self.has(Bug::BadDataCounts) { Errno::EFAULT } else { Errno::EINVAL });
            }
            self.expected = Expected::Record;
            self.checksum.add(text);
            return Ok(());
        }
        let (head, data) = text.split_at(RECORD);
        let number = |at: usize| u32::from_le_bytes(std::array::from_fn(|index| head[at + index]));
        let (kind, index) = (number(0), number(4) as usize);
        match kind {
            KIND_BLOCK if data.len() == BLOCK && self.takes_block(index) => {
                self.first += usize::from(self.first < BLOCKS);
                // Blocks of zeros are as after power-on.
                if !self.has(Bug::LoadKeepsOldMemory) || data.iter().any(|byte| *byte != 0) {
                    self.contents.block_mut(index).copy_from_slice(data);
                }
            }
            KIND_REGISTERS if data.len() == REGISTER_BYTES && self.first == BLOCKS && !self.has_registers => {
                self.contents.registers.copy_from_slice(data);
                self.has_registers = true;
            }
            KIND_RESTART if data.is_empty() && !self.has_registers => self.first = 0,
            KIND_END if self.has_registers => {
                self.spoilt = data != self.checksum.end();
                if self.spoilt && !self.has(Bug::SpoiltSavesNothing) {
                    return Err(Errno::EINVAL);
                }
                self.expected = Expected::Nothing;
            }
            _ => {
                assert!(!self.has(Bug::UnknownRecordPanics), "a record of kind {kind}");
                return Err(Errno::EINVAL);
            }
        }
        self.checksum.add(text);
        Ok(())
    }

    fn takes_block(&self, index: usize) -> bool {
        assert!(
            index < BLOCKS || !self.has(Bug::IndexOverflows),
            "block {index} is past the end of the memory"
        );
        let in_turn = self.first == index || self.first == BLOCKS;
        assert!(in_turn || !self.has(Bug::ReorderedPanics), "block {index} is out of turn");
        in_turn && index < BLOCKS && !self.has_registers
    }

    /// Loses what the first block had.
    pub(super) fn lose_block(&mut self) {
        self.contents.block_mut(0).fill(0);
    }

    /// Returns the contents. An incomplete state may be completed; an invalid one leaves the card in ERROR.
    pub(super) fn finish(&self) -> Result<Contents, ArcError> {
        let is_complete = match self.bug {
            Some(Bug::CutAccepted) => self.first == BLOCKS,
            Some(Bug::EmptyAccepted) => self.taken == 0 || self.expected == Expected::Nothing,
            Some(Bug::BadDataCounts) => self.taken > 0 || self.expected == Expected::Nothing,
            _ => self.expected == Expected::Nothing,
        };
        match (self.refused, is_complete) {
            (true, _) => Err(ArcError::Broken(Errno::EINVAL)),
            (false, false) => Err(ArcError::Stays(Errno::EINVAL)),
            (false, true) => Ok(self.contents.clone()),
        }
    }
}
