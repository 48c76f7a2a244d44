//! The jobs of the demo: operation and addresses of each, derived from its number alone.

use whimbrel_models::accel::Descriptor;

use super::machine::Share;

/// Maximum number of jobs in flight.
pub(super) const RING_ENTRIES: u64 = 256;
/// Offset of the first block in the device's share of memory.
const BLOCKS: u64 = 1 << 20;
/// Places for blocks. Twice as many as can be in flight, so that a block is checked before it is overwritten.
pub(super) const PLACES: u64 = 256;
const MAX_BLOCK_BYTES: u64 = 64 << 10;
/// Bytes of the device's own state that one job changes.
const SCRAMBLE_BYTES: u64 = 4096;
/// Jobs in a group: fill, copy, checksum, scramble.
pub(super) const JOBS: u64 = 4;
/// Jobs before all others, which fill all of the device's own state.
pub(super) const FIRST_JOBS: u64 = 64;

/// Job `number`, from 0.
pub(super) fn job(number: u64, layout: Layout) -> Descriptor {
    let tag = number + 1;
    let Some(number) = number.checked_sub(FIRST_JOBS) else {
        let (offset, length) = layout.first_scrambled(number);
        return Descriptor::scramble(tag, offset, length, pattern(number));
    };
    let group = number / JOBS;
    let (first, second) = layout.blocks(group);
    let length = layout.block_bytes;
    match number % JOBS {
        0 => Descriptor::fill(tag, first, length, pattern(group)),
        1 => Descriptor::copy(tag, first, second, length),
        2 => Descriptor::checksum(tag, second, length),
        _ => Descriptor::scramble(tag, layout.scrambled(group), layout.scramble_bytes, pattern(group)),
    }
}

/// The pattern with which a group of jobs fills its block: different for each group, and never zero.
fn pattern(group: u64) -> u64 {
    let mut mixed = group.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed ^ mixed >> 32) | 1
}

/// The layout of a device's share of memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Address of the first block.
    first: u64,
    /// Distance from one place to the next, in bytes.
    stride: u64,
    pub(super) block_bytes: u64,
    state_bytes: u64,
    pub(super) scramble_bytes: u64,
}

impl Layout {
    pub(super) fn new(share: Share, state_bytes: u64) -> Layout {
        let stride = (share.bytes - BLOCKS) / PLACES / 4096 * 4096;
        let block_bytes = (stride / 2 / 4096 * 4096).min(MAX_BLOCK_BYTES);
        let scramble_bytes = SCRAMBLE_BYTES.min(state_bytes) / 8 * 8;
        Layout { first: share.start + BLOCKS, stride, block_bytes, state_bytes, scramble_bytes }
    }

    /// The two blocks of a group, one in each half of its place. Their offset varies, so that in time all of the place
    /// is written.
    pub(super) fn blocks(&self, group: u64) -> (u64, u64) {
        let place = self.first + group % PLACES * self.stride;
        let half = self.stride / 2;
        let spots = half / self.block_bytes;
        let offset = group / PLACES % spots * self.block_bytes;
        (place + offset, place + half + offset)
    }

    /// The part of the state, as offset and length, that one of the first jobs changes: together they change all of it,
    /// but for a rest that is no multiple of 8 bytes. A state too small for so many parts is changed again and again.
    fn first_scrambled(&self, number: u64) -> (u64, u64) {
        let whole = self.state_bytes / 8;
        let part = whole.div_ceil(FIRST_JOBS).max(1);
        let start = (number * part) % whole;
        (start * 8, part.min(whole - start) * 8)
    }

    fn scrambled(&self, group: u64) -> u64 {
        let spots = (self.state_bytes / self.scramble_bytes).max(1);
        // A stride that is coprime to any power of two spreads the writes over all of the state.
        group.wrapping_mul(0x9e37_79b1) % spots * self.scramble_bytes
    }
}

/// The contents of a filled block.
pub(super) fn filled(group: u64, bytes: u64) -> Vec<u8> {
    pattern(group).to_le_bytes().repeat(bytes as usize / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_jobs_under_way_never_meet() {
        for (start, memory) in [(0, 16 << 20), (16 << 20, 16 << 20), (1 << 20, 256 << 20), (0, 1 << 30)] {
            let layout = Layout::new(Share { start, bytes: memory }, 1 << 20);
            let (first, end) = (start + BLOCKS, start + memory);
            assert!(layout.block_bytes >= 4096);
            for group in [0, 1000, PLACES * 7] {
                let mut spans: Vec<(u64, u64)> = (group..=group + RING_ENTRIES / JOBS)
                    .flat_map(|group| [layout.blocks(group).0, layout.blocks(group).1])
                    .map(|block| (block, block + layout.block_bytes))
                    .collect();
                spans.sort_unstable();
                assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{memory}");
                assert!(spans.iter().all(|span| span.0 >= first && span.1 <= end), "{memory}");
            }
        }
    }

    #[test]
    fn a_job_changes_only_state_that_the_device_has() {
        for state in [1 << 10, 3000, 64 << 20] {
            let layout = Layout::new(Share { start: 0, bytes: 16 << 20 }, state);
            for group in [0, 1, 77, u64::MAX / JOBS] {
                let job = job(FIRST_JOBS + group.min(1 << 40) * JOBS + 3, layout);
                assert!(job.length > 0 && job.length.is_multiple_of(8));
                assert!(job.destination.is_multiple_of(8) && job.destination + job.length <= state);
            }
        }
    }

    #[test]
    fn the_first_jobs_change_all_of_the_state() {
        for state in [1 << 10, 3000, 64 << 20] {
            let layout = Layout::new(Share { start: 0, bytes: 16 << 20 }, state);
            let mut parts: Vec<(u64, u64)> =
                (0..FIRST_JOBS).map(|number| layout.first_scrambled(number)).collect();
            parts.sort_unstable();
            let reached = parts.iter().fold(0, |reached, (start, length)| {
                assert!(*start <= reached && *length > 0 && start + length <= state, "{state}");
                reached.max(start + length)
            });
            assert_eq!(reached, state / 8 * 8);
        }
    }

    #[test]
    fn patterns_differ_from_group_to_group_and_are_never_zero() {
        let patterns: std::collections::BTreeSet<u64> = (0..10_000).map(pattern).collect();
        assert_eq!(patterns.len(), 10_000);
        assert!(!patterns.contains(&0));
    }
}
