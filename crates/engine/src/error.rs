//! The reasons why a migration failed, and the state it leaves behind.

mod advice;
mod link;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use whimbrel_protocol::handover::{Entry, Unexpected};
use whimbrel_user::State;

use crate::channel::{ConnectorError, TlsError, named};
use crate::guest::GuestError;
use crate::proto::operation::Operation;
use crate::set::RamError;

/// The reasons why a migration, a save or a restore failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A device refused a request, or a request was not made because an earlier one has not returned.
    #[error(transparent)]
    Device(whimbrel_user::Error),
    /// The device cannot be migrated at all.
    #[error("{device}: its driver does not support migration")]
    NotMigratable {
        /// The device's name.
        device: String,
    },
    /// The operation cannot begin in the device's current state.
    #[error("{device}: {work} needs a device in {needed}, this one is in {state}")]
    WrongState {
        /// The device's name.
        device: String,
        /// The current state.
        state: State,
        /// The operation.
        work: &'static str,
        /// The states in which it can begin.
        needed: &'static str,
    },
    /// The device is in the ERROR state and accepts no state request.
    #[error("{device}: it is in ERROR; only a reset, which loses its state, brings it back")]
    NeedsReset {
        /// The device's name.
        device: String,
    },
    /// The failed operation could be undone only in part: the device is not in the state it was in before, or its state is
    /// unknown because a call into its driver has not returned.
    #[error(
        "{}{} {state}{}: {back}",
        cause.as_ref().map_or_else(|| "completed, but ".to_string(), |cause| format!("{cause}; and ")),
        if back.is_of_a_lost_device() {
            "it is unknown whether the device has returned to"
        } else {
            "the device could not be returned to"
        },
        found.map_or_else(String::new, |found| format!(", and is in {found}"))
    )]
    NotBack {
        /// The first failure, if there was one.
        cause: Option<Box<Error>>,
        /// The state that the device should have returned to.
        state: State,
        /// The state that the device is in instead, if it has said so.
        found: Option<State>,
        /// The error of the return.
        back: Box<Error>,
    },
    /// The failed operation left a part of a state in the device, or the device's state is unknown because a call into its
    /// driver has not returned: then it may also run with the received state.
    #[error(
        "{cause}; and {}{} because its reset failed ({reset}); do not use it before it is reset",
        if reset.is_of_a_lost_device() {
            "it is unknown whether the device holds the received state, or runs with it,"
        } else {
            "the device holds a partial state"
        },
        found.map_or_else(String::new, |found| format!(" in {found}"))
    )]
    NotReset {
        /// The first failure.
        cause: Box<Error>,
        /// The state that the device is in, if it has said so.
        found: Option<State>,
        /// The error of the reset.
        reset: Box<Error>,
    },
    /// The failed operation left the received state in the devices: the journal could not record that it is discarded.
    #[error(
        "{cause}; and the devices keep the received state, because the journal could not record that it is discarded ({journal})"
    )]
    NotDiscarded {
        /// The first failure.
        cause: Box<Error>,
        /// The error of the journal.
        journal: Box<Error>,
    },
    /// The device answered a state request in a way that the header rules out.
    #[error("{device}: entering {state} opened no data session")]
    NoSession {
        /// The device's name.
        device: String,
        /// The state.
        state: State,
    },
    /// The device's data session has ended in the middle of the work: by a reset, such as its guest's, or by another user
    /// who has changed its state. The data before and after it does not belong together.
    #[error(
        "{device}: it was reset meanwhile, or another user has changed its state: its data session in {expected} has \
         ended{}",
        found.map_or_else(String::new, |found| format!(", and it is in {found}"))
    )]
    ResetMeanwhile {
        /// The device's name.
        device: String,
        /// The state that it was brought to.
        expected: State,
        /// The state that it was found in; `None` if it has begun another session.
        found: Option<State>,
    },
    /// The stream is malformed or damaged, or is not a Whimbrel stream.
    #[error(transparent)]
    Malformed(#[from] crate::proto::problem::StreamError),
    /// Timed out: the other side neither sends nor accepts data.
    #[error("timed out: no data to or from the {side} for {} ms", waited.as_millis())]
    Silent {
        /// Source or destination.
        side: &'static str,
        /// The time waited.
        waited: Duration,
    },
    /// The other side closed the connection.
    #[error("the {side} closed the connection before the migration was complete")]
    Lost {
        /// Source or destination.
        side: &'static str,
    },
    /// The connection was lost in pre-copy, and was not replaced in time.
    #[error(
        "{cause}; {}{}",
        match last.as_deref() {
            Some(Error::Peer { .. }) => "the destination was reached again, and did not go on".to_string(),
            _ if *side == crate::proto::SOURCE => {
                format!("the source did not come back on another connection within {} ms", waited.as_millis())
            }
            _ => format!("the destination could not be reached again within {} ms", waited.as_millis()),
        },
        last.as_ref().map_or_else(String::new, |last| format!(" ({last})"))
    )]
    NotResumed {
        /// Source or destination: the other side.
        side: &'static str,
        /// The time waited.
        waited: Duration,
        /// The error of the connection.
        cause: Box<Error>,
        /// The error of the last attempt to replace it.
        last: Option<Box<Error>>,
    },
    /// Connections were lost in pre-copy, and replaced, so often that a round has not arrived.
    #[error("{cause}; round {round} has not arrived although connections were replaced {times} times for it")]
    LostTooOften {
        /// The number of the round.
        round: u32,
        /// The number of times that connections were replaced since the round before it had arrived.
        times: u32,
        /// The error of the last connection that was lost.
        cause: Box<Error>,
    },
    /// Writing to the link failed.
    #[error("sending failed: {}", named(.0))]
    Link(io::Error),
    /// The other side does not speak TLS, or one of the two does not accept the other's certificate.
    #[error(transparent)]
    Tls(TlsError),
    /// Reading or writing a file failed.
    #[error("{what}: {}", named(error))]
    File {
        /// The operation, with the file's name.
        what: String,
        /// The system's error.
        error: io::Error,
    },
    /// The other side ended the migration and gave a reason.
    #[error("the {side} ended the migration: {reason}")]
    Peer {
        /// Source or destination.
        side: &'static str,
        /// The reason, as the other side wrote it.
        reason: String,
    },
    /// The other side sent a message that is invalid at this point.
    #[error("protocol violation: {0}")]
    Protocol(String),
    /// The file's frames are intact but do not make up a saved device.
    #[error("the file is not a complete saved state: {0}")]
    Contents(String),
    /// The memory's layout cannot be migrated.
    #[error("memory layout: {0}")]
    Layout(String),
    /// An address lies outside of the memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The log of the CPUs' writes failed.
    #[error("the CPUs' dirty log: {0}")]
    CpuLog(GuestError),
    /// The program that owns the devices failed.
    #[error("the program that owns the devices: {0}")]
    Guest(GuestError),
    /// The device still has data that must be sent before it is stopped.
    #[error(
        "did not converge: after {rounds} rounds {left} bytes of initial device data are left, without which the devices must \
         not be stopped: allow more rounds"
    )]
    InitialData {
        /// Number of completed rounds.
        rounds: u32,
        /// Bytes left, as reported by the device.
        left: u64,
    },
    /// The owner or an operator has cancelled the migration.
    #[error("cancelled: {reason}")]
    Cancelled {
        /// The reason, or the origin of the cancellation.
        reason: String,
    },
    /// The devices were stopped, and the handover was not reached in time.
    #[error("the handover was not reached within {} ms of the stop", budget.as_millis())]
    Budget {
        /// The maximum time from the stop until the handover.
        budget: Duration,
    },
    /// A call into a driver has not returned within its timeout.
    #[error("{device}: {call} has not returned for {} ms", timeout.as_millis())]
    Overdue {
        /// The device's name.
        device: String,
        /// The call.
        call: String,
        /// The timeout for a call.
        timeout: Duration,
    },
    /// A call into the owner's program, its memory or its logs has not returned within its timeout.
    #[error("the owner's program: {call} has not returned for {} ms", timeout.as_millis())]
    OwnerOverdue {
        /// The call.
        call: String,
        /// The timeout for a call.
        timeout: Duration,
    },
    /// A driver, the owner's program or this library has a bug: it panicked.
    #[error("{what} panicked: {reason}")]
    Panicked {
        /// The device or thread, and the operation.
        what: String,
        /// The message of the panic.
        reason: String,
    },
    /// A call has no place at this point of a migration. It has changed nothing.
    #[error("{call} was called {now}")]
    OutOfOrder {
        /// The method.
        call: &'static str,
        /// The phase of the migration.
        now: &'static str,
    },
    /// The system has no more threads or file descriptors.
    #[error("cannot start: {}", named(.0))]
    Thread(io::Error),
    /// A transfer or a wait was interrupted, because the migration had been aborted.
    #[error("interrupted")]
    Interrupted,
    /// A device could not be returned to RUNNING, without an error of its own.
    #[error("{device}: it is in {}, expected RUNNING", state.map_or_else(|| "an unknown state".to_string(), |state| state.to_string()))]
    NotRunning {
        /// The device's name.
        device: String,
        /// The state, if it could be read.
        state: Option<State>,
    },
    /// The devices run at the destination, but their owner's program failed to continue.
    #[error("the devices have been taken over and run here, but {0}")]
    GuestAfterHandover(Box<Error>),
    /// The journal could not be read or written. What was to be written is not in it.
    #[error("the journal {}: {}", path.display(), named(error))]
    Journal {
        /// The journal's file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A record was written to the journal, but it could neither be synced nor removed; or an earlier one was, and still
    /// cannot be removed.
    #[error("the journal {}: {}; the record of '{entry}' may be in it or not", path.display(), named(error))]
    JournalUncertain {
        /// The journal's file.
        path: PathBuf,
        /// The entry.
        entry: Entry,
        /// The system's error.
        error: io::Error,
    },
    /// The journal is locked by another process, or by another handle of this one.
    #[error("the journal {} is in use by another process", path.display())]
    JournalInUse {
        /// The journal's file.
        path: PathBuf,
    },
    /// The outcome of an earlier migration is unknown to the journal.
    #[error("the journal {} does not know the outcome of migration {migration:032x}", path.display())]
    Unresolved {
        /// The journal's file.
        path: PathBuf,
        /// The earlier migration's id.
        migration: u128,
    },
    /// The journal has no migration whose outcome is unknown.
    #[error("the journal {} has no unknown outcome", path.display())]
    NothingToResolve {
        /// The journal's file.
        path: PathBuf,
    },
    /// The journal names other devices.
    #[error("the journal {} is of {}, not of {}", path.display(), recorded.join(", "), given.join(", "))]
    OtherDevices {
        /// The journal's file.
        path: PathBuf,
        /// The devices that it names.
        recorded: Vec<String>,
        /// The devices that were given.
        given: Vec<String>,
    },
    /// The arbiter of an unknown outcome could not be reached.
    #[error("the arbiter: {0}")]
    Arbiter(GuestError),
    /// The devices belong to this side, but one does not run.
    #[error("the devices belong to this side, but one does not run: {0}")]
    NotStarted(Box<Error>),
    /// The two sides have no version or feature in common that the migration needs.
    #[error(transparent)]
    Negotiation(#[from] crate::proto::negotiate::Refusal),
    /// A further connection to the destination could not be opened.
    #[error("connection {lane} of the migration, beside the first one, cannot be opened: {error}")]
    Lane {
        /// The number of the lane, from 1.
        lane: u32,
        /// The reason.
        error: Box<Error>,
    },
    /// The connector has not connected to the destination.
    #[error("{0}")]
    Connect(ConnectorError),
    /// The devices or memory of the two sides differ.
    #[error(transparent)]
    Unfit(#[from] crate::proto::table::Unfit),
    /// The migration does not converge: the predicted downtime stays above the limit.
    #[error(
        "did not converge: after {rounds} rounds the predicted downtime is {}, the limit is {} ms{}: \
         allow more downtime or more rounds, or reduce the load",
        predicted(*expected),
        limit.as_millis(),
        most_of(blame.as_deref())
    )]
    NotConverging {
        /// Number of completed rounds.
        rounds: u32,
        /// The downtime predicted now.
        expected: Option<Duration>,
        /// The limit by then.
        limit: Duration,
        /// The memory or device that has most left to send, with its size.
        blame: Option<String>,
    },
    /// The total timeout has passed before the predicted downtime was within the limit.
    #[error(
        "not done within {} s: the predicted downtime is {}, the limit is {} ms{}",
        total.as_secs_f64(),
        predicted(*expected),
        limit.as_millis(),
        most_of(blame.as_deref())
    )]
    OutOfTime {
        /// The total timeout.
        total: Duration,
        /// The downtime predicted after the last round.
        expected: Option<Duration>,
        /// The limit by then.
        limit: Duration,
        /// The memory or device that has most left to send, with its size.
        blame: Option<String>,
    },
}

/// A predicted downtime.
pub(crate) fn predicted(expected: Option<Duration>) -> String {
    expected.map_or_else(|| "unknown".to_string(), |expected| format!("{} ms", expected.as_millis()))
}

/// The memory or device that has most left to send, as the end of a clause.
pub(crate) fn most_of(blame: Option<&str>) -> String {
    blame.map_or_else(String::new, |blame| format!(", most is left of {blame}"))
}

impl Error {
    /// Returns the error of a call that does not return: into the driver of a device, or into the owner's program.
    pub(crate) fn overdue(device: Option<&str>, operation: &Operation, timeout: Duration) -> Error {
        let call = operation.to_string();
        match device {
            Some(device) => Error::Overdue { device: device.to_string(), call, timeout },
            None => Error::OwnerOverdue { call, timeout },
        }
    }

    /// Returns whether a call into a driver has not returned, so that nothing is known of the state of its device.
    pub(crate) fn is_of_a_lost_device(&self) -> bool {
        matches!(self, Error::Overdue { .. } | Error::Device(whimbrel_user::Error::Lost { .. }))
    }
}

impl From<whimbrel_user::Error> for Error {
    fn from(error: whimbrel_user::Error) -> Error {
        match error {
            whimbrel_user::Error::Overdue { device, request, waited } => {
                Error::Overdue { device, call: request.to_string(), timeout: waited }
            }
            error => Error::Device(error),
        }
    }
}

impl From<Unexpected> for Error {
    fn from(unexpected: Unexpected) -> Error {
        Error::Protocol(unexpected.to_string())
    }
}
