//! The stream's writer, which works while the engine runs.

use crc_fast::Digest;
use zerocopy::IntoBytes;

use super::super::block_set::BlockSet;
use super::super::own_state::{Blocks, OwnState};
use super::{
    CHECKSUM, CLOSING_BYTES, End, Head, KIND_BLOCK, KIND_END, KIND_FINAL, KIND_ZEROS, LONGEST, Machine,
    RECORD_HEAD_BYTES, RecordHead,
};

/// A saving session.
pub(in super::super) struct Saver {
    blocks: Blocks,
    /// Blocks with data when the session began: the first pass sends them.
    first: BlockSet,
    /// The first block that the first pass has not reached.
    cursor: u64,
    /// Blocks to resend, or to send for the first time if they were zero when the session began.
    dirty: BlockSet,
    /// Start of the search for the next dirty block, so that each gets its turn.
    dirty_at: u64,
    left: Left,
    part: Part,
    /// The record being read, unless it is block data, and the number of bytes read.
    text: [u8; LONGEST],
    text_length: usize,
    text_read: usize,
    data: Option<Data>,
    stage: Stage,
    checksum: Digest,
    produced: u64,
}

/// Bytes not read yet.
#[derive(Clone, Copy, Debug)]
struct Left {
    initial: u64,
    dirty: u64,
    closing: u64,
}

/// The byte count that a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Initial,
    Dirty,
    Closing,
}

/// The next part of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Head,
    Blocks,
    End,
    Done,
}

/// Block data being read.
struct Data {
    block: u64,
    /// Offset of the next byte in the state.
    offset: u64,
    left: usize,
    /// A copy of the remaining data, taken before its block changed.
    snapshot: Option<Vec<u8>>,
}

fn record_bytes(blocks: Blocks, block: u64) -> u64 {
    RECORD_HEAD_BYTES as u64 + blocks.length(block)
}

/// Returns the size of the header and the first pass over the state's current contents.
fn first_pass_bytes(state: &OwnState) -> u64 {
    let (blocks, held) = (state.blocks(), state.held());
    let last = blocks.count() - 1;
    let mut data = held.count() * blocks.block_bytes();
    if held.contains(last) {
        data -= blocks.block_bytes() - blocks.length(last);
    }
    let records = held.count() + held.gaps();
    size_of::<Head>() as u64 + records * RECORD_HEAD_BYTES as u64 + data
}

impl Saver {
    /// Begins a session over the state's current contents.
    pub(in super::super) fn new(state: &OwnState) -> Saver {
        Saver {
            blocks: state.blocks(),
            first: state.held(),
            cursor: 0,
            dirty: BlockSet::new(state.blocks().count()),
            dirty_at: 0,
            left: Left { initial: first_pass_bytes(state), dirty: 0, closing: CLOSING_BYTES },
            part: Part::Initial,
            text: [0; LONGEST],
            text_length: 0,
            text_read: 0,
            data: None,
            stage: Stage::Head,
            checksum: Digest::new(CHECKSUM),
            produced: 0,
        }
    }

    /// Returns the size of the whole stream for the state's current contents.
    pub(in super::super) fn whole_stream_bytes(state: &OwnState) -> u64 {
        first_pass_bytes(state) + CLOSING_BYTES
    }

    /// Returns the unread bytes of the first pass. They only decrease.
    pub(in super::super) fn initial_bytes(&self) -> u64 {
        self.left.initial
    }

    /// Returns the unread bytes of blocks that changed after they were sent.
    pub(in super::super) fn dirty_bytes(&self) -> u64 {
        self.left.dirty
    }

    /// Returns the bytes left to read if the device stopped now.
    pub(in super::super) fn left_bytes(&self) -> u64 {
        self.left.initial + self.left.dirty + self.left.closing
    }

    /// Must be called before a block of the state changes.
    pub(in super::super) fn before_change(&mut self, block: u64, state: &OwnState) {
        if let Some(data) = &mut self.data
            && data.block == block
            && data.snapshot.is_none()
        {
            let mut rest = vec![0; data.left];
            state.read(data.offset, &mut rest);
            data.snapshot = Some(rest);
        }
        let comes_anyway = block >= self.cursor && self.first.contains(block);
        if !comes_anyway && self.dirty.insert(block) {
            self.left.dirty += record_bytes(self.blocks, block);
        }
    }

    /// Reads the next bytes. `machine` is given once the device has stopped; without it the stream does not end.
    pub(in super::super) fn read(
        &mut self,
        state: &OwnState,
        machine: Option<Machine>,
        buffer: &mut [u8],
    ) -> usize {
        let mut filled = 0;
        while filled < buffer.len() {
            let room = &mut buffer[filled..];
            let count = if self.text_read < self.text_length {
                self.read_text(room)
            } else if self.data.is_some() {
                self.read_data(state, room)
            } else if self.next_record(machine) {
                continue;
            } else {
                break;
            };
            self.checksum.update(&room[..count]);
            self.produced += count as u64;
            filled += count;
            let left = match self.part {
                Part::Initial => &mut self.left.initial,
                Part::Dirty => &mut self.left.dirty,
                Part::Closing => &mut self.left.closing,
            };
            *left -= count as u64;
        }
        filled
    }

    fn read_text(&mut self, room: &mut [u8]) -> usize {
        let text = &self.text[self.text_read..self.text_length];
        let count = text.len().min(room.len());
        room[..count].copy_from_slice(&text[..count]);
        self.text_read += count;
        count
    }

    fn read_data(&mut self, state: &OwnState, room: &mut [u8]) -> usize {
        let Some(data) = &mut self.data else { return 0 };
        let count = data.left.min(room.len());
        match &data.snapshot {
            Some(rest) => {
                let at = rest.len() - data.left;
                room[..count].copy_from_slice(&rest[at..at + count]);
            }
            None => state.read(data.offset, &mut room[..count]),
        }
        data.offset += count as u64;
        data.left -= count;
        if data.left == 0 {
            self.data = None;
        }
        count
    }

    /// Prepares the next record and returns whether there is one.
    fn next_record(&mut self, machine: Option<Machine>) -> bool {
        self.text_read = 0;
        self.text_length = 0;
        match self.stage {
            Stage::Head => {
                self.put(Part::Initial, Head::of(self.blocks).as_bytes());
                self.stage = Stage::Blocks;
            }
            Stage::Blocks if self.cursor < self.blocks.count() => self.first_pass(),
            Stage::Blocks => {
                if let Some(block) = self.next_dirty() {
                    self.dirty.remove(block);
                    self.dirty_at = block + 1;
                    self.put_block(Part::Dirty, block);
                } else if let Some(machine) = machine {
                    let record = machine.to_record();
                    self.put_head(Part::Closing, KIND_FINAL, size_of_val(&record), 0);
                    self.put(Part::Closing, record.as_bytes());
                    self.stage = Stage::End;
                } else {
                    return false;
                }
            }
            Stage::End => {
                self.put_head(Part::Closing, KIND_END, size_of::<End>(), 0);
                let total = self.produced + RECORD_HEAD_BYTES as u64;
                self.put(Part::Closing, total.as_bytes());
                let mut checksum = self.checksum;
                checksum.update(&self.text[..self.text_length]);
                self.put(Part::Closing, checksum.finalize().as_bytes());
                self.stage = Stage::Done;
            }
            Stage::Done => return false,
        }
        true
    }

    fn first_pass(&mut self) {
        let block = self.cursor;
        if self.first.contains(block) {
            self.put_block(Part::Initial, block);
            self.cursor += 1;
        } else {
            let end = self.first.next(block, true);
            self.put_head(Part::Initial, KIND_ZEROS, (end - block) as usize, block);
            self.cursor = end;
        }
    }

    fn next_dirty(&self) -> Option<u64> {
        let none = self.blocks.count();
        [self.dirty_at, 0].into_iter().map(|from| self.dirty.next(from, true)).find(|block| *block != none)
    }

    fn put_block(&mut self, part: Part, block: u64) {
        let left = self.blocks.length(block) as usize;
        self.put_head(part, KIND_BLOCK, left, block);
        self.data = Some(Data { block, offset: self.blocks.start(block), left, snapshot: None });
    }

    fn put_head(&mut self, part: Part, kind: u32, count: usize, index: u64) {
        self.put(part, RecordHead { kind, count: count as u32, index }.as_bytes());
    }

    fn put(&mut self, part: Part, text: &[u8]) {
        self.part = part;
        self.text[self.text_length..self.text_length + text.len()].copy_from_slice(text);
        self.text_length += text.len();
    }
}

impl std::fmt::Debug for Saver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Saver")
            .field("stage", &self.stage)
            .field("left", &self.left)
            .field("produced", &self.produced)
            .finish_non_exhaustive()
    }
}
