//! Devices inside a VMM's own migration stream, with pre-copy.
//!
//! A VMM that migrates memory and CPUs itself, over a stream of its own, lets [`Saving`] and [`Loading`] fill the
//! sections of its devices: several small ones while everything runs, and a last one after the stop. The bytes are the
//! frames of `docs/stream.md` ("A part of another stream"). Neither has threads or a timeout of its own: each call works
//! on the caller's thread, and ends when the driver and the caller's `Read` or `Write` have.
//!
//! | a VMM's migration thread | [`Saving`] | its counterpart in QEMU |
//! |---|---|---|
//! | begins | [`start`](Saving::start) | `save_setup` |
//! | estimates what is left | [`left`](Saving::left) | `state_pending_exact` |
//! | sends a round | [`iterate`](Saving::iterate) | `save_live_iterate` |
//! | asks whether the devices may stop | [`may_stop`](Saving::may_stop) | switchover ack |
//! | stops, after its CPUs | [`stop`](Saving::stop) | the change to the stopped state |
//! | sends the rest | [`complete`](Saving::complete) | `save_live_complete_precopy` |
//! | has handed over, or has failed | [`finish`](Saving::finish), [`abort`](Saving::abort) | `save_cleanup` |
//!
//! All devices of a set stop and start together, through their P2P states, and all migrate or none. Who may run them is
//! for the VMM's protocol to decide: [`finish`](Saving::finish) leaves them stopped, and [`Loading::run`] starts them.
//! The VMM carries the memory that the devices write, and starts and reads their DMA logs
//! ([`Migratable::dma_logging_start`](whimbrel_user::Migratable::dma_logging_start)).
//!
//! ```
//! use whimbrel_engine::embedded::{Loading, Part, Saving};
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let open = |model: &str, name| -> Result<Box<dyn Migratable>, Box<dyn std::error::Error>> {
//!     Ok(Box::new(Local::new(model.parse::<Model>()?.open(name)?)))
//! };
//! // The source: each call fills one section.
//! let mut sections = vec![Vec::new()];
//! let mut saving = Saving::new(vec![open("accel?state=1MiB", "nic")?, open("serial", "console")?])?;
//! saving.start(&mut sections[0])?;
//! while saving.left()?.total > 64 << 10 || !saving.may_stop()? {
//!     // The VMM sends a round of memory, and then of devices.
//!     let mut section = Vec::new();
//!     saving.iterate(&mut section, 512 << 10)?;
//!     sections.push(section);
//! }
//! // The VMM stops its CPUs here.
//! saving.stop()?;
//! let mut section = Vec::new();
//! saving.complete(&mut section)?;
//! sections.push(section);
//!
//! // The destination reads the same sections.
//! let mut loading = Loading::new(vec![open("accel?state=1MiB", "nic")?, open("serial", "console")?])?;
//! for section in &sections {
//!     match loading.load_part(&section[..])? {
//!         Part::Round { initial: true, .. } => { /* acknowledge the switchover, if the VMM's protocol does that */ }
//!         Part::Complete => println!("loaded; the devices are in STOP"),
//!         _ => {}
//!     }
//! }
//! // The VMM loads its CPUs and takes over.
//! loading.run()?;
//! saving.finish()?;
//! for mut device in loading.into_devices() {
//!     assert_eq!(device.state()?, State::Running);
//! }
//! for mut device in saving.into_devices() {
//!     assert_eq!(device.state()?, State::Stop);
//! }
//! # Ok(())
//! # }
//! ```

mod loading;
mod saving;

use std::fmt;

use crate::error::Error;

pub use loading::{Loading, Part};
pub use saving::{Left, Saving};

/// Devices that cannot be migrated, and the reason. They come back unchanged.
#[non_exhaustive]
pub struct Refused<D> {
    /// The reason.
    pub error: Box<Error>,
    /// The devices, in their order.
    pub devices: Vec<D>,
}

impl<D> fmt::Debug for Refused<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<D> fmt::Display for Refused<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<D> std::error::Error for Refused<D> {}
