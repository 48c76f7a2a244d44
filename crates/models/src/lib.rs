//! VFIO devices in software that migrate: to run, to test against and to learn from, without hardware.
//!
//! Three models stand here. [`serial`] is a PCI card with one or two 16550 ports, whose state moves to and from
//! the kernel's own sample device, mtty. [`accel`] is a DMA engine with as much state as is asked for, that
//! does work a guest gives it, goes on with it after it has moved, and says truly how much of its state is
//! left to send; its feature `guest` adds the driver that a guest runs for it. [`legacy`] is the same engine with the driver of an older kernel, which migrates through a region only.
//! The other two can be offered in that way too ([`Protocol`]).
//!
//! A model is named as on a command line, and opened as a [`DeviceFile`](whimbrel_device::DeviceFile):
//!
//! ```
//! use whimbrel_device::State;
//! use whimbrel_models::Model;
//!
//! let model: Model = "serial?ports=2".parse()?;
//! let source = model.open("serial 0")?.device;
//! let destination = model.open("serial 1")?.device;
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
#![forbid(unsafe_code)]

pub mod accel;
pub mod legacy;
mod model;
mod protocol;
pub mod serial;

pub use accel::{Accel, AccelConfig, AccelConfigError};
pub use legacy::{Legacy, LegacyConfig, LegacyConfigError};
pub use model::{Model, ModelError, OpenError, OpenModel, parse_size};
pub use protocol::Protocol;
pub use serial::{Answers, Ports, Serial, SerialConfig};

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
