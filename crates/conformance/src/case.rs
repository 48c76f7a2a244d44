//! Cases: a sentence of the header or a rule of the kernel, and the requests that test it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::outcome::Outcome;

/// The version of the header that the sentences are quoted from.
pub const HEADER: &str = "Linux 7.3, include/uapi/linux/vfio.h";

/// One case of the suite.
#[derive(Clone, Copy)]
pub struct Case {
    id: &'static str,
    level: Level,
    sentence: &'static str,
    danger: Danger,
    needs: &'static [Need],
    pub(crate) run: fn(&mut Bench) -> Outcome,
}

/// The binding force of a case's sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[non_exhaustive]
pub enum Level {
    /// The header requires it.
    Must,
    /// The header recommends it.
    Should,
    /// The kernel does it, and users rely on it, but the header does not say so.
    Kernel,
    /// A misbehaving user may do it, and the device must survive.
    Robust,
}

impl Level {
    /// All levels, from the most binding one on.
    pub const ALL: [Level; 4] = [Level::Must, Level::Should, Level::Kernel, Level::Robust];

    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Must => "MUST",
            Level::Should => "SHOULD",
            Level::Kernel => "KERNEL",
            Level::Robust => "ROBUST",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The damage that a case may do to the device or its host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Danger {
    /// It only queries the device.
    Looks,
    /// It changes the device's migration state, or loads a state.
    Changes,
    /// It resets the device.
    Resets,
    /// It may hang a driver, or the kernel, beyond repair.
    Hangs,
}

impl Danger {
    /// Returns the name.
    pub const fn name(self) -> &'static str {
        match self {
            Danger::Looks => "looks",
            Danger::Changes => "changes",
            Danger::Resets => "resets",
            Danger::Hangs => "hangs",
        }
    }
}

impl fmt::Display for Danger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A requirement of a case, on the device or the run. Without it the case is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Need {
    /// VFIO_MIGRATION_P2P.
    P2p,
    /// VFIO_MIGRATION_PRE_COPY.
    PreCopy,
    /// A device without VFIO_MIGRATION_P2P.
    NoP2p,
    /// A device without VFIO_MIGRATION_PRE_COPY.
    NoPreCopy,
    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
    DataSize,
    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.
    PrecopyInfoV2,
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
    DmaLogging,
    /// A device without VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
    NoDmaLogging,
    /// Requests as bytes.
    Raw,
    /// A device of migration v2: one that was adapted from a migration region has its rules only in part.
    V2,
    /// A migration region, v1 or the draft.
    Region,
    /// Memory for the device's DMA that this process can map.
    Memory,
    /// A way to make the device write to memory.
    Writer,
    /// A second device of the same kind.
    Second,
    /// The author's probe of the device's registers.
    Registers,
    /// A state that was saved earlier.
    Stream,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Need::P2p => "the device does not support P2P",
            Need::PreCopy => "the device does not support PRE_COPY",
            Need::NoP2p => "the device supports P2P",
            Need::NoPreCopy => "the device supports PRE_COPY",
            Need::DataSize => "the device does not support MIG_DATA_SIZE",
            Need::PrecopyInfoV2 => "the device does not support MIG_PRECOPY_INFOv2",
            Need::DmaLogging => "the device has no DMA log",
            Need::NoDmaLogging => "the device has a DMA log",
            Need::Raw => "the device's requests are not available as bytes",
            Need::V2 => "the device migrates through a region",
            Need::Region => "the device has no migration region",
            Need::Memory => "memory cannot be mapped for the device",
            Need::Writer => "there is no way to make the device write to memory",
            Need::Second => "there is no second device",
            Need::Registers => "there is no probe of the device's registers",
            Need::Stream => "there is no state of an earlier version",
        })
    }
}

impl Case {
    const fn new(
        level: Level,
        id: &'static str,
        sentence: &'static str,
        run: fn(&mut Bench) -> Outcome,
    ) -> Case {
        Case { id, level, sentence, danger: Danger::Changes, needs: &[], run }
    }

    /// A sentence that the header requires, quoted from it.
    pub(crate) const fn must(
        id: &'static str,
        sentence: &'static str,
        run: fn(&mut Bench) -> Outcome,
    ) -> Case {
        Case::new(Level::Must, id, sentence, run)
    }

    /// A sentence that the header recommends, quoted from it.
    pub(crate) const fn should(
        id: &'static str,
        sentence: &'static str,
        run: fn(&mut Bench) -> Outcome,
    ) -> Case {
        Case::new(Level::Should, id, sentence, run)
    }

    /// A rule of the kernel, in our words, with the file that it is in.
    pub(crate) const fn kernel(id: &'static str, rule: &'static str, run: fn(&mut Bench) -> Outcome) -> Case {
        Case::new(Level::Kernel, id, rule, run)
    }

    /// A misuse that a device must survive, in our words.
    pub(crate) const fn robust(id: &'static str, rule: &'static str, run: fn(&mut Bench) -> Outcome) -> Case {
        Case::new(Level::Robust, id, rule, run)
    }

    /// The case only queries the device.
    pub(crate) const fn looks(self) -> Case {
        Case { danger: Danger::Looks, ..self }
    }

    /// The case resets the device.
    pub(crate) const fn resets(self) -> Case {
        Case { danger: Danger::Resets, ..self }
    }

    /// The case may hang the driver or the kernel.
    pub(crate) const fn hangs(self) -> Case {
        Case { danger: Danger::Hangs, ..self }
    }

    /// The case needs all of these.
    pub(crate) const fn needs(self, needs: &'static [Need]) -> Case {
        Case { needs, ..self }
    }

    /// Returns the id: the section of the suite and the name in it.
    pub const fn id(&self) -> &'static str {
        self.id
    }

    /// Returns how binding the sentence is.
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Returns the sentence: the header's own words for MUST and SHOULD, ours for the others.
    pub const fn sentence(&self) -> &'static str {
        self.sentence
    }

    /// Returns what the case may do to the device.
    pub const fn danger(&self) -> Danger {
        self.danger
    }

    /// Returns what the case needs.
    pub const fn needed(&self) -> &'static [Need] {
        self.needs
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id)
            .field("level", &self.level)
            .field("danger", &self.danger)
            .finish_non_exhaustive()
    }
}
