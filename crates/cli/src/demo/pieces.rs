//! The tasks of the demo at a disk: what each of a lane's tasks is, and what it writes or finds, derived from its number alone.

use std::ops::Range;

use super::machine::Share;
use crate::output;

/// Lanes, each with a part of the disk and of memory of its own.
pub(super) const LANES: u64 = 16;
/// Bytes of a piece, which one command transfers.
pub(super) const PIECE_BYTES: u64 = 16 << 10;
/// The most pieces of the disk that a lane uses.
const MAX_PIECES: u64 = 64;
/// Offset of the buffers in the device's share of memory.
const BUFFERS: u64 = 1 << 20;
/// Tasks of a round.
const TASKS: u64 = 3;
/// Rounds from one flush to the next, and from one write with FUA to the next.
const FLUSH_EVERY: u64 = 8;
const FORCE_EVERY: u64 = 16;

/// A task of a lane. The rounds say which piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    Write(u64),
    Read(u64),
    Flush,
}

/// Task `number` of a lane, from 0. In each round a lane writes a piece, flushes the disk or reads its oldest piece, and reads
/// the new one.
pub(super) fn task(number: u64, layout: &Layout) -> Task {
    let round = number / TASKS;
    match number % TASKS {
        0 => Task::Write(round),
        1 if round % FLUSH_EVERY == FLUSH_EVERY - 1 => Task::Flush,
        1 => Task::Read(layout.kept(number).start),
        _ => Task::Read(round),
    }
}

/// The places of a lane's pieces, on the disk and in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// Address of the first buffer.
    first: u64,
    /// Buffers of a lane.
    buffers: u64,
    /// Pieces of a lane.
    pieces: u64,
}

impl Layout {
    /// Returns the layout on a disk of this size, or why it has no room for one.
    pub(super) fn new(share: Share, disk_bytes: u64) -> Result<Layout, String> {
        let pieces = (disk_bytes / LANES / PIECE_BYTES).min(MAX_PIECES);
        if pieces == 0 {
            let least = output::bytes(LANES * PIECE_BYTES);
            return Err(format!("it has {}, expected at least {least}", output::bytes(disk_bytes)));
        }
        let buffers = (share.bytes - BUFFERS) / LANES / PIECE_BYTES;
        Ok(Layout { first: share.start + BUFFERS, buffers, pieces })
    }

    /// Offset on the disk of the piece that a round writes.
    pub(super) fn offset(&self, lane: u64, round: u64) -> u64 {
        (lane * self.pieces + round % self.pieces) * PIECE_BYTES
    }

    /// Address of the memory for a task. In time, all of the share is written.
    pub(super) fn buffer(&self, lane: u64, task: u64) -> u64 {
        self.first + (lane * self.buffers + task % self.buffers) * PIECE_BYTES
    }

    /// The rounds whose pieces are on the disk after all tasks before this one.
    pub(super) fn kept(&self, task: u64) -> Range<u64> {
        let end = task.div_ceil(TASKS);
        end.saturating_sub(self.pieces)..end
    }

    /// Returns the contents of the piece that a round writes: different for each lane and round, and never all zeros.
    #[expect(clippy::unused_self, reason = "it belongs to the pieces of the layout")]
    pub(super) fn contents(&self, lane: u64, round: u64) -> Vec<u8> {
        let seed = (round * LANES + lane + 1).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let word = |at: u64| (seed ^ at).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..PIECE_BYTES / 8).flat_map(|at| u64::to_le_bytes(word(at))).collect()
    }

    /// Returns whether a round's write goes to the disk at once.
    pub(super) fn is_forced(round: u64) -> bool {
        round.is_multiple_of(FORCE_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SHARE: Share = Share { start: 16 << 20, bytes: 16 << 20 };

    #[test]
    fn lanes_have_no_piece_and_no_buffer_in_common_and_stay_within_disk_and_memory() {
        for disk in [256 << 10, 1_000_000, 64 << 20, 1 << 40] {
            let layout = Layout::new(SHARE, disk).unwrap();
            let (mut pieces, mut buffers) = (BTreeSet::new(), BTreeSet::new());
            for lane in 0..LANES {
                let own: BTreeSet<u64> = (0..1000).map(|round| layout.offset(lane, round)).collect();
                assert!(own.iter().all(|at| at + PIECE_BYTES <= disk && pieces.insert(*at)), "{disk}");
                let own: BTreeSet<u64> = (0..1000).map(|task| layout.buffer(lane, task)).collect();
                let end = SHARE.start + SHARE.bytes;
                assert!(own.iter().all(|at| at + PIECE_BYTES <= end && buffers.insert(*at)), "{disk}");
            }
        }
        assert!(Layout::new(SHARE, (256 << 10) - 512).unwrap_err().contains("expected at least 256"));
    }

    #[test]
    fn a_task_reads_only_pieces_that_were_written_and_not_yet_again() {
        for disk in [256 << 10, 4 << 20] {
            let layout = Layout::new(SHARE, disk).unwrap();
            let mut disk = std::collections::BTreeMap::new();
            let mut flushes = 0;
            for number in 0..1000 {
                match task(number, &layout) {
                    Task::Write(round) => drop(disk.insert(layout.offset(3, round), round)),
                    Task::Read(round) => assert_eq!(disk[&layout.offset(3, round)], round, "{number}"),
                    Task::Flush => flushes += 1,
                }
                let kept: BTreeSet<u64> = layout.kept(number + 1).collect();
                assert_eq!(kept, disk.values().copied().collect());
            }
            assert!(flushes > 0);
        }
    }

    #[test]
    fn the_contents_of_pieces_differ() {
        let layout = Layout::new(SHARE, 1 << 20).unwrap();
        let contents: BTreeSet<Vec<u8>> =
            (0..LANES).flat_map(|lane| (0..4).map(move |round| layout.contents(lane, round))).collect();
        assert_eq!(contents.len(), 4 * LANES as usize);
    }
}
