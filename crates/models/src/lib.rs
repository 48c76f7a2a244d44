//! Software VFIO devices with migration support, to run, test and learn without hardware.
//!
//! The crate has four models. [`serial`] is a PCI card with one or two 16550 ports; its state is compatible with the
//! kernel's sample driver, mtty. [`accel`] is a DMA engine with a configurable amount of state. It executes jobs from a
//! guest, continues them after a migration, and reports its remaining state exactly; the feature `guest` adds its guest
//! driver. [`legacy`] is the same engine with v1 migration only: through a region, as in Linux 5.8 to 5.17. `serial` and
//! `accel` can use such a region too ([`Protocol`]). [`nvme`] is an NVM Express controller, whose blocks are in a file or a
//! block device that both hosts reach; the feature `guest` adds a small host driver.
//!
//! A [`Model`] is parsed from text, as on the command line, and opens as a [`DeviceFile`](whimbrel_device::DeviceFile):
//!
//! ```
//! use whimbrel_device::State;
//! use whimbrel_models::Model;
//!
//! let model: Model = "serial?ports=2".parse()?;
//! let source = model.open("serial 0")?.into_device();
//! let destination = model.open("serial 1")?.into_device();
//!
//! // A byte sent through the second port's transmit register waits in its FIFO.
//! source.write_region(1, 0, b"!")?;
//!
//! let saving = source.set_mig_state(State::StopCopy)?.expect("a saving session");
//! let mut state = [0; 128];
//! let length = saving.read(&mut state)?;
//! let resuming = destination.set_mig_state(State::Resuming)?.expect("a resuming session");
//! resuming.write(&state[..length])?;
//! destination.set_mig_state(State::Running)?;
//!
//! let mut byte = [0];
//! destination.read_region(1, 0, &mut byte)?;
//! assert_eq!(&byte, b"!");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod accel;
pub mod legacy;
mod model;
pub mod nvme;
mod protocol;
mod saved;
pub mod serial;

pub use accel::{Accel, AccelConfig, AccelConfigError};
pub use legacy::{Legacy, LegacyConfig, LegacyConfigError};
pub use model::{Model, ModelError, OpenError, PreparedModel, parse_size};
pub use nvme::{Nvme, NvmeConfig, NvmeError, NvmeImage};
pub use protocol::Protocol;
pub use serial::{Answers, Ports, Serial, SerialConfig};

/// The host's byte order, in which the models write their migration data.
const BYTE_ORDER: &str = if cfg!(target_endian = "little") { "little-endian" } else { "big-endian" };

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
