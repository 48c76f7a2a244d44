//! Why a migration failed, and what that leaves behind.

use std::io;
use std::time::Duration;

use whimbrel_protocol::handover::Unexpected;
use whimbrel_user::State;

use crate::guest::GuestError;
use crate::memory::RamError;
use crate::stream::{Problem, StreamError};

/// What ended a migration, a save or a restore.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
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
    /// The device is in a state that the work cannot begin in.
    #[error("{device}: it is in {state}, but {work} begins in {needed} only")]
    WrongState {
        /// The device's name.
        device: String,
        /// The state it is in.
        state: State,
        /// What was to be done.
        work: &'static str,
        /// Where that can begin.
        needed: &'static str,
    },
    /// The device has failed: no request for a state is answered any more.
    #[error("{device}: it is in ERROR: only a reset brings it back to work, and its state is lost with that")]
    NeedsReset {
        /// The device's name.
        device: String,
    },
    /// What failed could be undone only in part: the device is not in the state it was in before.
    #[error("{}the device could not be brought back to {state}: {back}", cause.as_ref().map_or_else(
        || "everything was done, but ".to_string(),
        |cause| format!("{cause}; and "),
    ))]
    NotBack {
        /// What failed first, if anything did.
        cause: Option<Box<Error>>,
        /// Where the device belongs.
        state: State,
        /// Why it did not get there.
        back: Box<Error>,
    },
    /// What failed left a part of a state in the device.
    #[error(
        "{cause}; and the device holds part of a state and could not be reset, do not use it before it is: {reset}"
    )]
    NotReset {
        /// What failed first.
        cause: Box<Error>,
        /// Why the reset failed.
        reset: whimbrel_user::Error,
    },
    /// The device answered a state request in a way the header rules out.
    #[error("{device}: no data session was opened on entering {state}, although one begins there")]
    NoSession {
        /// The device's name.
        device: String,
        /// The state.
        state: State,
    },
    /// The stream is damaged, foreign, of another version, or ends too early.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The other side neither sends nor takes anything.
    #[error("the {side} gave no sign of life for {} ms", waited.as_millis())]
    Silent {
        /// Source or destination.
        side: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The other side is gone.
    #[error("the {side} closed the connection before the migration was over")]
    Lost {
        /// Source or destination.
        side: &'static str,
    },
    /// Writing to the link failed.
    #[error("sending failed: {0}")]
    Link(io::Error),
    /// Reading or writing a file failed.
    #[error("{what}: {error}")]
    File {
        /// What was done, with the file's name.
        what: String,
        /// Why it failed.
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
    /// A file whose frames are whole but do not make up a saved device.
    #[error("the file is not a whole saved device: {0}")]
    Contents(String),
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
    CpuLog(GuestError),
    /// The program around the device refused.
    #[error("the program that owns the device: {0}")]
    Guest(GuestError),
    /// The device has not given all that it wants carried before it is stopped.
    #[error(
        "after {rounds} rounds {left} bytes of the device's initial data are still to come, and without them it must \
         not be stopped: allow more rounds"
    )]
    InitialData {
        /// Rounds done.
        rounds: u32,
        /// Bytes left, as the device says.
        left: u64,
    },
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
    /// A link that failed while something was written to `side`.
    pub(crate) fn writing(side: &'static str, timeout: Duration, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent { side, waited: timeout },
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Error::Lost { side },
            _ => Error::Link(error),
        }
    }

    /// What came from `side` could not be read.
    pub(crate) fn reading(side: &'static str, timeout: Duration, error: StreamError) -> Error {
        let StreamError { offset, problem } = error;
        match problem {
            Problem::Io(error) => match Error::writing(side, timeout, error) {
                Error::Link(error) => Error::Stream(StreamError { offset, problem: Problem::Io(error) }),
                told => told,
            },
            Problem::Closed | Problem::Truncated => Error::Lost { side },
            problem => Error::Stream(StreamError { offset, problem }),
        }
    }

    /// Whether the link to the other side is of no more use.
    pub(crate) fn is_of_the_link(&self) -> bool {
        matches!(self, Error::Link(_) | Error::Silent { .. } | Error::Lost { .. } | Error::Peer { .. })
    }

    /// What the person who reads the error can do, where something general can be said.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Device(error) => error.advice(),
            Error::NeedsReset { .. } => Some("reset the device, or close and open it again"),
            Error::NotReset { .. } => Some("close the device: the next one to open it gets it reset"),
            Error::Silent { .. } => {
                Some("is the other side still there, and the network between? see its own log")
            }
            Error::Lost { .. } => Some("the other side's own log says why"),
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
#[non_exhaustive]
pub struct SendError {
    /// What went wrong.
    pub cause: Error,
    /// Where the device is now.
    pub outcome: Outcome,
}

/// Where a failed migration leaves the device.
#[derive(Debug, thiserror::Error)]
// Exhaustive: a caller that did not know one of these could let a device run twice.
#[expect(clippy::exhaustive_enums, reason = "a caller must know of each outcome who may run the device")]
pub enum Outcome {
    /// As before the migration.
    #[error("the device runs on here")]
    RunsOn,
    /// As before the migration, which was refused before anything was done to it. It need not run.
    #[error("the migration did not begin, and the device is as it was")]
    Untouched,
    /// The link was lost between the handover and its confirmation.
    #[error(
        "the device had been handed over and it is not known whether it runs at the destination: \
         it stays stopped here; look there, and let it run here only if it does not run there"
    )]
    Unknown,
    /// It could not be brought back.
    #[error("and the device could not be brought back to work here: {0}")]
    Stranded(Box<Error>),
}
