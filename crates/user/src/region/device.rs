//! A device with a region as a [`Device`].

use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::region::{Version, View};
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;

use super::half::{FLAGS, Half};
use super::session::{RegionFile, lock};
use crate::data_file::DataFile;
use crate::device::{Device, DmaRegion, IrqData};
use crate::error::{Error, Result};
use crate::mapped_region::MappedRegion;

/// The device and its cached properties.
pub(super) struct RegionDevice {
    name: String,
    index: u32,
    version: Version,
    half: Arc<Mutex<Half>>,
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
        Ok(RegionDevice { name, index, version, half: Arc::new(Mutex::new(half)) })
    }

    fn request<T>(&mut self, request: impl FnOnce(&mut dyn Device) -> Result<T>) -> Result<T> {
        request(&mut *lock(&self.half).device)
    }

    /// Refuses access to the migration region, which is in use.
    fn check_index(&self, index: u32) -> Result<()> {
        if index != self.index {
            return Ok(());
        }
        let why = format!("region {index} is its migration region: ask for its state instead");
        Err(Error::Unusable { device: self.name.clone(), why })
    }
}

impl Device for RegionDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn info(&mut self) -> Result<Info> {
        self.request(|device| device.info())
    }

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

    fn set_irq_triggers(&mut self, index: u32, start: u32, eventfds: &[Option<&EventFd>]) -> Result<()> {
        self.request(|device| device.set_irq_triggers(index, start, eventfds))
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
        lock(&self.half).state()
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = lock(&self.half).set_state(state)?;
        Ok(opened.map(|direction| {
            DataFile::new(&self.name, direction, Box::new(RegionFile::new(&self.half, direction)))
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
            Version::V1 => self.request(|device| device.memory_log_start(page_size, ranges)),
        }
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        match self.version {
            Version::Draft => lock(&self.half).stop_log(),
            Version::V1 => self.request(|device| device.memory_log_stop()),
        }
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        match self.version {
            Version::Draft => lock(&self.half).report_log(report),
            Version::V1 => self.request(|device| device.memory_log_report(report)),
        }
    }

    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        self.request(|device| device.map_dma(iova, rights, memory))
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        self.request(|device| device.unmap_dma(iova, size))
    }

    fn region_version(&self) -> Option<Version> {
        Some(self.version)
    }
}

impl RegionDevice {
    fn has_log(&self) -> bool {
        self.version == Version::Draft || lock(&self.half).device.has_memory_log()
    }
}
