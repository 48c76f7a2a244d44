//! Requests of a device's user as an observer sees them, each with its answer, in order.

use std::fmt;

use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, State};

/// A request that concerns migration, or an access to a region, with its answer.
///
/// `state` is the device's migration state at the request, `session` the number of a data file: 1 for the first.
#[derive(Debug)]
#[non_exhaustive]
pub enum Observed<'a> {
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
        /// The state after.
        now: State,
    },
    /// The close of its last file, at which the device is reset.
    Close {
        /// The state before.
        from: State,
        /// The answer of the reset.
        result: Result<(), Errno>,
        /// The state after.
        now: State,
    },
    /// A read from a data file, of at least one byte.
    Read {
        /// The data file.
        session: u64,
        /// The state.
        state: State,
        /// The bytes.
        result: Result<&'a [u8], Errno>,
    },
    /// A write to a data file, of at least one byte.
    Write {
        /// The data file.
        session: u64,
        /// The state.
        state: State,
        /// The bytes that were accepted.
        result: Result<&'a [u8], Errno>,
    },
    /// VFIO_MIG_GET_PRECOPY_INFO.
    PrecopyInfo {
        /// The data file.
        session: u64,
        /// The state.
        state: State,
        /// The answer.
        result: Result<PrecopyReport, Errno>,
    },
    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.
    PrecopyInfoV2(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
    DataSize {
        /// The state.
        state: State,
        /// The size in bytes.
        result: Result<u64, Errno>,
    },
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START.
    LoggingStart(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    LoggingStop(Result<(), Errno>),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
    LoggingReport(Result<(), Errno>),
    /// A read or write of a region.
    Region {
        /// True for a write.
        is_write: bool,
        /// The state.
        state: State,
        /// The region.
        index: u32,
        /// The offset in the region.
        offset: u64,
        /// The length of the access.
        length: usize,
        /// The number of bytes that were transferred.
        result: Result<usize, Errno>,
    },
}

/// The observer of a device.
pub(crate) struct Observer(Box<dyn Fn(&Observed<'_>) + Send + Sync>);

impl Observer {
    pub(super) fn new(observer: impl Fn(&Observed<'_>) + Send + Sync + 'static) -> Observer {
        Observer(Box::new(observer))
    }

    pub(super) fn tell(&self, observed: &Observed<'_>) {
        (self.0)(observed);
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
