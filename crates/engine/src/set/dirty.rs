//! The logs of dirty pages: the choice of a log for each device, and how each is read into the
//! [`Ledger`](super::Ledger).
//!
//! A device's own log is preferred where both exist: it holds this device's writes and nothing else, while a container
//! without a device that pins its pages reports all of its memory as dirty (VFIO_IOMMU_DIRTY_PAGES). The logs of
//! address spaces run from the start, and are read only if a device depends on them. One that reports all memory is
//! abandoned: with it, no round would make progress. Where neither exists, all memory is resent after the stop.

use whimbrel_protocol::dirty::{DirtyReport, IovaRange, MAX_LOGGING_RANGES};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{DeviceLog, DirtySource, Migratable};

use super::cpu_log::{CpuDirtyChoice, CpuLog};
use super::ledger::SharedLedger;
use super::memory::{PAGE, Ram, RamRegion};
use crate::error::Error;

/// Bytes of memory that one report of a device covers. This bounds the bitmap of a report, which is kept beside the one of
/// all memory, to 2 MiB.
const REPORT_SPAN: u64 = PAGE * 8 * (2 << 20);

/// The sources of a device's dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum DirtyChoice {
    /// There is no memory to log.
    NoMemory,
    /// The device's own log (VFIO_DEVICE_FEATURE_DMA_LOGGING_START).
    Device,
    /// The log of the device's address space.
    AddressSpace,
    /// No log: all memory is resent after the stop.
    AllDirty,
}

/// The log of one device, used by the thread that owns the device.
#[derive(Debug)]
pub struct DeviceDirty {
    choice: DirtyChoice,
    /// Set if its address space has a log.
    is_covered: bool,
    /// The words of one report, reused.
    words: Vec<u64>,
}

impl DeviceDirty {
    /// Chooses the source of the device's dirty pages, and starts its log if it has one. `is_covered` is `true` if the
    /// log of its address space is among those of [`MemoryLogs`].
    pub fn start(
        device: &mut dyn Migratable,
        is_covered: bool,
        ledger: &SharedLedger,
    ) -> Result<DeviceDirty, Error> {
        let regions = ledger.lock().regions().to_vec();
        let choice = if regions.is_empty() {
            DirtyChoice::NoMemory
        } else if device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET)?
            && regions.len() <= MAX_LOGGING_RANGES as usize
        {
            start_log(&mut DeviceLog::new(device), &regions)?;
            DirtyChoice::Device
        } else if is_covered {
            ledger.lock().use_space_logs();
            DirtyChoice::AddressSpace
        } else {
            tracing::warn!(
                device = device.name(),
                "no dirty tracking for its DMA: all memory is resent after the stop"
            );
            ledger.lock().set_unlogged();
            DirtyChoice::AllDirty
        };
        Ok(DeviceDirty { choice, is_covered, words: Vec::new() })
    }

    /// Marks the pages that the device has written since the last call. `stopped` is `true` if it writes no more.
    ///
    /// A device's log that cannot be read is unusable from then on, as the header says. A kernel without
    /// CONFIG_IOMMUFD_DRIVER lets it start but never report. While the device runs, the log is abandoned, and all
    /// memory is resent after the stop if that fits the downtime limit. After the stop it is an error, because the
    /// downtime would exceed the prediction.
    pub fn collect(
        &mut self,
        device: &mut dyn Migratable,
        ledger: &SharedLedger,
        stopped: bool,
    ) -> Result<(), Error> {
        if self.choice == DirtyChoice::AddressSpace && !ledger.lock().has_space_logs() {
            self.choice = DirtyChoice::AllDirty;
        }
        if self.choice != DirtyChoice::Device {
            return Ok(());
        }
        let mut log = DeviceLog::new(device);
        match collect_log(&mut log, ledger, REPORT_SPAN, stopped, &mut self.words) {
            Ok(Collected::Useful) => Ok(()),
            Ok(Collected::Useless) => {
                self.give_up(device, ledger, USELESS);
                if self.choice == DirtyChoice::AllDirty {
                    ledger.lock().discard();
                }
                Ok(())
            }
            Err(error @ Error::Device(_)) if !stopped => {
                self.give_up(device, ledger, &error.to_string());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Stops the log. The device may be in any state.
    pub fn stop(&mut self, device: &mut dyn Migratable) -> Result<(), Error> {
        match std::mem::replace(&mut self.choice, DirtyChoice::NoMemory) {
            DirtyChoice::Device => Ok(device.dma_logging_stop()?),
            _ => Ok(()),
        }
    }

    /// Returns the current source of the device's dirty pages, for the report.
    pub fn choice(&self) -> DirtyChoice {
        self.choice
    }

    fn give_up(&mut self, device: &mut dyn Migratable, ledger: &SharedLedger, why: &str) {
        let mut marked = ledger.lock();
        if self.is_covered && marked.use_space_logs() {
            tracing::warn!(
                device = device.name(),
                why,
                "the device's dirty log cannot be used: the log of its address space is used instead"
            );
            self.choice = DirtyChoice::AddressSpace;
        } else {
            tracing::warn!(
                device = device.name(),
                why,
                "the device's dirty log cannot be used: all memory is resent after the stop"
            );
            self.choice = DirtyChoice::AllDirty;
            marked.set_unlogged();
        }
        drop(marked);
        if let Err(error) = device.dma_logging_stop() {
            tracing::warn!(device = device.name(), %error, "the device's dirty log cannot be stopped");
        }
    }
}

/// The logs that belong to no single device: those of address spaces and that of the CPUs. The thread that sends the
/// memory uses them.
pub struct MemoryLogs<'a> {
    spaces: Vec<Box<dyn DirtySource + Send + 'a>>,
    cpus: Box<dyn CpuLog + 'a>,
    /// The number of running logs of `spaces`, and whether `cpus` runs.
    running: (usize, bool),
    words: Vec<u64>,
}

impl<'a> MemoryLogs<'a> {
    /// Returns these logs, not started.
    pub fn new(spaces: Vec<Box<dyn DirtySource + Send + 'a>>, cpus: Box<dyn CpuLog + 'a>) -> MemoryLogs<'a> {
        MemoryLogs { spaces, cpus, running: (0, false), words: Vec::new() }
    }

    /// Returns the source of the CPUs' dirty pages, for the report.
    pub fn cpu_choice(&self) -> CpuDirtyChoice {
        self.cpus.choice()
    }

    /// Starts the logs. After an error none of them runs.
    pub fn start(&mut self, ledger: &SharedLedger) -> Result<(), Error> {
        let regions = ledger.lock().regions().to_vec();
        if regions.is_empty() {
            return Ok(());
        }
        for space in &mut self.spaces {
            if let Err(error) = start_log(&mut **space, &regions) {
                self.stop(ledger);
                return Err(error);
            }
            self.running.0 += 1;
        }
        ledger.lock().set_space_logs(self.running.0 > 0);
        if let Err(error) = self.cpus.start() {
            self.stop(ledger);
            return Err(Error::CpuLog(error));
        }
        self.running.1 = true;
        if self.cpus.choice() == CpuDirtyChoice::AllDirty {
            tracing::warn!("no dirty tracking for the CPUs: all memory is resent after the stop");
            ledger.lock().set_unlogged();
        }
        Ok(())
    }

    /// Marks the pages written since the last call, and returns the bytes left to send. Call it after the devices'
    /// [`DeviceDirty::collect`]. `stopped` is `true` if there are no more writers. Memory with unlogged writes is then
    /// marked completely.
    ///
    /// Fails if the memory's regions have changed since the start. An address space's log that cannot be read is
    /// abandoned like a device's.
    pub fn collect(&mut self, ram: &dyn Ram, ledger: &SharedLedger, stopped: bool) -> Result<u64, Error> {
        let changed = ledger.lock().check_layout(&ram.regions());
        changed.map_err(|changed| Error::Layout(changed.to_string()))?;
        if ledger.lock().needs_space_logs() {
            self.collect_spaces(ledger, stopped)?;
        }
        let mut ledger = ledger.lock();
        if self.running.1 {
            self.cpus.collect(ledger.bitmaps_mut()).map_err(Error::CpuLog)?;
        }
        if stopped && ledger.is_unlogged() {
            ledger.mark_all();
        }
        Ok(ledger.bytes_left())
    }

    fn collect_spaces(&mut self, ledger: &SharedLedger, stopped: bool) -> Result<(), Error> {
        for index in 0..self.running.0 {
            // A container answers for whole mappings only.
            let span = u64::MAX;
            let collected = collect_log(&mut *self.spaces[index], ledger, span, stopped, &mut self.words);
            let why = match &collected {
                Ok(Collected::Useful) => continue,
                Ok(Collected::Useless) => USELESS.to_string(),
                Err(error @ Error::Device(_)) if !stopped => error.to_string(),
                Err(_) => return collected.map(drop),
            };
            tracing::warn!(
                why,
                "the address space's dirty log cannot be used: all memory is resent after the stop"
            );
            self.stop_spaces(ledger);
            let mut ledger = ledger.lock();
            ledger.set_unlogged();
            if collected.is_ok() {
                ledger.discard();
            }
            break;
        }
        Ok(())
    }

    /// Stops the logs.
    pub fn stop(&mut self, ledger: &SharedLedger) {
        self.stop_spaces(ledger);
        if std::mem::take(&mut self.running.1) {
            self.cpus.stop();
        }
    }

    fn stop_spaces(&mut self, ledger: &SharedLedger) {
        ledger.lock().set_space_logs(false);
        let running = std::mem::take(&mut self.running.0);
        for space in &mut self.spaces[..running] {
            if let Err(error) = space.stop() {
                tracing::warn!(%error, "the address space's dirty log cannot be stopped");
            }
        }
    }
}

impl std::fmt::Debug for MemoryLogs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryLogs")
            .field("spaces", &self.spaces.len())
            .field("cpus", &self.cpus.choice())
            .finish_non_exhaustive()
    }
}

/// Starts a log of all regions.
fn start_log(log: &mut dyn DirtySource, regions: &[RamRegion]) -> Result<(), Error> {
    let ranges: Vec<IovaRange> = regions
        .iter()
        .map(|region| {
            let range = IovaRange::new(region.start, region.size.next_multiple_of(PAGE));
            range.map_err(|_| Error::Layout(format!("the region at {:#x} ends past 2^64", region.start)))
        })
        .collect::<Result<_, _>>()?;
    log.start(PAGE, &ranges)?;
    Ok(())
}

/// The outcome of reading a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collected {
    Useful,
    /// All memory, as it would each time.
    Useless,
}

/// Less memory than this, in pages, a device may write between two reads of its log.
const MIN_USELESS: u64 = 1024;

const USELESS: &str =
    "it reports all memory as dirty each time, as a type1 container does for devices behind an IOMMU";

/// Reads a log into the ledger, again if it reported all memory. One that does so twice in a row is useless: no round would
/// make progress. Its caller resends all memory after the stop instead, and discards the marks.
fn collect_log(
    log: &mut dyn DirtySource,
    ledger: &SharedLedger,
    span: u64,
    stopped: bool,
    words: &mut Vec<u64>,
) -> Result<Collected, Error> {
    let is_useless = read_log(log, ledger, span, words)? && !stopped && read_log(log, ledger, span, words)?;
    Ok(if is_useless { Collected::Useless } else { Collected::Useful })
}

/// Reads a log in reports of at most `span` bytes of memory into the ledger, which is locked only to take in a report.
/// Returns whether it reported all of it, and that is much.
fn read_log(
    log: &mut dyn DirtySource,
    ledger: &SharedLedger,
    span: u64,
    words: &mut Vec<u64>,
) -> Result<bool, Error> {
    let regions = ledger.lock().regions().to_vec();
    let pages: u64 = regions.iter().map(|region| region.pages() as u64).sum();
    let mut clean = pages;
    for (index, region) in regions.iter().enumerate() {
        let size = region.size.next_multiple_of(PAGE);
        let mut at = 0;
        while at < size {
            let length = span.min(size - at);
            words.clear();
            words.resize(DirtyReport::words_needed(length, PAGE) as usize, 0);
            let mut report = DirtyReport::new(region.start + at, length, PAGE, words)
                .map_err(|errno| Error::Layout(format!("the region at {:#x}: {errno}", region.start)))?;
            log.report(&mut report)?;
            clean = clean.saturating_sub(words.iter().map(|word| u64::from(word.count_ones())).sum());
            ledger.lock().merge_report(index, (at / PAGE) as usize, words);
            at += length;
        }
    }
    Ok(clean == 0 && pages >= MIN_USELESS)
}

#[cfg(test)]
#[path = "dirty_tests.rs"]
mod tests;
