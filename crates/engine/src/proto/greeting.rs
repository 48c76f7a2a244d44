//! The greeting of a source at a destination that anyone can reach: HELLO, ACCEPT and TABLE, before it is known as a source.
//!
//! It is complete once the table is well-formed. Only the machine of the destination compares the table with its own devices.

use std::collections::BTreeSet;

use super::control::Table;
use super::negotiate::{self, Feature, Offer};
use crate::error::Error;

/// The terms on which a destination accepts a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The features that the destination can use.
    pub features: BTreeSet<Feature>,
    /// The ids of the migrations that its journal has; `None` without a journal.
    pub journal: Option<Vec<u128>>,
}

impl Default for Terms {
    /// Every feature of this release, and no journal.
    fn default() -> Terms {
        Terms { features: BTreeSet::from(Feature::ALL), journal: None }
    }
}

impl Terms {
    /// Returns the features to use with a source, or the reason to refuse it.
    pub fn choose(&self, offer: &Offer) -> Result<BTreeSet<Feature>, Error> {
        check_id(offer, self.journal.as_deref())?;
        Ok(negotiate::choose(offer, &self.features)?)
    }
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
    /// TABLE, which is well-formed.
    pub table: Table,
}

impl Greeting {
    /// Returns the greeting of a source that has got ACCEPT with these features.
    pub fn new(offer: Offer, features: BTreeSet<Feature>, table: Table) -> Greeting {
        Greeting { offer, features, table }
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
    fn what_the_destination_lacks_is_not_chosen() {
        let terms = Terms { features: BTreeSet::from([Feature::Ping]), ..Terms::default() };
        assert_eq!(terms.choose(&offer(1)).unwrap(), BTreeSet::from([Feature::Ping]));
        let needs = BTreeSet::from([Feature::Setup]);
        let demanding = Offer::new(1, &BTreeSet::from(Feature::ALL), &needs);
        assert!(terms.choose(&demanding).unwrap_err().to_string().contains("needs the feature 'setup'"));
    }
}
