//! Further connections of a migration under way: what the first frame of one says, and which ones are expected.
//!
//! The destination makes a secret for each migration and gives it to the source in ACCEPT. Whoever knows it is the source.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use subtle::ConstantTimeEq;

/// The maximum number of connections of a migration, the control connection included.
pub const MAX_CHANNELS: u32 = 16;

/// Size of a secret, in bytes.
pub const SECRET_BYTES: usize = 32;

/// The secret of a migration. It is compared in constant time, and not shown to anyone.
#[derive(Clone, Copy)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Returns the secret of these bytes, which have to be random.
    pub const fn new(bytes: [u8; SECRET_BYTES]) -> Secret {
        Secret(bytes)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The text is not quoted: errors are logged.
        let malformed = || serde::de::Error::custom("a secret that is not 64 hexadecimal digits");
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
        let bytes = bytes.collect::<Option<Vec<u8>>>().filter(|_| rest.is_empty()).ok_or_else(malformed)?;
        bytes.try_into().map(Secret).map_err(|_| malformed())
    }
}

/// The first frame of a further connection: the migration that it belongs to, the proof that it is the source's, and its
/// purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The migration's id, as in [`Offer`](super::negotiate::Offer).
    pub migration: String,
    /// The secret of ACCEPT.
    pub secret: Secret,
    /// The use of the connection.
    pub purpose: Purpose,
}

impl Join {
    /// Returns the frame of a connection of this migration.
    pub fn new(migration: u128, secret: Secret, purpose: Purpose) -> Join {
        Join { migration: format!("{migration:032x}"), secret, purpose }
    }
}

/// The uses of a further connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Keys", try_from = "Keys")]
pub enum Purpose {
    /// A lane: it carries memory and state.
    Lane {
        /// Its number, from 1. Lane 0 is the control connection.
        lane: u32,
        /// The number of the replacement whose control connection it stands beside; 0 for the first one.
        resumption: u32,
    },
    /// The replacement of a control connection that was lost in pre-copy. The number is that of the attempt, from 1: a
    /// connection that arrives late replaces no newer one.
    Resumption(u32),
}

impl Purpose {
    /// Returns the purpose of a lane beside the first control connection.
    pub const fn lane(lane: u32) -> Purpose {
        Purpose::Lane { lane, resumption: 0 }
    }
}

/// A purpose on the wire.
#[derive(Serialize, Deserialize)]
struct Keys {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lane: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    resumption: Option<u32>,
}

impl From<Purpose> for Keys {
    fn from(purpose: Purpose) -> Keys {
        match purpose {
            Purpose::Lane { lane, resumption } => {
                Keys { lane: Some(lane), resumption: Some(resumption).filter(|number| *number > 0) }
            }
            Purpose::Resumption(number) => Keys { lane: None, resumption: Some(number) },
        }
    }
}

impl TryFrom<Keys> for Purpose {
    type Error = &'static str;

    fn try_from(keys: Keys) -> Result<Purpose, &'static str> {
        match keys {
            Keys { lane: Some(lane), resumption } => {
                Ok(Purpose::Lane { lane, resumption: resumption.unwrap_or(0) })
            }
            Keys { lane: None, resumption: Some(number) } => Ok(Purpose::Resumption(number)),
            Keys { lane: None, resumption: None } => Err("a purpose that is neither a lane nor a resumption"),
        }
    }
}

/// The destination's answer on a connection that replaces a lost one: what it has of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The last round that it has processed; 0 before the first.
    pub round: u32,
    /// The bytes of each device's state that have arrived.
    pub devices: Vec<u64>,
}

/// The refusal of a further connection. It has one reason only, so that nothing is told to a peer that guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such migration")]
#[non_exhaustive]
pub struct NoSuchMigration;

/// The further connections that a destination expects.
#[derive(Clone, Debug)]
pub struct Expected {
    migration: String,
    secret: Secret,
    channels: u32,
    /// The lanes that have not joined yet.
    lanes: BTreeSet<u32>,
    /// The number of the last replacement of the control connection, if it can be replaced.
    resumption: Option<u32>,
}

impl Expected {
    /// Returns the expectation of a migration with so many connections in all, of which the control connection exists.
    pub fn new(migration: u128, secret: Secret, channels: u32) -> Expected {
        let channels = channels.min(MAX_CHANNELS);
        let lanes = (1..channels).collect();
        Expected { migration: format!("{migration:032x}"), secret, channels, lanes, resumption: None }
    }

    /// Expects replacements of the control connection as well.
    #[must_use]
    pub fn resumptions(self) -> Expected {
        Expected { resumption: Some(0), ..self }
    }

    /// Expects no lanes any more: a connection was lost, and all others are given up with it.
    pub fn forget_lanes(&mut self) {
        self.lanes.clear();
    }

    /// Expects all lanes again, beside the replacement with this number. Does nothing if there is a newer one.
    pub fn expect_lanes_of(&mut self, resumption: u32) {
        if self.resumption == Some(resumption) {
            self.lanes = (1..self.channels).collect();
        }
    }

    /// Takes a connection in, if it is expected. Each lane is taken once beside each control connection, and each replacement
    /// of that has a higher number than the one before it.
    pub fn admit(&mut self, join: &Join) -> Result<(), NoSuchMigration> {
        // Both are compared, whatever the first comparison says.
        let is_known = (join.secret == self.secret) & join.migration.eq_ignore_ascii_case(&self.migration);
        let is_expected = is_known
            && match join.purpose {
                Purpose::Lane { lane, resumption } => {
                    resumption == self.resumption.unwrap_or(0) && self.lanes.remove(&lane)
                }
                Purpose::Resumption(number) => match &mut self.resumption {
                    Some(last) if *last < number => {
                        *last = number;
                        // Its lanes come once it is answered.
                        self.lanes.clear();
                        true
                    }
                    _ => false,
                },
            };
        if is_expected { Ok(()) } else { Err(NoSuchMigration) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret::new([0xa7; SECRET_BYTES]);

    fn lane(number: u32) -> Join {
        Join::new(7, SECRET, Purpose::lane(number))
    }

    #[test]
    fn each_lane_joins_once() {
        let mut expected = Expected::new(7, SECRET, 4);
        for number in [2, 1, 3] {
            assert_eq!(expected.admit(&lane(number)), Ok(()));
        }
        for number in [0, 1, 2, 3, 4, u32::MAX] {
            assert_eq!(expected.admit(&lane(number)), Err(NoSuchMigration), "{number}");
        }
    }

    #[test]
    fn a_connection_of_another_migration_or_with_another_secret_takes_no_lane() {
        let mut expected = Expected::new(7, SECRET, 2);
        for byte in 0..SECRET_BYTES {
            let mut other = [0xa7; SECRET_BYTES];
            other[byte] ^= 0x80;
            let join = Join { secret: Secret::new(other), ..lane(1) };
            assert_eq!(expected.admit(&join), Err(NoSuchMigration));
        }
        let foreign = Join::new(8, SECRET, Purpose::lane(1));
        assert_eq!(expected.admit(&foreign), Err(NoSuchMigration));
        assert_eq!(expected.admit(&lane(1)), Ok(()));
    }

    #[test]
    fn a_replacement_joins_if_it_is_newer_than_the_last_one() {
        let resumption = |number| Join::new(7, SECRET, Purpose::Resumption(number));
        let mut expected = Expected::new(7, SECRET, 1);
        assert_eq!(expected.admit(&resumption(1)), Err(NoSuchMigration), "there are none");
        expected = expected.resumptions();
        let foreign = Join { secret: Secret::new([0; SECRET_BYTES]), ..resumption(9) };
        assert_eq!(expected.admit(&foreign), Err(NoSuchMigration));
        for (number, is_newer) in
            [(0, false), (1, true), (1, false), (5, true), (4, false), (5, false), (6, true)]
        {
            assert_eq!(expected.admit(&resumption(number)).is_ok(), is_newer, "{number}");
        }
    }

    #[test]
    fn a_lane_joins_beside_the_control_connection_that_it_was_opened_for() {
        let lane = |lane, resumption| Join::new(7, SECRET, Purpose::Lane { lane, resumption });
        let resumption = |number| Join::new(7, SECRET, Purpose::Resumption(number));
        let mut expected = Expected::new(7, SECRET, 3).resumptions();
        assert_eq!(expected.admit(&lane(1, 0)), Ok(()));
        assert_eq!(expected.admit(&lane(2, 4)), Err(NoSuchMigration), "there is no such replacement yet");
        assert_eq!(expected.admit(&resumption(4)), Ok(()));
        for number in [0, 3, 4, 5] {
            assert_eq!(expected.admit(&lane(2, number)), Err(NoSuchMigration), "{number}, before the answer");
        }
        expected.expect_lanes_of(3);
        assert_eq!(expected.admit(&lane(2, 4)), Err(NoSuchMigration), "the answer is to an earlier one");
        expected.expect_lanes_of(4);
        for (number, resumption, is_expected) in
            [(2, 0, false), (2, 3, false), (2, 4, true), (2, 4, false), (1, 4, true), (3, 4, false)]
        {
            assert_eq!(
                expected.admit(&lane(number, resumption)).is_ok(),
                is_expected,
                "{number} {resumption}"
            );
        }
        expected.expect_lanes_of(4);
        expected.forget_lanes();
        assert_eq!(expected.admit(&lane(1, 4)), Err(NoSuchMigration), "the connection is lost");
    }

    #[test]
    fn a_purpose_travels_with_the_keys_that_it_needs() {
        for (purpose, json) in [
            (Purpose::lane(1), r#"{"lane":1}"#),
            (Purpose::Lane { lane: 1, resumption: 2 }, r#"{"lane":1,"resumption":2}"#),
            (Purpose::Resumption(2), r#"{"resumption":2}"#),
        ] {
            assert_eq!(serde_json::to_string(&purpose).unwrap(), json);
            assert_eq!(serde_json::from_str::<Purpose>(json).unwrap(), purpose);
        }
        for wrong in ["{}", r#"{"lane":-1}"#, r#"{"lane":1,"lane":1}"#, r#"{"mirror":1}"#] {
            assert!(serde_json::from_str::<Purpose>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_secret_travels_as_digits_and_is_not_shown() {
        let json = serde_json::to_string(&lane(1)).unwrap();
        assert_eq!(
            json,
            format!(
                r#"{{"migration":"{}7","secret":"{}","purpose":{{"lane":1}}}}"#,
                "0".repeat(31),
                "a7".repeat(32)
            )
        );
        assert_eq!(serde_json::from_str::<Join>(&json).unwrap(), lane(1));
        assert!(!format!("{:?}", lane(1)).contains("a7"));
        for wrong in ["a7".repeat(31), "a7".repeat(33), "g7".repeat(32), "a".repeat(65), "é".repeat(32)] {
            let error = serde_json::from_str::<Secret>(&format!("\"{wrong}\"")).unwrap_err().to_string();
            assert!(error.contains("not 64 hexadecimal digits") && !error.contains(&wrong), "{error}");
        }
    }
}
