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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// A lane, by its number from 1: it carries memory and state. Lane 0 is the control connection.
    Lane(u32),
    /// The replacement of a connection that was lost in pre-copy. The number is that of the attempt, from 1: a connection that
    /// arrives late replaces no newer one.
    Resumption(u32),
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
    /// The lanes that have not joined yet.
    lanes: BTreeSet<u32>,
    /// The number of the last replacement of the control connection, if it can be replaced.
    resumption: Option<u32>,
}

impl Expected {
    /// Returns the expectation of a migration with so many connections in all, of which the control connection exists.
    pub fn new(migration: u128, secret: Secret, channels: u32) -> Expected {
        let lanes = (1..channels.min(MAX_CHANNELS)).collect();
        Expected { migration: format!("{migration:032x}"), secret, lanes, resumption: None }
    }

    /// Expects replacements of the control connection as well.
    #[must_use]
    pub fn resumptions(self) -> Expected {
        Expected { resumption: Some(0), ..self }
    }

    /// Takes a connection in, if it is expected. Each lane is taken once, and each replacement has a higher number than the
    /// one before it.
    pub fn admit(&mut self, join: &Join) -> Result<(), NoSuchMigration> {
        // Both are compared, whatever the first comparison says.
        let is_known = (join.secret == self.secret) & join.migration.eq_ignore_ascii_case(&self.migration);
        let is_expected = is_known
            && match &join.purpose {
                Purpose::Lane(lane) => self.lanes.remove(lane),
                Purpose::Resumption(number) => match &mut self.resumption {
                    Some(last) if *last < *number => {
                        *last = *number;
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
        Join::new(7, SECRET, Purpose::Lane(number))
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
        let foreign = Join::new(8, SECRET, Purpose::Lane(1));
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
