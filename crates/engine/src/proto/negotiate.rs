//! Versions and features: the offer of each side, and the best common choice.

mod feature;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_protocol::text::printable;

use super::join::{MAX_CHANNELS, Secret};

pub use feature::{Feature, names};

/// The protocol version of this release.
pub const VERSION: u32 = 2;

/// The feature of a source that only asks whether its devices fit. It is needed, and in use if the destination answers checks.
/// No migration uses it.
pub const CHECK: &str = "check";

/// The offer of the source, in its first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// The migration's id, a UUID as 32 hexadecimal digits. The journals of both sides have it.
    pub migration: String,
    /// The protocol versions that the source supports, in any order.
    pub versions: Vec<u32>,
    /// The features that the source can use, by name. Unknown ones are ignored.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// The features that the source requires, because some of its data needs them.
    #[serde(default)]
    pub needs: BTreeSet<String>,
    /// With [`Feature::Lanes`]: the number of connections in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<u32>,
    /// With [`Feature::Resume`]: the time for which the source tries to replace a lost connection, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_ms: Option<u64>,
}

impl Offer {
    /// Returns the offer of this release.
    pub fn new(migration: u128, features: &BTreeSet<Feature>, needs: &BTreeSet<Feature>) -> Offer {
        Offer {
            migration: format!("{migration:032x}"),
            versions: vec![VERSION],
            features: names(features),
            needs: names(needs),
            channels: None,
            reconnect_ms: None,
        }
    }

    /// Offers to use so many connections in all. One is what a migration has anyway.
    #[must_use]
    pub fn with_channels(mut self, channels: u32) -> Offer {
        if channels > 1 {
            self.features.insert(Feature::Lanes.name().to_string());
            self.channels = Some(channels);
        } else {
            self.features.remove(Feature::Lanes.name());
        }
        self
    }

    /// Offers to replace a connection that is lost in pre-copy, and to try it for so long. Zero: it is not replaced.
    #[must_use]
    pub fn with_reconnect(mut self, within: Duration) -> Offer {
        if within.is_zero() {
            self.features.remove(Feature::Resume.name());
        } else {
            self.features.insert(Feature::Resume.name().to_string());
            self.reconnect_ms = Some(milliseconds(within));
        }
        self
    }

    /// Offers to compress memory and state, or not to.
    #[must_use]
    pub fn with_compression(mut self, compresses: bool) -> Offer {
        let name = Feature::Zstd.name();
        if compresses {
            self.features.insert(name.to_string());
        } else {
            self.features.remove(name);
        }
        self
    }

    /// Returns the offer of a source that only asks whether its devices fit.
    pub fn for_check(migration: u128, features: &BTreeSet<Feature>, needs: &BTreeSet<Feature>) -> Offer {
        // Nothing joins a check, and no data is sent.
        let is_of_check = |feature: &Feature| !feature.joins() && *feature != Feature::Zstd;
        let features = features.iter().copied().filter(is_of_check).collect();
        let mut offer = Offer::new(migration, &features, needs);
        offer.features.insert(CHECK.to_string());
        offer.needs.insert(CHECK.to_string());
        offer
    }

    /// Returns the offer without [`CHECK`], if that is needed.
    pub(super) fn without_check(&self) -> Option<Offer> {
        let mut offer = self.clone();
        offer.features.remove(CHECK);
        offer.needs.remove(CHECK).then_some(offer)
    }

    /// Returns the migration's id, or `None` if it is malformed.
    pub fn id(&self) -> Option<u128> {
        let is_hex =
            self.migration.len() == 32 && self.migration.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hex.then(|| u128::from_str_radix(&self.migration, 16).ok()).flatten()
    }
}

/// The choice of the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// The highest version that both sides support.
    pub version: u32,
    /// The features that both sides have.
    #[serde(default)]
    pub features: BTreeSet<String>,
    /// With [`Feature::Lanes`]: the number of connections in all, at most that of the offer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<u32>,
    /// With a feature that needs further connections ([`Feature::joins`]): the secret that they prove themselves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    /// With [`Feature::Resume`]: the time within which a lost connection has to be replaced, in milliseconds: at most that of
    /// the offer. Without it, one cannot be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_ms: Option<u64>,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The terms on which a lost connection is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resumable {
    /// The secret that the replacement proves itself by.
    pub secret: Secret,
    /// The time for it, from the loss.
    pub within: Duration,
}

impl Accept {
    /// Returns the choice of these features, with one connection.
    pub fn new(features: &BTreeSet<Feature>) -> Accept {
        Accept {
            version: VERSION,
            features: names(features),
            channels: None,
            secret: None,
            reconnect_ms: None,
        }
    }

    /// Returns the terms on which a lost connection is replaced, if it is.
    pub fn resumable(&self) -> Option<Resumable> {
        let within = Duration::from_millis(self.reconnect_ms.filter(|ms| *ms > 0)?);
        Some(Resumable { secret: self.secret?, within })
    }
}

/// The reasons why two sides cannot migrate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no common version.
    #[error("no common protocol version: the source speaks {}, the destination {VERSION}", list(.theirs))]
    NoCommonVersion {
        /// The versions of the source.
        theirs: Vec<u32>,
    },
    /// A feature that the source needs is missing.
    #[error("the source needs the feature '{feature}', which the destination does not have")]
    MissingFeature {
        /// The name.
        feature: String,
    },
    /// The destination chose a version or feature that was not offered.
    #[error("the destination chose {what}, which was not offered")]
    NotOffered {
        /// A version or a feature.
        what: String,
    },
    /// The destination wants further connections, and gave no secret that they could prove themselves by.
    #[error("the destination allows further connections, but gave no secret for them")]
    NoSecret,
    /// The id of the migration is malformed.
    #[error("malformed migration id: expected 32 hexadecimal digits")]
    MigrationId,
}

fn list(versions: &[u32]) -> String {
    let shown = versions.iter().take(8).map(u32::to_string).collect::<Vec<_>>();
    if shown.is_empty() { "none".to_string() } else { shown.join(", ") }
}

/// Returns the features that both sides have, if there is a common version and every feature that the source requires
/// is among them. Used at the destination.
pub fn choose(offer: &Offer, ours: &BTreeSet<Feature>) -> Result<BTreeSet<Feature>, Refusal> {
    if offer.id().is_none() {
        return Err(Refusal::MigrationId);
    }
    if !offer.versions.contains(&VERSION) {
        return Err(Refusal::NoCommonVersion { theirs: offer.versions.clone() });
    }
    let has = |name: &str| Feature::from_name(name).filter(|feature| ours.contains(feature));
    match offer.needs.iter().find(|name| has(name).is_none()) {
        Some(name) => Err(Refusal::MissingFeature { feature: printable(name, 100) }),
        None => Ok(offer.features.iter().filter_map(|name| has(name)).collect()),
    }
}

/// Returns the number of connections in all, of at most `most`. Used at the destination.
pub fn channels(offer: &Offer, features: &BTreeSet<Feature>, most: u32) -> u32 {
    let offered = offer.channels.filter(|_| features.contains(&Feature::Lanes)).unwrap_or(1);
    offered.min(most).clamp(1, MAX_CHANNELS)
}

/// Returns the time within which a lost connection has to be replaced, of at most `most`, in milliseconds; `None` if it is not
/// replaced. Used at the destination.
pub fn reconnect_ms(offer: &Offer, features: &BTreeSet<Feature>, most: Duration) -> Option<u64> {
    let offered = offer.reconnect_ms.filter(|_| features.contains(&Feature::Resume))?;
    Some(offered.min(milliseconds(most))).filter(|ms| *ms > 0)
}

/// Returns the features in use, if the destination's choice was offered. Used at the source.
pub fn check(offer: &Offer, accept: &Accept) -> Result<BTreeSet<Feature>, Refusal> {
    if !offer.versions.contains(&accept.version) {
        return Err(Refusal::NotOffered { what: format!("version {}", accept.version) });
    }
    if let Some(name) = accept.features.iter().find(|name| !offer.features.contains(*name)) {
        return Err(Refusal::NotOffered { what: format!("feature '{}'", printable(name, 100)) });
    }
    let offered = offer.channels.filter(|_| accept.features.contains(Feature::Lanes.name())).unwrap_or(1);
    if let Some(channels) = accept.channels.filter(|channels| *channels == 0 || *channels > offered) {
        return Err(Refusal::NotOffered { what: format!("{channels} connections") });
    }
    if accept.channels.is_some_and(|channels| channels > 1) && accept.secret.is_none() {
        return Err(Refusal::NoSecret);
    }
    let offered = offer.reconnect_ms.filter(|_| accept.features.contains(Feature::Resume.name()));
    if let Some(within) = accept.reconnect_ms.filter(|within| *within > offered.unwrap_or(0)) {
        return Err(Refusal::NotOffered { what: format!("{within} ms for a lost connection") });
    }
    if accept.reconnect_ms.is_some() && accept.secret.is_none() {
        return Err(Refusal::NoSecret);
    }
    if let Some(name) = offer.needs.iter().find(|name| !accept.features.contains(*name)) {
        return Err(Refusal::MissingFeature { feature: name.clone() });
    }
    Ok(accept.features.iter().filter_map(|name| Feature::from_name(name)).collect())
}

#[cfg(test)]
mod tests;
