//! The commands and events of the machines of a migration.
//!
//! The machines in `source` and `destination` decide. Their driver (`run`, or a simulation) executes each command and
//! reports its result. State and memory bypass the machines, which see only their sizes.

use std::fmt;
use std::time::Duration;

use whimbrel_protocol::handover::Entry;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_user::State;

use super::control::Control;
use super::join::Join;
use crate::error::Error;
use crate::progress::DirtyRange;

/// Time since a fixed moment, from a monotonic clock.
pub type Now = Duration;

/// The number of an operation, unique within a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperationId(pub u64);

/// A command of a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start an operation, and report its end with [`Event::Done`]. Operations at the same place run in the order of
    /// their commands, even after one has failed; those at different places run concurrently.
    Start {
        /// The number to report.
        id: OperationId,
        /// The place of the operation.
        place: Place,
        /// The operation.
        operation: Operation,
    },
    /// End every transfer in progress as soon as possible: [`Operation::SendMemory`], [`Operation::SendState`] and each
    /// wait for the peer. Each still reports its end. The stream stays intact for what is sent afterwards.
    Interrupt,
    /// Nothing follows.
    Finish,
}

/// The places of operations: each place runs one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The device with this number.
    Device(usize),
    /// The memory, and the connections.
    Stream,
    /// The program that owns the devices, and the journal.
    Owner,
}

impl Place {
    /// Returns the number of the device, if it is one.
    pub const fn device(self) -> Option<usize> {
        match self {
            Place::Device(index) => Some(index),
            Place::Stream | Place::Owner => None,
        }
    }
}

/// The operations.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// On a device: query its state. Reports [`Done::State`].
    QueryState,
    /// On a device: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET. Reports [`Done::Nothing`].
    SetState(State),
    /// On a device: opt in to REINIT. Reports [`Done::Nothing`].
    EnableReinit,
    /// On a device in a pre-copy state: VFIO_MIG_GET_PRECOPY_INFO, and the size of all data that stopping it would yield.
    /// Reports [`Done::Precopy`].
    QueryPrecopy,
    /// On a device: the size of all data that stopping it would yield. Reports [`Done::Bytes`].
    QueryDataSize,
    /// On a device with a saving session: send its state until its end, be that temporary or final. Reports
    /// [`Done::Sent`].
    SendState {
        /// The number of bytes after which to stop. `None`: continue to the end.
        limit: Option<u64>,
    },
    /// On a device: start its log of DMA writes, if it has one. Reports [`Done::Nothing`].
    StartLog,
    /// On a device: mark the pages that it has written as dirty. Reports [`Done::Nothing`].
    CollectLog {
        /// Set if the device has stopped. A log that cannot be read is an error then, and is abandoned before.
        stopped: bool,
    },
    /// On a device: stop its log. Reports [`Done::Nothing`].
    StopLog,
    /// On a device: VFIO_DEVICE_RESET. Reports [`Done::Nothing`].
    Reset,
    /// On a device: read the setup that does not belong to its migration state (PCI configuration, interrupts) and keep
    /// it. Reports [`Done::Sent`].
    SaveSetup {
        /// Set if it is also sent, if there is any. Otherwise a setup that cannot be read is an error of
        /// [`Operation::RestoreSetup`], unless an earlier one was read.
        send: bool,
    },
    /// On a device: write the setup that was saved or received. Reports [`Done::Nothing`].
    RestoreSetup,
    /// On a device in RESUMING: wait until it has accepted all state that has arrived. Reports [`Done::Bytes`], all so
    /// far.
    DrainState,

    /// On a device: send the state again that was sent after its first `from` bytes. Reports [`Done::Bytes`], all so far.
    ResendState {
        /// The bytes that the destination has.
        from: u64,
    },

    /// On the stream: open the lanes from 1 on. One that is refused for now, or not at all, is tried again. Reports
    /// [`Done::Nothing`].
    OpenLanes {
        /// The first frame of each lane.
        joins: Vec<Join>,
        /// The longest time for all of them.
        timeout: Duration,
    },
    /// On the stream: send the mark of this number, and everything queued before it, on every lane but the control
    /// connection. Reports [`Done::Nothing`].
    MarkLanes(u32),
    /// On the stream: send a control message and everything queued before it. Reports [`Done::Nothing`].
    Send(Control),
    /// On the stream of the source, of whose connections one is lost: end all of them, and after a pause make another control
    /// connection and send JOIN on it. Nothing is received from it before [`Operation::Listen`]. Reports [`Done::Nothing`].
    Reconnect {
        /// The first frame.
        join: Join,
        /// The time to wait before.
        pause: Duration,
        /// The longest time for the connection.
        timeout: Duration,
    },
    /// On the stream of the destination: end all connections, and expect no lanes. What has been received before is an event
    /// before the end of this. Reports [`Done::Nothing`].
    Unlink,
    /// On the stream of the destination, after [`Operation::Unlink`]: answer the last JOIN by RESUMED, with the state of each
    /// device that has arrived, use its connection, and expect its lanes. Reports [`Done::Nothing`].
    Rejoin {
        /// The last round that was processed.
        round: u32,
        /// The number of the JOIN. If there is a newer one, this fails as on a lost connection.
        number: u32,
    },
    /// On the stream: receive from the new control connection. Reports [`Done::Nothing`].
    Listen,
    /// On the stream: the destination has all that was sent so far. Marks and copies kept for a lost connection are dropped.
    /// Reports [`Done::Nothing`].
    RoundArrived,
    /// On the stream: mark the memory again that was sent since the last [`Operation::RoundArrived`]. Reports
    /// [`Done::Bytes`], the dirty memory as in [`Operation::CollectMemoryLogs`].
    RoundLost,
    /// On the stream: start the logs of the CPUs and of the address space, with all memory marked. Reports
    /// [`Done::Nothing`].
    StartMemoryLogs,
    /// On the stream: mark the dirty pages of these logs, after the devices' own. Reports [`Done::Dirty`], or [`Done::Bytes`]
    /// if no more is known: the dirty memory, or all memory if some writes are not logged.
    CollectMemoryLogs {
        /// Set if everything that writes memory has stopped: this is the last call.
        stopped: bool,
    },
    /// On the stream: stop these logs. Reports [`Done::Nothing`].
    StopMemoryLogs,
    /// On the stream: send all dirty memory. Reports [`Done::Sent`].
    SendMemory,
    /// On the stream: send the owner's blobs, which it saved when it paused. Reports [`Done::Sent`].
    SendBlobs,
    /// On the stream: send meaningless bytes, to measure the throughput. Reports [`Done::Sent`].
    SendPadding(u64),

    /// On the owner: slow the guest down, so that it writes less memory; more with each step, and not at all with 0. Reports
    /// [`Done::Slowed`].
    Slow(u32),
    /// On the owner: stop the guest.
    Pause,
    /// On the owner: the devices run here again.
    Resume,
    /// On the owner: load the blobs that arrived and inspect everything; the devices are stopped.
    Inspect,
    /// On the owner: the devices run here now.
    Run,
    /// On the owner: append an entry to the journal and sync it. Does nothing without a journal.
    Record {
        /// The migration's id.
        migration: u128,
        /// The entry.
        entry: Entry,
    },
}

/// The results of operations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Done {
    /// No result.
    Nothing,
    /// The device's state.
    State(State),
    /// A size in bytes.
    Bytes(u64),
    /// The dirty memory.
    Dirty {
        /// Its size in bytes.
        bytes: u64,
        /// The part of the memory that has most of it.
        most: Option<DirtyRange>,
        /// Set if all writes are logged. If not, all memory counts as dirty, however little is written.
        is_logged: bool,
    },
    /// The amount of data sent.
    Sent(Sent),
    /// The answer of the guest: `true` if it is slower than before.
    Slowed(bool),
    /// The device's pre-copy data.
    Precopy {
        /// The answer to VFIO_MIG_GET_PRECOPY_INFO.
        report: PrecopyReport,
        /// Bytes that stopping the device would yield, if it reports them.
        data_size: Option<u64>,
    },
}

/// The amount of data that an operation has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sent {
    /// Bytes of memory or state, including zero pages.
    pub bytes: u64,
    /// Bytes of memory that were zero and not sent, as a part of `bytes`.
    pub zero: u64,
    /// Bytes on the wire.
    pub wire: u64,
    /// Time spent on memory that was not sent, because it was zero.
    pub scanning: Duration,
}

/// The events that a machine takes.
#[derive(Debug)]
pub enum Event {
    /// An operation has ended.
    Done {
        /// Its number.
        id: OperationId,
        /// Its result.
        result: Result<Done, Error>,
    },
    /// An operation has exceeded the timeout of a call and cannot be interrupted: a driver does not return. It may
    /// still end.
    Overdue(OperationId),
    /// A control message has arrived.
    Received(Control),
    /// The connection is closed, broken or malformed: nothing more can be received or sent.
    Lost(Error),
    /// The owner or an operator cancels the migration.
    Cancel(String),
    /// At the destination: the source has come back on another connection, and has proved who it is. The number is that of its
    /// attempt.
    Resumption(u32),
    /// At the destination: bytes of a device's state have arrived, which the source may forget.
    StateArrived {
        /// Number of the device.
        device: u32,
        /// Bytes of its state that have arrived.
        bytes: u64,
    },
    /// Time has passed.
    Tick,
}

impl Operation {
    /// Returns whether the operation sends or waits for the peer, and therefore ends early when transfers are
    /// interrupted.
    pub const fn is_transfer(&self) -> bool {
        matches!(
            self,
            Operation::Send(_)
                | Operation::OpenLanes { .. }
                | Operation::MarkLanes(_)
                | Operation::SendState { .. }
                | Operation::SendMemory
                | Operation::SendBlobs
                | Operation::SendPadding(_)
                | Operation::Reconnect { .. }
                | Operation::Rejoin { .. }
                | Operation::ResendState { .. }
        )
    }
}

/// The operation as shown in errors: the request and its recipient.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::QueryState => f.write_str("GET of the migration state"),
            Operation::SetState(state) => write!(f, "SET of the migration state to {state}"),
            Operation::EnableReinit => f.write_str("SET of PRECOPY_INFOv2"),
            Operation::QueryPrecopy => f.write_str("GET_PRECOPY_INFO"),
            Operation::QueryDataSize => f.write_str("GET of the data size"),
            Operation::SendState { .. } => f.write_str("read of device state"),
            Operation::StartLog => f.write_str("start of DMA logging"),
            Operation::CollectLog { .. } => f.write_str("report of DMA logging"),
            Operation::StopLog => f.write_str("stop of DMA logging"),
            Operation::Reset => f.write_str("reset"),
            Operation::SaveSetup { .. } => f.write_str("read of the configuration"),
            Operation::RestoreSetup => f.write_str("write of the configuration"),
            Operation::DrainState => f.write_str("write of device state"),
            Operation::OpenLanes { .. } => f.write_str("opening of further connections"),
            Operation::MarkLanes(_) => f.write_str("send of MARK"),
            Operation::Send(control) => write!(f, "send of {}", control.name()),
            Operation::Reconnect { .. } => f.write_str("connection to the destination"),
            Operation::Unlink => f.write_str("end of the lost connections"),
            Operation::Rejoin { .. } => f.write_str("send of RESUMED"),
            Operation::Listen => f.write_str("start of the receiver"),
            Operation::RoundArrived => f.write_str("account of a round that arrived"),
            Operation::RoundLost => f.write_str("account of a round that was lost"),
            Operation::ResendState { .. } => f.write_str("resend of device state"),
            Operation::StartMemoryLogs => f.write_str("start of the memory's logs"),
            Operation::CollectMemoryLogs { .. } => f.write_str("reading of the memory's logs"),
            Operation::StopMemoryLogs => f.write_str("stop of the memory's logs"),
            Operation::SendMemory => f.write_str("send of memory"),
            Operation::SendBlobs => f.write_str("send of the owner's state"),
            Operation::SendPadding(_) => f.write_str("send of padding"),
            Operation::Slow(0) => f.write_str("end of the owner's slowing"),
            Operation::Slow(_) => f.write_str("slowing of the owner"),
            Operation::Pause => f.write_str("pause of the owner"),
            Operation::Resume => f.write_str("resumption of the owner"),
            Operation::Inspect => f.write_str("inspection by the owner"),
            Operation::Run => f.write_str("start of the owner"),
            Operation::Record { entry, .. } => write!(f, "record of '{entry}' in the journal"),
        }
    }
}
