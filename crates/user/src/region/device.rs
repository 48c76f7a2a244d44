//! A device with a region as a [`Device`].

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::region::{Version, View};
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;
use whimbrel_uapi::type1::DmaMapFlags;

use super::half::{FLAGS, Half};
use super::session::{RegionFile, lock};
use crate::data_file::DataFile;
use crate::device::Device;
use crate::dirty_source::DirtySource;
use crate::dma_map::{DmaMap, DmaRegion};
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::irq_data::IrqData;
use crate::mapped_region::MappedRegion;
use crate::migratable::Migratable;
use crate::session_state::SessionState;
use crate::setup::{ArmedInterrupts, DeviceSetup};

/// The device and its cached properties.
pub(super) struct RegionDevice {
    name: String,
    index: u32,
    version: Version,
    half: Arc<Mutex<Half>>,
    state: SessionState,
}

impl RegionDevice {
    /// Checks the region of a newly opened device. Returns the device if its region is unusable.
    pub(super) fn new(
        device: Box<dyn Device>,
        index: u32,
        view: View,
    ) -> std::result::Result<RegionDevice, (Box<dyn Device>, Error)> {
        let (name, version) = (device.name().to_string(), view.version());
        let mut half = Half::new(device, index, view);
        if let Err(error) = half.check_version() {
            return Err((half.device, error));
        }
        let state = SessionState::default();
        Ok(RegionDevice { name, index, version, half: Arc::new(Mutex::new(half)), state })
    }

    fn request<T>(&self, request: impl FnOnce(&mut dyn Device) -> T) -> T {
        request(&mut *lock(&self.half).device)
    }

    /// Refuses access to the migration region, which is in use.
    fn check_index(&self, index: u32) -> Result<()> {
        if index != self.index {
            return Ok(());
        }
        let why = format!("region {index} is the migration region; use the migration interface instead");
        Err(Error::unusable(&self.name, why))
    }
}

impl Migratable for RegionDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn holder(&self) -> Option<String> {
        self.request(|device| device.holder())
    }

    fn info(&mut self) -> Result<Info> {
        self.request(|device| device.info())
    }

    fn identity(&mut self) -> Result<Identity> {
        let compatibility = self.request(|device| device.identity())?.compatibility;
        Ok(Identity::of_device(self)?.compatibility(compatibility))
    }

    fn reset(&mut self) -> Result<()> {
        lock(&self.half).reset()
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        let answered = match feature {
            Feature::Migration | Feature::MigDataSize => FeatureFlags::GET,
            Feature::MigDeviceState => FeatureFlags::GET | FeatureFlags::SET,
            Feature::DmaLoggingStart | Feature::DmaLoggingStop if self.has_log() => FeatureFlags::SET,
            Feature::DmaLoggingReport if self.has_log() => FeatureFlags::GET,
            Feature::DmaLoggingStart
            | Feature::DmaLoggingStop
            | Feature::DmaLoggingReport
            | Feature::MigPrecopyInfoV2 => FeatureFlags::empty(),
            _ => return self.request(|device| device.probe_feature(feature, directions)),
        };
        Ok(!answered.is_empty() && answered.contains(directions))
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        Ok(Some(FLAGS))
    }

    fn state(&mut self) -> Result<State> {
        let state = lock(&self.half).state()?;
        self.state.set(state);
        Ok(state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = lock(&self.half).set_state(state)?;
        self.state.set(state);
        Ok(opened.map(|direction| {
            let file = Box::new(RegionFile::new(&self.half, direction));
            DataFile::new(&self.name, direction, self.state.clone(), file)
        }))
    }

    fn data_size(&mut self) -> Result<u64> {
        let mut half = lock(&self.half);
        if !half.is_saving() {
            // The register has no meaning before.
            return Err(Error::request(&self.name, Feature::MigDataSize, Errno::ENOTTY));
        }
        half.pending().map_err(|error| half.failed(error))
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        match self.version {
            Version::Draft => lock(&self.half).start_log().map(|()| page_size),
            Version::V1 => self.with_memory_log(|log| log.start(page_size, ranges)),
        }
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        match self.version {
            Version::Draft => lock(&self.half).stop_log(),
            Version::V1 => self.with_memory_log(|log| log.stop()),
        }
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        match self.version {
            Version::Draft => lock(&self.half).report_log(report),
            Version::V1 => self.with_memory_log(|log| log.report(report)),
        }
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        DeviceSetup::of_device(self)
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        setup.restore_to(self)
    }

    fn region_version(&self) -> Option<Version> {
        Some(self.version)
    }
}

impl Device for RegionDevice {
    fn region_info(&mut self, index: u32) -> Result<Region> {
        self.request(|device| device.region_info(index))
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        self.request(|device| device.irq_info(index))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        self.check_index(index)?;
        self.request(|device| device.read_region(index, offset, data))
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        self.check_index(index)?;
        self.request(|device| device.write_region(index, offset, data))
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        self.check_index(index)?;
        self.request(|device| device.map_region(index, offset, length))
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        self.request(|device| device.set_irqs(index, start, action, data))
    }

    fn set_irq_triggers(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Result<()> {
        self.request(|device| device.set_irq_triggers(index, start, eventfds))
    }

    fn armed_interrupts(&mut self) -> Vec<ArmedInterrupts> {
        self.request(|device| device.armed_interrupts())
    }

    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        let maps = self.request(|device| device.dma_map().is_some());
        maps.then_some(self)
    }
}

/// The address space of the device behind it.
impl DmaMap for RegionDevice {
    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        self.request(|device| match device.dma_map() {
            Some(space) => space.map_dma(iova, rights, memory),
            None => Err(self.without_memory()),
        })
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        self.request(|device| match device.dma_map() {
            Some(space) => space.unmap_dma(iova, size),
            None => Err(self.without_memory()),
        })
    }

    fn unmap_dma_dirty(&mut self, dirty: &mut DirtyReport<'_>) -> Result<u64> {
        self.request(|device| match device.dma_map() {
            Some(space) => space.unmap_dma_dirty(dirty),
            None => Err(self.without_memory()),
        })
    }

    fn dirty_log(&mut self) -> Option<Box<dyn DirtySource + Send>> {
        self.request(|device| device.dma_map().and_then(DmaMap::dirty_log))
    }
}

impl RegionDevice {
    fn has_log(&self) -> bool {
        let has_memory_log =
            |device: &mut dyn Device| device.dma_map().is_some_and(|space| space.dirty_log().is_some());
        self.version == Version::Draft || self.request(has_memory_log)
    }

    /// Uses the log of the address space: a v1 region has none.
    fn with_memory_log<T>(&self, act: impl FnOnce(&mut dyn DirtySource) -> Result<T>) -> Result<T> {
        self.request(|device| match device.dma_map().and_then(DmaMap::dirty_log) {
            Some(mut log) => act(&mut *log),
            None => Err(Error::request(&self.name, ioctl::VFIO_IOMMU_DIRTY_PAGES, Errno::ENOTTY)),
        })
    }

    fn without_memory(&self) -> Error {
        Error::unusable(&self.name, "DMA mappings belong to the program that opened the device")
    }
}
