//! A program as a [`Device`].

use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl;
use whimbrel_user::{
    DataFile, Device, Error, IrqData, Migratable, Operation, RawDevice, Result, SessionState,
    check_raw_feature, opened_by_raw_feature,
};

use super::codec::Request;
use super::complaint::Complaint;
use super::connection::{Connection, Failure, Reply};
use super::state_file::ProgramFile;

/// Size of the head of VFIO_DEVICE_FEATURE: `argsz` and `flags`.
const HEAD: u32 = 8;

/// Bytes of a region read or written at once.
const CHUNK: usize = 1 << 20;

/// A device that a program stands for.
pub(super) struct ProgramDevice {
    name: String,
    connection: Connection,
    state: SessionState,
    has_raw: bool,
}

impl ProgramDevice {
    /// Takes a program that has answered the greeting.
    pub(super) fn new(name: String, connection: Connection) -> ProgramDevice {
        let flags = u32::from(Feature::Migration.number()) | (FeatureFlags::PROBE | FeatureFlags::GET).bits();
        let probed = connection.ask_quietly(&Request::Feature { argsz: HEAD, flags, data: &[] });
        let has_raw = !matches!(probed, Err(Failure::Complaint(_)));
        ProgramDevice { name, connection, state: SessionState::default(), has_raw }
    }

    fn ask(&self, operation: impl Into<Operation>, request: &Request<'_>) -> Result<Reply> {
        self.connection.ask(request).map_err(|failure| failure.of(&self.name, operation))
    }

    fn number<T: TryFrom<i128>>(
        &self,
        operation: impl Into<Operation>,
        reply: &Reply,
        at: usize,
    ) -> Result<T> {
        self.connection.number(reply, at).map_err(|failure| failure.of(&self.name, operation))
    }
}

/// Returns the holder of a device's state, which tells processes of one program apart.
pub(super) fn holder(id: u32) -> String {
    format!("process {id}")
}

impl Migratable for ProgramDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn holder(&self) -> Option<String> {
        Some(holder(self.connection.id()))
    }

    fn info(&mut self) -> Result<Info> {
        let operation = || Operation::from(ioctl::VFIO_DEVICE_GET_INFO);
        let reply = self.ask(operation(), &Request::Info)?;
        let flags = DeviceInfoFlags::from_bits_retain(self.number(operation(), &reply, 0)?);
        let (regions, irqs) = (self.number(operation(), &reply, 1)?, self.number(operation(), &reply, 2)?);
        Ok(Info::new(flags).num_regions(regions).num_irqs(irqs))
    }

    fn reset(&mut self) -> Result<()> {
        self.ask(ioctl::VFIO_DEVICE_RESET, &Request::Reset)?;
        self.state.set(State::Running);
        Ok(())
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
        let request = Request::Probe { feature: feature.number(), flags: flags.bits() };
        match self.connection.ask_quietly(&request) {
            Ok(_) => Ok(true),
            Err(Failure::Errno(Errno::ENOTTY | Errno::EINVAL)) => Ok(false),
            // A program without PROBE has what every migration driver has.
            Err(Failure::Complaint(Complaint::Unimplemented(_))) => Ok(match feature {
                Feature::Migration => !directions.contains(FeatureFlags::SET),
                Feature::MigDeviceState => true,
                _ => false,
            }),
            Err(failure) => Err(failure.of(&self.name, Operation::Probe(feature))),
        }
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        match self.ask(Feature::Migration, &Request::Flags) {
            Ok(reply) => {
                let flags = self.number(Feature::Migration, &reply, 0)?;
                Ok(Some(MigrationFlags::from_bits_retain(flags)))
            }
            Err(error) if error.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn state(&mut self) -> Result<State> {
        let reply = self.ask(Feature::MigDeviceState, &Request::State)?;
        let number: u32 = self.number(Feature::MigDeviceState, &reply, 0)?;
        let state = State::try_from(number)
            .map_err(|unknown| Error::answer(&self.name, Feature::MigDeviceState, unknown))?;
        self.state.set(state);
        Ok(state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let operation = || Operation::SetState(state);
        let reply = self.ask(operation(), &Request::SetState { state: state.number() })?;
        self.state.set(state);
        let fd = match self.number::<i32>(operation(), &reply, 0)? {
            -1 => return Ok(None),
            fd if fd < 0 => {
                let why = format!("data_fd {fd} is neither -1 nor a number from 0 on");
                return Err(self.connection.invalid(why).of(&self.name, operation()));
            }
            fd => fd,
        };
        let direction = if state == State::Resuming { Direction::Resuming } else { Direction::Saving };
        let file = Box::new(ProgramFile::new(self.connection.clone(), fd));
        Ok(Some(DataFile::new(self.name.clone(), direction, self.state.clone(), file)))
    }

    fn data_size(&mut self) -> Result<u64> {
        let reply = self.ask(Feature::MigDataSize, &Request::DataSize)?;
        self.number(Feature::MigDataSize, &reply, 0)
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        match self.ask(Feature::MigPrecopyInfoV2, &Request::PrecopyV2) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOTTY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let ranges: Vec<(u64, u64)> = ranges.iter().map(|range| (range.iova(), range.length())).collect();
        let reply = self.ask(Feature::DmaLoggingStart, &Request::LogStart { page_size, ranges: &ranges })?;
        self.number(Feature::DmaLoggingStart, &reply, 0)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        self.ask(Feature::DmaLoggingStop, &Request::LogStop).map(drop)
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let (range, page_size) = (report.range(), report.page_size());
        let words = DirtyReport::words_needed(range.length(), page_size);
        // The report's bitmap is in memory and at least as large.
        let count = usize::try_from(words).unwrap_or(usize::MAX).saturating_mul(8);
        let request = Request::LogReport { iova: range.iova(), length: range.length(), page_size, count };
        let reply = self.ask(Feature::DmaLoggingReport, &request)?;
        if reply.bytes.len() != count {
            let why = format!("the bitmap has {} bytes, expected {count}", reply.bytes.len());
            return Err(self.connection.invalid(why).of(&self.name, Feature::DmaLoggingReport));
        }
        let (bitmap, _) = reply.bytes.as_chunks::<8>();
        for (word, bits) in report.words_mut().iter_mut().zip(bitmap) {
            *word |= u64::from_le_bytes(*bits);
        }
        Ok(())
    }
}

impl Device for ProgramDevice {
    fn region_info(&mut self, index: u32) -> Result<Region> {
        let operation = || Operation::RegionInfo(index);
        let reply = self.ask(operation(), &Request::Region { index })?;
        let flags = RegionInfoFlags::from_bits_retain(self.number(operation(), &reply, 1)?);
        Ok(Region::new(flags, self.number(operation(), &reply, 0)?))
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        let operation = || Operation::IrqInfo(index);
        let reply = self.ask(operation(), &Request::Irq { index })?;
        let flags = IrqInfoFlags::from_bits_retain(self.number(operation(), &reply, 1)?);
        Ok(Irq::new(flags, self.number(operation(), &reply, 0)?))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        for (number, piece) in data.chunks_mut(CHUNK).enumerate() {
            let offset = offset.saturating_add((number * CHUNK) as u64);
            let operation = || Operation::ReadRegion { index, offset };
            let request = Request::ReadRegion { index, offset, count: piece.len() };
            let reply = self.ask(operation(), &request)?;
            if reply.bytes.len() != piece.len() {
                let what = format!("short transfer: {} of {} bytes", reply.bytes.len(), piece.len());
                return Err(Error::answer(&self.name, operation(), what));
            }
            piece.copy_from_slice(&reply.bytes);
        }
        Ok(())
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        for (number, piece) in data.chunks(CHUNK).enumerate() {
            let offset = offset.saturating_add((number * CHUNK) as u64);
            let request = Request::WriteRegion { index, offset, data: piece };
            self.ask(Operation::WriteRegion { index, offset }, &request)?;
        }
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: IrqAction, _: IrqData<'_>) -> Result<()> {
        Err(Error::unusable(&self.name, "the program's protocol has no interrupts"))
    }

    fn raw(&mut self) -> Option<&mut dyn RawDevice> {
        if self.has_raw { Some(self) } else { None }
    }
}

impl RawDevice for ProgramDevice {
    fn device_feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> std::result::Result<(), Errno> {
        check_raw_feature(argsz, flags, data)?;
        let reply = self
            .connection
            .ask(&Request::Feature { argsz, flags, data })
            .map_err(|failure| failure.errno())?;
        // The codec has checked that there are no more than sent.
        data[..reply.bytes.len()].copy_from_slice(&reply.bytes);
        if let Some(fd) = opened_by_raw_feature(flags, data) {
            drop(ProgramFile::new(self.connection.clone(), fd));
        }
        Ok(())
    }
}
