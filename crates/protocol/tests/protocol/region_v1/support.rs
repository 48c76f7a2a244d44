//! A device to stand behind a region, and the region with its vendor half, as a user reaches it.

use std::collections::{BTreeSet, VecDeque};

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::region::{
    Backend, Layout, Outcome, Phase, RegionAccess, SectionMemory, User, UserError, Vendor, Version, View,
    Way, drive,
};
use whimbrel_protocol::{Errno, MigrationFlags, State};

pub(crate) const DEVICE_STATE: u64 = 0;
pub(crate) const RESERVED: u64 = 4;
pub(crate) const PENDING_BYTES: u64 = 8;
pub(crate) const DATA_OFFSET: u64 = 16;
pub(crate) const DATA_SIZE: u64 = 24;
pub(crate) const START_PFN: u64 = 32;
pub(crate) const PAGE_SIZE_FIELD: u64 = 40;
pub(crate) const TOTAL_PFNS: u64 = 48;
pub(crate) const COPIED_PFNS: u64 = 56;

/// The registers of the text.
pub(crate) const STOP: u32 = 0;
pub(crate) const RUNNING: u32 = 1;
pub(crate) const SAVING: u32 = 2;
pub(crate) const PRE_COPY: u32 = 3;
pub(crate) const RESUMING: u32 = 4;
pub(crate) const ERROR: u32 = 6;

/// A device whose state is a list of transactions: some come in pre-copy, the others when it is stopped.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) flags: MigrationFlags,
    pub(crate) state: State,
    pub(crate) arcs: Vec<(State, State)>,
    /// What it has, which a session gives from the start.
    pub(crate) early: Vec<Vec<u8>>,
    pub(crate) late: Vec<Vec<u8>>,
    pub(crate) session: VecDeque<Vec<u8>>,
    pub(crate) late_queued: bool,
    pub(crate) loaded: Vec<Vec<u8>>,
    /// Leaving RESUMING with another number of bytes is refused.
    pub(crate) expects: Option<usize>,
    pub(crate) fail_arc: Option<(State, State, ArcError)>,
    pub(crate) fail_save: Option<Errno>,
    pub(crate) fail_load: Option<Errno>,
    pub(crate) estimate: Option<u64>,
    pub(crate) tracking: bool,
    pub(crate) dirty: BTreeSet<u64>,
}

impl Device {
    pub(crate) fn new(flags: MigrationFlags) -> Device {
        Device {
            flags,
            state: State::Running,
            arcs: Vec::new(),
            early: Vec::new(),
            late: Vec::new(),
            session: VecDeque::new(),
            late_queued: false,
            loaded: Vec::new(),
            expects: None,
            fail_arc: None,
            fail_save: None,
            fail_load: None,
            estimate: None,
            tracking: false,
            dirty: BTreeSet::new(),
        }
    }

    /// All flags, with these transactions.
    pub(crate) fn with_data(early: &[&[u8]], late: &[&[u8]]) -> Device {
        let own = |list: &[&[u8]]| list.iter().map(|data| data.to_vec()).collect();
        Device { early: own(early), late: own(late), ..Device::new(MigrationFlags::all()) }
    }

    pub(crate) fn reset(&mut self) {
        self.state = State::Running;
        self.session.clear();
        self.late_queued = false;
        self.loaded.clear();
        self.tracking = false;
        self.fail_arc = None;
    }

    pub(crate) fn all_data(&self) -> Vec<u8> {
        self.early.iter().chain(&self.late).flatten().copied().collect()
    }
}

impl Backend for Device {
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcError> {
        assert_eq!(from, self.state, "the vendor half lost its device");
        assert_eq!(whimbrel_protocol::fsm::next(self.flags, from, to), Some(to), "{from} -> {to} is no arc");
        if let Some((at, towards, failure)) = self.fail_arc
            && (at, towards) == (from, to)
        {
            if let ArcError::Broken(_) = failure {
                self.state = State::Error;
            }
            return Err(failure);
        }
        if from == State::Resuming {
            let got = self.loaded.iter().map(Vec::len).sum::<usize>();
            if self.expects.is_some_and(|expected| expected != got) {
                return Err(ArcError::Stays(Errno::EINVAL));
            }
        }
        if to.is_saving() && !from.is_saving() {
            self.session = self.early.clone().into();
            self.late_queued = false;
        }
        if to == State::StopCopy && !self.late_queued {
            self.session.extend(self.late.iter().cloned());
            self.late_queued = true;
        }
        if to == State::Resuming {
            self.loaded.clear();
        }
        self.arcs.push((from, to));
        self.state = to;
        Ok(())
    }

    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        assert!(self.state.is_saving(), "data asked for in {}", self.state);
        if let Some(errno) = self.fail_save.take() {
            return Err(errno);
        }
        let Some(front) = self.session.front_mut() else {
            return if self.state.is_precopy() { Err(Errno::ENOMSG) } else { Ok(0) };
        };
        let count = front.len().min(buffer.len());
        buffer[..count].copy_from_slice(&front[..count]);
        front.drain(..count);
        if front.is_empty() {
            self.session.pop_front();
        }
        Ok(count)
    }

    fn load(&mut self, transaction: &[u8]) -> Result<(), Errno> {
        assert_eq!(self.state, State::Resuming);
        if let Some(errno) = self.fail_load.take() {
            return Err(errno);
        }
        self.loaded.push(transaction.to_vec());
        Ok(())
    }

    fn remaining(&mut self) -> Result<u64, Errno> {
        Ok(self.estimate.unwrap_or_else(|| self.session.iter().map(|data| data.len() as u64).sum()))
    }

    fn track_dirty(&mut self, on: bool) -> Result<(), Errno> {
        self.tracking = on;
        self.dirty.clear();
        Ok(())
    }

    fn report_dirty(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        assert!(self.tracking, "the log is asked while it is off");
        let range = report.range();
        let told: Vec<u64> = self.dirty.range(range.iova()..range.end()).copied().collect();
        for page in told {
            report.set(page, 4096);
            self.dirty.remove(&page);
        }
        Ok(())
    }
}

/// How an access is spoilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It does not reach the region.
    Before,
    /// It is done, and its answer is lost.
    After,
}

/// One access, as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Made {
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

/// A region: the vendor half with its device.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) device: Device,
    pub(crate) vendor: Vendor,
    pub(crate) made: Vec<Made>,
    /// The access with this number is spoilt, once.
    pub(crate) fault: Option<(usize, Fault)>,
}

impl Rig {
    pub(crate) fn new(layout: Layout, device: Device) -> Rig {
        let memory = vec![0xee; usize::try_from(layout.size()).unwrap()];
        let vendor = Vendor::new(layout, device.flags, memory).unwrap();
        Rig { device, vendor, made: Vec::new(), fault: None }
    }

    /// A v1 region with a trapped data section of `capacity` bytes.
    pub(crate) fn v1(capacity: u64, device: Device) -> Rig {
        Rig::new(Layout::trapped(Version::V1, capacity).unwrap(), device)
    }

    pub(crate) fn user(&self) -> User {
        let layout = self.vendor.layout();
        User::new(View::new(layout.version(), &layout.region()).unwrap())
    }

    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut data = vec![0; length];
        self.vendor.read(&mut self.device, offset, &mut data).map(|()| data)
    }

    pub(crate) fn field(&mut self, offset: u64) -> Result<u64, Errno> {
        self.read(offset, 8).map(|data| u64::from_ne_bytes(data.try_into().unwrap()))
    }

    pub(crate) fn set_field(&mut self, offset: u64, value: u64) -> Result<(), Errno> {
        self.vendor.write(&mut self.device, offset, &value.to_ne_bytes())
    }

    pub(crate) fn state(&mut self) -> Result<u32, Errno> {
        self.read(DEVICE_STATE, 4).map(|data| u32::from_ne_bytes(data.try_into().unwrap()))
    }

    pub(crate) fn set_state(&mut self, register: u32) -> Result<(), Errno> {
        self.vendor.write(&mut self.device, DEVICE_STATE, &register.to_ne_bytes())
    }

    /// Puts `data` into the section and hands it over.
    pub(crate) fn give(&mut self, data: &[u8]) -> Result<(), Errno> {
        let offset = self.field(DATA_OFFSET)?;
        self.vendor.write(&mut self.device, offset, data)?;
        self.set_field(DATA_SIZE, data.len() as u64)
    }

    /// One iteration of the text's loop: `None` when nothing is pending.
    pub(crate) fn take(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        if self.field(PENDING_BYTES)? == 0 {
            return Ok(None);
        }
        let offset = self.field(DATA_OFFSET)?;
        let size = self.field(DATA_SIZE)?;
        self.read(offset, usize::try_from(size).unwrap()).map(Some)
    }

    /// The loop to its end.
    pub(crate) fn take_all(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.take().unwrap()).collect()
    }

    pub(crate) fn phase(&mut self, user: &mut User, to: Phase) -> Result<(), UserError> {
        user.set_phase(to);
        drive(user, self).map(|outcome| assert_eq!(outcome, Outcome::Phase(to)))
    }

    fn spoilt(&mut self) -> Option<Fault> {
        let (at, fault) = self.fault?;
        (at < self.made.len()).then(|| {
            self.fault = None;
            fault
        })
    }
}

impl RegionAccess for Rig {
    fn read(&mut self, offset: u64, way: Way, data: &mut [u8]) -> Result<(), Errno> {
        self.made.push(Made::Read(offset, data.len()));
        let fault = self.spoilt();
        if fault == Some(Fault::Before) {
            return Err(Errno::EIO);
        }
        match way {
            Way::Trapped => self.vendor.read(&mut self.device, offset, data)?,
            Way::Mapped => {
                assert!(mapped(self.vendor.layout(), offset, data.len()), "{offset:#x} is not mapped");
                self.vendor.memory().read(offset, data)?;
            }
        }
        fault.map_or(Ok(()), |_| Err(Errno::EIO))
    }

    fn write(&mut self, offset: u64, way: Way, data: &[u8]) -> Result<(), Errno> {
        self.made.push(Made::Write(offset, data.to_vec()));
        let fault = self.spoilt();
        if fault == Some(Fault::Before) {
            return Err(Errno::EIO);
        }
        match way {
            Way::Trapped => self.vendor.write(&mut self.device, offset, data)?,
            Way::Mapped => {
                assert!(mapped(self.vendor.layout(), offset, data.len()), "{offset:#x} is not mapped");
                self.vendor.memory_mut().write(offset, data)?;
            }
        }
        fault.map_or(Ok(()), |_| Err(Errno::EIO))
    }
}

fn mapped(layout: &Layout, offset: u64, length: usize) -> bool {
    layout
        .mapped_areas()
        .iter()
        .any(|area| area.offset <= offset && offset + length as u64 <= area.offset + area.size)
}
