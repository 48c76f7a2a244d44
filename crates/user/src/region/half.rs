//! The user half of a region with the device that it is on: what the device and its open session share.

use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::region::{
    Outcome, Phase, RegionAccess, TEXT_TRANSITIONS, User, UserError, Version, View, Way, drive, report_dirty,
};
use whimbrel_protocol::session::{self, Direction};
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};
use whimbrel_uapi::region_v1::DeviceMigrationInfo;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::mapped_region::MappedRegion;

/// The migration features of every device with a region.
pub(super) const FLAGS: MigrationFlags = MigrationFlags::STOP_COPY.union(MigrationFlags::PRE_COPY);

/// Offset of the field `data_offset`.
const DATA_OFFSET: u64 = std::mem::offset_of!(DeviceMigrationInfo, data_offset) as u64;

/// The device, its region and the progress of its migration.
pub(super) struct Half {
    pub(super) device: Box<dyn Device>,
    pub(super) index: u32,
    user: User,
    /// The mapped parts of the data section, with their offsets in the region.
    mapped: Vec<(u64, MappedRegion)>,
    session: Option<Direction>,
    /// Number of the session, so that a file whose session has ended is recognised.
    pub(super) generation: u64,
    /// Set if the device refused to go from resuming to STOP.
    standing: bool,
    /// Set if SAVING is set for the draft's log only, without a request for PRE_COPY.
    ahead: bool,
    /// The draft's log, if started: `true` if it has been on continuously since its last complete report.
    log: Option<bool>,
}

/// The access to the region.
struct Access<'a> {
    device: &'a mut dyn Device,
    index: u32,
    mapped: &'a [(u64, MappedRegion)],
}

impl Access<'_> {
    fn mapping(&self, offset: u64) -> std::result::Result<(&MappedRegion, u64), Errno> {
        self.mapped
            .iter()
            .find(|(start, region)| offset >= *start && offset - start < region.size())
            .map(|(start, region)| (region, offset - start))
            .ok_or(Errno::EFAULT)
    }
}

/// Returns the errno of an error, as the user half needs it.
fn errno(error: &Error) -> Errno {
    error.errno().unwrap_or(Errno::EIO)
}

impl RegionAccess for Access<'_> {
    fn read(&mut self, offset: u64, way: Way, data: &mut [u8]) -> std::result::Result<(), Errno> {
        match way {
            Way::Trapped => self.device.read_region(self.index, offset, data),
            Way::Mapped => self.mapping(offset).map(|(region, at)| region.read(at, data))?,
        }
        .map_err(|error| errno(&error))
    }

    fn write(&mut self, offset: u64, way: Way, data: &[u8]) -> std::result::Result<(), Errno> {
        match way {
            Way::Trapped => self.device.write_region(self.index, offset, data),
            Way::Mapped => self.mapping(offset).map(|(region, at)| region.write(at, data))?,
        }
        .map_err(|error| errno(&error))
    }
}

impl Half {
    /// Maps the mappable parts. A device whose regions cannot be mapped is read and written.
    pub(super) fn new(mut device: Box<dyn Device>, index: u32, view: View) -> Half {
        let mapped = view
            .mapped_areas()
            .iter()
            .map(|area| Ok((area.offset, device.map_region(index, area.offset, area.size)?)))
            .collect::<Result<Vec<_>>>();
        let (view, mapped) = match mapped {
            Ok(mapped) => (view, mapped),
            Err(error) => {
                tracing::debug!(%error, "cannot map the data section; using reads and writes");
                (view.trapped(), Vec::new())
            }
        };
        Half {
            device,
            index,
            user: User::new(view),
            mapped,
            session: None,
            generation: 0,
            standing: false,
            ahead: false,
            log: None,
        }
    }

    pub(super) fn version(&self) -> Version {
        self.user.view().version()
    }

    /// Returns the maximum size of the data section in bytes.
    pub(super) fn room(&self) -> u64 {
        self.user.view().size() - self.version().header_size()
    }

    pub(super) fn failed(&self, error: UserError) -> Error {
        Error::Region { device: self.device.name().to_string(), error }
    }

    fn go(&mut self) -> std::result::Result<Outcome, UserError> {
        let mut access = Access { device: &mut *self.device, index: self.index, mapped: &self.mapped };
        let outcome = drive(&mut self.user, &mut access);
        self.follow();
        outcome
    }

    /// Ends the sessions that the device's phase has ended.
    fn follow(&mut self) {
        let Some(phase) = self.user.phase() else {
            // The device may have changed its phase on the way.
            self.log = self.log.map(|_| false);
            return;
        };
        self.standing &= phase == Phase::Resuming;
        self.ahead &= phase == Phase::PreCopy;
        if !phase.is_saving() {
            self.log = self.log.map(|_| false);
        }
        let ended = match self.session {
            Some(Direction::Saving) => !phase.is_saving(),
            Some(Direction::Resuming) => phase != Phase::Resuming,
            None => false,
        };
        if ended {
            self.end_session();
        }
    }

    fn end_session(&mut self) {
        self.session = None;
        self.generation += 1;
    }

    /// Refuses a region that is not the draft's, because its data would begin within the draft's
    /// structure.
    pub(super) fn check_version(&mut self) -> Result<()> {
        if self.version() == Version::V1 {
            return Ok(());
        }
        let mut offset = [0; 8];
        let read = self.device.read_region(self.index, DATA_OFFSET, &mut offset);
        let offset = u64::from_ne_bytes(offset);
        if read.is_ok() && (Version::V1.header_size()..Version::Draft.header_size()).contains(&offset) {
            let why = format!(
                "data offset {offset:#x} in the migration region: the device follows v1, not the draft"
            );
            return Err(Error::unusable(self.device.name(), why));
        }
        Ok(())
    }

    fn phase(&mut self) -> std::result::Result<Phase, UserError> {
        self.user.get_phase();
        match self.go()? {
            Outcome::Phase(phase) => Ok(phase),
            _ => Err(UserError::NoRequest),
        }
    }

    fn enter(&mut self, phase: Phase) -> std::result::Result<(), UserError> {
        self.user.set_phase(phase);
        self.go().map(drop)
    }

    fn state_of(&self, phase: Phase) -> State {
        match phase {
            Phase::Resuming if self.standing => State::Stop,
            Phase::PreCopy if self.ahead => State::Running,
            phase => phase.v2_state(FLAGS),
        }
    }

    pub(super) fn state(&mut self) -> Result<State> {
        match self.phase() {
            Ok(phase) => Ok(self.state_of(phase)),
            Err(UserError::NeedsReset { .. }) => Ok(State::Error),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Brings the device to a state. Returns the direction of the session that this opened, if any.
    pub(super) fn set_state(&mut self, to: State) -> Result<Option<Direction>> {
        let phase = self.phase().map_err(|error| self.failed(error))?;
        let from = self.state_of(phase);
        if from == to {
            return Ok(None);
        }
        if self.standing && to == State::Resuming {
            let why =
                "the device cannot stop after loading a state; run or reset it before loading another one";
            return Err(Error::unusable(self.device.name(), why));
        }
        let steps = self.route(phase, from, to).ok_or_else(|| {
            let request = format!("{from} to {to} through the migration region");
            Error::request(self.device.name(), request, Errno::EINVAL)
        })?;
        for step in steps {
            let Err(error) = self.enter(step) else { continue };
            if (from, to) == (State::Resuming, State::Stop)
                && matches!(error, UserError::Refused { .. })
                && self.phase() == Ok(Phase::Resuming)
            {
                tracing::info!(
                    device = self.device.name(),
                    %error,
                    "the device refused to stop; it stays in resuming until it runs"
                );
                self.standing = true;
                self.end_session();
                return Ok(None);
            }
            return Err(self.failed(error));
        }
        self.ahead = false;
        let opened = session::opened_by(FLAGS, from, to);
        if opened.is_some() {
            self.end_session();
            self.session = opened;
        }
        Ok(opened)
    }

    /// Returns the values to write to `device_state`: a single one if the change is in the text's
    /// diagram.
    fn route(&self, phase: Phase, from: State, to: State) -> Option<Vec<Phase>> {
        let target = Phase::of_v2_state(to)?;
        let path: Option<Vec<Phase>> = fsm::path(FLAGS, from, to).ok()?.map(Phase::of_v2_state).collect();
        let mut steps = Vec::new();
        let mut at = phase;
        if self.ahead && !TEXT_TRANSITIONS.contains(&(at, target)) && at != target {
            at = Phase::Running;
            steps.push(at);
        }
        if at == target {
            // Only the log had set SAVING.
        } else if TEXT_TRANSITIONS.contains(&(at, target)) {
            steps.push(target);
        } else {
            steps.extend(path?);
        }
        Some(steps)
    }

    pub(super) fn reset(&mut self) -> Result<()> {
        self.user.leave();
        self.device.reset()?;
        self.user.reset();
        self.end_session();
        self.follow();
        Ok(())
    }

    /// Returns the number of bytes still to be saved, while saving.
    pub(super) fn pending(&mut self) -> std::result::Result<u64, UserError> {
        self.user.pending();
        match self.go()? {
            Outcome::Pending(bytes) => Ok(bytes),
            _ => Err(UserError::NoRequest),
        }
    }

    pub(super) fn is_in(&self, phase: Phase) -> bool {
        self.user.phase() == Some(phase)
    }

    pub(super) fn is_saving(&self) -> bool {
        self.session == Some(Direction::Saving)
    }

    pub(super) fn save(&mut self) -> std::result::Result<Option<Vec<u8>>, UserError> {
        self.user.save();
        match self.go()? {
            Outcome::Saved(transaction) => Ok(transaction),
            _ => Err(UserError::NoRequest),
        }
    }

    /// Gives the device data: one transaction, or bytes that may be split into several.
    pub(super) fn load(&mut self, data: Vec<u8>, may_be_cut: bool) -> std::result::Result<(), UserError> {
        self.user.set_splitting(may_be_cut);
        self.user.load(data);
        self.go().map(drop)
    }

    /// Turns the draft's log on by setting SAVING.
    pub(super) fn start_log(&mut self) -> Result<()> {
        if self.log.is_some() {
            let request = "start of the migration region's dirty page log";
            return Err(Error::request(self.device.name(), request, Errno::EINVAL));
        }
        if self.phase().map_err(|error| self.failed(error))? == Phase::Running {
            self.enter(Phase::PreCopy).map_err(|error| self.failed(error))?;
            self.ahead = true;
        }
        self.log = Some(self.user.phase().is_some_and(Phase::is_saving));
        Ok(())
    }

    pub(super) fn stop_log(&mut self) -> Result<()> {
        self.log = None;
        if self.ahead {
            self.enter(Phase::Running).map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Reports the draft's log of a range, or the whole range after the log was off.
    pub(super) fn report_log(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let Some(whole) = self.log else {
            let request = "report of the migration region's dirty page log";
            return Err(Error::request(self.device.name(), request, Errno::EINVAL));
        };
        if !whole {
            report.set(report.range().iova(), report.range().length());
            return Ok(());
        }
        let mut access = Access { device: &mut *self.device, index: self.index, mapped: &self.mapped };
        let told = report_dirty(&mut self.user, &mut access, report);
        if told.is_err() {
            // Pages reported on the way are lost.
            self.log = Some(false);
        }
        told.map_err(|error| self.failed(error))
    }
}
