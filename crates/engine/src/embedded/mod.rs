//! Devices inside a VMM's own migration stream, with pre-copy.
//!
//! A VMM that migrates memory and CPUs itself, over a stream of its own, lets [`Saving`] and [`Loading`] fill the
//! sections of its devices: several small ones while everything runs, and a last one after the stop. The bytes are the
//! frames of `docs/stream.md` ("A part of another stream"). Neither has threads of its own: each call works on the caller's
//! thread, and ends when the drivers and the caller's `Read` or `Write` have. A driver that does not return therefore blocks
//! it, unless the devices are wrapped in [`Timed`](whimbrel_user::Timed), which gives each call into a driver a timeout.
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
//!
//! With timeouts, a driver that hangs is named, the call of the VMM fails, and the other devices run on (at the destination
//! they are reset). Nothing is known of the state of the one that hangs: [`Error::NotBack`] and [`Error::NotReset`] say so.
//!
//! ```
//! use std::time::Duration;
//!
//! use whimbrel_device::wrap::fault::Faults;
//! use whimbrel_engine::Error;
//! use whimbrel_engine::embedded::Saving;
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State, Timed};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let open = |name, faults: &str| -> Result<Box<dyn Migratable>, Box<dyn std::error::Error>> {
//!     let device = "serial".parse::<Model>()?.open_with_faults(name, faults.parse::<Faults>()?)?;
//!     Ok(Box::new(Timed::new(Box::new(Local::new(device)), Duration::from_millis(500))?))
//! };
//! let mut saving = Saving::new(vec![open("nic", "")?, open("console", "delay STOP_COPY 5s")?])?;
//! saving.start(Vec::new())?;
//! let error = saving.stop().unwrap_err();
//! assert!(error.to_string().contains("console: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP_COPY has not returned"));
//! assert!(matches!(error, Error::NotBack { .. }));
//! let mut devices = saving.into_devices();
//! assert_eq!(devices[0].state()?, State::Running);
//! assert!(devices[1].state().is_err());
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
