//! The greeting: the versions, features and devices of both sides are compared, before any device changes its state.

use super::{Destination, Site};
use crate::error::Error;
use crate::proto::control::{Control, Table};
use crate::proto::greeting::{Greeting, accept, check_id};
use crate::proto::negotiate::{self, Offer};
use crate::proto::operation::{Event, Now};
use crate::proto::table;

impl Destination {
    /// Returns a machine for a source that has been greeted already: ACCEPT was sent, and its TABLE has arrived.
    pub fn of_greeted(site: Site, greeting: Greeting, now: Now) -> Destination {
        let Greeting { offer, accept, table, .. } = greeting;
        let mut destination = Destination::new(Site { secret: accept.secret, ..site }, now);
        destination.accepted = Some(accept);
        destination.input(Event::Received(Control::Hello(offer)), now);
        destination.input(Event::Received(Control::Table(table)), now);
        destination
    }

    pub(super) fn greeted(&mut self, offer: &Offer) {
        self.started = self.now;
        self.spans.identify(&offer.migration);
        self.taken.migration.clone_from(&offer.migration);
        if let Err(error) = check_id(offer, self.site.journal.as_deref()) {
            return self.fail(error);
        }
        self.migration = offer.id().unwrap_or_default();
        let features = match negotiate::choose(offer, &self.site.features) {
            Ok(features) => features,
            Err(error) => return self.fail(error.into()),
        };
        let most = (self.site.options.channels, self.site.options.reconnect);
        let accept = accept(offer, &features, most, self.site.secret);
        if self.accepted.as_ref().is_some_and(|accepted| *accepted != accept) {
            return self.fail(Error::Protocol(
                "the source was accepted with other features than this destination has".into(),
            ));
        }
        self.features = features;
        self.resumption.agree(&accept);
        self.accept = Some(accept);
        self.answered = true;
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
