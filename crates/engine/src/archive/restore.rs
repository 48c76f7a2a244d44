//! Restoring a set of devices.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{BufReader, Read};

use whimbrel_user::{DataFile, DeviceSetup, Migratable, State};

use super::cancel::{Cancellable, Check, NEVER, check};
use super::reader::Reader;
use super::saved_file::{Piece, SavedFile};
use super::set::Set;
use super::{Archived, Summary, raw};
use crate::error::Error;
use crate::guest::{Blob, Guest, NoGuest};
use crate::proto::control::Table;
use crate::proto::negotiate::Feature;
use crate::proto::table;

/// The supported features of a file.
const FEATURES: [Feature; 2] = [Feature::Setup, Feature::Blobs];

/// A restore of the devices of one file, all or none.
///
/// The devices' previous state is lost. A file that is foreign, or does not fit the devices, is refused before any of
/// them is touched, and they continue to run. If it fails later or is cancelled, all devices are reset, so that none
/// runs with a partial state. [`verify`](super::verify) finds damage before that, if a file can be read twice. A call into
/// a driver has a timeout if the device is [`Timed`](whimbrel_user::Timed).
pub struct Restore<'a> {
    devices: Vec<&'a mut dyn Migratable>,
    guest: Box<dyn Guest + 'a>,
    cancel: Check<'a>,
}

impl fmt::Debug for Restore<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.devices.iter().map(|device| device.name()).collect();
        f.debug_struct("Restore").field("devices", &names).finish_non_exhaustive()
    }
}

impl<'a> Restore<'a> {
    /// Returns a restore into these devices, in the order in which they were saved.
    pub fn new(devices: impl IntoIterator<Item = &'a mut dyn Migratable>) -> Restore<'a> {
        Restore { devices: devices.into_iter().collect(), guest: Box::new(NoGuest), cancel: NEVER }
    }

    /// Restores the state of the program that owns the devices: it loads its state, inspects the stopped devices, and
    /// runs after them. Without a program, a file with such a state is refused.
    #[must_use]
    pub fn guest(self, guest: impl Guest + 'a) -> Restore<'a> {
        Restore { guest: Box::new(guest), ..self }
    }

    /// Asks `cancel` for a reason to abort, before each step and each read. A call into a driver is not interrupted.
    #[must_use]
    pub fn cancel(self, cancel: &'a dyn Fn() -> Option<String>) -> Restore<'a> {
        Restore { cancel, ..self }
    }

    /// Restores from a file, which must end after the devices.
    pub fn read_from(self, input: impl Read) -> Result<Archived, Error> {
        let cancel = self.cancel;
        self.read(Reader::new(BufReader::new(Cancellable::new(input, cancel))), true)
    }

    /// Restores from a part of another stream, such as a VMM's own. No byte past the devices is read.
    pub fn read_part(self, input: impl Read) -> Result<Archived, Error> {
        let cancel = self.cancel;
        self.read(Reader::new(Cancellable::new(input, cancel)), false)
    }

    fn read(mut self, mut reader: Reader<impl Read>, is_whole: bool) -> Result<Archived, Error> {
        let loads = self.guest.loads();
        let devices = std::mem::take(&mut self.devices);
        let mut set = Set::new(devices).map_err(|(_, error)| *error)?;
        let mut file = SavedFile::open(&mut reader, &BTreeSet::from(FEATURES))?;
        table::fits(&file.table, &Table { devices: set.identities(), memory: Vec::new(), blobs: loads })?;
        self.load(&mut set, |sessions| {
            let mut loaded = load_pieces(&mut file, &mut reader, sessions)?;
            if is_whole {
                reader.expect_end()?;
            }
            loaded.sizes = file.states().map(|(bytes, ..)| bytes).collect();
            Ok(loaded)
        })
    }

    /// Restores the raw bytes of the only device's driver, without a check of the file.
    pub fn read_raw_from(mut self, input: impl Read) -> Result<Archived, Error> {
        let mut input = Cancellable::new(input, self.cancel);
        let devices = std::mem::take(&mut self.devices);
        let mut set = Set::new(devices).map_err(|(_, error)| *error)?;
        self.load(&mut set, |sessions| {
            let sizes = sessions.iter_mut().map(|data| raw::read(data, &mut input));
            Ok(Loaded { sizes: sizes.collect::<Result<_, _>>()?, ..Loaded::default() })
        })
    }

    /// Loads all devices with `write`, and runs them.
    fn load(
        mut self,
        set: &mut Set<&mut (dyn Migratable + '_)>,
        write: impl FnOnce(&mut [DataFile]) -> Result<Loaded, Error>,
    ) -> Result<Archived, Error> {
        let loaded = self.load_and_run(set, write).map_err(|cause| set.reset(cause))?;
        self.guest.run().map_err(|error| Error::GuestAfterHandover(Box::new(Error::Guest(error))))?;
        let summary = |(index, device_bytes): (usize, u64)| Summary {
            device: set.identity(index).name.clone(),
            device_bytes,
            state: State::Running.to_string(),
        };
        let devices = loaded.into_iter().enumerate().map(summary).collect();
        Ok(Archived { devices, warnings: set.warnings() })
    }

    fn load_and_run(
        &mut self,
        set: &mut Set<&mut (dyn Migratable + '_)>,
        write: impl FnOnce(&mut [DataFile]) -> Result<Loaded, Error>,
    ) -> Result<Vec<u64>, Error> {
        check(self.cancel)?;
        let mut sessions = set.stop_to(State::Resuming, self.cancel)?;
        let loaded = write(&mut sessions)?;
        for index in 0..set.len() {
            check(self.cancel)?;
            set.set_state(index, State::Stop)?;
        }
        // The sessions stay open until the drivers have validated the data.
        drop(sessions);
        for (index, setup) in &loaded.setups {
            check(self.cancel)?;
            set.device(*index).restore_setup(setup)?;
        }
        self.guest.load(loaded.blobs).and_then(|()| self.guest.inspect()).map_err(Error::Guest)?;
        set.run(self.cancel)?;
        Ok(loaded.sizes)
    }
}

/// The contents read from a file.
#[derive(Default)]
struct Loaded {
    /// Bytes of state of each device.
    sizes: Vec<u64>,
    /// The setups, by the number of the device.
    setups: BTreeMap<usize, DeviceSetup>,
    /// The blobs, in the order in which they began.
    blobs: Vec<Blob>,
}

/// Passes each device its state, and returns the rest.
fn load_pieces(
    file: &mut SavedFile,
    reader: &mut Reader<impl Read>,
    sessions: &mut [DataFile],
) -> Result<Loaded, Error> {
    let mut loaded = Loaded::default();
    loop {
        match file.next(reader)? {
            Piece::State { device, ends, data } => match ends {
                Some(ends) => sessions[device].write_piece(data, ends)?,
                None => sessions[device].write_all(data)?,
            },
            Piece::Blob { name, version, data } => {
                match loaded.blobs.iter_mut().find(|blob| blob.name.name == name) {
                    Some(blob) => blob.data.extend_from_slice(data),
                    None => loaded.blobs.push(Blob::new(name, version, data.to_vec())),
                }
            }
            Piece::Setup { device, data } => {
                let setup = DeviceSetup::parse(data)
                    .map_err(|error| Error::Contents(format!("the setup of device {device}: {error}")))?;
                loaded.setups.insert(device, setup);
            }
            Piece::DeviceEnd | Piece::Round { .. } => {}
            Piece::End => return Ok(loaded),
        }
    }
}
