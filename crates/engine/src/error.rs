//! Why a migration failed, and what that leaves behind.

use std::io;
use std::time::Duration;

use whimbrel_protocol::handover::Unexpected;
use whimbrel_user::State;

use crate::channel::ChannelError;
use crate::guest::GuestError;
use crate::set::RamError;

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
    #[error("{device}: {work} needs a device in {needed}, this one is in {state}")]
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
    #[error("{device}: it is in ERROR; only a reset, which loses its state, brings it back")]
    NeedsReset {
        /// The device's name.
        device: String,
    },
    /// What failed could be undone only in part: the device is not in the state it was in before.
    #[error("{}the device could not be returned to {state}: {back}", cause.as_ref().map_or_else(
        || "completed, but ".to_string(),
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
        "{cause}; and the device holds a partial state because its reset failed ({reset}); do not use it before it is reset"
    )]
    NotReset {
        /// What failed first.
        cause: Box<Error>,
        /// Why the reset failed.
        reset: Box<Error>,
    },
    /// The device answered a state request in a way the header rules out.
    #[error("{device}: entering {state} opened no data session")]
    NoSession {
        /// The device's name.
        device: String,
        /// The state.
        state: State,
    },
    /// The stream is malformed or damaged, or not one of Whimbrel's.
    #[error(transparent)]
    Malformed(#[from] crate::proto::problem::StreamError),
    /// The other side neither sends nor takes anything.
    #[error("timed out: no data to or from the {side} for {} ms", waited.as_millis())]
    Silent {
        /// Source or destination.
        side: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The other side is gone.
    #[error("the {side} closed the connection before the migration was complete")]
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
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// A file whose frames are whole but do not make up a saved device.
    #[error("the file is not a complete saved state: {0}")]
    Contents(String),
    /// The memory's layout cannot be migrated.
    #[error("memory layout: {0}")]
    Layout(String),
    /// An address outside of memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The log of what the CPUs write failed.
    #[error("the CPUs' dirty log: {0}")]
    CpuLog(GuestError),
    /// The program around the device refused.
    #[error("the program that owns the devices: {0}")]
    Guest(GuestError),
    /// The device has not given all that it wants carried before it is stopped.
    #[error(
        "did not converge: after {rounds} rounds {left} bytes of initial device data are left, without which the devices must \
         not be stopped: allow more rounds"
    )]
    InitialData {
        /// Rounds done.
        rounds: u32,
        /// Bytes left, as the device says.
        left: u64,
    },
    /// The owner or an operator has cancelled the migration.
    #[error("cancelled: {reason}")]
    Cancelled {
        /// Why, or by what.
        reason: String,
    },
    /// The devices had been stopped, and the handover did not come in time.
    #[error("the handover was not reached within {} ms of the stop", budget.as_millis())]
    Budget {
        /// The longest time from the stop until the handover.
        budget: Duration,
    },
    /// A call into a driver does not return.
    #[error("{device}: {call} has not returned for {} ms", timeout.as_millis())]
    Overdue {
        /// The device's name.
        device: String,
        /// The call.
        call: String,
        /// The timeout for a call.
        timeout: Duration,
    },
    /// A call into the owner's program, its memory or its logs does not return.
    #[error("the owner's program: {call} has not returned for {} ms", timeout.as_millis())]
    OwnerOverdue {
        /// The call.
        call: String,
        /// The timeout for a call.
        timeout: Duration,
    },
    /// The system has no thread or descriptor left.
    #[error("cannot start: {0}")]
    Thread(io::Error),
    /// A transfer or a wait was interrupted, because the migration had been given up.
    #[error("interrupted")]
    Interrupted,
    /// A device could not be brought back to RUNNING, without an error of its own.
    #[error("{device}: it is in {}, expected RUNNING", state.map_or_else(|| "an unknown state".to_string(), |state| state.to_string()))]
    NotRunning {
        /// The device's name.
        device: String,
        /// The state, if it could be read.
        state: Option<State>,
    },
    /// The devices run at the destination, but their owner's program does not go on.
    #[error("the devices have been taken over and run here, but {0}")]
    GuestAfterHandover(Box<Error>),
    /// The journal could not be written.
    #[error("the journal {}: {error}", path.display())]
    Journal {
        /// The journal's file.
        path: std::path::PathBuf,
        /// Why it failed.
        error: io::Error,
    },
    /// The two sides have no version or feature in common that the migration needs.
    #[error(transparent)]
    Negotiation(#[from] crate::proto::negotiate::Refusal),
    /// The devices or memory of the two sides differ.
    #[error(transparent)]
    Unfit(#[from] crate::proto::table::Unfit),
    /// The downtime does not come down to the limit.
    #[error(
        "did not converge: after {rounds} rounds the predicted downtime is {} ms, the limit is {} ms: \
         allow more downtime or more rounds, or reduce the load",
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
    /// A channel to `side` that failed.
    pub(crate) fn of_channel(side: &'static str, timeout: Duration, error: ChannelError) -> Error {
        match error {
            ChannelError::Interrupted => Error::Interrupted,
            ChannelError::TimedOut => Error::Silent { side, waited: timeout },
            ChannelError::Closed => Error::Lost { side },
            ChannelError::Malformed(error) => Error::Malformed(error),
            ChannelError::Failed(error) => Error::Link(error),
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
            Error::Silent { .. } => Some(
                "check that the other side still runs and that the network works; its own log may say more",
            ),
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

/// A migration that failed at the source, and where that leaves the devices.
#[derive(Debug, thiserror::Error)]
#[error("{cause}; {outcome}")]
#[non_exhaustive]
pub struct SendError {
    /// What went wrong.
    pub cause: Error,
    /// Where the devices are now.
    pub outcome: Outcome,
}

/// Where a failed migration leaves the devices.
#[derive(Debug, thiserror::Error)]
// Exhaustive: a caller that did not know one of these could let a device run twice.
#[expect(clippy::exhaustive_enums, reason = "a caller must know of each outcome who may run the device")]
pub enum Outcome {
    /// As before the migration.
    #[error("the devices run on at the source")]
    RunsOn,
    /// They run, but some could be brought back by a reset only and have lost their state.
    #[error("the devices run on at the source, but {} had to be reset and lost its state", devices.join(", "))]
    RunsOnAfterReset {
        /// The names of the devices that were reset.
        devices: Vec<String>,
    },
    /// As before the migration, which was refused before anything was done to them. They need not run.
    #[error("the migration did not begin, and the devices are as they were")]
    Untouched,
    /// The connection was lost between the handover and its confirmation.
    #[error(
        "the devices had been handed over, and it is unknown whether they run at the destination: they stay stopped \
         here; check there, and let them run here only if they do not run there"
    )]
    Unknown,
    /// It could not be brought back.
    #[error("and a device could not be brought back at the source: {0}")]
    Stranded(Box<Error>),
}
