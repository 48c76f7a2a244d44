//! The greeting of a source at a destination that anyone can reach: HELLO, ACCEPT and TABLE, before it is known as a source.
//!
//! It is complete once the table is well-formed. Only the machine of the destination compares the table with its own devices.

use std::collections::BTreeSet;
use std::time::Duration;

use super::control::Table;
use super::join::{MAX_CHANNELS, Secret};
use super::negotiate::{self, Accept, CHECK, Feature, Offer};
use crate::error::Error;

/// The beginning of the reason in FAILED of a destination that has no time for another peer.
pub(crate) const BUSY: &str = "busy: ";

/// The terms on which a destination accepts a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The features that the destination can use.
    pub features: BTreeSet<Feature>,
    /// The ids of the migrations that its journal has; `None` without a journal.
    pub journal: Option<Vec<u128>>,
    /// The maximum number of connections in all.
    pub channels: u32,
    /// The time to wait for the replacement of a connection that is lost in pre-copy. Zero: it is not replaced.
    pub reconnect: Duration,
    /// The answers to checks; `None` to refuse them.
    pub checks: Option<Answers>,
}

/// The facts that a destination answers checks with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// Its devices and memory, and the blobs that its owner can load.
    pub table: Table,
    /// Time that its owner expects to need to load its blobs and to inspect the result.
    pub setup: Duration,
}

impl Default for Terms {
    /// Every feature of this release, no journal, and no answers to checks.
    fn default() -> Terms {
        Terms {
            features: BTreeSet::from(Feature::ALL),
            journal: None,
            channels: MAX_CHANNELS,
            reconnect: Duration::ZERO,
            checks: None,
        }
    }
}

impl Terms {
    /// Returns the features to use with a source, or the reason to refuse it.
    pub fn choose(&self, offer: &Offer) -> Result<BTreeSet<Feature>, Error> {
        check_id(offer, self.journal.as_deref())?;
        match offer.without_check().filter(|_| self.checks.is_some()) {
            Some(offer) => Ok(negotiate::choose(&offer, &self.features)?),
            None => Ok(negotiate::choose(offer, &self.features)?),
        }
    }

    /// Returns the answers for a source that only asks whether its devices fit.
    pub fn answers_for(&self, offer: &Offer) -> Option<&Answers> {
        self.checks.as_ref().filter(|_| offer.needs.contains(CHECK))
    }

    /// Returns the answer to a source that is accepted. `secret` is for its further connections, if it is to have any.
    pub fn accept(&self, offer: &Offer, features: &BTreeSet<Feature>, secret: Option<Secret>) -> Accept {
        let mut accept = accept(offer, features, (self.channels, self.reconnect), secret);
        if self.answers_for(offer).is_some() {
            accept.features.insert(CHECK.to_string());
        }
        accept
    }
}

/// Returns the answer to an offer of which these features are in use. `most` are the maximum number of connections, and the
/// time to wait for one in place of a lost one.
pub(super) fn accept(
    offer: &Offer,
    features: &BTreeSet<Feature>,
    (most, reconnect): (u32, Duration),
    secret: Option<Secret>,
) -> Accept {
    let secret = secret.filter(|_| features.iter().any(|feature| feature.joins()));
    // Without a secret nobody can join.
    let most = if secret.is_some() { most } else { 1 };
    let is_asked = offer.channels.is_some() && features.contains(&Feature::Lanes);
    let channels = is_asked.then(|| negotiate::channels(offer, features, most));
    let reconnect_ms = secret.and_then(|_| negotiate::reconnect_ms(offer, features, reconnect));
    Accept { channels, secret, reconnect_ms, ..Accept::new(features) }
}

/// Refuses the id of a migration that the journal cannot take: nothing of this one may join the records of another.
pub(super) fn check_id(offer: &Offer, journal: Option<&[u128]>) -> Result<(), Error> {
    // The journal's histories without entries have the id 0.
    let is_known = |id: &u128| journal.is_some_and(|known| *id == 0 || known.contains(id));
    match offer.id().filter(is_known) {
        Some(id) => Err(Error::Protocol(format!(
            "the source uses the migration id {id:032x}, which the journal here cannot take again: each attempt needs a \
             new one"
        ))),
        None => Ok(()),
    }
}

/// A complete greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Greeting {
    /// HELLO.
    pub offer: Offer,
    /// The features of ACCEPT, which are in use from there on.
    pub features: BTreeSet<Feature>,
    /// ACCEPT, as the source has got it.
    pub accept: Accept,
    /// TABLE, which is well-formed.
    pub table: Table,
}

impl Greeting {
    /// Returns the greeting of a source that has got this ACCEPT.
    pub fn new(offer: Offer, accept: Accept, table: Table) -> Greeting {
        let features = accept.features.iter().filter_map(|name| Feature::from_name(name)).collect();
        Greeting { offer, features, accept, table }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(id: u128) -> Offer {
        Offer::new(id, &BTreeSet::from(Feature::ALL), &BTreeSet::new())
    }

    #[test]
    fn a_journal_takes_each_id_once_and_never_zeros() {
        let terms = Terms { journal: Some(vec![0, 7]), ..Terms::default() };
        assert_eq!(terms.choose(&offer(8)).unwrap(), BTreeSet::from(Feature::ALL));
        for id in [0, 7] {
            let told = terms.choose(&offer(id)).unwrap_err().to_string();
            assert!(told.contains(&format!("{id:032x}, which the journal here cannot take again")), "{told}");
            assert!(Terms::default().choose(&offer(id)).is_ok(), "without a journal");
        }
        let first = Terms { journal: Some(Vec::new()), ..Terms::default() };
        assert!(first.choose(&offer(0)).is_err(), "an id of zeros is that of no migration");
    }

    #[test]
    fn a_check_is_accepted_by_a_destination_that_answers_it_and_refused_by_name_by_others() {
        let features = BTreeSet::from([Feature::Ping]);
        let check = Offer::for_check(1, &features, &BTreeSet::new());
        let told = Terms::default().choose(&check).unwrap_err().to_string();
        assert!(told.contains("needs the feature 'check'"), "{told}");
        let answers = Answers { table: Table::default(), setup: Duration::ZERO };
        let terms = Terms { checks: Some(answers.clone()), ..Terms::default() };
        assert_eq!(terms.choose(&check).unwrap(), features);
        assert_eq!(terms.answers_for(&check), Some(&answers));
        assert_eq!(terms.answers_for(&offer(1)), None);
        let demanding = Offer::for_check(1, &features, &BTreeSet::from([Feature::Blobs]));
        let terms = Terms { features, ..terms };
        assert!(terms.choose(&demanding).unwrap_err().to_string().contains("needs the feature 'blobs'"));
    }

    #[test]
    fn what_the_destination_lacks_is_not_chosen() {
        let terms = Terms { features: BTreeSet::from([Feature::Ping]), ..Terms::default() };
        assert_eq!(terms.choose(&offer(1)).unwrap(), BTreeSet::from([Feature::Ping]));
        let needs = BTreeSet::from([Feature::Setup]);
        let demanding = Offer::new(1, &BTreeSet::from(Feature::ALL), &needs);
        assert!(terms.choose(&demanding).unwrap_err().to_string().contains("needs the feature 'setup'"));
    }

    #[test]
    fn a_secret_and_further_connections_are_for_a_source_that_can_use_them() {
        let secret = Some(Secret::new([7; 32]));
        let answer = |offer: &Offer, channels| {
            let terms = Terms { channels, ..Terms::default() };
            let features = terms.choose(offer).unwrap();
            let Accept { channels, secret, .. } = terms.accept(offer, &features, secret);
            (channels, secret)
        };
        let offered = offer(1).with_channels(4);
        assert_eq!(answer(&offered, 16), (Some(4), secret));
        assert_eq!(answer(&offered, 2), (Some(2), secret));
        assert_eq!(answer(&offered, 1), (Some(1), secret));
        assert_eq!(answer(&offer(1).with_channels(1).with_reconnect(Duration::ZERO), 16), (None, None));
        let without = Terms::default().accept(&offered, &BTreeSet::from(Feature::ALL), None);
        assert_eq!((without.channels, without.secret), (Some(1), None));
    }

    #[test]
    fn a_lost_connection_is_replaced_within_the_shorter_time_of_both_sides() {
        let seconds = Duration::from_secs;
        let answer = |offer: &Offer, reconnect, secret| {
            let terms = Terms { reconnect, ..Terms::default() };
            let features = terms.choose(offer).unwrap();
            let Accept { channels, reconnect_ms, .. } = terms.accept(offer, &features, secret);
            (channels, reconnect_ms)
        };
        let secret = Some(Secret::new([7; 32]));
        let offered = offer(1).with_reconnect(seconds(4));
        assert_eq!(answer(&offered.clone().with_channels(1), seconds(9), secret), (None, Some(4000)));
        assert_eq!(answer(&offered.clone().with_channels(4), seconds(3), secret), (Some(4), Some(3000)));
        assert_eq!(answer(&offered.clone().with_channels(4), Duration::ZERO, secret), (Some(4), None));
        assert_eq!(answer(&offered.with_channels(4), seconds(9), None), (Some(1), None));
        assert_eq!(answer(&offer(1), seconds(9), secret), (None, None));
    }
}
