//! The driver side of VFIO device migration.
//!
//! A migration driver implements [`Driver`] and [`Migration`]: single arcs, reads and writes of its state. This crate
//! does the rest, with the kernel's order of checks and errnos: the walk through the state machine, data files,
//! VFIO_DEVICE_FEATURE, reset and region access ([`DeviceFile`]). Each request can be made as a typed call or as the
//! raw bytes of an ioctl ([`raw`]).
//!
//! A device's outbound interface, DMA and interrupts, is its [`Bus`]. A vendor driver can mediate between a driver and
//! its user ([`mediate`](wrap::mediate)). A device with migration v2 can be offered through the migration region of
//! older kernels instead ([`migration_region`](wrap::migration_region)).
//!
//! ```
//! use whimbrel_device::{ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration};
//! use whimbrel_device::{MigrationFlags, State};
//!
//! /// A device whose whole state is one byte.
//! struct Latch { value: u8, sent: bool }
//!
//! impl Driver for Latch {
//!     fn info(&self) -> Info {
//!         Info::new(DeviceInfoFlags::RESET)
//!     }
//!     fn reset(&mut self, _: &Context) -> Result<(), Errno> {
//!         self.value = 0;
//!         Ok(())
//!     }
//!     fn migration(&mut self) -> Option<&mut dyn Migration> {
//!         Some(self)
//!     }
//! }
//!
//! impl Migration for Latch {
//!     fn flags(&self) -> MigrationFlags {
//!         MigrationFlags::STOP_COPY
//!     }
//!     fn arc(&mut self, _: &Context, _from: State, to: State) -> Result<(), ArcError> {
//!         self.sent &= to != State::StopCopy;
//!         Ok(())
//!     }
//!     fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
//!         Ok(1)
//!     }
//!     fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
//!         if std::mem::replace(&mut self.sent, true) {
//!             return Ok(0);
//!         }
//!         buffer[0] = self.value;
//!         Ok(1)
//!     }
//!     fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
//!         self.value = *data.last().unwrap_or(&self.value);
//!         Ok(data.len())
//!     }
//! }
//!
//! let device = DeviceFile::new("latch", |_| Latch { value: 7, sent: false });
//! let data = device.set_mig_state(State::StopCopy)?.expect("a new session");
//! let mut saved = [0; 8];
//! assert_eq!(data.read(&mut saved)?, 1);
//! assert_eq!(saved[0], 7);
//! # Ok::<(), Errno>(())
//! ```

mod bus;
mod core;
mod driver;
mod iommu;
pub mod pci;
pub mod raw;
mod topology;
pub mod wrap;

/// The driver side of an iommufd, and the caller that makes raw requests of it.
pub mod iommufd {
    pub use crate::iommu::iommufd::{Iommu, Iommufd, OwnIommu};
    pub use crate::raw::iommufd::Caller;
}

pub use bus::irq::{InUse, Interrupts, InterruptsInUse, IrqData};
pub use bus::{Bus, dma};
pub use core::data_file::DataFile;
pub use core::file::DeviceFile;
pub use core::observe::Observed;
pub use core::offsets::{REGION_MEMORY_START, region_offset, split_offset};
pub use core::power::LowPowerEntry;
pub use core::region_memory::RegionMemory;
pub use core::worker::Worker;
pub use core::working::WorkingDevice;
pub use driver::{
    AsyncDma, BusMaster, Context, DmaBuf, DmaLogging, Driver, Graphics, IoeventfdWrite, LowPower, Migration,
    Next, Plane, PlaneKind, WriteWidth, ZpciErrors,
};
pub use iommu::container::Container;
pub use iommu::type1::{ContainerSettings, HardwareIommu, KernelVersion, Translation, Type1Info};
pub use iommu::user_memory::{Fault, UserMemory};
pub use raw::process::Process;
pub use raw::sparse::SparseMemory;
pub use topology::cdev::Cdev;
pub use topology::group::{Group, GroupFile, OpenDevice};
pub use topology::hot_reset::HotResetInfo;
pub use topology::set::{DeviceSet, PciAddress, PciFunction};
pub use topology::vf_token::PhysicalFunction;
pub use whimbrel_memory::{FileOffset, Memory, RemoteMemory, SharedBytes, survive_lost_memory};
pub use whimbrel_protocol::arc::ArcError;
pub use whimbrel_protocol::compatibility::Compatibility;
pub use whimbrel_protocol::info::{Capability, DeviceCapability, Info, Irq, MmapArea, Region};
pub use whimbrel_protocol::irq::IrqAction;
pub use whimbrel_protocol::precopy::PrecopyReport;
pub use whimbrel_protocol::reset::ResetRule;
pub use whimbrel_protocol::{Errno, MigrationFlags, State};
pub use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
pub use whimbrel_uapi::feature::RegionDmaRange;
pub use whimbrel_uapi::pci::{PciDependentDevice, PciHotResetFlags};

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
