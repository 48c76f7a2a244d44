//! Bugs that the core of `whimbrel-device` would hide, because it keeps the state, serializes calls and checks arguments:
//! they are planted between that core and the suite.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::feature::{FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;
use whimbrel_user::{
    DataFile, Device, Direction, DmaMap, Errno, Error, FileOffset, Info, Irq, IrqData, Local, MappedRegion,
    Migratable, MigrationFlags, Operation, RawDevice, Region, SessionState, State,
};

use crate::bug::Bug;
use crate::state_file::{File, Shared, Useless};
use whimbrel_device::IrqAction;

type Result<T> = std::result::Result<T, Error>;

/// The card as the suite sees it, with at most one bug.
pub(crate) struct Wrapped {
    inner: Local,
    bug: Option<Bug>,
    /// The state that the user believes the device to be in, for bugs that lie about it.
    claimed: Option<State>,
    /// Requests of the kind that a bug counts.
    count: usize,
    shared: Arc<Shared>,
}

impl Drop for Wrapped {
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
    }
}

impl Wrapped {
    pub(crate) fn new(inner: Local, bug: Option<Bug>) -> Wrapped {
        Wrapped { inner, bug, claimed: None, count: 0, shared: Arc::new(Shared::new(bug)) }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    fn refusal(&self, state: State, errno: Errno) -> Error {
        Error::request(self.inner.name(), Operation::SetState(state), errno)
    }

    fn wrapped(&self, file: DataFile) -> DataFile {
        let direction = file.direction();
        let file = File::begin(file, self.shared.clone());
        DataFile::new(self.inner.name(), direction, SessionState::default(), Box::new(file))
    }

    /// Returns a file that knows nothing.
    fn useless(&self, direction: Direction) -> DataFile {
        DataFile::new(self.inner.name(), direction, SessionState::default(), Box::new(Useless))
    }

    /// Counts a request, and returns whether it is this one, or a later one.
    fn has_come_to(&mut self, number: usize) -> bool {
        self.count += 1;
        self.count >= number
    }

    /// Passes a request on, without bugs.
    fn pass(&mut self, to: State) -> Result<Option<DataFile>> {
        self.shared.write_collected();
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
            (Bug::ErrorCanBeLeft, State::Error, _) => {
                self.inner.reset()?;
                self.pass(to)
            }
            (Bug::EarlyCloseFailsArc, State::StopCopy, _)
                if self.shared.closed_unread.swap(false, Ordering::AcqRel) =>
            {
                Err(self.refusal(to, Errno::EIO))
            }
            (Bug::PrecopySessionsRunOut, State::Running | State::RunningP2p, State::PreCopy)
                if self.has_come_to(10) =>
            {
                Err(self.refusal(to, Errno::ENOMEM))
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
                if result.is_err() && bug == Bug::FailedLoadSaysStopCopy && from == State::Resuming {
                    self.claimed = Some(State::StopCopy);
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
        if self.has(Bug::ResetsRunOut) && self.has_come_to(20) {
            return Err(Error::request(self.inner.name(), "VFIO_DEVICE_RESET", Errno::EBUSY));
        }
        self.inner.reset()?;
        self.claimed = self.claimed.filter(|_| !self.has(Bug::FailedLoadSaysStopCopy));
        let races = self.has(Bug::ResetRacesWithWriter) && self.shared.has_other_writer();
        if self.has(Bug::ResetStops) || races {
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
        if self.has(Bug::DataSizeTakesByte) {
            self.shared.take_byte();
        }
        self.inner.data_size()
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        if self.shared.opted_in.swap(true, Ordering::AcqRel) && self.has(Bug::OptInOnce) {
            return Err(Error::request(self.inner.name(), Feature::MigPrecopyInfoV2, Errno::EBUSY));
        }
        self.inner.enable_precopy_info_v2()
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let is_misaligned = |range: &IovaRange| (range.iova() | range.length()) & (page_size - 1) != 0;
        if self.has(Bug::LogMisalignedAccepted) && ranges.iter().any(is_misaligned) {
            return Ok(page_size);
        }
        if ranges.is_empty() && self.has(Bug::LogOfNothing) {
            return Ok(page_size);
        }
        if self.has(Bug::LogStartsRunOut) && self.has_come_to(10) {
            return Err(Error::request(self.inner.name(), Feature::DmaLoggingStart, Errno::ENOMEM));
        }
        if self.has(Bug::LogRangesUnchecked) {
            let checked: Vec<IovaRange> = ranges.iter().take(1).copied().collect();
            return self.inner.dma_logging_start(page_size, &checked);
        }
        let result = self.inner.dma_logging_start(page_size, ranges);
        match self.bug {
            Some(Bug::LogPageSizeDoubled) => result.map(|page_size| 2 * page_size),
            Some(Bug::LogRefusedStartRuns) if result.is_err() && !ranges.is_empty() => {
                let _ = self.inner.dma_logging_start(page_size, &ranges[..1]);
                result
            }
            _ => result,
        }
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.inner.dma_logging_stop()
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let result = self.inner.dma_logging_report(report);
        let asked = report.range();
        if self.has(Bug::LogEndsAtOddReport) && (asked.iova() | asked.length()) & 0xfff != 0 {
            let _ = self.inner.dma_logging_stop();
        }
        result
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
        if self.has(Bug::RegionReadResets) && self.inner.state()? == State::Resuming {
            self.inner.reset()?;
        }
        if self.has(Bug::ConfigReadTakesByte) && index == VFIO_PCI_CONFIG_REGION_INDEX {
            self.shared.take_byte();
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
            Some(Bug::RawFailedSetNotWritten) if asked == FeatureFlags::SET && data.len() >= 8 => {
                data[4..8].fill(0);
                Err(errno)
            }
            Some(Bug::RawUnknownIsEinval) if errno == Errno::ENOTTY => Err(Errno::EINVAL),
            Some(Bug::RawErrnos) => Err(Errno::EFAULT),
            _ => Err(errno),
        }
    }
}
