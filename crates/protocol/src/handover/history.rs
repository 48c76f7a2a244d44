//! The migrations that a journal records, and which of them are settled.

use super::arbiter::Side;
use super::journal::{DeviceRecord, Entry, Fact, Record, RecordError};

impl Entry {
    /// Returns the side that writes this entry.
    pub const fn side(self) -> Side {
        match self {
            Entry::MayBeHandedOver | Entry::Returned | Entry::Gone => Side::Source,
            Entry::MayStart | Entry::Started | Entry::Discarding | Entry::Discarded => Side::Destination,
        }
    }

    /// Returns whether this entry is an outcome.
    pub const fn is_outcome(self) -> bool {
        match self {
            Entry::Returned | Entry::Gone | Entry::Started | Entry::Discarded => true,
            Entry::MayBeHandedOver | Entry::MayStart | Entry::Discarding => false,
        }
    }
}

/// A migration as the journal of one side records it.
///
/// ```
/// use whimbrel_protocol::handover::{Entry, History, Record};
///
/// let mut records = vec![Record::new(7, "host-b", Entry::MayBeHandedOver)?];
/// assert!(History::of(&records)?[0].is_open());
/// records.push(Record::new(7, "host-b", Entry::Gone)?);
/// assert_eq!(History::of(&records)?[0].outcome(), Some(Entry::Gone));
/// # Ok::<(), whimbrel_protocol::handover::RecordError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct History {
    /// The migration's id; 0 without entries.
    pub migration: u128,
    /// The side that has written it.
    pub side: Side,
    /// The name of the other side. It may come from there: see [`printable`](crate::text::printable).
    pub peer: String,
    /// The devices, in their order; none if the journal was not told of them.
    pub devices: Vec<DeviceRecord>,
    /// The entries, in their order.
    pub entries: Vec<Entry>,
}

impl History {
    /// Groups the records of a journal by migration, in the order in which these began. The last one may have no entry
    /// ([`History::is_unrecorded`]); one before it without an entry had nothing to record, and is left out.
    pub fn of(records: &[Record]) -> Result<Vec<History>, RecordError> {
        let mut histories: Vec<History> = Vec::new();
        for record in records {
            let migration = record.migration();
            let same = |history: &History| !history.is_unrecorded() && history.migration == migration;
            let known = histories.iter().position(same);
            let is_fresh = histories.last().is_some_and(History::is_unrecorded);
            match record.fact() {
                Fact::Begin(side, device) => {
                    if is_fresh {
                        histories.pop();
                    }
                    histories.push(History { devices: vec![device.clone()], ..History::new(*side) });
                }
                Fact::Device(device) if is_fresh => {
                    histories
                        .iter_mut()
                        .next_back()
                        .into_iter()
                        .for_each(|it| it.devices.push(device.clone()));
                }
                Fact::Device(_) => return Err(RecordError::Contradictory { migration }),
                Fact::Entry(entry, peer) => {
                    let at = match known {
                        Some(at) => at,
                        None if is_fresh => histories.len() - 1,
                        None => {
                            histories.push(History::new(entry.side()));
                            histories.len() - 1
                        }
                    };
                    let history = &mut histories[at];
                    if history.side != entry.side() {
                        return Err(RecordError::Contradictory { migration });
                    }
                    if history.is_unrecorded() {
                        (history.migration, history.peer) = (migration, peer.clone());
                    }
                    history.entries.push(*entry);
                }
            }
        }
        Ok(histories)
    }

    fn new(side: Side) -> History {
        History { migration: 0, side, peer: String::new(), devices: Vec::new(), entries: Vec::new() }
    }

    /// Returns whether nothing but the devices is recorded: the migration was refused, or this side was interrupted before
    /// anything could be handed over.
    pub fn is_unrecorded(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the outcome, if exactly one is recorded.
    pub fn outcome(&self) -> Option<Entry> {
        let mut outcomes = self.entries.iter().copied().filter(|entry| entry.is_outcome());
        let first = outcomes.next()?;
        outcomes.all(|other| other == first).then_some(first)
    }

    /// Returns whether its outcome is unknown: the devices may be on the other side.
    pub fn is_open(&self) -> bool {
        !self.is_unrecorded() && self.outcome().is_none()
    }
}
