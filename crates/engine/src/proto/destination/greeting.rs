//! The greeting: the versions, features and devices of both sides are compared, before any device is asked for anything.

use super::Destination;
use crate::error::Error;
use crate::proto::control::Table;
use crate::proto::negotiate::{self, Offer};
use crate::proto::table;

impl Destination {
    pub(super) fn greeted(&mut self, offer: &Offer) {
        self.started = self.now;
        self.spans.identify(&offer.migration);
        self.taken.migration.clone_from(&offer.migration);
        let id = offer.id();
        // The journal's histories without entries have the id 0.
        let is_known = |id| self.site.journal.as_ref().is_some_and(|known| id == 0 || known.contains(&id));
        if let Some(id) = id.filter(|id| is_known(*id)) {
            // Nothing of this one may join the records of the other.
            return self.fail(Error::Protocol(format!(
                "the source uses the migration id {id:032x}, which the journal here cannot take again: each attempt \
                 needs a new one"
            )));
        }
        self.migration = id.unwrap_or_default();
        match negotiate::choose(offer, &self.site.features) {
            Ok(features) => {
                self.features = features;
                self.answered = true;
            }
            Err(error) => self.fail(error.into()),
        }
    }

    pub(super) fn compare(&mut self, theirs: Table) {
        match table::fits(&theirs, &self.site.table) {
            Ok(()) => {
                self.taken.from_devices = theirs.devices.iter().map(|device| device.name.clone()).collect();
                self.theirs = theirs;
                self.answered = true;
            }
            Err(error) => self.fail(error.into()),
        }
    }
}
