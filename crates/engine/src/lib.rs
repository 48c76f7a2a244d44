//! A live migration of a device and its memory from one process to another.
//!
//! [`Source`] sends a device that works: rounds of memory and device state while it runs, until what is left fits the
//! downtime limit, then the rest while it stands still, then the handover. [`Destination`] takes it and runs it. Both
//! know user-side devices ([`whimbrel_user::Migratable`]) only, never what stands behind one. [`archive`] puts a device's
//! state into a file and back.
//!
//! If anything fails before the handover, the source runs on; who may run the device when is decided by
//! [`whimbrel_protocol::handover`] alone.
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use whimbrel_engine::{Destination, Link, Source};
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State};
//!
//! let model: Model = "accel?state=1MiB".parse()?;
//! let mut here = Local::new(model.open("here")?);
//! let there = Local::new(model.open("there")?);
//!
//! let (left, right) = UnixStream::pair()?;
//! let receiver = std::thread::spawn(move || {
//!     let mut there = there;
//!     Destination::new(&mut there).receive(Link::from(right)).map(|_| there)
//! });
//! let report = Source::new(&mut here).send(Link::from(left))?;
//! let mut there = receiver.join().unwrap()?;
//! assert_eq!((here.state()?, there.state()?), (State::Stop, State::Running));
//! assert!(report.device_bytes > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod archive;
mod destination;
mod device_state;
mod dirty;
mod error;
mod guest;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod memory;
mod progress;
mod report;
mod source;
pub mod stream;
mod transport;

pub use destination::{Destination, Received};
pub use dirty::{CpuLog, NoCpuLog};
pub use error::{Error, Outcome, SendError};
pub use guest::{Guest, GuestError, NoGuest};
pub use memory::{Ram, RamError, RamRegion};
pub use progress::{Observer, Phase, Progress, Silent};
pub use report::{Report, Round};
pub use source::{Source, SourceOptions};
pub use transport::{Address, AddressError, Link, Listener};

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
