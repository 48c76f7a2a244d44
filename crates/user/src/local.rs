//! A device whose driver runs in this process.

use std::sync::{Arc, Mutex, PoisonError};

use whimbrel_device::{DeviceFile, IrqAction, PrecopyReport, SparseMemory, WorkingDevice};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::reset::ResetRule;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_uapi::type1::DmaMapFlags;
use zerocopy::IntoBytes;

use crate::data_file::{DataFile, StateFile};
use crate::device::Device;
use crate::dirty_source::DirtySource;
use crate::dma_map::{DmaMap, DmaRegion};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::irq_data::IrqData;
use crate::mapped_region::MappedRegion;
use crate::migratable::Migratable;
use crate::operation::Operation;
use crate::raw::{self, RawData, RawDevice};
use crate::session_state::SessionState;
use crate::setup::{ArmedInterrupts, DeviceSetup, InterruptTracker};

/// A driver-side device, used directly.
#[derive(Debug)]
pub struct Local {
    device: WorkingDevice,
    state: SessionState,
    memory_log: MemoryLog,
    interrupts: InterruptTracker,
}

impl Local {
    /// Returns the user side of a device, with its worker, if any, which stops when this is dropped.
    pub fn new(device: impl Into<WorkingDevice>) -> Local {
        let device = device.into();
        let state = SessionState::new(device.mig_state().unwrap_or(State::Running));
        let memory_log = MemoryLog { device: device.device().clone(), log: Arc::default() };
        Local { device, state, memory_log, interrupts: InterruptTracker::default() }
    }

    /// Returns the driver side.
    pub fn driver_side(&self) -> &DeviceFile {
        &self.device
    }

    fn failed(&self, request: impl Into<Operation>) -> impl FnOnce(Errno) -> Error {
        Error::at(self.device.name(), request)
    }

    /// Checks that a transfer was complete.
    fn whole(
        &self,
        request: Operation,
        expected: usize,
        result: std::result::Result<usize, Errno>,
    ) -> Result<()> {
        let count = result.map_err(|errno| Error::request(self.device.name(), request.clone(), errno))?;
        if count == expected {
            return Ok(());
        }
        let what = format!("short transfer: {count} of {expected} bytes");
        Err(Error::answer(self.device.name(), request, what))
    }
}

impl Migratable for Local {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn info(&mut self) -> Result<Info> {
        Ok(self.device.info())
    }

    fn identity(&mut self) -> Result<Identity> {
        let compatibility = self.device.compatibility();
        Ok(Identity::of_device(self)?.compatibility(compatibility))
    }

    fn reset(&mut self) -> Result<()> {
        self.device.reset().map_err(self.failed(ioctl::VFIO_DEVICE_RESET))?;
        // A driver side that keeps pre-copy has reset the device, and leaves the rest to its user.
        let may_keep = self.device.reset_rule() == ResetRule::KeepsPrecopy;
        if may_keep && self.device.mig_state().is_ok_and(State::is_precopy) {
            self.set_state(State::Running)?;
        }
        Ok(())
    }

    fn reset_rule(&self) -> Option<ResetRule> {
        Some(self.device.reset_rule())
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        Ok(self.device.has_feature(feature, directions))
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        Ok(self.device.migration_flags().ok())
    }

    fn state(&mut self) -> Result<State> {
        let state = self.device.mig_state().map_err(self.failed(Feature::MigDeviceState))?;
        self.state.set(state);
        Ok(state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = self.device.set_mig_state(state).map_err(self.failed(Operation::SetState(state)))?;
        self.state.set(state);
        Ok(opened.map(|file| {
            let (direction, state) = (file.direction(), self.state.clone());
            DataFile::new(self.device.name(), direction, state, Box::new(LocalFile(Arc::new(file))))
        }))
    }

    fn data_size(&mut self) -> Result<u64> {
        self.device.mig_data_size().map_err(self.failed(Feature::MigDataSize))
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        match self.device.enable_precopy_info_v2() {
            Ok(()) => Ok(true),
            Err(Errno::EINVAL | Errno::ENOTTY) => Ok(false),
            Err(errno) => Err(self.failed(Feature::MigPrecopyInfoV2)(errno)),
        }
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        logging_ranges(page_size, ranges)
            .and_then(|checked| self.device.dma_logging_start(&checked))
            .map_err(self.failed(Feature::DmaLoggingStart))
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.device.dma_logging_stop().map_err(self.failed(Feature::DmaLoggingStop))
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.device.dma_logging_report(report).map_err(self.failed(Feature::DmaLoggingReport))
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        DeviceSetup::of_device(self)
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        setup.restore_to(self)
    }
}

impl Device for Local {
    fn region_info(&mut self, index: u32) -> Result<Region> {
        self.device.region_info(index).map_err(self.failed(Operation::RegionInfo(index)))
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        self.device.irq_info(index).map_err(self.failed(Operation::IrqInfo(index)))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let result = self.device.read_region(index, offset, data);
        self.whole(Operation::ReadRegion { index, offset }, data.len(), result)
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let result = self.device.write_region(index, offset, data);
        self.whole(Operation::WriteRegion { index, offset }, data.len(), result)
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let region = self.region_info(index)?;
        let request = Operation::MapRegion { index, offset, length };
        let file = self.device.mmap(index, offset, length).map_err(self.failed(request))?;
        MappedRegion::of_file(self.device.name(), index, &region, file, offset, length)
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        owned(data)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EMFILE))
            .and_then(|data| self.device.set_irqs(index, start, action, data))
            .map_err(self.failed(Operation::SetIrqs(index)))?;
        self.interrupts.record(index, start, action, data);
        Ok(())
    }

    fn armed_interrupts(&mut self) -> Vec<ArmedInterrupts> {
        self.interrupts.armed()
    }

    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        Some(self)
    }

    fn raw(&mut self) -> Option<&mut dyn RawDevice> {
        Some(self)
    }
}

/// Address of a raw request's argument in the memory of the process that makes it.
const ARGUMENT: u64 = 0x1000;

impl RawDevice for Local {
    fn device_feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> std::result::Result<(), Errno> {
        let mut process = SparseMemory::new();
        process.insert(ARGUMENT, raw::request(argsz, flags, data)?);
        let result = self.device.ioctl(ioctl::VFIO_DEVICE_FEATURE.number(), ARGUMENT, &mut process);
        if let Some(answer) = process.piece(ARGUMENT) {
            data.copy_from_slice(&answer[raw::HEAD..raw::HEAD + data.len()]);
        }
        result.map(|_| ())
    }
}

impl DmaMap for Local {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let Some(file) = memory.file() else {
            let why =
                "a driver in this process can access file-backed memory only; allocate it with memfd_create";
            return Err(Error::unusable(self.device.name(), why));
        };
        let request = Operation::Memory { request: ioctl::VFIO_IOMMU_MAP_DMA, iova };
        let dma = self.device.bus().dma();
        dma.map(iova, memory.size(), rights, file.clone()).map_err(self.failed(request))
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        let request = Operation::Memory { request: ioctl::VFIO_IOMMU_UNMAP_DMA, iova };
        self.device.bus().dma().unmap(iova, size).map_err(self.failed(request))
    }

    fn dirty_log(&mut self) -> Option<Box<dyn DirtySource + Send>> {
        Some(Box::new(self.memory_log.clone()))
    }
}

/// The address space's log of the device's writes, as in a container. A clone is another handle to it.
#[derive(Clone, Debug)]
struct MemoryLog {
    device: DeviceFile,
    log: Arc<Mutex<Option<Arc<DirtyLog>>>>,
}

impl MemoryLog {
    fn failed(&self, errno: Errno) -> Error {
        Error::request(self.device.name(), ioctl::VFIO_IOMMU_DIRTY_PAGES, errno)
    }

    fn set(&self, log: Option<Arc<DirtyLog>>) {
        let mut current = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        self.device.bus().dma().set_space_log(log.clone());
        *current = log;
    }
}

impl DirtySource for MemoryLog {
    fn start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let log = logging_ranges(page_size, ranges)
            .and_then(|checked| DirtyLog::new(&checked))
            .map_err(|errno| self.failed(errno))?;
        self.set(Some(Arc::new(log)));
        Ok(page_size)
    }

    fn stop(&mut self) -> Result<()> {
        self.set(None);
        Ok(())
    }

    fn report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        log.ok_or(Errno::EINVAL).map_err(|errno| self.failed(errno))?.report(report);
        Ok(())
    }
}

fn logging_ranges(page_size: u64, ranges: &[IovaRange]) -> std::result::Result<LoggingRanges, Errno> {
    let mut checked = LoggingRanges::new(page_size, u32::try_from(ranges.len()).unwrap_or(u32::MAX))?;
    for range in ranges {
        checked.push(range.iova(), range.length())?;
    }
    Ok(checked)
}

/// Returns the same data with eventfds that the device can keep.
fn owned(data: IrqData<'_>) -> std::io::Result<whimbrel_device::IrqData> {
    Ok(match data {
        IrqData::None(count) => whimbrel_device::IrqData::None(count),
        IrqData::Bool(items) => whimbrel_device::IrqData::Bool(items.to_vec()),
        IrqData::Eventfd(items) => whimbrel_device::IrqData::Eventfd(
            items
                .iter()
                .map(|item| item.map(|eventfd| eventfd.try_clone_to_owned()).transpose())
                .collect::<std::io::Result<_>>()?,
        ),
    })
}

struct LocalFile(Arc<whimbrel_device::DataFile>);

impl StateFile for LocalFile {
    fn read(&mut self, buffer: &mut [u8]) -> std::result::Result<usize, Errno> {
        self.0.read(buffer)
    }

    fn write(&mut self, data: &[u8]) -> std::result::Result<usize, Errno> {
        self.0.write(data)
    }

    fn precopy_info(&mut self) -> std::result::Result<PrecopyReport, Errno> {
        self.0.precopy_info()
    }

    fn raw(&mut self) -> Option<&mut dyn RawData> {
        Some(self)
    }
}

impl RawData for LocalFile {
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> std::result::Result<(), Errno> {
        let mut process = SparseMemory::new();
        process.insert(ARGUMENT, info.as_bytes());
        let result = self.0.ioctl(ioctl::VFIO_MIG_GET_PRECOPY_INFO.number(), ARGUMENT, &mut process);
        if let Some(answer) = process.piece(ARGUMENT) {
            info.as_mut_bytes().copy_from_slice(answer);
        }
        result.map(|_| ())
    }

    fn duplicate(&self) -> std::result::Result<Box<dyn StateFile>, Errno> {
        Ok(Box::new(LocalFile(self.0.clone())))
    }
}
