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

    /// Appends the pair as words, for [`QueuePair::read`].
    pub(super) fn write(&self, words: &mut Vec<u64>) {
        let QueuePair { entries, submissions, completions, lists, tail, head, phase, fetched, in_flight } =
            self;
        words.extend([u64::from(*entries), *submissions, *completions, *lists]);
        words.extend([*tail, *head, u32::from(*phase), *fetched].map(u64::from));
        words.push(in_flight.len() as u64);
        words.extend(in_flight.iter().map(|identifier| u64::from(*identifier)));
    }

    /// Takes a pair from words. `None` if they describe no pair.
    pub(super) fn read(words: &mut impl Iterator<Item = u64>) -> Option<QueuePair> {
        let entries = u32::try_from(words.next()?).ok().filter(|entries| (2..=1 << 16).contains(entries))?;
        let (submissions, completions, lists) = (words.next()?, words.next()?, words.next()?);
        let mut below = |end: u32| {
            let word = words.next()?;
            u32::try_from(word).ok().filter(|value| *value < end)
        };
        let (tail, head, phase, fetched) =
            (below(entries)?, below(entries)?, below(2)? == 1, below(entries)?);
        let in_flight =
            (0..below(entries)?).map(|_| u16::try_from(below(1 << 16)?).ok()).collect::<Option<_>>()?;
        Some(QueuePair { entries, submissions, completions, lists, tail, head, phase, fetched, in_flight })
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
