//! The destination's side: devices that load the parts of their state as they arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::ops::DerefMut;

use whimbrel_user::{DataFile, DeviceSetup, Migratable, State};

use super::Refused;
use crate::archive::cancel::NEVER;
use crate::archive::reader::Reader;
use crate::archive::saved_file::{Piece, SavedFile};
use crate::archive::set::Set;
use crate::error::Error;
use crate::proto::control::Table;
use crate::proto::negotiate::Feature;
use crate::proto::table;

/// Devices that arrive inside a VMM's own stream.
///
/// [`load_part`](Loading::load_part) takes what one call of [`Saving`](super::Saving) has written, in the same order, until
/// it returns [`Part::Complete`]; then [`run`](Loading::run) or [`keep_stopped`](Loading::keep_stopped). The devices'
/// previous state is lost. A stream that is foreign, or does not fit the devices, is refused before any of them is
/// touched. If a later call fails, all devices are reset, so that none runs with a partial state;
/// [`abort`](Loading::abort), and dropping it unfinished, do the same.
pub struct Loading<D: DerefMut<Target: Migratable>> {
    set: Set<D>,
    phase: Phase,
    reader: Reader<io::Empty>,
    stream: Option<SavedFile>,
    sessions: Vec<DataFile>,
    setups: BTreeMap<usize, DeviceSetup>,
}

/// The phase of an arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// More parts are expected.
    Loading,
    /// The devices are in STOP, with all their state.
    Loaded,
    /// It is over.
    Over,
}

/// A part of the stream that has been loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The beginning: the devices fit, and expect their state.
    Begun,
    /// A round of pre-copy.
    Round {
        /// Its number, from 1.
        number: u32,
        /// Set if all initial data of the devices has been loaded: the VMM may acknowledge the switchover, with the
        /// number.
        initial: bool,
    },
    /// All state. The drivers have accepted it, and the devices are in STOP.
    Complete,
}

impl<D: DerefMut<Target: Migratable>> Loading<D> {
    /// Returns the arrival of these devices, in the order of the source's. They are asked for their identities, and
    /// nothing else.
    pub fn new(devices: Vec<D>) -> Result<Loading<D>, Refused<D>> {
        let set = Set::new(devices).map_err(|(devices, error)| Refused { error, devices })?;
        Ok(Loading {
            set,
            phase: Phase::Loading,
            reader: Reader::new(io::empty()),
            stream: None,
            sessions: Vec::new(),
            setups: BTreeMap::new(),
        })
    }

    /// Loads the next part. Not a byte after it is read.
    pub fn load_part(&mut self, input: impl Read) -> Result<Part, Error> {
        self.expect(Phase::Loading, "load_part")?;
        let mut input = input;
        let reader = std::mem::replace(&mut self.reader, Reader::new(io::empty()));
        let mut reader = reader.with(&mut input as &mut dyn Read);
        let result = self.read(&mut reader);
        self.reader = reader.with(io::empty());
        self.settle(result)
    }

    fn read(&mut self, reader: &mut Reader<&mut dyn Read>) -> Result<Part, Error> {
        let Some(stream) = &mut self.stream else {
            let stream = SavedFile::open(reader, &BTreeSet::from([Feature::Setup]))?;
            let ours = Table { devices: self.set.identities(), ..Table::default() };
            table::fits(&stream.table, &ours)?;
            self.sessions = self.set.stop_to(State::Resuming, NEVER)?;
            self.stream = Some(stream);
            return Ok(Part::Begun);
        };
        loop {
            match stream.next(reader)? {
                Piece::State { device, ends, data } => match ends {
                    Some(ends) => self.sessions[device].write_piece(data, ends)?,
                    None => self.sessions[device].write_all(data)?,
                },
                Piece::Setup { device, data } => {
                    let setup = DeviceSetup::parse(data)
                        .map_err(|error| Error::Contents(format!("the setup of device {device}: {error}")))?;
                    self.setups.insert(device, setup);
                }
                Piece::Round { number, initial } => return Ok(Part::Round { number, initial }),
                // The table of such a stream lists no blobs.
                Piece::Blob { .. } | Piece::DeviceEnd => {}
                Piece::End => break,
            }
        }
        for index in 0..self.set.len() {
            self.set.set_state(index, State::Stop)?;
        }
        // The sessions stay open until the drivers have validated the data.
        self.sessions.clear();
        for (index, setup) in &self.setups {
            self.set.device(*index).restore_setup(setup)?;
        }
        self.phase = Phase::Loaded;
        Ok(Part::Complete)
    }

    /// Runs the devices: all to RUNNING_P2P, then all to RUNNING. Call it once the VMM's protocol has made them this
    /// side's, and before the CPUs run.
    ///
    /// After an error the devices have been reset: they do not run with the received state. Only after
    /// [`Error::NotReset`] one may, or may do so later if a call into its driver has not returned: let the source run on only
    /// once that device is certainly closed or reset.
    pub fn run(&mut self) -> Result<(), Error> {
        self.expect(Phase::Loaded, "run")?;
        let result = self.set.run(NEVER);
        let result = self.settle(result);
        self.phase = Phase::Over;
        result
    }

    /// Leaves the devices in STOP with their state, for a machine that is to stay paused.
    pub fn keep_stopped(&mut self) -> Result<(), Error> {
        self.expect(Phase::Loaded, "keep_stopped")?;
        self.phase = Phase::Over;
        Ok(())
    }

    /// Resets the devices, if they hold a part of a state: the source keeps them.
    pub fn abort(&mut self) -> Result<(), Error> {
        if self.phase == Phase::Over {
            return Ok(());
        }
        self.phase = Phase::Over;
        self.sessions.clear();
        self.set.try_reset()
    }

    /// Returns the devices. An arrival that is not over is aborted before, as if it were dropped.
    pub fn into_devices(mut self) -> Vec<D> {
        self.abort_unfinished();
        self.set.take_devices()
    }

    fn expect(&self, phase: Phase, call: &'static str) -> Result<(), Error> {
        if self.phase == phase {
            return Ok(());
        }
        let now = match self.phase {
            Phase::Loading => "before all state was loaded",
            Phase::Loaded => "after all state was loaded",
            Phase::Over => "after the end",
        };
        Err(Error::OutOfOrder { call, now })
    }

    fn settle<T>(&mut self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|cause| {
            self.phase = Phase::Over;
            self.sessions.clear();
            self.set.reset(cause)
        })
    }

    fn abort_unfinished(&mut self) {
        if let Err(error) = self.abort() {
            tracing::error!(%error, "an arrival that was dropped");
        }
    }
}

impl<D: DerefMut<Target: Migratable>> Drop for Loading<D> {
    fn drop(&mut self) {
        self.abort_unfinished();
    }
}

impl<D: DerefMut<Target: Migratable>> fmt::Debug for Loading<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loading")
            .field("devices", &self.set.names())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
