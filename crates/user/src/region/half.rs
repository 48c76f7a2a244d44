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

/// What every device with a region can do.
pub(super) const FLAGS: MigrationFlags = MigrationFlags::STOP_COPY.union(MigrationFlags::PRE_COPY);

/// Where the field is that says where the data begin.
const DATA_OFFSET: u64 = std::mem::offset_of!(DeviceMigrationInfo, data_offset) as u64;

/// The device, its region and how far its migration is.
pub(super) struct Half {
    pub(super) device: Box<dyn Device>,
    pub(super) index: u32,
    user: User,
    /// The parts of the data section that are mapped, with where they begin in the region.
    mapped: Vec<(u64, MappedRegion)>,
    session: Option<Direction>,
    /// Counts sessions, so that a file whose session is over is known.
    pub(super) generation: u64,
    /// The device refused to leave resuming for STOP and stands there.
    standing: bool,
    /// SAVING is set for the draft's log alone: the device has not been asked for PRE_COPY.
    ahead: bool,
    /// The draft's log, if it was started: whether it has been on without a break since it last told all.
    log: Option<bool>,
}

/// Where an access goes.
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

/// The user half knows requests by errno.
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
    /// Maps what can be mapped. A device whose regions cannot be mapped from here is read and written.
    pub(super) fn new(mut device: Box<dyn Device>, index: u32, view: View) -> Half {
        let mapped = view
            .mapped_areas()
            .iter()
            .map(|area| Ok((area.offset, device.map_region(index, area.offset, area.size)?)))
            .collect::<Result<Vec<_>>>();
        let (view, mapped) = match mapped {
            Ok(mapped) => (view, mapped),
            Err(error) => {
                tracing::debug!(%error, "the data section is read and written instead");
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

    /// Bytes that the data section has at most.
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

    /// Ends what the device's phase has ended.
    fn follow(&mut self) {
        let Some(phase) = self.user.phase() else {
            // A change may have been made on the way.
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

    /// Refuses a region that cannot be the draft's: its data would begin in the draft's structure.
    pub(super) fn check_version(&mut self) -> Result<()> {
        if self.version() == Version::V1 {
            return Ok(());
        }
        let mut offset = [0; 8];
        let read = self.device.read_region(self.index, DATA_OFFSET, &mut offset);
        let offset = u64::from_ne_bytes(offset);
        if read.is_ok() && (Version::V1.header_size()..Version::Draft.header_size()).contains(&offset) {
            let why =
                format!("its data lie at {offset:#x} of the migration region: it follows v1, not the draft");
            return Err(Error::Unusable { device: self.device.name().to_string(), why });
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

    /// Brings the device to a state. Which session that opened, if it did.
    pub(super) fn set_state(&mut self, to: State) -> Result<Option<Direction>> {
        let phase = self.phase().map_err(|error| self.failed(error))?;
        let from = self.state_of(phase);
        if from == to {
            return Ok(None);
        }
        if self.standing && to == State::Resuming {
            let why = "it does not stop once a state has been loaded: let it run, or reset it, before it loads \
                       another";
            return Err(Error::Unusable { device: self.device.name().to_string(), why: why.into() });
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
                    "it stands in resuming until it is to run"
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

    /// What is written to `device_state`: one value where the text draws the change.
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
            // Only the log had brought it there.
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

    /// What is still to be saved, in bytes, while the device is saved.
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

    /// Hands the device data: one transaction, or bytes that may be cut into several.
    pub(super) fn load(&mut self, data: Vec<u8>, may_be_cut: bool) -> std::result::Result<(), UserError> {
        self.user.set_splitting(may_be_cut);
        self.user.load(data);
        self.go().map(drop)
    }

    /// Turns the draft's log on: it is while SAVING is set.
    pub(super) fn start_log(&mut self) -> Result<()> {
        if self.log.is_some() {
            let request = "start of the migration region's log of dirty pages";
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

    /// What the draft's log holds of a range, and all of it after the log was off.
    pub(super) fn report_log(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let Some(whole) = self.log else {
            let request = "report of the migration region's dirty pages";
            return Err(Error::request(self.device.name(), request, Errno::EINVAL));
        };
        if !whole {
            report.set(report.range().iova(), report.range().length());
            return Ok(());
        }
        let mut access = Access { device: &mut *self.device, index: self.index, mapped: &self.mapped };
        let told = report_dirty(&mut self.user, &mut access, report);
        if told.is_err() {
            // What was told on the way is lost.
            self.log = Some(false);
        }
        told.map_err(|error| self.failed(error))
    }
}
