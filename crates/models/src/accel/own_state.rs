//! The memory that is the engine's own state, cut into blocks that take memory once they are written.

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{MmapRegion, VolatileMemory};

use super::block_set::BlockSet;
use super::work::scramble;

/// Smallest and largest block. A stream's records and the account of changes are per block: small states get
/// blocks small enough to have some, and 64 GiB get an account of 128 KiB.
const BLOCK_BYTES: std::ops::RangeInclusive<u64> = 256..=64 << 10;

/// About how many blocks a state has at least.
const MIN_BLOCKS: u64 = 1024;

/// How a state of some size is cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    state_bytes: u64,
    block_bytes: u64,
}

impl Blocks {
    pub(super) fn of(state_bytes: u64) -> Blocks {
        let wanted = (state_bytes / MIN_BLOCKS).next_power_of_two();
        Blocks { state_bytes, block_bytes: wanted.clamp(*BLOCK_BYTES.start(), *BLOCK_BYTES.end()) }
    }

    pub(super) fn state_bytes(self) -> u64 {
        self.state_bytes
    }

    /// Bytes of every block but the last, which may be shorter. At most 64 KiB.
    pub(super) fn block_bytes(self) -> u64 {
        self.block_bytes
    }

    pub(super) fn count(self) -> u64 {
        self.state_bytes.div_ceil(self.block_bytes)
    }

    pub(super) fn at(self, offset: u64) -> u64 {
        offset / self.block_bytes
    }

    pub(super) fn start(self, block: u64) -> u64 {
        block * self.block_bytes
    }

    pub(super) fn length(self, block: u64) -> u64 {
        self.block_bytes.min(self.state_bytes - self.start(block))
    }
}

/// What the blocks hold that were never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unwritten {
    /// As after power-on: bytes that follow from where they lie, so that they need no memory.
    Generated,
    /// As before a load.
    Zeros,
}

/// The state. Offsets that lie outside do nothing: whoever has one from outside checks it first.
#[derive(Debug)]
pub(super) struct OwnState {
    memory: MmapRegion,
    blocks: Blocks,
    /// Blocks written since the state was made. All others take no memory.
    written: BlockSet,
    unwritten: Unwritten,
}

impl OwnState {
    /// A state as after power-on: it holds something everywhere.
    pub(super) fn powered_on(state_bytes: u64) -> Result<OwnState, MmapRegionError> {
        OwnState::new(state_bytes, Unwritten::Generated)
    }

    /// A state of zeros.
    pub(super) fn empty(state_bytes: u64) -> Result<OwnState, MmapRegionError> {
        OwnState::new(state_bytes, Unwritten::Zeros)
    }

    fn new(state_bytes: u64, unwritten: Unwritten) -> Result<OwnState, MmapRegionError> {
        let blocks = Blocks::of(state_bytes);
        let memory =
            MmapRegionBuilder::new_with_bitmap(usize::try_from(state_bytes).unwrap_or(usize::MAX), ())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .build()?;
        Ok(OwnState { memory, blocks, written: BlockSet::new(blocks.count()), unwritten })
    }

    pub(super) fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// The blocks that hold something. All others are zero.
    pub(super) fn held(&self) -> BlockSet {
        match self.unwritten {
            Unwritten::Generated => BlockSet::all(self.blocks.count()),
            Unwritten::Zeros => self.written.clone(),
        }
    }

    /// Fills `data` from `offset`; what lies past the end reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let inside = self.blocks.state_bytes.saturating_sub(offset).min(data.len() as u64) as usize;
        let (mut inside, past) = data.split_at_mut(inside);
        past.fill(0);
        let mut at = offset;
        while !inside.is_empty() {
            let block = self.blocks.at(at);
            let end = self.blocks.start(block) + self.blocks.length(block);
            let (now, rest) = inside.split_at_mut((end - at).min(inside.len() as u64) as usize);
            if self.unwritten == Unwritten::Generated && !self.written.contains(block) {
                generate(at, now);
            } else if let Ok(slice) = self.memory.get_slice(at as usize, now.len()) {
                slice.copy_to(now);
            }
            at += now.len() as u64;
            inside = rest;
        }
    }

    /// Writes within the state.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        debug_assert!(offset + data.len() as u64 <= self.blocks.state_bytes);
        let Some(last) = (data.len() as u64).checked_sub(1) else { return };
        for block in self.blocks.at(offset)..=self.blocks.at(offset + last) {
            let start = self.blocks.start(block);
            let is_whole = offset <= start && start + self.blocks.length(block) <= offset + data.len() as u64;
            if self.written.insert(block) && self.unwritten == Unwritten::Generated && !is_whole {
                self.put_generated(block);
            }
        }
        if let Ok(slice) = self.memory.get_slice(offset as usize, data.len()) {
            slice.copy_from(data);
        }
    }

    /// Puts into memory what a block has held since power-on, before part of it is written.
    fn put_generated(&mut self, block: u64) {
        let start = self.blocks.start(block);
        let mut whole = vec![0; self.blocks.length(block) as usize];
        generate(start, &mut whole);
        if let Ok(slice) = self.memory.get_slice(start as usize, whole.len()) {
            slice.copy_from(&whole[..]);
        }
    }
}

/// Fills `data` with what a state holds from `offset` on after power-on.
fn generate(offset: u64, data: &mut [u8]) {
    const SEED: u64 = u64::from_le_bytes(*b"power on");
    let within = (offset % 8) as usize;
    let (first, rest) = data.split_at_mut((8 - within).min(data.len()));
    let mut word = [0; 8];
    scramble(SEED, offset - within as u64, &mut word);
    first.copy_from_slice(&word[within..within + first.len()]);
    scramble(SEED, offset - within as u64 + 8, rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_is_cut_into_blocks_that_make_it_up() {
        for state_bytes in [1 << 10, 1032, 5000, 1 << 20, (64 << 20) + 8, 64 << 30] {
            let blocks = Blocks::of(state_bytes);
            let last = blocks.count() - 1;
            assert_eq!(blocks.start(last) + blocks.length(last), state_bytes);
            assert!(blocks.length(last) > 0 && blocks.block_bytes() <= 64 << 10);
            assert_eq!(blocks.at(state_bytes - 1), last);
        }
    }

    #[test]
    fn blocks_of_an_empty_state_hold_something_from_the_first_write_on() {
        let mut state = OwnState::empty(4096).unwrap();
        assert_eq!(state.held().count(), 0);
        state.write(255, &[1, 2]);
        assert!(state.held().contains(0) && state.held().contains(1));
        assert_eq!(state.held().count(), 2);
        let mut back = [9; 4];
        state.read(254, &mut back);
        assert_eq!(back, [0, 1, 2, 0]);
    }

    #[test]
    fn a_powered_on_state_holds_the_same_however_it_is_read() {
        let state = OwnState::powered_on(4096).unwrap();
        assert_eq!(state.held().count(), state.blocks().count());
        let mut whole = [0; 4096];
        state.read(0, &mut whole);
        assert!(whole.chunks(8).all(|word| word != [0; 8]));
        for (offset, length) in [(0, 1), (1, 6), (3, 5), (7, 2), (255, 300), (4090, 6), (13, 4000)] {
            let mut part = vec![0; length];
            state.read(offset as u64, &mut part);
            assert_eq!(part, whole[offset..offset + length], "{offset} {length}");
        }
    }

    #[test]
    fn a_write_changes_no_other_byte_of_a_powered_on_state() {
        let mut state = OwnState::powered_on(2048).unwrap();
        let mut expected = [0; 2048];
        state.read(0, &mut expected);
        state.write(250, &[0xff; 10]);
        state.write(1000, &[]);
        state.write(2047, &[1]);
        expected[250..260].fill(0xff);
        expected[2047] = 1;
        let mut whole = [0; 2048];
        state.read(0, &mut whole);
        assert_eq!(whole, expected);
    }

    #[test]
    fn past_its_end_a_state_reads_as_zero() {
        let mut state = OwnState::empty(1024).unwrap();
        state.write(1016, &[7; 8]);
        let mut back = [9; 4];
        state.read(1022, &mut back);
        assert_eq!(back, [7, 7, 0, 0]);
        state.read(u64::MAX, &mut back);
        assert_eq!(back, [0; 4]);
    }
}
