//! Live migration of VFIO devices, and of the memory and CPUs around them, from one process to another.
//!
//! [`Source`] sends a set of devices that are working. It sends rounds of memory and device state while they run, until
//! what is left fits the downtime limit. Then everything stops, the rest is sent, and the devices are handed over.
//! [`Destination`] receives the devices and runs them. Both use the user side of a device
//! ([`whimbrel_user::Migratable`]) only, whatever is behind it. [`archive`] saves device state to a file and restores
//! it, and [`embedded`] migrates devices inside a stream of the VMM's own.
//!
//! [`Source::check`] says beforehand whether devices can migrate, and why not: see [`check`].
//!
//! A migration can fail, or be [cancelled](Cancel), at any moment. Up to the handover the devices continue to run at
//! the source. [`whimbrel_protocol::handover`] alone decides which side may run them.
//!
//! | module | contents |
//! |---|---|
//! | [`proto`] | both sides as machines without I/O, clock or threads, and the stream's byte form |
//! | [`set`] | devices' identities, memory, and the logs of dirty pages |
//! | [`channel`] | connections: the trait, sockets, framed senders and receivers, the listener |
//! | the root | [`Source`] and [`Destination`], which execute the machines' commands in threads |
//!
//! ```
//! use std::os::unix::net::UnixStream;
//! use whimbrel_engine::channel::Stream;
//! use whimbrel_engine::{Destination, Source};
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = |name| -> Result<Box<dyn Migratable>, Box<dyn std::error::Error>> {
//!     Ok(Box::new(Local::new("accel?state=1MiB".parse::<Model>()?.open(name)?)))
//! };
//! let (left, right) = UnixStream::pair()?;
//! let destination = Destination::new(vec![device("there")?]);
//! let receiver = std::thread::spawn(move || destination.receive(Stream::from(right)));
//!
//! let sent = Source::new(vec![device("here")?]).send(Stream::from(left));
//! let report = sent.result?;
//! assert_eq!((report.rounds, report.devices[0].name.as_str()), (1, "here"));
//!
//! let arrived = receiver.join().unwrap();
//! assert!(arrived.result?.confirmed);
//! for device in arrived.devices {
//!     assert_eq!(device.unwrap().state()?, State::Running);
//! }
//! # Ok(())
//! # }
//! ```

pub mod archive;
pub mod channel;
pub mod embedded;
mod error;
mod guest;
mod outcome;
mod progress;
pub mod proto;
mod report;
mod run;
pub mod set;

pub use error::Error;
pub use guest::{Blob, BlobName, Guest, GuestError, NoGuest};
pub use outcome::{Outcome, SendError};
pub use progress::{Blame, DirtyRange, Observer, Phase, Progress, Silent};
pub use proto::check;
pub use proto::destination::DestinationOptions;
pub use proto::judgement::{Evidence, Judgement};
pub use proto::negotiate::Feature;
pub use proto::source::{OnTimeout, SourceOptions};
pub use report::{DeviceReport, LaneReport, Report, Round, Transition};
pub use run::{
    Arrived, Cancel, Checked, Destination, Journal, JournalLock, Received, Resolve, Resolved, Sent, Source,
    Unidentified,
};
pub use set::{CpuLog, NoCpuLog, Ram, RamError, RamRegion};

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
