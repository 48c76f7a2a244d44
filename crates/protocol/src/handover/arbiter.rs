//! The decision about devices whose owner is unknown, for both sides the same.

use std::convert::Infallible;

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

impl Side {
    /// Returns the other side.
    #[must_use]
    pub const fn other(self) -> Side {
        match self {
            Side::Source => Side::Destination,
            Side::Destination => Side::Source,
        }
    }

    /// Returns the name: `source` or `destination`.
    pub const fn name(self) -> &'static str {
        match self {
            Side::Source => "source",
            Side::Destination => "destination",
        }
    }
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

/// The decision about devices whose owner is unknown: two journals and an operator, or a key in a store.
///
/// An implementation must keep three promises, whatever is lost, repeated or forgotten on the way:
///
/// - [`Ruling::Mine`] and [`Ruling::Theirs`] are final, and never [`Ruling::Mine`] for both sides.
/// - It decides only if both sides have asked, or by an outcome that one of them has recorded: a side that has neither asked
///   nor recorded an outcome may still act by itself.
/// - If it decides for the source without an outcome, it tells the source only once the destination has recorded
///   [`Entry::Discarded`]: a device may still run there.
///
/// [`JournalArbiter`] has these rules without I/O. A store that both hosts reach keeps the whole of its state under one
/// key, and replaces it only if nobody else has meanwhile:
///
/// ```
/// use std::collections::HashMap;
/// use whimbrel_protocol::handover::{Arbiter, Entry, JournalArbiter, Ruling, Side};
///
/// /// A store with compare-and-swap, such as etcd.
/// #[derive(Default)]
/// struct Store(HashMap<u128, JournalArbiter>);
///
/// impl Store {
///     fn get(&self, key: u128) -> Option<JournalArbiter> {
///         self.0.get(&key).cloned()
///     }
///     fn swap(&mut self, key: u128, old: &Option<JournalArbiter>, new: JournalArbiter) -> bool {
///         let is_current = self.get(key) == *old;
///         if is_current {
///             self.0.insert(key, new);
///         }
///         is_current
///     }
/// }
///
/// /// Decides for the destination once both sides have asked: it has the newer state.
/// struct StoredArbiter<'a> {
///     store: &'a mut Store,
///     migration: u128,
/// }
///
/// impl StoredArbiter<'_> {
///     fn change(&mut self, change: impl Fn(&mut JournalArbiter)) -> JournalArbiter {
///         loop {
///             let old = self.store.get(self.migration);
///             let mut new = old.clone().unwrap_or_default();
///             change(&mut new);
///             if self.store.swap(self.migration, &old, new.clone()) {
///                 return new;
///             }
///         }
///     }
/// }
///
/// impl Arbiter for StoredArbiter<'_> {
///     type Error = std::convert::Infallible;
///
///     fn ask(&mut self, side: Side) -> Result<Ruling, Self::Error> {
///         let decided = self.change(|arbiter| {
///             arbiter.ask(side);
///             // It stays undecided until the other side has asked, too.
///             let _ = arbiter.choose(Side::Destination);
///         });
///         Ok(decided.ruling(side))
///     }
///
///     fn recorded(&mut self, entry: Entry) -> Result<(), Self::Error> {
///         self.change(|arbiter| arbiter.read(entry));
///         Ok(())
///     }
/// }
///
/// let mut store = Store::default();
/// let mut arbiter = StoredArbiter { store: &mut store, migration: 7 };
/// assert_eq!(arbiter.ask(Side::Source)?, Ruling::NotDecided);
/// assert_eq!(arbiter.ask(Side::Destination)?, Ruling::Mine);
/// assert_eq!(arbiter.ask(Side::Source)?, Ruling::Theirs);
/// # Ok::<(), std::convert::Infallible>(())
/// ```
pub trait Arbiter {
    /// The error of an arbiter that cannot be reached.
    type Error;

    /// Takes a question and returns the answer. A side asks only while the outcome is unknown to it, and with this it
    /// promises not to act by itself.
    fn ask(&mut self, side: Side) -> Result<Ruling, Self::Error>;

    /// Takes in an entry that a side has synced.
    fn recorded(&mut self, entry: Entry) -> Result<(), Self::Error>;
}

/// The rules of an [`Arbiter`], without I/O: it takes entries of both journals and questions, and answers each side.
///
/// A journal that records an outcome decides ([`JournalArbiter::read`]). If both journals are without one, somebody who can see
/// both hosts decides, once both sides have asked ([`JournalArbiter::choose`]). A choice for the source lets the destination
/// discard the devices first: the source is told [`Ruling::Mine`] once [`Entry::Discarded`] has been read.
///
/// An arbiter may read a journal late and answer late, twice or never, and forget everything but a choice: it keeps
/// [`JournalArbiter::choice`] in a file or a store before it answers.
///
/// ```
/// use whimbrel_protocol::handover::{Entry, JournalArbiter, Ruling, Side};
///
/// let mut arbiter = JournalArbiter::new();
/// assert_eq!(arbiter.ask(Side::Source), Ruling::NotDecided);
/// arbiter.read(Entry::Discarded);
/// assert_eq!(arbiter.ask(Side::Source), Ruling::Mine);
/// assert_eq!(arbiter.ask(Side::Destination), Ruling::Theirs);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "five facts, each of which can be known without the others"
)]
pub struct JournalArbiter {
    source_waits: bool,
    destination_waits: bool,
    source_owns: bool,
    destination_owns: bool,
    destination_discards: bool,
    choice: Option<Side>,
}

impl JournalArbiter {
    /// Returns an arbiter that knows nothing yet.
    pub fn new() -> JournalArbiter {
        JournalArbiter::default()
    }

    /// Returns an arbiter that continues after a crash with the choice that it kept. It reads the journals again, and the
    /// sides ask again.
    pub fn restart(choice: Option<Side>) -> JournalArbiter {
        JournalArbiter { choice, ..JournalArbiter::default() }
    }

    /// Takes in an entry of one of the two journals.
    pub fn read(&mut self, entry: Entry) {
        match entry {
            Entry::Returned | Entry::Discarded => self.source_owns = true,
            Entry::Gone | Entry::Started => self.destination_owns = true,
            Entry::Discarding => self.destination_discards = true,
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
        match (self.owner(), self.intended()) {
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
        if let Some(decided) = self.owner().or(self.intended()) {
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

    /// Returns the side that will have the devices, by a choice or by a destination that discards them for good.
    fn intended(&self) -> Option<Side> {
        self.choice.or(self.destination_discards.then_some(Side::Source))
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

impl Arbiter for JournalArbiter {
    type Error = Infallible;

    fn ask(&mut self, side: Side) -> Result<Ruling, Infallible> {
        Ok(JournalArbiter::ask(self, side))
    }

    fn recorded(&mut self, entry: Entry) -> Result<(), Infallible> {
        self.read(entry);
        Ok(())
    }
}
