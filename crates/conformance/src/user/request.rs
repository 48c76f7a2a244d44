//! A request of a program under test, with the device's answer.

use std::fmt;

use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, State};

/// A request, with its answer. `state` is the device's migration state at the request, `session` numbers a device's data
/// files from 1 on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request {
    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, GET.
    GetState(State),
    /// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, SET.
    SetState {
        /// The state before.
        from: State,
        /// The requested state.
        to: State,
        /// The data file that was opened, if any.
        result: Result<Option<(u64, Direction)>, Errno>,
        /// The state after.
        now: State,
    },
    /// VFIO_DEVICE_RESET.
    Reset {
        /// The state before.
        from: State,
        /// The answer.
        result: Result<(), Errno>,
    },
    /// The close of the device's last file, at which the kernel resets the device. vfio-user has none.
    Close {
        /// The state before.
        from: State,
        /// The answer of the reset.
        result: Result<(), Errno>,
    },
    /// Reads from a data file.
    Read {
        /// The data file.
        session: u64,
        /// The state.
        state: State,
        /// The bytes of one or several reads; empty at the end.
        result: Result<Vec<u8>, Errno>,
    },
    /// Writes to a data file.
    Write {
        /// The data file.
        session: u64,
        /// The state.
        state: State,
        /// The bytes that were accepted, of one or several writes.
        result: Result<Vec<u8>, Errno>,
    },
    /// VFIO_MIG_GET_PRECOPY_INFO.
    PrecopyInfo {
        /// The data file.
        session: u64,
        /// The answer.
        result: Result<PrecopyReport, Errno>,
    },
    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.
    PrecopyInfoV2(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
    DataSize(Result<u64, Errno>),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
    LoggingStart(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    LoggingStop(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
    LoggingReport(Result<(), Errno>),
    /// An access to a region.
    Region {
        /// True for a write.
        is_write: bool,
        /// The state.
        state: State,
        /// The region.
        index: u32,
        /// The offset in the region.
        offset: u64,
        /// The length in bytes.
        length: usize,
    },
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::GetState(state) => write!(f, "GET = {state}"),
            Request::SetState { to, result: Ok(opened), now, .. } => {
                write!(f, "SET {to} = 0")?;
                if let Some((session, _)) = opened {
                    write!(f, ", data_fd {session}")?;
                }
                if now == to { Ok(()) } else { write!(f, ", but now in {now}") }
            }
            Request::SetState { from, to, result: Err(errno), now } => {
                write!(f, "SET {to} = {errno:?}, from {from}, now in {now}")
            }
            Request::Reset { from, result } => write!(f, "RESET in {from} = {}", Answer(result)),
            Request::Close { from, result: Ok(()) } => write!(f, "close in {from}"),
            Request::Close { from, result: Err(errno) } => {
                write!(f, "close in {from}, and its reset fails with {errno:?}")
            }
            Request::Read { session, state, result: Ok(bytes) } => {
                write!(f, "read from data_fd {session} in {state} = {} bytes", bytes.len())
            }
            Request::Read { session, state, result: Err(errno) } => {
                write!(f, "read from data_fd {session} in {state} = {errno:?}")
            }
            Request::Write { session, state, result: Ok(bytes) } => {
                write!(f, "write to data_fd {session} in {state} = {} bytes", bytes.len())
            }
            Request::Write { session, state, result: Err(errno) } => {
                write!(f, "write to data_fd {session} in {state} = {errno:?}")
            }
            Request::PrecopyInfo { result: Ok(report), .. } => {
                let reinit = if report.reinit { ", REINIT" } else { "" };
                let bytes = report.bytes;
                write!(f, "PRECOPY_INFO = initial {}, dirty {}{reinit}", bytes.initial, bytes.dirty)
            }
            Request::PrecopyInfo { result: Err(errno), .. } => write!(f, "PRECOPY_INFO = {errno:?}"),
            Request::PrecopyInfoV2(result) => write!(f, "SET MIG_PRECOPY_INFOv2 = {}", Answer(result)),
            Request::DataSize(Ok(size)) => write!(f, "GET MIG_DATA_SIZE = {size}"),
            Request::DataSize(Err(errno)) => write!(f, "GET MIG_DATA_SIZE = {errno:?}"),
            Request::LoggingStart(result) => write!(f, "SET DMA_LOGGING_START = {}", Answer(result)),
            Request::LoggingStop(result) => write!(f, "SET DMA_LOGGING_STOP = {}", Answer(result)),
            Request::LoggingReport(result) => write!(f, "GET DMA_LOGGING_REPORT = {}", Answer(result)),
            Request::Region { is_write, state, index, offset, length } => {
                let what = if *is_write { "write" } else { "read" };
                write!(f, "{what} of {length} bytes at {offset:#x} of region {index} in {state}")
            }
        }
    }
}

impl Request {
    /// Returns whether it has reset the device: the program has asked for that, or has closed the device.
    pub(crate) fn has_reset(&self) -> bool {
        matches!(self, Request::Reset { result: Ok(()), .. } | Request::Close { result: Ok(()), .. })
    }
}

/// An answer without a value.
struct Answer<'a>(&'a Result<(), Errno>);

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(()) => f.write_str("0"),
            Err(errno) => write!(f, "{errno:?}"),
        }
    }
}
