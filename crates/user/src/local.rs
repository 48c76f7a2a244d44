//! A device whose driver runs in this process.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;
use whimbrel_device::{DeviceFile, IrqAction, PrecopyReport};
use whimbrel_memory::DirtyLog;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange, LoggingRanges};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;
use whimbrel_uapi::type1::DmaMapFlags;

use crate::data_file::{DataFile, StateFile};
use crate::device::{Device, DmaRegion, IrqData};
use crate::error::{Error, Result};
use crate::mapped_region::{self, MappedRegion};

/// A driver-side device, used directly.
#[derive(Debug)]
pub struct Local {
    device: DeviceFile,
    /// The log in which the device's mappings record writes.
    memory_log: Option<Arc<DirtyLog>>,
}

impl Local {
    /// Returns a user of an opened device.
    pub fn new(device: DeviceFile) -> Local {
        Local { device, memory_log: None }
    }

    /// Returns the driver side.
    pub fn driver_side(&self) -> &DeviceFile {
        &self.device
    }

    fn failed(&self, request: impl ToString) -> impl FnOnce(Errno) -> Error {
        let request = request.to_string();
        let name = self.device.name().to_string();
        move |errno| Error::Request { device: name, request, errno }
    }

    /// Checks that a transfer was complete.
    fn whole(&self, request: &str, expected: usize, result: std::result::Result<usize, Errno>) -> Result<()> {
        let count = result.map_err(self.failed(request))?;
        if count == expected {
            return Ok(());
        }
        Err(Error::Answer {
            device: self.device.name().to_string(),
            request: request.to_string(),
            what: format!("{count} of {expected} bytes were transferred"),
        })
    }
}

impl Device for Local {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn info(&mut self) -> Result<Info> {
        Ok(self.device.info())
    }

    fn region_info(&mut self, index: u32) -> Result<Region> {
        let request = format!("{} of region {index}", ioctl::VFIO_DEVICE_GET_REGION_INFO);
        self.device.region_info(index).map_err(self.failed(request))
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        let request = format!("{} of index {index}", ioctl::VFIO_DEVICE_GET_IRQ_INFO);
        self.device.irq_info(index).map_err(self.failed(request))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let result = self.device.read_region(index, offset, data);
        self.whole(&format!("read of region {index} at {offset:#x}"), data.len(), result)
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let result = self.device.write_region(index, offset, data);
        self.whole(&format!("write to region {index} at {offset:#x}"), data.len(), result)
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let region = self.region_info(index)?;
        let request = mapped_region::request(index, offset, length);
        let file = self.device.mmap(index, offset, length).map_err(self.failed(request))?;
        MappedRegion::of_file(self.device.name(), index, &region, file, offset, length)
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        let request = format!("{} of index {index}", ioctl::VFIO_DEVICE_SET_IRQS);
        owned(data)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EMFILE))
            .and_then(|data| self.device.set_irqs(index, start, action, data))
            .map_err(self.failed(request))
    }

    fn reset(&mut self) -> Result<()> {
        self.device.reset().map_err(self.failed(ioctl::VFIO_DEVICE_RESET))
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        Ok(self.device.has_feature(feature, directions))
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        Ok(self.device.migration_flags().ok())
    }

    fn state(&mut self) -> Result<State> {
        self.device.mig_state().map_err(self.failed(Feature::MigDeviceState))
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let opened = self
            .device
            .set_mig_state(state)
            .map_err(self.failed(format!("{} to {state}", Feature::MigDeviceState)))?;
        Ok(opened.map(|file| DataFile::new(self.device.name(), file.direction(), Box::new(LocalFile(file)))))
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
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        LoggingRanges::new(page_size, count)
            .and_then(|mut checked| {
                for range in ranges {
                    checked.push(range.iova(), range.length())?;
                }
                self.device.dma_logging_start(&checked)
            })
            .map_err(self.failed(Feature::DmaLoggingStart))
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.device.dma_logging_stop().map_err(self.failed(Feature::DmaLoggingStop))
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        self.device.dma_logging_report(report).map_err(self.failed(Feature::DmaLoggingReport))
    }

    fn has_memory_log(&mut self) -> bool {
        true
    }

    fn memory_log_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let count = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        let log = LoggingRanges::new(page_size, count)
            .and_then(|mut checked| {
                for range in ranges {
                    checked.push(range.iova(), range.length())?;
                }
                DirtyLog::new(&checked)
            })
            .map_err(self.failed(ioctl::VFIO_IOMMU_DIRTY_PAGES))?;
        let log = Arc::new(log);
        self.device.bus().dma().set_log(Some(log.clone()));
        self.memory_log = Some(log);
        Ok(page_size)
    }

    fn memory_log_stop(&mut self) -> Result<()> {
        self.device.bus().dma().set_log(None);
        self.memory_log = None;
        Ok(())
    }

    fn memory_log_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let failed = self.failed(ioctl::VFIO_IOMMU_DIRTY_PAGES);
        self.memory_log.as_ref().ok_or(Errno::EINVAL).map_err(failed)?.report(report);
        Ok(())
    }

    fn map_dma(&mut self, iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> Result<()> {
        let Some(file) = memory.file() else {
            return Err(Error::Unusable {
                device: self.device.name().to_string(),
                why: "a driver in this process reaches memory only through a file that both map: \
                      allocate it with memfd_create"
                    .into(),
            });
        };
        self.device
            .bus()
            .dma()
            .map(iova, memory.size(), rights, file.clone())
            .map_err(self.failed(format!("{} at {iova:#x}", ioctl::VFIO_IOMMU_MAP_DMA)))
    }

    fn unmap_dma(&mut self, iova: u64, size: u64) -> Result<u64> {
        let request = format!("{} at {iova:#x}", ioctl::VFIO_IOMMU_UNMAP_DMA);
        self.device.bus().dma().unmap(iova, size).map_err(self.failed(request))
    }
}

/// Returns the same data with eventfds that the device can keep.
fn owned(data: IrqData<'_>) -> std::io::Result<whimbrel_device::IrqData> {
    Ok(match data {
        IrqData::None(count) => whimbrel_device::IrqData::None(count),
        IrqData::Bool(items) => whimbrel_device::IrqData::Bool(items.to_vec()),
        IrqData::Eventfd(items) => whimbrel_device::IrqData::Eventfd(
            items
                .iter()
                .map(|item| item.map(EventFd::try_clone).transpose())
                .collect::<std::io::Result<_>>()?,
        ),
    })
}

struct LocalFile(whimbrel_device::DataFile);

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
}
