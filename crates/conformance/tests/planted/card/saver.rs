//! The saving session: the first pass over all blocks, then changed blocks, and at the end the registers.

use std::collections::BTreeSet;

use super::stream::{
    BLOCK_RECORD, Checksum, END_RECORD, HEAD, KIND_BLOCK, KIND_END, KIND_REGISTERS, KIND_RESTART,
    REGISTERS_RECORD, record,
};
use super::{BLOCKS, Contents};

/// What a part of the stream counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Initial,
    Dirty,
    Closing,
}

/// What comes after the record in flight.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Restart,
    Blocks,
    End,
    Done,
}

/// A saving session.
pub(super) struct Saver {
    /// The record in flight, and how much of it was read.
    record: Vec<u8>,
    read: usize,
    part: Part,
    stage: Stage,
    /// The next block of the first pass.
    first: usize,
    /// Blocks that changed after they were sent.
    dirty: BTreeSet<usize>,
    checksum: Checksum,
    /// The first pass has started over, and is not complete.
    restarted: bool,
    /// The end was told.
    pub(super) ended: bool,
    pub(super) total: u64,
}

impl Saver {
    pub(super) fn new() -> Saver {
        Saver {
            record: Vec::new(),
            read: 0,
            part: Part::Initial,
            stage: Stage::Head,
            first: 0,
            dirty: BTreeSet::new(),
            checksum: Checksum::new(),
            restarted: false,
            ended: false,
            total: 0,
        }
    }

    fn in_flight(&self, part: Part) -> usize {
        if self.part == part { self.record.len() - self.read } else { 0 }
    }

    /// Returns the unread bytes of the first pass.
    pub(super) fn initial(&self) -> u64 {
        let head = match self.stage {
            Stage::Head => HEAD.len(),
            Stage::Restart => super::stream::RECORD,
            _ => 0,
        };
        (self.in_flight(Part::Initial) + head + (BLOCKS - self.first) * BLOCK_RECORD) as u64
    }

    /// Returns the unread bytes of changed blocks.
    pub(super) fn dirty(&self) -> u64 {
        (self.in_flight(Part::Dirty) + self.dirty.len() * BLOCK_RECORD) as u64
    }

    /// Returns the bytes that are left if the card stops now.
    pub(super) fn left(&self) -> u64 {
        let closing = match self.stage {
            Stage::Done => 0,
            Stage::End => END_RECORD,
            _ => REGISTERS_RECORD + END_RECORD,
        };
        self.initial() + self.dirty() + (self.in_flight(Part::Closing) + closing) as u64
    }

    /// Returns whether the first pass has started over, and some of it is unread.
    pub(super) fn restarted(&self) -> bool {
        self.restarted && self.initial() > 0
    }

    /// Notes that a block has changed.
    pub(super) fn changed(&mut self, block: usize) {
        if block < self.first {
            self.dirty.insert(block);
        }
    }

    /// Marks all blocks as changed.
    pub(super) fn all_changed(&mut self) {
        (0..BLOCKS).for_each(|block| self.changed(block));
    }

    /// Leaves only these blocks to be sent.
    pub(super) fn only(&mut self, blocks: BTreeSet<usize>) {
        self.first = BLOCKS;
        self.dirty = blocks;
    }

    /// Forgets what has changed.
    pub(super) fn forget_changes(&mut self) {
        self.dirty.clear();
    }

    /// Drops all that is left.
    pub(super) fn drop_rest(&mut self) {
        self.record.clear();
        self.read = 0;
        self.stage = Stage::Done;
        self.first = BLOCKS;
        self.dirty.clear();
    }

    /// Starts the first pass over.
    pub(super) fn start_over(&mut self) {
        if self.stage == Stage::Blocks {
            self.stage = Stage::Restart;
            // The record in flight has to be read first.
            self.part = Part::Initial;
            self.first = 0;
            self.dirty.clear();
            self.restarted = true;
        }
    }

    /// Reads the next bytes: all that is there, and the end only if the card `stopped`.
    pub(super) fn read(&mut self, contents: &Contents, stopped: bool, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            if self.read == self.record.len() && !self.next(contents, stopped) {
                break;
            }
            let rest = &self.record[self.read..];
            let count = rest.len().min(buffer.len() - filled);
            buffer[filled..filled + count].copy_from_slice(&rest[..count]);
            self.read += count;
            filled += count;
        }
        self.total += filled as u64;
        filled
    }

    /// Prepares the next record, if any.
    fn next(&mut self, contents: &Contents, stopped: bool) -> bool {
        let (part, record) = match self.stage {
            Stage::Head => {
                self.stage = Stage::Blocks;
                (Part::Initial, HEAD.to_vec())
            }
            Stage::Restart => {
                self.stage = Stage::Blocks;
                (Part::Initial, record(KIND_RESTART, 0, &[]))
            }
            Stage::Blocks => {
                if self.first < BLOCKS {
                    let block = self.first;
                    self.first += 1;
                    (Part::Initial, record(KIND_BLOCK, block, contents.block(block)))
                } else if let Some(block) = self.dirty.pop_first() {
                    (Part::Dirty, record(KIND_BLOCK, block, contents.block(block)))
                } else if stopped {
                    self.stage = Stage::End;
                    (Part::Closing, record(KIND_REGISTERS, 0, &contents.registers))
                } else {
                    return false;
                }
            }
            Stage::End => {
                self.stage = Stage::Done;
                let bytes = record(KIND_END, 0, &self.checksum.end());
                (Part::Closing, bytes)
            }
            Stage::Done => return false,
        };
        self.checksum.add(&record);
        (self.part, self.record, self.read) = (part, record, 0);
        true
    }
}
