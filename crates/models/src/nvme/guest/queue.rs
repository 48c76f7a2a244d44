//! A pair of queues as the host keeps it: a submission queue and its completion queue, with one identifier.

use std::collections::BTreeSet;

/// A pair of queues. The commands' identifiers are the numbers of slots, each with a page for a list of PRPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct QueuePair {
    pub(super) entries: u32,
    pub(super) submissions: u64,
    pub(super) completions: u64,
    /// The first slot's page for a list.
    pub(super) lists: u64,
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) phase: bool,
    /// Head of the submission queue, as the controller has last told.
    pub(super) fetched: u32,
    /// The identifiers of commands in flight.
    pub(super) in_flight: BTreeSet<u16>,
}

impl QueuePair {
    /// Bytes of memory for a pair with this many entries: both queues, and the lists.
    pub(super) fn bytes(entries: u32) -> u64 {
        pages(u64::from(entries) * 64) + pages(u64::from(entries) * 16) + u64::from(entries) * 4096
    }

    /// Returns a pair in memory at a multiple of 4096.
    pub(super) fn new(base: u64, entries: u32) -> QueuePair {
        let completions = base + pages(u64::from(entries) * 64);
        QueuePair {
            entries,
            submissions: base,
            completions,
            lists: completions + pages(u64::from(entries) * 16),
            tail: 0,
            head: 0,
            phase: true,
            fetched: 0,
            in_flight: BTreeSet::new(),
        }
    }

    /// Returns a free identifier, if there is room in the queue; one entry stays empty.
    pub(super) fn free(&self) -> Option<u16> {
        let next = (self.tail + 1) % self.entries;
        let has_room = next != self.fetched && self.in_flight.len() + 1 < self.entries as usize;
        let gap = self.in_flight.iter().zip(0..).find(|(used, slot)| *used != slot);
        has_room.then(|| gap.map_or(self.in_flight.len() as u16, |(_, slot)| slot))
    }
}

fn pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(4096)
}
