//! Loading: memory and state arrive in rounds, while the devices run at the source.

use whimbrel_protocol::handover::Entry;

use super::{Destination, Phase};
use crate::proto::control::{Control, Fits};
use crate::proto::operation::{Operation, Place};

impl Destination {
    pub(super) fn begin_loading(&mut self) {
        let arc = self.now.saturating_sub(self.phase_began);
        let setup = arc.saturating_add(self.site.options.expected_inspection);
        let setup_us = u64::try_from(setup.as_micros()).unwrap_or(u64::MAX);
        self.say(Control::Fits(Fits { setup_us }));
        self.load_on();
    }

    /// Loads until the next ROUND or END, while the answer is sent.
    pub(super) fn load_on(&mut self) {
        self.enter(Phase::Load);
    }

    /// Takes in ROUND: the devices load what has arrived.
    pub(super) fn round_ended(&mut self, number: u32, initial: bool) {
        self.round = number;
        self.taken.rounds = number;
        if initial {
            self.record_may_start();
        }
        self.enter(Phase::RoundEnd);
    }

    /// Takes in END: everything has arrived.
    pub(super) fn ended(&mut self, memory_bytes: u64) {
        self.taken.memory_bytes = memory_bytes;
        self.ended_at = self.now;
        self.enter(Phase::Finish);
    }

    /// Records that the devices may start. A crash after this costs a question to the arbiter, and never two running
    /// devices.
    pub(super) fn record_may_start(&mut self) {
        if self.site.journal.is_some() && !std::mem::replace(&mut self.recorded, true) {
            self.record_entry(Entry::MayStart);
        }
    }

    pub(super) fn record_entry(&mut self, entry: Entry) {
        self.pending.start(Place::Owner, Operation::Record { migration: self.migration, entry });
    }
}
