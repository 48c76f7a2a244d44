//! The decision about devices whose owner is unknown, for both sides the same.

use super::journal::Entry;

/// A side of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a migration has two sides")]
pub enum Side {
    /// The side that had the devices.
    Source,
    /// The side that receives them.
    Destination,
}

/// The arbiter's answer to the side that asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "each side must obey every ruling")]
pub enum Ruling {
    /// The devices belong to the side that asked. This is final.
    Mine,
    /// The devices belong to the other side. This is final.
    Theirs,
    /// Not decided yet: the side that asked keeps its devices as they are, and asks again later.
    NotDecided,
}

/// A choice that came too early: both sides must have asked, because a side that has not may still act by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {missing:?} has not asked the arbiter: it may still act by itself")]
#[non_exhaustive]
pub struct NotWaiting {
    /// The side that has not asked.
    pub missing: Side,
}

/// The rules of the arbiter, without I/O: it takes entries of both journals and questions, and answers each side.
///
/// A journal that records an outcome decides ([`Arbiter::read`]). If both journals are without one, somebody who can see
/// both hosts decides, once both sides have asked ([`Arbiter::choose`]). A choice for the source lets the destination
/// discard the devices first: the source is told [`Ruling::Mine`] once [`Entry::Discarded`] has been read.
///
/// An arbiter may read a journal late and answer late, twice or never, and forget everything but a choice: it keeps
/// [`Arbiter::choice`] in a file or a store before it answers.
///
/// ```
/// use whimbrel_protocol::handover::{Arbiter, Entry, Ruling, Side};
///
/// let mut arbiter = Arbiter::new();
/// assert_eq!(arbiter.ask(Side::Source), Ruling::NotDecided);
/// arbiter.read(Entry::Discarded);
/// assert_eq!(arbiter.ask(Side::Source), Ruling::Mine);
/// assert_eq!(arbiter.ask(Side::Destination), Ruling::Theirs);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four facts, each of which can be known without the others"
)]
pub struct Arbiter {
    source_waits: bool,
    destination_waits: bool,
    source_owns: bool,
    destination_owns: bool,
    choice: Option<Side>,
}

impl Arbiter {
    /// Returns an arbiter that knows nothing yet.
    pub fn new() -> Arbiter {
        Arbiter::default()
    }

    /// Returns an arbiter that continues after a crash with the choice that it kept. It reads the journals again, and the
    /// sides ask again.
    pub fn restart(choice: Option<Side>) -> Arbiter {
        Arbiter { choice, ..Arbiter::default() }
    }

    /// Takes in an entry of one of the two journals.
    pub fn read(&mut self, entry: Entry) {
        match entry {
            Entry::Returned | Entry::Discarded => self.source_owns = true,
            Entry::Gone | Entry::Started => self.destination_owns = true,
            Entry::MayBeHandedOver | Entry::MayStart => {}
        }
    }

    /// Takes a question and returns the answer. A side asks only while the outcome is unknown to it, and with this it
    /// promises not to act by itself.
    pub fn ask(&mut self, side: Side) -> Ruling {
        match side {
            Side::Source => self.source_waits = true,
            Side::Destination => self.destination_waits = true,
        }
        self.ruling(side)
    }

    /// Returns the answer to a side that has asked.
    pub fn ruling(&self, side: Side) -> Ruling {
        match (self.owner(), self.choice) {
            (None, None) => Ruling::NotDecided,
            // A device may still run at the destination.
            (None, Some(Side::Source)) if side == Side::Source => Ruling::NotDecided,
            (Some(owner), _) | (None, Some(owner)) if owner == side => Ruling::Mine,
            _ => Ruling::Theirs,
        }
    }

    /// Gives the devices to a side, if neither journal has an outcome and nothing was chosen before. Returns the side
    /// that has them or will have them.
    pub fn choose(&mut self, side: Side) -> Result<Side, NotWaiting> {
        if let Some(decided) = self.owner().or(self.choice) {
            return Ok(decided);
        }
        if !self.source_waits {
            return Err(NotWaiting { missing: Side::Source });
        }
        if !self.destination_waits {
            return Err(NotWaiting { missing: Side::Destination });
        }
        self.choice = Some(side);
        Ok(side)
    }

    /// Returns the choice that was made, which must be kept.
    pub const fn choice(&self) -> Option<Side> {
        self.choice
    }

    /// Returns the owner by the journals. Two that contradict each other decide nothing.
    const fn owner(&self) -> Option<Side> {
        match (self.source_owns, self.destination_owns) {
            (true, false) => Some(Side::Source),
            (false, true) => Some(Side::Destination),
            (false, false) | (true, true) => None,
        }
    }
}
