//! The memory that is the engine's own state: cut into blocks, empty until written.

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{MmapRegion, VolatileMemory};

use super::block_set::BlockSet;

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

/// The state. Offsets that lie outside do nothing: whoever has one from outside checks it first.
#[derive(Debug)]
pub(super) struct OwnState {
    memory: MmapRegion,
    blocks: Blocks,
    /// Blocks written since the state was empty. All others are zero, and take no memory.
    used: BlockSet,
}

impl OwnState {
    /// A state of zeros.
    pub(super) fn new(state_bytes: u64) -> Result<OwnState, MmapRegionError> {
        let blocks = Blocks::of(state_bytes);
        let memory =
            MmapRegionBuilder::new_with_bitmap(usize::try_from(state_bytes).unwrap_or(usize::MAX), ())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
                .build()?;
        Ok(OwnState { memory, blocks, used: BlockSet::new(blocks.count()) })
    }

    pub(super) fn blocks(&self) -> Blocks {
        self.blocks
    }

    pub(super) fn used(&self) -> &BlockSet {
        &self.used
    }

    /// Fills `data` from `offset`; what lies past the end reads as zero.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let inside = self.blocks.state_bytes.saturating_sub(offset).min(data.len() as u64) as usize;
        let (inside, past) = data.split_at_mut(inside);
        past.fill(0);
        if !inside.is_empty()
            && let Ok(slice) = self.memory.get_slice(offset as usize, inside.len())
        {
            slice.copy_to(inside);
        }
    }

    /// Writes within the state.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        debug_assert!(offset + data.len() as u64 <= self.blocks.state_bytes);
        if data.is_empty() {
            return;
        }
        if let Ok(slice) = self.memory.get_slice(offset as usize, data.len()) {
            slice.copy_from(data);
            for block in self.blocks.at(offset)..=self.blocks.at(offset + data.len() as u64 - 1) {
                self.used.insert(block);
            }
        }
    }
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
    fn blocks_are_used_from_the_first_write_on() {
        let mut state = OwnState::new(4096).unwrap();
        assert_eq!(state.used().count(), 0);
        state.write(255, &[1, 2]);
        assert!(state.used().contains(0) && state.used().contains(1));
        assert_eq!(state.used().count(), 2);
        let mut back = [9; 4];
        state.read(254, &mut back);
        assert_eq!(back, [0, 1, 2, 0]);
    }

    #[test]
    fn past_its_end_a_state_reads_as_zero() {
        let mut state = OwnState::new(1024).unwrap();
        state.write(1016, &[7; 8]);
        let mut back = [9; 4];
        state.read(1022, &mut back);
        assert_eq!(back, [7, 7, 0, 0]);
        state.read(u64::MAX, &mut back);
        assert_eq!(back, [0; 4]);
    }
}
