//! Which pages have changed since they were sent: the logs of the device and of the CPUs, merged.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange, MAX_LOGGING_RANGES, PageBitmap};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::Migratable;

use crate::error::Error;
use crate::guest::GuestError;
use crate::memory::{PAGE, RamRegion};

/// The log of what the CPUs write: a VMM's own, such as KVM's.
///
/// `bitmaps` are one per region of memory, in the order of [`crate::Ram::regions`], in pages of 4096 bytes.
pub trait CpuLog: Send {
    /// Starts to log, with nothing marked.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Marks the pages written since the last call, and forgets them.
    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError>;

    /// Stops logging.
    fn stop(&mut self);
}

/// For memory that no CPU writes during a migration.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct NoCpuLog;

impl CpuLog for NoCpuLog {
    fn start(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&mut self, _: &mut [PageBitmap]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&mut self) {}
}

/// How a device's writes to memory are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceLog {
    /// There is no memory to log.
    Nothing,
    /// The device keeps a log.
    Logging,
    /// Nobody does: any page may have changed at any time until the device has stopped.
    Unknown,
}

/// The pages still to be sent.
pub(crate) struct Dirty {
    regions: Vec<RamRegion>,
    bitmaps: Vec<PageBitmap>,
    device_log: DeviceLog,
    /// For one report, reused.
    words: Vec<u64>,
}

/// Bytes of memory one report speaks of: bounds the bitmap held beside the one of the whole memory to 2 MiB.
const REPORT_SPAN: u64 = PAGE * 8 * (2 << 20);

impl Dirty {
    /// Starts the logs. Everything is marked at first.
    pub(crate) fn start(
        regions: Vec<RamRegion>,
        device: &mut dyn Migratable,
        cpu_log: &mut dyn CpuLog,
    ) -> Result<Dirty, Error> {
        let bitmaps = regions.iter().map(|region| PageBitmap::new(region.pages())).collect();
        let mut dirty = Dirty { regions, bitmaps, device_log: DeviceLog::Nothing, words: Vec::new() };
        dirty.mark_all();
        if dirty.regions.is_empty() {
            return Ok(dirty);
        }
        cpu_log.start().map_err(Error::CpuLog)?;
        match Dirty::start_device(&dirty.regions, device) {
            Ok(device_log) => dirty.device_log = device_log,
            Err(error) => {
                cpu_log.stop();
                return Err(error);
            }
        }
        Ok(dirty)
    }

    fn start_device(regions: &[RamRegion], device: &mut dyn Migratable) -> Result<DeviceLog, Error> {
        let known = device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET)?;
        if known && regions.len() <= MAX_LOGGING_RANGES as usize {
            let ranges: Vec<IovaRange> = regions
                .iter()
                .map(|region| {
                    IovaRange::new(region.start, region.size.next_multiple_of(PAGE)).map_err(|_| {
                        Error::Layout(format!("the region at {:#x} ends past 2^64", region.start))
                    })
                })
                .collect::<Result<_, _>>()?;
            device.dma_logging_start(PAGE, &ranges)?;
            Ok(DeviceLog::Logging)
        } else {
            tracing::warn!(
                device = device.name(),
                "the device keeps no log of its DMA: all memory is sent again once it has stopped"
            );
            Ok(DeviceLog::Unknown)
        }
    }

    /// Adds what has changed since the last call. `stopped` says that the device writes no more.
    ///
    /// A device's log that cannot be read tells nothing any more, as the header says; a kernel without
    /// CONFIG_IOMMUFD_DRIVER lets it start and never report. While the device runs it is given up, and all memory is
    /// sent again in the end, if that fits the downtime. Once the device stands still that is an error: nobody has
    /// agreed to so long a downtime.
    pub(crate) fn collect(
        &mut self,
        device: &mut dyn Migratable,
        cpu_log: &mut dyn CpuLog,
        stopped: bool,
    ) -> Result<(), Error> {
        match self.device_log {
            DeviceLog::Nothing => return Ok(()),
            DeviceLog::Logging => match self.collect_device(device) {
                Err(error @ Error::Device(_)) if !stopped => self.give_up_log(device, &error),
                result => result?,
            },
            DeviceLog::Unknown if stopped => self.mark_all(),
            DeviceLog::Unknown => {}
        }
        cpu_log.collect(&mut self.bitmaps).map_err(Error::CpuLog)
    }

    fn collect_device(&mut self, device: &mut dyn Migratable) -> Result<(), Error> {
        for (region, bitmap) in self.regions.iter().zip(&mut self.bitmaps) {
            let size = region.size.next_multiple_of(PAGE);
            let mut at = 0;
            while at < size {
                let length = REPORT_SPAN.min(size - at);
                self.words.clear();
                self.words.resize(DirtyReport::words_needed(length, PAGE) as usize, 0);
                let mut report = DirtyReport::new(region.start + at, length, PAGE, &mut self.words)
                    .map_err(|errno| Error::Layout(format!("the region at {:#x}: {errno}", region.start)))?;
                device.dma_logging_report(&mut report)?;
                bitmap.merge_at((at / PAGE) as usize, &self.words);
                at += length;
            }
        }
        Ok(())
    }

    fn give_up_log(&mut self, device: &mut dyn Migratable, why: &Error) {
        tracing::warn!(
            device = device.name(),
            %why,
            "the device's log of its DMA cannot be read: all memory is sent again once it has stopped"
        );
        if let Err(error) = device.dma_logging_stop() {
            tracing::warn!(%error, "nor can it be stopped");
        }
        self.device_log = DeviceLog::Unknown;
    }

    /// Whether any page may have changed until the device has stopped.
    pub(crate) fn is_unlogged(&self) -> bool {
        self.device_log == DeviceLog::Unknown
    }

    /// What would have to be sent if the device were stopped now, in bytes.
    pub(crate) fn bytes_left(&self) -> u64 {
        match self.device_log {
            DeviceLog::Unknown => self.regions.iter().map(|region| region.size).sum(),
            DeviceLog::Nothing | DeviceLog::Logging => {
                self.bitmaps.iter().map(|bitmap| bitmap.count() as u64 * PAGE).sum()
            }
        }
    }

    /// The marked stretches of all regions as (address, bytes), and none marked after.
    pub(crate) fn take(&mut self) -> Vec<PageBitmap> {
        self.bitmaps
            .iter_mut()
            .map(|bitmap| {
                let pages = bitmap.pages();
                std::mem::replace(bitmap, PageBitmap::new(pages))
            })
            .collect()
    }

    /// The regions, in the order of the bitmaps.
    pub(crate) fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Stops the logs. The device may be in any state.
    pub(crate) fn stop(&mut self, device: &mut dyn Migratable, cpu_log: &mut dyn CpuLog) {
        if self.device_log == DeviceLog::Logging
            && let Err(error) = device.dma_logging_stop()
        {
            tracing::warn!(%error, "the device's log of its DMA could not be stopped");
        }
        if self.device_log != DeviceLog::Nothing {
            cpu_log.stop();
        }
        self.device_log = DeviceLog::Nothing;
    }

    fn mark_all(&mut self) {
        self.bitmaps.iter_mut().for_each(PageBitmap::set_all);
    }
}
