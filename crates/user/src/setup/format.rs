//! The byte form of a setup.
//!
//! The layout is part of the format of migrations and files: `docs/stream.md`, "A setup". Another implementation reads and
//! writes it, so a change needs a new version. A reader refuses other versions, unknown flags and bytes past the end.

use super::{ArmedInterrupts, DeviceSetup};

const MAGIC: [u8; 4] = *b"WDSU";
const VERSION: u16 = 1;
const HEAD: usize = 16;
const ENTRY: usize = 16;
const MASKED: u32 = 1;

/// Length of a space: at least the header, at most that of PCI Express.
const MIN_SPACE: usize = 64;
const MAX_SPACE: usize = 4096;
/// Maximum number of interrupt indexes. A PCI device has 5.
const MAX_INDEXES: usize = 64;

/// An invalid byte form of a [`DeviceSetup`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// The bytes do not begin as a setup does.
    #[error("not a device setup: no magic number at its start")]
    Magic,
    /// The version is unknown.
    #[error("unsupported version {0} of a device setup: expected {VERSION}")]
    Version(u16),
    /// A flag is unknown.
    #[error("unknown flags {0:#x} in a device setup")]
    Flags(u32),
    /// The length does not match the contents, or exceeds a limit.
    #[error("invalid length of a device setup: {0} bytes")]
    Length(usize),
    /// The length of the configuration space is invalid.
    #[error(
        "invalid configuration space of {0} bytes in a device setup: expected {MIN_SPACE} to {MAX_SPACE}"
    )]
    Space(usize),
    /// There are too many interrupt indexes.
    #[error("too many interrupt indexes in a device setup: {0}, expected at most {MAX_INDEXES}")]
    Indexes(usize),
    /// Interrupt indexes do not ascend, or counts are inconsistent.
    #[error("invalid interrupts of index {0} in a device setup")]
    Interrupts(u32),
}

impl DeviceSetup {
    /// Returns a setup, if its parts are valid.
    pub(super) fn new(space: Vec<u8>, interrupts: Vec<ArmedInterrupts>) -> Result<DeviceSetup, SetupError> {
        if !(MIN_SPACE..=MAX_SPACE).contains(&space.len()) {
            return Err(SetupError::Space(space.len()));
        }
        if interrupts.len() > MAX_INDEXES {
            return Err(SetupError::Indexes(interrupts.len()));
        }
        let mut last = None;
        for ArmedInterrupts { index, armed, vectors, .. } in &interrupts {
            if last.is_some_and(|last| last >= *index) || *armed == 0 || armed > vectors {
                return Err(SetupError::Interrupts(*index));
            }
            last = Some(*index);
        }
        Ok(DeviceSetup { space, interrupts })
    }

    /// Returns the byte form, at most [`DeviceSetup::MAX_BYTES`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + self.space.len() + self.interrupts.len() * ENTRY);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend((self.space.len() as u32).to_le_bytes());
        bytes.extend((self.interrupts.len() as u32).to_le_bytes());
        bytes.extend(&self.space);
        for ArmedInterrupts { index, armed, vectors, masked } in &self.interrupts {
            let flags = if *masked { MASKED } else { 0 };
            for word in [*index, *armed, *vectors, flags] {
                bytes.extend(word.to_le_bytes());
            }
        }
        bytes
    }

    /// Parses the byte form, which may come from a hostile peer.
    pub fn parse(bytes: &[u8]) -> Result<DeviceSetup, SetupError> {
        let length = SetupError::Length(bytes.len());
        if bytes.len() > DeviceSetup::MAX_BYTES {
            return Err(length);
        }
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD>() else { return Err(length) };
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if head[..4] != MAGIC {
            return Err(SetupError::Magic);
        }
        let (version, flags) = (word(4) as u16, word(4) >> 16);
        if version != VERSION {
            return Err(SetupError::Version(version));
        }
        if flags != 0 {
            return Err(SetupError::Flags(flags));
        }
        let (space, indexes) = (word(8) as usize, word(12) as usize);
        if space > MAX_SPACE {
            return Err(SetupError::Space(space));
        }
        if indexes > MAX_INDEXES {
            return Err(SetupError::Indexes(indexes));
        }
        let Some((space, rest)) = rest.split_at_checked(space) else { return Err(length) };
        let (entries, past_the_end) = rest.as_chunks::<ENTRY>();
        if entries.len() != indexes || !past_the_end.is_empty() {
            return Err(length);
        }
        let interrupts: Result<_, SetupError> = entries.iter().map(interrupts).collect();
        DeviceSetup::new(space.to_vec(), interrupts?)
    }
}

/// Parses one index.
fn interrupts(entry: &[u8; ENTRY]) -> Result<ArmedInterrupts, SetupError> {
    let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
    let flags = word(12);
    if flags & !MASKED != 0 {
        return Err(SetupError::Flags(flags));
    }
    Ok(ArmedInterrupts::new(word(0), word(4), word(8), flags & MASKED != 0))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn setups() -> impl Strategy<Value = DeviceSetup> {
        let interrupts = vec((1..100u32, 1..100u32, any::<bool>()), 0..=MAX_INDEXES);
        (vec(any::<u8>(), MIN_SPACE..=MAX_SPACE), interrupts).prop_map(|(space, interrupts)| {
            let interrupts = (0..).zip(interrupts).map(|(index, (armed, more, masked))| {
                ArmedInterrupts::new(index * 3, armed, armed + more, masked)
            });
            DeviceSetup::new(space, interrupts.collect()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn a_setup_survives_a_round_trip(setup in setups()) {
            let bytes = setup.to_bytes();
            prop_assert!(bytes.len() <= DeviceSetup::MAX_BYTES);
            prop_assert_eq!(DeviceSetup::parse(&bytes), Ok(setup));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in vec(any::<u8>(), 0..400)) {
            let _ = DeviceSetup::parse(&bytes);
        }

        #[test]
        fn changed_bytes_are_refused_or_mean_one_setup(
            setup in setups(), at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<bool>()
        ) {
            let mut bytes = setup.to_bytes();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
                prop_assert!(DeviceSetup::parse(&bytes).is_err());
            } else {
                bytes[at] = value;
                if let Ok(parsed) = DeviceSetup::parse(&bytes) {
                    prop_assert_eq!(parsed.to_bytes(), bytes);
                }
            }
        }
    }

    #[test]
    fn every_defect_is_named() {
        let armed = ArmedInterrupts::new(1, 2, 4, true);
        let valid = DeviceSetup::new(vec![0; 256], vec![armed]).unwrap().to_bytes();
        let with = |at: usize, value: u8| {
            let mut bytes = valid.clone();
            bytes[at] = value;
            DeviceSetup::parse(&bytes).unwrap_err()
        };
        let entry = HEAD + 256;
        assert_eq!(with(0, 0), SetupError::Magic);
        assert_eq!(with(4, 2), SetupError::Version(2));
        assert_eq!(with(6, 1), SetupError::Flags(1));
        assert_eq!(with(11, 1), SetupError::Space(0x0100_0100));
        assert_eq!(with(13, 1), SetupError::Indexes(0x101));
        assert_eq!(with(12, 2), SetupError::Length(valid.len()));
        assert_eq!(with(entry + 4, 0), SetupError::Interrupts(1));
        assert_eq!(with(entry + 4, 5), SetupError::Interrupts(1));
        assert_eq!(with(entry + 12, 2), SetupError::Flags(2));
        let longer = [&valid[..], &[0]].concat();
        assert_eq!(DeviceSetup::parse(&longer), Err(SetupError::Length(longer.len())));
        let huge = vec![0; DeviceSetup::MAX_BYTES + 1];
        assert_eq!(DeviceSetup::parse(&huge), Err(SetupError::Length(huge.len())));
        assert_eq!(DeviceSetup::new(vec![0; 63], vec![]), Err(SetupError::Space(63)));
        assert_eq!(DeviceSetup::new(vec![0; 64], vec![armed, armed]), Err(SetupError::Interrupts(1)));
    }
}
