//! Versions and features: the offer of each side, and the best common choice.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_protocol::text::printable;

use super::join::{MAX_CHANNELS, Secret};

/// The protocol version of this release.
pub const VERSION: u32 = 2;

/// The feature of a source that only asks whether its devices fit. It is needed, and in use if the destination answers checks.
/// No migration uses it.
pub const CHECK: &str = "check";

/// An optional part of the protocol, which is used if both sides have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// SETUP frames: the configuration of a device is sent with it.
    Setup,
    /// BLOB frames: the owner's own state is sent with the devices.
    Blobs,
    /// PING and PONG: round trips are measured separately from the throughput.
    Ping,
    /// Further connections, which carry memory and state.
    Lanes,
    /// A connection that is lost in pre-copy can be replaced.
    Resume,
    /// Memory and state may be compressed, by Zstandard.
    Zstd,
}

impl Feature {
    /// Every feature of this release.
    pub const ALL: [Feature; 6] =
        [Feature::Setup, Feature::Blobs, Feature::Ping, Feature::Lanes, Feature::Resume, Feature::Zstd];

    /// Returns the name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Feature::Setup => "setup",
            Feature::Blobs => "blobs",
            Feature::Ping => "ping",
            Feature::Lanes => "lanes",
            Feature::Resume => "resume",
            Feature::Zstd => "zstd",
        }
    }

    /// Returns whether it needs further connections, which prove by a secret that they are the source's.
    pub const fn joins(self) -> bool {
        matches!(self, Feature::Lanes | Feature::Resume)
    }

    /// Returns the feature with that name, if this release has it.
    pub fn from_name(name: &str) -> Option<Feature> {
        Feature::ALL.into_iter().find(|feature| feature.name() == name)
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns the names of features.
pub fn names(features: &BTreeSet<Feature>) -> BTreeSet<String> {
    features.iter().map(|feature| feature.name().to_string()).collect()
}

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
mod tests {
    use super::*;

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn offer(versions: &[u32], features: &[&str], needs: &[&str]) -> Offer {
        Offer {
            migration: format!("{:032x}", 7),
            versions: versions.to_vec(),
            features: set(features),
            needs: set(needs),
            channels: None,
            reconnect_ms: None,
        }
    }

    fn accept(version: u32, features: &[&str]) -> Accept {
        Accept { version, features: set(features), ..Accept::new(&BTreeSet::new()) }
    }

    #[test]
    fn a_newer_source_and_this_release_use_what_both_have() {
        let ours = BTreeSet::from(Feature::ALL);
        let newer = offer(&[2, 3], &["colours", "setup", "ping"], &["setup"]);
        assert_eq!(choose(&newer, &ours), Ok(BTreeSet::from([Feature::Setup, Feature::Ping])));
    }

    #[test]
    fn a_feature_is_found_however_many_unknown_ones_are_offered() {
        let mut many = offer(&[2], &["ping"], &["ping"]);
        many.features.extend((0..1000).map(|number| format!("a{number}")));
        assert_eq!(choose(&many, &BTreeSet::from(Feature::ALL)), Ok(BTreeSet::from([Feature::Ping])));
    }

    #[test]
    fn compression_is_offered_if_it_is_wanted() {
        let all = BTreeSet::from(Feature::ALL);
        let offered = Offer::new(7, &all, &BTreeSet::new());
        assert!(!offered.clone().with_compression(false).features.contains("zstd"));
        assert!(offered.with_compression(true).features.contains("zstd"));
        assert!(
            Offer::new(7, &BTreeSet::new(), &BTreeSet::new())
                .with_compression(true)
                .features
                .contains("zstd")
        );
        assert!(!Offer::for_check(7, &all, &BTreeSet::new()).features.contains("zstd"), "no data is sent");
    }

    #[test]
    fn an_older_destination_is_used_as_far_as_it_goes() {
        let offered = Offer::new(7, &BTreeSet::from(Feature::ALL), &BTreeSet::new());
        let fewer = accept(2, &["ping"]);
        assert_eq!(check(&offered, &fewer), Ok(BTreeSet::from([Feature::Ping])));
    }

    /// Returns the answer of a destination of a later release, which supports more versions and features.
    fn newer_destination(offer: &Offer) -> Accept {
        let version = *offer.versions.iter().filter(|version| (2..=4).contains(*version)).max().unwrap();
        let mut has = names(&BTreeSet::from(Feature::ALL));
        has.extend(set(&["colours", "smells"]));
        let features = offer.features.intersection(&has).cloned().collect();
        Accept { version, features, ..Accept::new(&BTreeSet::new()) }
    }

    #[test]
    fn this_release_and_a_newer_destination_use_what_both_have() {
        for features in subsets() {
            let offered = Offer::new(7, &features, &features);
            let accept = newer_destination(&offered);
            assert_eq!(accept.version, VERSION);
            assert_eq!(check(&offered, &accept), Ok(features));
        }
    }

    fn subsets() -> impl Iterator<Item = BTreeSet<Feature>> {
        (0..1 << Feature::ALL.len()).map(|bits: u32| {
            let is_in = |index: &usize| bits >> index & 1 == 1;
            (0..Feature::ALL.len()).filter(is_in).map(|index| Feature::ALL[index]).collect()
        })
    }

    #[test]
    fn whatever_each_side_has_both_use_the_same_or_name_what_is_missing() {
        for theirs in subsets() {
            for ours in subsets() {
                for needs in subsets().filter(|needs| needs.is_subset(&theirs)) {
                    let offered = Offer::new(7, &theirs, &needs);
                    match choose(&offered, &ours) {
                        Ok(used) => {
                            assert_eq!(used, theirs.intersection(&ours).copied().collect());
                            let accept = Accept::new(&used);
                            assert_eq!(check(&offered, &accept), Ok(used));
                        }
                        Err(Refusal::MissingFeature { feature }) => {
                            let missing = Feature::from_name(&feature).unwrap();
                            assert!(needs.contains(&missing) && !ours.contains(&missing));
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_agreed_on_is_refused_by_name() {
        let ours = BTreeSet::from([Feature::Ping]);
        let cases = [
            (offer(&[3, 4], &[], &[]), "the source speaks 3, 4, the destination 2"),
            (offer(&[], &[], &[]), "the source speaks none"),
            (offer(&[2], &["blobs"], &["blobs"]), "needs the feature 'blobs'"),
            (offer(&[2], &[], &["colours\u{1b}"]), "needs the feature 'colours '"),
            (Offer { migration: "7".into(), ..offer(&[2], &[], &[]) }, "malformed migration id"),
        ];
        for (offer, why) in cases {
            let error = choose(&offer, &ours).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_choice_that_was_not_offered_is_refused() {
        let offered = Offer::new(
            7,
            &BTreeSet::from([Feature::Ping, Feature::Setup]),
            &BTreeSet::from([Feature::Setup]),
        );
        let cases = [
            (accept(1, &["setup"]), "version 1"),
            (accept(2, &["setup", "blobs"]), "feature 'blobs'"),
            (accept(2, &["ping"]), "needs the feature 'setup'"),
        ];
        for (accept, why) in cases {
            let error = check(&offered, &accept).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn both_wait_for_a_lost_connection_as_long_as_the_more_impatient_one() {
        let resume = BTreeSet::from([Feature::Resume]);
        let seconds = Duration::from_secs;
        let offered =
            |within| Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_reconnect(seconds(within));
        assert_eq!(offered(0), Offer::new(7, &BTreeSet::new(), &BTreeSet::new()), "nothing is offered");
        for (tries, waits, used) in [(9, 4, Some(4000)), (3, 4, Some(3000)), (9, 0, None), (0, 9, None)] {
            assert_eq!(reconnect_ms(&offered(tries), &resume, seconds(waits)), used);
            assert_eq!(reconnect_ms(&offered(tries), &BTreeSet::new(), seconds(waits)), None);
        }
        let secret = Secret::new([7; 32]);
        let answer = |reconnect_ms, secret| Accept { secret, reconnect_ms, ..Accept::new(&resume) };
        let good = answer(Some(8000), Some(secret));
        assert_eq!(check(&offered(9), &good), Ok(resume.clone()));
        assert_eq!(good.resumable(), Some(Resumable { secret, within: seconds(8) }));
        assert_eq!(answer(None, Some(secret)).resumable(), None);
        for (accept, why) in [
            (answer(Some(9001), Some(secret)), "the destination chose 9001 ms for a lost connection"),
            (answer(Some(1), None), "gave no secret"),
            (Accept { reconnect_ms: Some(1), ..Accept::new(&BTreeSet::new()) }, "chose 1 ms"),
        ] {
            let error = check(&offered(9), &accept).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn both_use_the_connections_that_are_offered_and_allowed() {
        let lanes = BTreeSet::from([Feature::Lanes]);
        let offered = |count| Offer::new(7, &BTreeSet::new(), &BTreeSet::new()).with_channels(count);
        assert_eq!(offered(1), Offer::new(7, &BTreeSet::new(), &BTreeSet::new()), "nothing is offered");
        for (count, most, used) in [(4, 16, 4), (4, 2, 2), (4, 0, 1), (u32::MAX, u32::MAX, MAX_CHANNELS)] {
            assert_eq!(channels(&offered(count), &lanes, most), used);
            assert_eq!(channels(&offered(count), &BTreeSet::new(), most), 1, "without the feature");
        }
        assert_eq!(channels(&offered(1), &lanes, 16), 1);
        let answer = |channels, secret| Accept { channels, secret, ..Accept::new(&lanes) };
        let secret = Some(Secret::new([7; 32]));
        assert_eq!(check(&offered(4), &answer(Some(4), secret)), Ok(lanes.clone()));
        assert_eq!(check(&offered(4), &answer(Some(1), None)), Ok(lanes.clone()));
        for (accept, why) in [
            (answer(Some(5), secret), "the destination chose 5 connections"),
            (answer(Some(0), secret), "the destination chose 0 connections"),
            (answer(Some(2), None), "gave no secret"),
            (Accept { channels: Some(2), secret, ..Accept::new(&BTreeSet::new()) }, "chose 2 connections"),
        ] {
            let error = check(&offered(4), &accept).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
