//! The user side of VFIO device migration: one interface to a device, with any kind of driver.
//!
//! [`Device`] is the interface for a program that owns a device. Its implementations are a driver in this process
//! ([`Local`]), a kernel device opened through its group ([`kernel::Group`]) or its own file ([`kernel::Cdev`]), and a
//! device that a VMM has opened itself and adopts for migration only ([`kernel::Adopted`]). [`region::adapt`] adapts a
//! device that migrates through a region, as before Linux 5.18.
//!
//! [`Timed`] gives any of them a timeout for calls into its driver.
//!
//! [`Local`] is behind the feature `local`, which is on by default. Without it the driver side is not compiled.
//!
//! ```
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, SavingRead, State};
//!
//! let model: Model = "serial".parse()?;
//! let opened = model.open("serial 0")?;
//! let mut device = Local::new(opened);
//! let mut data = device.go_to(State::StopCopy)?.expect("a new session");
//! let mut state = Vec::new();
//! let mut buffer = [0; 4096];
//! while let SavingRead::Data(count) = data.read(&mut buffer)? {
//!     state.extend_from_slice(&buffer[..count]);
//! }
//! assert_eq!(state.len(), 60);
//! device.go_to(State::Running)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod data_file;
mod device;
mod dirty_source;
mod dma_map;
mod error;
mod identity;
mod irq_data;
pub mod kernel;
#[cfg(feature = "local")]
mod local;
mod mapped_region;
mod migratable;
mod operation;
mod raw;
pub mod region;
mod session_state;
mod setup;
pub mod timed;

pub use data_file::{DataFile, StateFile};
pub use device::Device;
pub use dirty_source::{DeviceLog, DirtySource};
pub use dma_map::{DmaMap, DmaRegion};
pub use error::{Error, Result};
pub use identity::{Identity, PciIdentity};
pub use irq_data::IrqData;
#[cfg(feature = "local")]
pub use local::Local;
pub use mapped_region::MappedRegion;
pub use migratable::{Migratable, UNKNOWN_HOLDER};
pub use operation::Operation;
pub use raw::{MAX_RAW_ARGSZ, RawData, RawDevice, check_raw_feature, opened_by_raw_feature};
pub use session_state::SessionState;
pub use setup::{ArmedInterrupts, DeviceSetup, InterruptTracker, SetupError};
pub use timed::Timed;
pub use whimbrel_memory::{FileOffset, Memory};
pub use whimbrel_protocol::compatibility::Compatibility;
pub use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
pub use whimbrel_protocol::info::{Capability, DeviceCapability, Info, Irq, MmapArea, Region};
pub use whimbrel_protocol::irq::IrqAction;
pub use whimbrel_protocol::precopy::PrecopyReport;
pub use whimbrel_protocol::region::Version;
pub use whimbrel_protocol::reset::ResetRule;
pub use whimbrel_protocol::session::{Direction, SavingRead};
pub use whimbrel_protocol::{Errno, MigrationFlags, State};
pub use whimbrel_uapi::type1::DmaMapFlags;

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
