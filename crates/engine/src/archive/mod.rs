//! Devices in a file: saved, restored, and inspected.
//!
//! A file is the stream that a migration's source would send, without memory and without answers: HELLO, TABLE, the
//! state of each device, END (`docs/stream.md`). Raw files hold one driver's own bytes and nothing else, so that they
//! can be compared with a kernel's output.
//!
//! ```
//! use whimbrel_engine::archive::{self, Restore, Save};
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State};
//!
//! let open = |model: &str, name| Ok::<_, Box<dyn std::error::Error>>(Local::new(model.parse::<Model>()?.open(name)?));
//! let (mut nic, mut console) = (open("accel?state=64KiB", "nic")?, open("serial", "console")?);
//! let mut file = Vec::new();
//! Save::new([&mut nic as &mut dyn Migratable, &mut console]).write_to(&mut file)?;
//!
//! assert_eq!(archive::inspect(&file[..]).devices.len(), 2);
//! let (mut nic, mut console) = (open("accel?state=64KiB", "nic")?, open("serial", "console")?);
//! Restore::new([&mut nic as &mut dyn Migratable, &mut console]).read_from(&file[..])?;
//! assert_eq!((nic.state()?, console.state()?), (State::Running, State::Running));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything runs on the caller's thread, calls into drivers too, and a driver that does not return blocks it. Wrap the
//! devices in [`Timed`](whimbrel_user::Timed) to give each call a timeout. One that exceeds it ends the work with
//! [`Error::Overdue`], and the other devices are brought back, or reset:
//!
//! ```
//! use std::time::Duration;
//!
//! use whimbrel_device::wrap::fault::Faults;
//! use whimbrel_engine::Error;
//! use whimbrel_engine::archive::Save;
//! use whimbrel_models::Model;
//! use whimbrel_user::{Local, Migratable, State, Timed};
//!
//! let open = |name, faults: &str| {
//!     let device = "serial".parse::<Model>()?.open_with_faults(name, faults.parse::<Faults>()?)?;
//!     Ok::<_, Box<dyn std::error::Error>>(Timed::new(Box::new(Local::new(device)), Duration::from_millis(500))?)
//! };
//! let (mut nic, mut console) = (open("nic", "")?, open("console", "delay STOP_COPY 5s")?);
//! let error = Save::new([&mut nic as &mut dyn Migratable, &mut console]).write_to(Vec::new()).unwrap_err();
//! let Error::NotBack { cause: Some(cause), back, .. } = error else { panic!("{error}") };
//! assert!(matches!(*cause, Error::Overdue { device, .. } if device == "console"));
//! assert!(matches!(*back, Error::Device(whimbrel_user::Error::Lost { .. })));
//! assert_eq!(nic.state()?, State::Running);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod cancel;
mod contents;
mod path;
mod raw;
pub(crate) mod reader;
mod restore;
pub(crate) mod save;
pub(crate) mod saved_file;
pub(crate) mod set;
pub(crate) mod writer;

use std::io::{Read, Write};
use std::path::Path;

use serde::Serialize;
use whimbrel_user::Migratable;

use crate::error::Error;

pub use contents::{Contents, SavedBlob, SavedDevice, inspect, verify};
pub use restore::Restore;
pub use save::Save;

/// The forms of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// A Whimbrel stream: checked, versioned, with the identity of the device.
    Stream,
    /// The driver's bytes and nothing else. For a device with a migration region, the ends of transactions are lost.
    Raw,
}

/// A device that was saved or restored.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// The device's name.
    pub device: String,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// The device's current state.
    pub state: String,
}

/// A set of devices that was saved or restored.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Archived {
    /// The devices, in their order.
    pub devices: Vec<Summary>,
    /// Warnings for the user, although nothing failed.
    pub warnings: Vec<String>,
}

impl Archived {
    /// Returns the summary of the only device.
    fn into_only(mut self) -> Summary {
        debug_assert_eq!(self.devices.len(), 1);
        self.devices.swap_remove(0)
    }
}

/// Saves the state of one device. [`Save`] saves several, and can be cancelled.
pub fn save(device: &mut dyn Migratable, output: impl Write, form: Form) -> Result<Summary, Error> {
    let save = Save::new([device]);
    match form {
        Form::Stream => save.write_to(output),
        Form::Raw => save.write_raw_to(output),
    }
    .map(Archived::into_only)
}

/// Saves like [`save`], to a file that appears under its name only when it is complete and on disk. What is no regular file
/// is treated as by [`Save::write_to_path`].
pub fn save_to_path(device: &mut dyn Migratable, path: &Path, form: Form) -> Result<Summary, Error> {
    let save = Save::new([device]);
    match form {
        Form::Stream => save.write_to_path(path),
        Form::Raw => save.write_raw_to_path(path),
    }
    .map(Archived::into_only)
}

/// Restores a saved state into one device and runs it. [`Restore`] restores several, and can be cancelled.
pub fn restore(device: &mut dyn Migratable, input: impl Read, form: Form) -> Result<Summary, Error> {
    let restore = Restore::new([device]);
    match form {
        Form::Stream => restore.read_from(input),
        Form::Raw => restore.read_raw_from(input),
    }
    .map(Archived::into_only)
}
