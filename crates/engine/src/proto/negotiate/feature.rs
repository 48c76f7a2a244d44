//! The features of this release, by name.

use std::collections::BTreeSet;
use std::fmt;

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
