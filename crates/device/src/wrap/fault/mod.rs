//! Fault injection: a wrapper around a driver that fails according to a list, to test how users handle a faulty device.
//!
//! The list is data ([`Faults`]) and has a text form, with one fault per line, or several separated by semicolons:
//!
//! | fault | what happens |
//! |---|---|
//! | `arc RUNNING_P2P->STOP: EIO` | the arc fails, and the device stays where it was |
//! | `arc RUNNING_P2P->STOP: EIO broken` | the arc fails, and the device goes to ERROR |
//! | `arc RUNNING_P2P->STOP: 0` | the request succeeds all the same, and the device stays where it was |
//! | `arc RUNNING_P2P->STOP: 0 broken` | the request succeeds all the same, and the device goes to ERROR |
//! | `read after 1MiB: EIO` | reading the state fails once that many bytes of a session were read |
//! | `read after 1MiB: short` | each read from there on returns one byte |
//! | `read after 1MiB: end` | the state ends there, too early |
//! | `read after 0 in STOP_COPY: EIO` | the same in one state only |
//! | `write after 4KiB: ENOSPC` | loading fails once that many bytes of a session were written |
//! | `write after 4KiB: short` | each write from there on accepts one byte |
//! | `delay STOP_COPY 200ms` | entering the state is delayed |
//! | `size: 100GiB`, `size: EIO` | the reply to VFIO_DEVICE_FEATURE_MIG_DATA_SIZE |
//! | `precopy: initial 5 dirty 0`, `precopy: EIO` | the reply to VFIO_MIG_GET_PRECOPY_INFO |
//! | `reinit after 1MiB` | it reports REINIT from there on: all remaining data, at least a byte, counts as initial data |
//! | `reinit at end` | it reports REINIT once all data was read |
//! | `temporary end: 0` | the temporary end of pre-copy is 0, as some kernel drivers have it, not ENOMSG |
//! | `log start: EIO`, `log report: EIO`, `log stop: EIO` | starting the dirty log, a dirty page report, or stopping the log fails |
//! | `reset: EIO` | a reset fails |
//!
//! `*` stands for any state. A migration region shows a device that is not in the state that was asked for as broken: it has
//! no other word for it. At the end of a fault, `once` or `3 times` limits how often it happens; after that the
//! device behaves normally.
//!
//! ```
//! use whimbrel_device::wrap::fault::{Faults, Faulty};
//! use whimbrel_device::{DeviceFile, Errno, State};
//! # use whimbrel_device::{ArcError, Context, DeviceInfoFlags, Driver, Info, Migration, MigrationFlags};
//! # struct Card;
//! # impl Driver for Card {
//! #     fn info(&self) -> Info {
//! #         Info::new(DeviceInfoFlags::empty())
//! #     }
//! #     fn migration(&mut self) -> Option<&mut dyn Migration> { Some(self) }
//! # }
//! # impl Migration for Card {
//! #     fn flags(&self) -> MigrationFlags { MigrationFlags::STOP_COPY }
//! #     fn arc(&mut self, _: &Context, _from: State, _to: State) -> Result<(), ArcError> { Ok(()) }
//! #     fn data_size(&mut self, _: &Context) -> Result<u64, Errno> { Ok(0) }
//! #     fn read(&mut self, _: &Context, _buffer: &mut [u8]) -> Result<usize, Errno> { Ok(0) }
//! #     fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> { Ok(data.len()) }
//! # }
//!
//! let faults: Faults = "arc RUNNING->STOP: EIO once".parse()?;
//! let device = DeviceFile::new("card", |_| Faulty::new(Card, faults));
//! assert_eq!(device.set_mig_state(State::Stop).err(), Some(Errno::EIO));
//! assert!(device.set_mig_state(State::Stop).is_ok(), "it was once");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod driver;
mod text;

use std::time::Duration;

use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_protocol::{Errno, State};

pub use self::driver::Faulty;
pub use self::text::FaultError;

/// The faults of a device. Of several that apply, the first remaining one happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults(Vec<Fault>);

/// A fault of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// Remaining number of times it happens; unlimited if `None`.
    pub times: Option<u32>,
}

/// The kind of a device's fault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// An arc fails. `None` stands for any state.
    Arc {
        /// The state the arc starts from.
        from: Option<State>,
        /// The state the arc leads to.
        to: Option<State>,
        /// The errno of the answer; `None` if the request succeeds all the same.
        errno: Option<Errno>,
        /// True if the device goes to ERROR.
        broken: bool,
    },
    /// Reading the state fails after this many bytes of a session.
    Read {
        /// Bytes.
        after: u64,
        /// The state in which it fails. `None` stands for any.
        state: Option<State>,
        /// The fault of the data.
        how: DataFault,
    },
    /// Loading a state fails after this many bytes of a session.
    Write {
        /// Bytes.
        after: u64,
        /// The fault of the data.
        how: DataFault,
    },
    /// Entering a state takes longer. `None` stands for any.
    Delay {
        /// The state.
        to: Option<State>,
        /// The delay.
        time: Duration,
    },
    /// The reply to VFIO_DEVICE_FEATURE_MIG_DATA_SIZE, in bytes.
    Size(Result<u64, Errno>),
    /// The reply to VFIO_MIG_GET_PRECOPY_INFO, in bytes.
    Precopy(Result<PrecopyBytes, Errno>),
    /// VFIO_MIG_GET_PRECOPY_INFO reports REINIT to a user that has opted in: all remaining data, at least a byte, counts
    /// as initial data.
    Reinit {
        /// Bytes of a session that were read before. `None` stands for all data that can be read.
        after: Option<u64>,
    },
    /// A read at the temporary end of pre-copy returns 0 instead of ENOMSG.
    ZeroAtTemporaryEnd,
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START fails, and no log is started.
    LogStart(Errno),
    /// A dirty page report fails.
    LogReport(Errno),
    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP fails, and the log goes on.
    LogStop(Errno),
    /// A reset fails.
    Reset(Errno),
}

/// A fault of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DataFault {
    /// The call fails.
    Fails(Errno),
    /// Only one byte is transferred.
    Short,
    /// There are no more bytes to read.
    End,
}

impl Fault {
    /// Returns a fault that happens every time.
    pub const fn new(kind: FaultKind) -> Fault {
        Fault { kind, times: None }
    }

    /// Limits how often the fault happens.
    #[must_use]
    pub fn times(self, times: u32) -> Fault {
        Fault { times: Some(times), ..self }
    }
}

impl Faults {
    /// Returns the faults in this order.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Faults {
        Faults(faults.into_iter().collect())
    }

    /// Iterates over the remaining faults.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter().filter(|fault| fault.times != Some(0))
    }

    /// Consumes one occurrence of the first remaining fault that fits, and returns its result.
    fn take<T>(&mut self, fits: impl Fn(&FaultKind) -> Option<T>) -> Option<T> {
        self.0.iter_mut().filter(|fault| fault.times != Some(0)).find_map(|fault| {
            let taken = fits(&fault.kind)?;
            fault.times = fault.times.map(|times| times - 1);
            Some(taken)
        })
    }
}
