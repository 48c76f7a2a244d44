//! Why a migration failed, and what that leaves behind.

use std::io;
use std::time::Duration;

use whimbrel_protocol::handover::Unexpected;

use crate::memory::RamError;
use crate::stream::StreamError;

/// What ended a migration, a save or a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device refused a request.
    #[error(transparent)]
    Device(#[from] whimbrel_user::Error),
    /// The device cannot be migrated at all.
    #[error("{device}: its driver does not support migration")]
    NotMigratable {
        /// The device's name.
        device: String,
    },
    /// The device answered a state request in a way the header rules out.
    #[error("{device}: no data session was opened on entering {state}, although one begins there")]
    NoSession {
        /// The device's name.
        device: String,
        /// The state.
        state: whimbrel_user::State,
    },
    /// The stream is damaged, foreign, of another version, or ends too early.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// Writing to the link failed.
    #[error("sending failed: {0}")]
    Link(#[source] io::Error),
    /// Reading or writing a file failed.
    #[error("{what}: {error}")]
    File {
        /// What was done, with the file's name.
        what: String,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
    /// The other side says why it does not go on.
    #[error("the {side} ended the migration: {reason}")]
    Peer {
        /// Source or destination.
        side: &'static str,
        /// Its words.
        reason: String,
    },
    /// The other side sent a message that has no meaning at this point.
    #[error("the peer breaks the protocol: {0}")]
    Protocol(String),
    /// What the source sends does not fit what the destination has.
    #[error("the source does not fit: {0}")]
    Mismatch(String),
    /// The memory's layout cannot be migrated.
    #[error("memory layout: {0}")]
    Layout(String),
    /// An address outside of memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The log of what the CPUs write failed.
    #[error("the log of the cpus' writes: {0}")]
    CpuLog(String),
    /// The program around the device refused.
    #[error("the program that owns the device: {0}")]
    Guest(String),
    /// The downtime does not come down to the limit.
    #[error(
        "after {rounds} rounds the device would stand still for {} ms, the limit is {} ms: \
         allow more downtime or more rounds, or give the device less work",
        expected.map_or_else(|| "an unknown number of".to_string(), |expected| expected.as_millis().to_string()),
        limit.as_millis()
    )]
    NotConverging {
        /// Rounds done.
        rounds: u32,
        /// The downtime to expect now.
        expected: Option<Duration>,
        /// The limit given.
        limit: Duration,
    },
}

impl Error {
    /// What the person who reads the error can do, where something general can be said.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Device(error) => error.advice(),
            _ => None,
        }
    }
}

impl From<Unexpected> for Error {
    fn from(unexpected: Unexpected) -> Error {
        Error::Protocol(unexpected.to_string())
    }
}

/// A migration that failed at the source, and where that leaves the device.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; {outcome}")]
pub struct SendError {
    /// What went wrong.
    #[source]
    pub cause: Error,
    /// Where the device is now.
    pub outcome: Outcome,
}

/// Where a failed migration leaves the device.
#[derive(Debug, thiserror::Error)]
pub enum Outcome {
    /// As before the migration.
    #[error("the device runs on here")]
    RunsOn,
    /// The link was lost between the handover and its confirmation.
    #[error(
        "the device had been handed over and it is not known whether it runs at the destination: \
         it stays stopped here; look there, and let it run here only if it does not run there"
    )]
    Unknown,
    /// It could not be brought back.
    #[error("and the device could not be brought back to work here: {0}")]
    Stranded(#[source] Box<Error>),
}
