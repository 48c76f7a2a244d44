//! Saving a set of devices.

use std::fmt;
use std::io::Write;
use std::path::Path;

use whimbrel_user::{DataFile, DeviceSetup, Migratable, SavingRead, State};

use super::cancel::{Cancellable, Check, NEVER, check};
use super::set::Set;
use super::writer::Writer;
use super::{Archived, Summary, path, raw};
use crate::error::Error;
use crate::guest::{Blob, Guest, NoGuest, save_listed};
use crate::progress::{Observer, Phase, Progress, Silent};
use crate::proto::control::{Control, Table};
use crate::proto::frame::CHUNK;
use crate::proto::intake::MAX_BLOBS_BYTES;
use crate::proto::message::Message;
use crate::proto::negotiate::{Feature, Offer};
use crate::proto::table;

/// A save of one or several devices.
///
/// All devices are stopped, read, and returned to the states that they were in: RUNNING, RUNNING_P2P or STOP. That also
/// happens if the save fails or is cancelled. A call into a driver has a timeout if the device is
/// [`Timed`](whimbrel_user::Timed).
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use whimbrel_engine::Error;
/// use whimbrel_engine::archive::Save;
/// use whimbrel_models::Model;
/// use whimbrel_user::{Local, Migratable, State};
///
/// let model: Model = "serial".parse()?;
/// let mut device = Local::new(model.open("console")?);
/// // Set by a handler of SIGINT, for example.
/// let signalled = AtomicBool::new(true);
/// let cancel = || signalled.load(Ordering::Relaxed).then(|| "interrupted".to_string());
/// let saved = Save::new([&mut device as &mut dyn Migratable]).cancel(&cancel).write_to(Vec::new());
/// assert!(matches!(saved, Err(Error::Cancelled { .. })));
/// assert_eq!(device.state()?, State::Running);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Save<'a> {
    devices: Vec<&'a mut dyn Migratable>,
    guest: Box<dyn Guest + 'a>,
    cancel: Check<'a>,
    observer: Box<dyn Observer + 'a>,
}

impl fmt::Debug for Save<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.devices.iter().map(|device| device.name()).collect();
        f.debug_struct("Save").field("devices", &names).finish_non_exhaustive()
    }
}

impl<'a> Save<'a> {
    /// Returns a save of these devices, in this order.
    pub fn new(devices: impl IntoIterator<Item = &'a mut dyn Migratable>) -> Save<'a> {
        Save {
            devices: devices.into_iter().collect(),
            guest: Box::new(NoGuest),
            cancel: NEVER,
            observer: Box::new(Silent),
        }
    }

    /// Saves the state of the program that owns the devices as well. The program is paused first, and resumed once all
    /// devices are back.
    #[must_use]
    pub fn guest(self, guest: impl Guest + 'a) -> Save<'a> {
        Save { guest: Box::new(guest), ..self }
    }

    /// Asks `cancel` for a reason to abort, before each step, and before each write of at most a few hundred KiB. A
    /// call into a driver is not interrupted.
    #[must_use]
    pub fn cancel(self, cancel: &'a dyn Fn() -> Option<String>) -> Save<'a> {
        Save { cancel, ..self }
    }

    /// Sets the observer of the progress: the bytes of device state that are saved, and their total as the drivers estimate
    /// it (0 if one cannot).
    #[must_use]
    pub fn observer(self, observer: impl Observer + 'a) -> Save<'a> {
        Save { observer: Box::new(observer), ..self }
    }

    /// Saves the devices to a stream.
    pub fn write_to(self, output: impl Write) -> Result<Archived, Error> {
        let names = self.guest.blobs();
        self.run(|set, open, guest, cancel, tally| {
            let table = Table { devices: set.identities(), memory: Vec::new(), blobs: names };
            table::check(&table)?;
            let blobs = save_listed(guest, &table.blobs).map_err(Error::Guest)?;
            let sessions = tally.open(set, open)?;
            let setups = set.save_setups()?;
            let mut writer = Writer::new(Cancellable::new(output, cancel));
            writer.write(Control::Hello(offer(&table, &setups)))?;
            writer.write(Control::Table(table))?;
            write_setups(&mut writer, &setups)?;
            let sizes = write_states(&mut writer, sessions, cancel, tally)?;
            write_blobs(&mut writer, &blobs)?;
            writer.write(Control::End { memory_bytes: 0 })?;
            writer.flush()?;
            Ok(sizes)
        })
    }

    /// Saves to a file that appears under its name only when it is complete and on disk. A link stays, and the file that it
    /// leads to is replaced.
    ///
    /// A device node or a pipe is written to as it is. This waits for a pipe's reader, before the devices are stopped and in
    /// each write. A folder or a socket is refused.
    pub fn write_to_path(self, path: &Path) -> Result<Archived, Error> {
        path::write(path, |file| self.write_to(file))
    }

    /// Saves the bytes of the only device's driver, and nothing else.
    pub fn write_raw_to(self, output: impl Write) -> Result<Archived, Error> {
        self.run(|set, open, _, cancel, tally| {
            let mut output = Cancellable::new(output, cancel);
            let mut sessions = tally.open(set, open)?;
            let write = |data| raw::write(data, &mut output, &mut |bytes| tally.count(bytes));
            sessions.iter_mut().map(write).collect()
        })
    }

    /// Saves like [`Save::write_to_path`], in the form of [`Save::write_raw_to`].
    pub fn write_raw_to_path(self, path: &Path) -> Result<Archived, Error> {
        path::write(path, |file| self.write_raw_to(file))
    }

    /// Pauses the guest, stops and writes the devices with `write`, and resumes everything.
    fn run(
        mut self,
        write: impl FnOnce(
            &mut Devices<'_>,
            Open<'_>,
            &mut dyn Guest,
            Check<'_>,
            &mut Tally<'_>,
        ) -> Result<Vec<u64>, Error>,
    ) -> Result<Archived, Error> {
        let mut set = Set::new(self.devices).map_err(|(_, error)| *error)?;
        let before = set.states_before_save()?;
        let cancel = self.cancel;
        check(cancel)?;
        let paused = self.guest.pause().map_err(Error::Guest);
        let open = |set: &mut Devices<'_>| set.stop_to(State::StopCopy, cancel);
        let mut tally = Tally { observer: &mut *self.observer, progress: Progress::new(Phase::Switchover) };
        let written = paused.and_then(|()| write(&mut set, &open, &mut *self.guest, cancel, &mut tally));
        let written = written.map_err(|error| set.explain(error));
        // The devices continue to run even if the save failed. A program whose devices do not run must not be resumed.
        let sizes = set.bring_back(&before, written);
        if !matches!(sizes, Err(Error::NotBack { .. })) {
            match (self.guest.resume(), &sizes) {
                (Err(error), Ok(_)) => return Err(Error::Guest(error)),
                (Err(error), Err(_)) => tracing::error!(%error, "the owner's program did not resume"),
                (Ok(()), _) => {}
            }
        }
        let summary = |(index, (device_bytes, state)): (usize, (u64, State))| Summary {
            device: set.identity(index).name.clone(),
            device_bytes,
            state: state.to_string(),
        };
        let devices = sizes?.into_iter().zip(before).enumerate().map(summary).collect();
        Ok(Archived { devices, warnings: set.warnings() })
    }
}

type Devices<'a> = Set<&'a mut (dyn Migratable + 'a)>;

/// A function that stops all devices and opens their sessions.
type Open<'a> = &'a dyn Fn(&mut Devices<'_>) -> Result<Vec<DataFile>, Error>;

/// The progress of a save, for its observer.
struct Tally<'a> {
    observer: &'a mut dyn Observer,
    progress: Progress,
}

impl Tally<'_> {
    /// Opens the sessions, and asks how much the devices are going to save.
    fn open(&mut self, set: &mut Devices<'_>, open: Open<'_>) -> Result<Vec<DataFile>, Error> {
        let sessions = open(set)?;
        let mut total = Some(0_u64);
        for index in 0..set.len() {
            let size = set.state_size(index)?;
            total = total.zip(size).map(|(total, size)| total.saturating_add(size));
        }
        self.progress.total = total.unwrap_or_default();
        self.observer.progress(&self.progress);
        Ok(sessions)
    }

    fn count(&mut self, bytes: u64) {
        self.progress.done += bytes;
        self.observer.progress(&self.progress);
    }
}

/// Returns the first frame of a file: the features that its reader must support.
pub(crate) fn offer(table: &Table, setups: &[Option<DeviceSetup>]) -> Offer {
    let used =
        [(Feature::Blobs, !table.blobs.is_empty()), (Feature::Setup, setups.iter().any(Option::is_some))];
    let used = used.into_iter().filter_map(|(feature, is_used)| is_used.then_some(feature)).collect();
    // A file belongs to no migration.
    Offer::new(0, &used, &used)
}

pub(crate) fn write_setups(
    writer: &mut Writer<impl Write>,
    setups: &[Option<DeviceSetup>],
) -> Result<(), Error> {
    for (device, setup) in (0..).zip(setups) {
        if let Some(setup) = setup {
            writer.write(Message::Setup { device, data: &setup.to_bytes() })?;
        }
    }
    Ok(())
}

fn write_states(
    writer: &mut Writer<impl Write>,
    sessions: Vec<DataFile>,
    cancel: Check<'_>,
    tally: &mut Tally<'_>,
) -> Result<Vec<u64>, Error> {
    let mut sizes = Vec::with_capacity(sessions.len());
    let mut chunk = vec![0; CHUNK];
    for (device, mut data) in (0..).zip(sessions) {
        let mut count = |bytes| tally.count(bytes);
        let bytes = write_rest(writer, device, &mut data, &mut chunk, cancel, &mut count)?;
        writer.write(Control::DeviceEnd { device, bytes })?;
        sizes.push(bytes);
    }
    Ok(sizes)
}

/// Writes the state of a device up to its end, and returns its bytes. `count` is told of each piece.
pub(crate) fn write_rest(
    writer: &mut Writer<impl Write>,
    device: u32,
    data: &mut DataFile,
    chunk: &mut [u8],
    cancel: Check<'_>,
    count: &mut dyn FnMut(u64),
) -> Result<u64, Error> {
    let mut bytes = 0;
    while let SavingRead::Data(read) = data.read(chunk)? {
        check(cancel)?;
        let ends = data.ends_transaction();
        writer.write(Message::DeviceState { device, ends, data: &chunk[..read] })?;
        bytes += read as u64;
        count(read as u64);
    }
    Ok(bytes)
}

fn write_blobs(writer: &mut Writer<impl Write>, blobs: &[Blob]) -> Result<(), Error> {
    let total: usize = blobs.iter().map(|blob| blob.data.len()).sum();
    if total as u64 > MAX_BLOBS_BYTES {
        let error =
            format!("it saved {total} bytes of its own state, more than the maximum of {MAX_BLOBS_BYTES}");
        return Err(Error::Guest(error.into()));
    }
    for Blob { name, data } in blobs {
        let mut pieces = data.chunks(CHUNK).peekable();
        loop {
            // A blob without contents has one frame as well.
            let data = pieces.next().unwrap_or_default();
            let last = pieces.peek().is_none();
            writer.write(Message::Blob { name: &name.name, version: name.version, last, data })?;
            if last {
                break;
            }
        }
    }
    Ok(())
}
