//! A device under test, with every request recorded.

use std::os::fd::BorrowedFd;

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_user::{Device, Error, IrqData};

use crate::data::{Data, answer};
use crate::hooks::RegisterProbe;
use crate::outcome::{Outcome, Stop, equal, fail, inconclusive, skip, success};
use crate::saved::Saved;
use crate::subjects::StateWitness;
use crate::transcript::{Transcript, some_of};

/// An open device under test.
pub(crate) struct Subject {
    /// `None` once it is closed.
    device: Option<Box<dyn Device>>,
    flags: MigrationFlags,
    /// Stands before each request in the transcript.
    name: &'static str,
    transcript: Transcript,
    limit: u64,
    witness: Option<StateWitness>,
}

impl Subject {
    pub(crate) fn new(
        device: Box<dyn Device>,
        flags: MigrationFlags,
        name: &'static str,
        transcript: Transcript,
        limit: u64,
        witness: Option<StateWitness>,
    ) -> Subject {
        Subject { device: Some(device), flags, name, transcript, limit, witness }
    }

    /// Returns the device's migration features.
    pub(crate) fn flags(&self) -> MigrationFlags {
        self.flags
    }

    /// Returns the device itself, for requests that are not recorded; ends the case if it is closed.
    pub(crate) fn device_mut(&mut self) -> Outcome<&mut dyn Device> {
        match &mut self.device {
            Some(device) => Ok(&mut **device),
            None => closed(),
        }
    }

    /// Closes the device, so that no request can follow.
    pub(crate) fn close(&mut self) {
        let device = self.device.take();
        self.transcript.record(
            format_args!("{}close of the device", self.name),
            || drop(device),
            |()| "done",
        );
    }

    /// Records a request. An error without an errno is an invalid reply, and fails the case.
    pub(crate) fn request<T>(
        &mut self,
        request: &str,
        make: impl FnOnce(&mut dyn Device) -> Result<T, Error>,
        told: impl FnOnce(&T) -> String,
    ) -> Outcome<Result<T, Errno>> {
        let Some(device) = self.device.as_deref_mut() else { return closed() };
        let result = self.transcript.record(
            format_args!("{}{request}", self.name),
            || make(device),
            |result| match result {
                Ok(value) => told(value),
                Err(error) => match error.errno() {
                    Some(errno) => format!("{errno:?}"),
                    None => error.to_string(),
                },
            },
        );
        match result {
            Ok(value) => Ok(Ok(value)),
            Err(error) => match error.errno() {
                // No device answers so: whatever a case expects, it has not got.
                Some(Errno::ECONNRESET) => fail(
                    format_args!("an answer to {request}"),
                    "the device's server has closed the connection",
                ),
                Some(errno) => Ok(Err(errno)),
                None if matches!(error, Error::Answer { .. }) => {
                    fail(format_args!("a valid reply to {request}"), error)
                }
                None => inconclusive(error),
            },
        }
    }

    /// VFIO_DEVICE_GET_INFO.
    pub(crate) fn info(&mut self) -> Outcome<Info> {
        let info = self.request(
            "VFIO_DEVICE_GET_INFO",
            |device| device.info(),
            |info| {
                format!(
                    "flags {:#x}, {} regions, {} irqs",
                    info.flags.bits(),
                    info.num_regions,
                    info.num_irqs
                )
            },
        )?;
        success("VFIO_DEVICE_GET_INFO", info)
    }

    /// VFIO_DEVICE_GET_REGION_INFO.
    pub(crate) fn region_info(&mut self, index: u32) -> Outcome<Result<Region, Errno>> {
        self.request(
            &format!("VFIO_DEVICE_GET_REGION_INFO {index}"),
            |device| device.region_info(index),
            |region| format!("size {:#x} flags {:#x}", region.size, region.flags.bits()),
        )
    }

    /// VFIO_DEVICE_GET_IRQ_INFO.
    pub(crate) fn irq_info(&mut self, index: u32) -> Outcome<Result<Irq, Errno>> {
        self.request(
            &format!("VFIO_DEVICE_GET_IRQ_INFO {index}"),
            |device| device.irq_info(index),
            |irq| format!("count {} flags {:#x}", irq.count, irq.flags.bits()),
        )
    }

    /// Sets the eventfds of the interrupts of an index from 0 on.
    pub(crate) fn set_irq_triggers(
        &mut self,
        index: u32,
        eventfds: &[Option<BorrowedFd<'_>>],
    ) -> Outcome<Result<(), Errno>> {
        self.request(
            &format!("VFIO_DEVICE_SET_IRQS {index} with {} eventfds", eventfds.len()),
            |device| device.set_irq_triggers(index, 0, eventfds),
            |()| "0".to_string(),
        )
    }

    /// Disables the interrupts of an index.
    pub(crate) fn disable_irqs(&mut self, index: u32) -> Outcome<Result<(), Errno>> {
        self.request(
            &format!("VFIO_DEVICE_SET_IRQS {index} to disable it"),
            |device| device.set_irqs(index, 0, IrqAction::Trigger, IrqData::None(0)),
            |()| "0".to_string(),
        )
    }

    /// Reads all of `data` from a region, or fails.
    pub(crate) fn read_region(
        &mut self,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Outcome<Result<(), Errno>> {
        self.request(
            &format!("read of region {index} at {offset:#x}, {} bytes", data.len()),
            |device| device.read_region(index, offset, data),
            |()| "done".to_string(),
        )
    }

    /// Writes all of `data` to a region, or fails.
    pub(crate) fn write_region(
        &mut self,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Outcome<Result<(), Errno>> {
        self.request(
            &format!("write of region {index} at {offset:#x}, {data:02x?}"),
            |device| device.write_region(index, offset, data),
            |()| "done".to_string(),
        )
    }

    /// Returns the device's state. The request must succeed.
    pub(crate) fn state(&mut self) -> Outcome<State> {
        let state = self.request("GET MIG_DEVICE_STATE", |device| device.state(), State::to_string)?;
        let state = success("GET of MIG_DEVICE_STATE", state)?;
        match self.witness.as_ref().and_then(|witness| witness()) {
            Some(seen) if seen != state => Err(Stop::Contradicted {
                expected: format!("{state} from a second source of the state, as the device says"),
                found: seen.to_string(),
            }),
            _ => Ok(state),
        }
    }

    /// Fails the case unless the device is in this state.
    pub(crate) fn is_in(&mut self, state: State) -> Outcome {
        let found = self.state()?;
        equal("the device's state", state, found)
    }

    /// Requests a state.
    pub(crate) fn set_state(&mut self, to: State) -> Outcome<Result<Option<Data>, Errno>> {
        let result = self.request(
            &format!("SET MIG_DEVICE_STATE {to}"),
            |device| device.set_state(to),
            |file| match file.as_ref().map(whimbrel_user::DataFile::direction) {
                Some(Direction::Saving) => "0 with a data_fd to read".to_string(),
                Some(Direction::Resuming) => "0 with a data_fd to write".to_string(),
                None => "0, data_fd -1".to_string(),
            },
        )?;
        Ok(result
            .map(|file| file.map(|file| Data::new(file, self.name, self.transcript.clone(), self.limit))))
    }

    /// Brings the device to a state, which must succeed.
    pub(crate) fn go(&mut self, to: State) -> Outcome<Option<Data>> {
        let result = self.set_state(to)?;
        success(format_args!("SET of {to}"), result)
    }

    /// Brings the device to a state, which must succeed and return a data file.
    pub(crate) fn begin(&mut self, to: State) -> Outcome<Data> {
        match self.go(to)? {
            Some(data) => Ok(data),
            None => fail(format_args!("SET of {to} returns a new data_fd"), "data_fd -1"),
        }
    }

    /// VFIO_DEVICE_RESET.
    pub(crate) fn reset(&mut self) -> Outcome<Result<(), Errno>> {
        self.request("VFIO_DEVICE_RESET", |device| device.reset(), |()| "0".to_string())
    }

    /// Resets the device, which must succeed.
    pub(crate) fn must_reset(&mut self) -> Outcome {
        let result = self.reset()?;
        success("VFIO_DEVICE_RESET", result)
    }

    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
    pub(crate) fn data_size(&mut self) -> Outcome<Result<u64, Errno>> {
        self.request("GET MIG_DATA_SIZE", |device| device.data_size(), u64::to_string)
    }

    /// VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2.
    pub(crate) fn enable_precopy_info_v2(&mut self) -> Outcome<Result<bool, Errno>> {
        let request = "SET MIG_PRECOPY_INFOv2";
        self.request(request, |device| device.enable_precopy_info_v2(), bool::to_string)
    }

    /// Returns whether the device has a feature in these directions.
    pub(crate) fn probe(&mut self, feature: Feature, directions: FeatureFlags) -> Outcome<bool> {
        let request = format!("PROBE {feature} {directions:?}");
        let result =
            self.request(&request, |device| device.probe_feature(feature, directions), bool::to_string)?;
        success(request, result)
    }

    /// VFIO_DEVICE_FEATURE as bytes; skips the case without raw requests. `data` is what the driver side leaves there.
    pub(crate) fn feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> Outcome<Result<(), Errno>> {
        let index = flags & FEATURE_MASK;
        let feature = u16::try_from(index).ok().and_then(Feature::from_number);
        let feature = feature.map_or_else(|| format!("feature {index}"), |feature| feature.to_string());
        let request = format!(
            "{}VFIO_DEVICE_FEATURE {feature} flags {:#x} argsz {argsz}",
            self.name,
            flags & !FEATURE_MASK
        );
        let Some(device) = self.device.as_deref_mut() else { return closed() };
        let Some(raw) = device.raw() else {
            return skip("the device's requests are not available as bytes");
        };
        Ok(self.transcript.record(
            request,
            || raw.device_feature(argsz, flags, data),
            |result| answer(result, |()| "0".to_string()),
        ))
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the log's page size in bytes.
    pub(crate) fn start_log(&mut self, page_size: u64, ranges: &[IovaRange]) -> Outcome<Result<u64, Errno>> {
        let texts = ranges.iter().map(|range| format!("{:#x}+{:#x}", range.iova(), range.length()));
        let list = some_of(texts, "ranges");
        let request = format!("SET DMA_LOGGING_START page_size {page_size:#x} [{list}]");
        self.request(
            &request,
            |device| device.dma_logging_start(page_size, ranges),
            |kept| format!("page_size {kept:#x}"),
        )
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
    pub(crate) fn stop_log(&mut self) -> Outcome<Result<(), Errno>> {
        self.request("SET DMA_LOGGING_STOP", |device| device.dma_logging_stop(), |()| "0".to_string())
    }

    /// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT into `words`, one bit a page of `page_size` bytes; skips the case on a kernel
    /// that cannot report.
    pub(crate) fn report_log(
        &mut self,
        iova: u64,
        length: u64,
        page_size: u64,
        words: &mut [u64],
    ) -> Outcome<Result<(), Errno>> {
        let request = format!("GET DMA_LOGGING_REPORT {iova:#x}+{length:#x} page_size {page_size:#x}");
        let mut report = match DirtyReport::new(iova, length, page_size, words) {
            Ok(report) => report,
            Err(errno) => return Err(Stop::Inconclusive(format!("{request} cannot be asked: {errno:?}"))),
        };
        match self.request(&request, |device| device.dma_logging_report(&mut report), |()| "0".to_string())? {
            // PROBE does not tell.
            Err(Errno::EOPNOTSUPP) => {
                skip("DMA_LOGGING_REPORT is not supported: the kernel is built without CONFIG_IOMMUFD_DRIVER")
            }
            result => Ok(result),
        }
    }

    /// Saves the state of a running device through STOP_COPY, and lets it run again.
    pub(crate) fn save(&mut self) -> Outcome<Saved> {
        let mut data = self.begin(State::StopCopy)?;
        let saved = data.save(Vec::new())?;
        drop(data);
        self.go(State::Running)?;
        Ok(saved)
    }

    /// Saves the state of a device in STOP, and leaves it there.
    pub(crate) fn save_stopped(&mut self) -> Outcome<Saved> {
        let mut data = self.begin(State::StopCopy)?;
        let saved = data.save(Vec::new())?;
        drop(data);
        self.go(State::Stop)?;
        Ok(saved)
    }

    /// Loads a state into a running device, and brings it to STOP; all must succeed.
    pub(crate) fn load(&mut self, state: &Saved) -> Outcome {
        let mut data = self.begin(State::Resuming)?;
        let result = data.load_saved(state)?;
        success("a write of the state that the device has saved", result)?;
        self.go(State::Stop)?;
        Ok(())
    }

    /// Loads a state into a running device, saves it again before the device can run, and lets it run.
    pub(crate) fn reload(&mut self, state: &Saved) -> Outcome<Saved> {
        self.load(state)?;
        let saved = self.save_stopped()?;
        self.go(State::Running)?;
        Ok(saved)
    }

    /// Changes the device's registers by the author's probe.
    pub(crate) fn change(&mut self, registers: &dyn RegisterProbe, seed: u64) -> Outcome {
        let request = format!("change of the registers, seed {seed}");
        let result =
            self.request(&request, |device| registers.change(device, seed), |()| "done".to_string())?;
        success(request, result)
    }

    /// Returns the device's registers by the author's probe.
    pub(crate) fn look(&mut self, registers: &dyn RegisterProbe) -> Outcome<Vec<u8>> {
        let request = "look at the registers";
        let told = |bytes: &Vec<u8>| format!("{} bytes", bytes.len());
        let result = self.request(request, |device| registers.look(device), told)?;
        success(request, result)
    }
}

fn closed<T>() -> Outcome<T> {
    inconclusive("the device is closed")
}
