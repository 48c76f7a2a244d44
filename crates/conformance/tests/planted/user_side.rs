//! Bugs that the core of `whimbrel-device` would hide, because it keeps the state, serializes calls and checks arguments:
//! they are planted between that core and the suite.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::feature::{FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_user::{
    DataFile, Device, Direction, DmaMap, Errno, Error, FileOffset, Info, Irq, IrqData, Local, MappedRegion,
    Migratable, MigrationFlags, Operation, PrecopyReport, RawData, RawDevice, Region, SessionState, State,
    StateFile,
};

use crate::bug::Bug;
use whimbrel_device::IrqAction;

type Result<T> = std::result::Result<T, Error>;

/// The card as the suite sees it, with at most one bug.
pub(crate) struct Wrapped {
    inner: Local,
    bug: Option<Bug>,
    /// The state that the user believes the device to be in, for bugs that lie about it.
    claimed: Option<State>,
    shared: Arc<Shared>,
}

/// What a device and its data files know.
struct Shared {
    bug: Option<Bug>,
    opted_in: AtomicBool,
    /// The state that [`Bug::WritersRace`] collects, and its data file.
    collected: Mutex<Vec<u8>>,
    resuming: Mutex<Option<Arc<Mutex<DataFile>>>>,
}

impl Wrapped {
    pub(crate) fn new(inner: Local, bug: Option<Bug>) -> Wrapped {
        let shared = Shared {
            bug,
            opted_in: AtomicBool::new(false),
            collected: Mutex::default(),
            resuming: Mutex::default(),
        };
        Wrapped { inner, bug, claimed: None, shared: Arc::new(shared) }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn refusal(&self, state: State, errno: Errno) -> Error {
        Error::request(self.inner.name(), Operation::SetState(state), errno)
    }

    fn wrapped(&self, file: DataFile) -> DataFile {
        let direction = file.direction();
        self.shared.collected.lock().clear();
        let file = File { inner: Arc::new(Mutex::new(file)), shared: self.shared.clone(), ahead: None };
        DataFile::new(self.inner.name(), direction, SessionState::default(), Box::new(file))
    }

    /// Returns a file that knows nothing.
    fn useless(&self, direction: Direction) -> DataFile {
        DataFile::new(self.inner.name(), direction, SessionState::default(), Box::new(Useless))
    }

    /// Passes a request on, without bugs.
    fn pass(&mut self, to: State) -> Result<Option<DataFile>> {
        if let Some(file) = self.shared.resuming.lock().take() {
            let mut rest: &[u8] = &std::mem::take(&mut *self.shared.collected.lock());
            while let Ok(count @ 1..) = file.lock().file_mut().write(rest) {
                rest = &rest[count..];
            }
        }
        let file = self.inner.set_state(to)?;
        Ok(file.map(|file| self.wrapped(file)))
    }

    /// Makes a request for a state, with the bug.
    fn set(&mut self, to: State) -> Result<Option<DataFile>> {
        let Some(bug) = self.bug else { return self.pass(to) };
        let from = self.inner.state()?;
        match (bug, from, to) {
            (Bug::BlockedArcLoops, State::StopCopy, State::PreCopy | State::PreCopyP2p)
            | (Bug::P2pHangs, _, State::RunningP2p) => loop {
                thread::sleep(Duration::from_millis(50));
            },
            (Bug::SetDoesNotMove, _, State::Stop)
            | (Bug::P2pDoesNotMove, _, State::RunningP2p)
            | (Bug::ErrorCanBeSet, _, State::Error)
            | (Bug::OptionalStateAccepted, _, State::RunningP2p | State::PreCopyP2p)
            | (Bug::AbsentStateAccepted, _, State::PreCopy) => Ok(None),
            (Bug::StopWithoutP2pFails, State::Running, State::Stop) => Err(self.refusal(to, Errno::EINVAL)),
            (Bug::StopsHalfway, State::Running, State::StopCopy) => {
                self.pass(State::Stop)?;
                Ok(Some(self.useless(Direction::Saving)))
            }
            (Bug::ErrorBreaks, _, State::Error) => {
                let moved = self.inner.set_state(State::Stop);
                moved.and(Err(self.refusal(to, Errno::EINVAL)))
            }
            (Bug::DataFdMissing, _, State::StopCopy) => self.pass(to).map(|_| None),
            (Bug::DataFdMissingInResuming, _, State::Resuming) => self.pass(to).map(|_| None),
            (Bug::DataFdInStop, _, State::Stop) => {
                self.pass(to)?;
                Ok(Some(self.useless(Direction::Saving)))
            }
            (Bug::DataFdTwice, State::PreCopy | State::PreCopyP2p, State::StopCopy) => {
                self.pass(to)?;
                Ok(Some(self.useless(Direction::Saving)))
            }
            (Bug::DataFdAtSameState, State::StopCopy, State::StopCopy) => {
                Ok(Some(self.useless(Direction::Saving)))
            }
            (Bug::SameStateFails, from, to) if from == to => Err(self.refusal(to, Errno::EINVAL)),
            (Bug::SameStateStartsOver, State::PreCopy, State::PreCopy) => {
                self.pass(State::Running)?;
                self.pass(to)
            }
            (Bug::ResumingCannotRun, State::Resuming, State::Running) => Err(self.refusal(to, Errno::EINVAL)),
            (Bug::StopCopyCannotResume, State::StopCopy, State::Resuming) => {
                Err(self.refusal(to, Errno::EINVAL))
            }
            (Bug::PrecopyCannotStopCopy, State::PreCopy, State::StopCopy) => {
                Err(self.refusal(to, Errno::EINVAL))
            }
            _ => {
                let result = self.pass(to);
                if result.is_err() && bug == Bug::RefusedSetEndsSession {
                    let _ = self.inner.set_state(State::Stop).and_then(|_| self.inner.set_state(from));
                }
                if result.is_err() && bug == Bug::RefusedSetMoves {
                    let _ = self.inner.set_state(State::Stop);
                }
                result
            }
        }
    }
}

impl Migratable for Wrapped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn info(&mut self) -> Result<Info> {
        self.inner.info()
    }

    fn reset(&mut self) -> Result<()> {
        if self.has(Bug::ResetKeepsState) {
            self.claimed = Some(self.inner.state()?);
        }
        self.inner.reset()?;
        if self.has(Bug::ResetStops) {
            self.inner.set_state(State::Stop)?;
        }
        Ok(())
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        let unknown = self.has(Bug::OpsWithoutCapability) && feature == Feature::Migration
            || self.has(Bug::ProbeDeniesState) && feature == Feature::MigDeviceState
            || self.has(Bug::ProbeDeniesReport) && feature == Feature::DmaLoggingReport;
        Ok(!unknown && self.inner.probe_feature(feature, directions)?)
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        self.inner.migration_flags()
    }

    fn state(&mut self) -> Result<State> {
        let state = self.inner.state()?;
        match self.bug {
            Some(Bug::GetSaysRunning) => Ok(State::Running),
            Some(Bug::GetSkipsP2p) if state == State::RunningP2p => Ok(State::Running),
            Some(Bug::GetFailsInStopCopy) if state == State::StopCopy => {
                Err(Error::request(self.inner.name(), Feature::MigDeviceState, Errno::EBUSY))
            }
            _ => Ok(self.claimed.unwrap_or(state)),
        }
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let result = self.set(state);
        if result.is_ok() {
            self.claimed = None;
        }
        result
    }

    fn data_size(&mut self) -> Result<u64> {
        self.inner.data_size()
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        self.shared.opted_in.store(true, Ordering::Release);
        self.inner.enable_precopy_info_v2()
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let is_misaligned = |range: &IovaRange| (range.iova() | range.length()) & (page_size - 1) != 0;
        if self.has(Bug::LogMisalignedAccepted) && ranges.iter().any(is_misaligned) {
            return Ok(page_size);
        }
        let is_empty = ranges.is_empty();
        if is_empty && self.has(Bug::LogOfNothing) {
            return Ok(page_size);
        }
        if self.has(Bug::LogRangesUnchecked) {
            let checked: Vec<IovaRange> = ranges.iter().take(1).copied().collect();
            return self.inner.dma_logging_start(page_size, &checked);
        }
        self.inner.dma_logging_start(page_size, ranges)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.inner.dma_logging_stop()
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.inner.dma_logging_report(report)
    }
}

impl Device for Wrapped {
    fn region_info(&mut self, index: u32) -> Result<Region> {
        match self.inner.region_info(index) {
            Err(_) if self.has(Bug::UnknownRegionFound) => Ok(Region::absent(0)),
            result => result,
        }
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        self.inner.irq_info(index)
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        if self.has(Bug::ConfigSpaceRefusedInStop) && self.inner.state()? == State::Stop {
            return Err(Error::request(
                self.inner.name(),
                Operation::ReadRegion { index, offset },
                Errno::EIO,
            ));
        }
        match self.inner.read_region(index, offset, data) {
            Err(_) if self.has(Bug::ReadPastTheEnd) => Ok(()),
            result => result,
        }
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.inner.write_region(index, offset, data)
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let result = self.inner.map_region(index, offset, length);
        if !self.has(Bug::MmapShowsMigrationRegisters) || result.is_ok() || length > 1 << 20 {
            return result;
        }
        // With larger pages the mapping reaches past what is the user's.
        let region = self.inner.region_info(index)?;
        let file = tempfile::tempfile().map_err(|error| Error::unusable("card", error.to_string()))?;
        let _ = file.set_len(length.max(1) + 0x10000);
        MappedRegion::of_file("card", index, &region, FileOffset::new(file, 0), offset, length.max(0x1000))
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        if self.has(Bug::InterruptsRefusedInStop) && self.inner.state()? == State::Stop {
            return Err(Error::request(self.inner.name(), Operation::SetIrqs(index), Errno::EBUSY));
        }
        self.inner.set_irqs(index, start, action, data)
    }

    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        self.inner.dma_map()
    }

    fn raw(&mut self) -> Option<&mut dyn RawDevice> {
        Some(self)
    }
}

impl RawDevice for Wrapped {
    fn device_feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> std::result::Result<(), Errno> {
        let asked = FeatureFlags::from_bits_retain(flags & !FEATURE_MASK);
        let both = FeatureFlags::GET | FeatureFlags::SET;
        let feature = Feature::from_number((flags & FEATURE_MASK) as u16);
        let is_probe = asked.contains(FeatureFlags::PROBE);
        if self.has(Bug::ProbeActs) && is_probe && feature == Some(Feature::MigDeviceState) {
            let _ = self.inner.set_state(State::Stop);
        }
        if self.has(Bug::ProbeNeedsData) && is_probe && argsz < 16 {
            return Err(Errno::EINVAL);
        }
        let result = self.inner.raw().ok_or(Errno::ENOTTY)?.device_feature(argsz, flags, data);
        let Err(errno) = result else {
            if self.has(Bug::RawStateNotWritten) && feature == Some(Feature::MigDeviceState) && !is_probe {
                data.fill(0);
            }
            return match self.bug {
                Some(Bug::RawLongArgszRefused) if argsz > 64 => Err(Errno::E2BIG),
                _ => Ok(()),
            };
        };
        let accepts = match self.bug {
            Some(Bug::RawBothDirections) => asked.contains(both) && !is_probe,
            Some(Bug::AbsentFeatureFound) => is_probe && feature == Some(Feature::MigPrecopyInfoV2),
            Some(Bug::RawNoDirection) => asked.is_empty() && feature.is_some(),
            Some(Bug::RawProbesEverything) => is_probe && feature.is_some(),
            Some(Bug::RawUnknownFeature) => feature.is_none(),
            Some(Bug::RawUnknownFlags) => flags & !(FEATURE_MASK | 0x7_0000) != 0,
            Some(Bug::RawShortArgsz) => (8..16).contains(&argsz) && feature.is_some(),
            Some(Bug::RawTinyArgsz) => argsz < 8,
            Some(Bug::RawUnknownState) => {
                feature == Some(Feature::MigDeviceState) && asked == FeatureFlags::SET && argsz >= 16
            }
            _ => false,
        };
        match self.bug {
            _ if accepts => Ok(()),
            Some(Bug::RawUnknownIsEinval) if errno == Errno::ENOTTY => Err(Errno::EINVAL),
            Some(Bug::RawErrnos) => Err(Errno::EFAULT),
            _ => Err(errno),
        }
    }
}

/// A data file as the suite sees it.
struct File {
    inner: Arc<Mutex<DataFile>>,
    shared: Arc<Shared>,
    /// State that was read before it was asked for.
    ahead: Option<(Vec<u8>, usize)>,
}

impl File {
    /// Reads from what was read ahead, whatever the device is in by now.
    fn read_ahead(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        if self.ahead.is_none() {
            let mut all = vec![0; 1 << 16];
            let mut length = 0;
            loop {
                match self.inner.lock().file_mut().read(&mut all[length..]) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(errno) => return Err(errno),
                }
            }
            all.truncate(length);
            self.ahead = Some((all, 0));
        }
        let Some((bytes, at)) = &mut self.ahead else { return Ok(0) };
        let count = buffer.len().min(bytes.len() - *at);
        buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
        *at += count;
        Ok(count)
    }

    /// Collects the state in a buffer that is too small for it and another one: checks that the data fits with a position,
    /// and then writes at a later one.
    fn write_racing(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        const CAPACITY: usize = crate::card::STATE_BYTES * 2 - 1;
        // Whether the session goes on.
        self.inner.lock().file_mut().write(&[])?;
        let at = self.shared.collected.lock().len();
        if at + data.len() > CAPACITY {
            return Err(Errno::ENOMEM);
        }
        thread::sleep(Duration::from_micros(100));
        let mut collected = self.shared.collected.lock();
        assert!(collected.len() + data.len() <= CAPACITY, "a write past the end of the buffer");
        collected.extend_from_slice(data);
        *self.shared.resuming.lock() = Some(self.inner.clone());
        Ok(data.len())
    }
}

impl StateFile for File {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        match self.shared.bug {
            Some(Bug::FileOutlivesSession) => match self.read_ahead(buffer) {
                Err(Errno::ENOMSG) => self.inner.lock().file_mut().read(buffer),
                result => result,
            },
            Some(Bug::ReadClaimsMore) => {
                self.inner.lock().file_mut().read(buffer).map(|count| count + usize::from(count > 0))
            }
            Some(Bug::ReadOnResuming) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::EBADF) => Ok(0),
                result => result,
            },
            Some(Bug::EndedFileIsEio) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::ENODEV) => Err(Errno::EIO),
                result => result,
            },
            Some(Bug::EndedFileReadsNothing) => match self.inner.lock().file_mut().read(buffer) {
                Err(Errno::ENODEV) => Ok(0),
                result => result,
            },
            _ => self.inner.lock().file_mut().read(buffer),
        }
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        match self.shared.bug {
            Some(Bug::WritersRace) => self.write_racing(data),
            Some(Bug::WriteClaimsMore) => self.inner.lock().file_mut().write(data).map(|count| count + 1),
            Some(Bug::WriteOnSaving) => match self.inner.lock().file_mut().write(data) {
                Err(Errno::EBADF) => Ok(data.len()),
                result => result,
            },
            Some(Bug::EndedFileTakesData) => match self.inner.lock().file_mut().write(data) {
                Err(Errno::ENODEV) => Ok(data.len()),
                result => result,
            },
            _ => self.inner.lock().file_mut().write(data),
        }
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        let bug = self.shared.bug;
        let opted_in = self.shared.opted_in.load(Ordering::Acquire);
        match (bug, self.inner.lock().file_mut().precopy_info()) {
            (Some(Bug::PrecopyInfoInStopCopy), Err(Errno::EINVAL)) => Ok(PrecopyReport::new(0, 0)),
            (Some(Bug::PrecopyInfoOnResuming), Err(Errno::ENOTTY)) => Ok(PrecopyReport::new(0, 0)),
            (Some(Bug::ReinitWithoutOptIn), Ok(report)) => Ok(report.reinit(true)),
            (Some(Bug::ReinitAlways), Ok(report)) if opted_in => Ok(report.reinit(true)),
            (_, result) => result,
        }
    }

    fn raw(&mut self) -> Option<&mut dyn RawData> {
        Some(self)
    }
}

impl RawData for File {
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> std::result::Result<(), Errno> {
        let bug = self.shared.bug;
        let argsz = info.argsz;
        let result = self.inner.lock().file_mut().raw().ok_or(Errno::ENOTTY)?.precopy_info(info);
        match (bug, result) {
            (Some(Bug::RawPrecopyArgsz), Err(Errno::EINVAL)) if argsz < 24 => Ok(()),
            (Some(Bug::RawPrecopyLongArgsz), Ok(())) if argsz > 24 => Err(Errno::EINVAL),
            (Some(Bug::PrecopyInfoInStopCopy), Err(Errno::EINVAL)) if argsz >= 24 => Ok(()),
            (_, result) => result,
        }
    }

    fn duplicate(&self) -> std::result::Result<Box<dyn StateFile>, Errno> {
        Ok(Box::new(File { inner: self.inner.clone(), shared: self.shared.clone(), ahead: None }))
    }
}

/// A data file that was never opened.
struct Useless;

impl StateFile for Useless {
    fn read(&mut self, _buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        Err(Errno::ENODEV)
    }

    fn write(&mut self, _data: &[u8]) -> std::result::Result<usize, Errno> {
        Err(Errno::ENODEV)
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        Err(Errno::ENODEV)
    }
}
