//! The requests of a kernel device fd, common to all ways to open it.
//!
//! [`group`](super::group), [`cdev`](super::cdev) and [`adopted`](super::adopted) open the device and map
//! its memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use whimbrel_memory::FileOffset;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::info::{ChainError, Info, Irq, Region};
use whimbrel_protocol::irq::IrqAction;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::device::{DeviceInfo, IrqInfo, IrqInfoFlags, IrqSet, IrqSetFlags, RegionInfo};
use whimbrel_uapi::dma_logging::DeviceFeatureDmaLoggingRange;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{self as requests};
use whimbrel_uapi::migration::{DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration};
use zerocopy::{FromBytes, IntoBytes};

use super::address_space::AddressSpace;
use super::ioctl::{self, Argument};
use super::state_file::{self, DataFd};
use crate::data_file::DataFile;
use crate::device::Device;
use crate::dma_map::DmaMap;
use crate::error::{Error, Result};
use crate::identity::Identity;
use crate::irq_data::IrqData;
use crate::mapped_region::MappedRegion;
use crate::migratable::Migratable;
use crate::operation::Operation;
use crate::raw::RawDevice;
use crate::session_state::SessionState;
use crate::setup::{ArmedInterrupts, DeviceSetup, InterruptTracker};

/// Maximum size of an info structure with its capabilities, in bytes. The kernel's longest are a few
/// hundred.
const MAX_INFO: usize = 64 * 1024;

/// Maximum number of repeated queries of an info structure that has grown.
const INFO_TRIES: usize = 4;

/// An open device fd.
#[derive(Debug)]
pub(super) struct VfioDevice {
    name: String,
    file: File,
    /// The places of the regions queried so far. They never change while the device is open.
    regions: BTreeMap<u32, Place>,
    state: SessionState,
    interrupts: InterruptTracker,
}

/// The place of a region in the device file, in bytes.
#[derive(Clone, Copy, Debug)]
struct Place {
    offset: u64,
    size: u64,
}

/// A kernel device: its fd, and its own way to map memory for it.
pub(super) trait OnKernel: Send {
    fn vfio(&self) -> &VfioDevice;

    fn vfio_mut(&mut self) -> &mut VfioDevice;

    /// Returns the address space of its DMA, if this object owns it.
    fn memory(&mut self) -> Option<&mut AddressSpace>;

    /// Returns the other holder of the device, if its owner has named one.
    fn named_holder(&self) -> Option<&str> {
        None
    }
}

impl VfioDevice {
    pub(super) fn new(name: String, fd: OwnedFd) -> VfioDevice {
        let state = SessionState::default();
        let interrupts = InterruptTracker::default();
        VfioDevice { name, file: File::from(fd), regions: BTreeMap::new(), state, interrupts }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn failed(&self, request: impl Into<Operation>) -> impl FnOnce(Errno) -> Error {
        Error::at(&self.name, request)
    }

    fn invalid_reply(&self, request: impl Into<Operation>, what: impl ToString) -> Error {
        Error::answer(&self.name, request, what)
    }

    pub(super) fn info(&self) -> Result<Info> {
        let request = requests::VFIO_DEVICE_GET_INFO;
        let asked = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..DeviceInfo::default() };
        self.info_with_chain(&asked, request.into(), Info::from_bytes)
    }

    fn region_info(&mut self, index: u32) -> Result<Region> {
        let request = Operation::RegionInfo(index);
        let asked = RegionInfo { argsz: size_of::<RegionInfo>() as u32, index, ..RegionInfo::default() };
        let region = self.info_with_chain(&asked, request, Region::from_bytes)?;
        self.regions.insert(index, Place { offset: region.offset, size: region.size });
        Ok(region)
    }

    /// Queries an info structure, with as much room as the kernel requires for its capabilities.
    fn info_with_chain<T: Argument, A>(
        &self,
        asked: &T,
        request: Operation,
        parse: impl Fn(&[u8]) -> std::result::Result<A, ChainError>,
    ) -> Result<A> {
        let mut room = size_of::<T>();
        for _ in 0..INFO_TRIES {
            let mut bytes = vec![0; room];
            bytes[..size_of::<T>()].copy_from_slice(asked.as_bytes());
            bytes[..4].copy_from_slice(&(room as u32).to_ne_bytes());
            ioctl::repeated(|| ioctl::with_bytes::<T>(self.as_fd(), &mut bytes))
                .map_err(|errno| self.failed(request.clone())(errno))?;
            let needed = u32::read_from_prefix(&bytes).map_or(0, |(argsz, _)| argsz as usize);
            if needed <= room {
                return parse(&bytes).map_err(|error| self.invalid_reply(request, error));
            }
            if needed > MAX_INFO {
                return Err(self.invalid_reply(request, format!("argsz {needed} exceeds the limit")));
            }
            room = needed;
        }
        Err(self.invalid_reply(request, format!("argsz grows with each request, to {room} bytes")))
    }

    /// Returns the position in the device file of `length` bytes at `offset` of a region. EINVAL past the
    /// region's end.
    fn place(&mut self, request: &Operation, index: u32, offset: u64, length: usize) -> Result<u64> {
        let place = if let Some(place) = self.regions.get(&index) {
            *place
        } else {
            let region = self.region_info(index)?;
            Place { offset: region.offset, size: region.size }
        };
        let end = offset.checked_add(length as u64).filter(|end| *end <= place.size);
        let Some(end) = end else { return Err(self.failed(request.clone())(Errno::EINVAL)) };
        match place.offset.checked_add(end) {
            Some(last) if i64::try_from(last).is_ok() => Ok(place.offset + offset),
            _ => Err(self.invalid_reply(
                request.clone(),
                format!("invalid file offset {:#x} of the region", place.offset),
            )),
        }
    }

    /// Maps `length` bytes from `offset` of a region on.
    fn map(&self, index: u32, region: &Region, offset: u64, length: u64) -> Result<MappedRegion> {
        let request = || Operation::MapRegion { index, offset, length };
        // The last page of a region may be mapped whole: the driver checks the length.
        let at = region
            .offset
            .checked_add(offset)
            .filter(|at| at.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok()))
            .ok_or_else(|| Error::request(self.name(), request(), Errno::EINVAL))?;
        let file = self
            .file
            .try_clone()
            .map_err(|error| Error::request(self.name(), request(), state_file::errno(&error)))?;
        MappedRegion::of_file(self.name(), index, region, FileOffset::new(file, at), offset, length)
    }

    /// Transfers all of `length` bytes, in as many pieces as the driver needs.
    fn whole(
        &self,
        request: Operation,
        length: usize,
        mut piece: impl FnMut(&File, usize) -> std::io::Result<usize>,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            match piece(&self.file, done) {
                Ok(0) => {
                    let what = format!("short transfer: {done} of {length} bytes");
                    return Err(self.invalid_reply(request, what));
                }
                Ok(count) => done = done.saturating_add(count),
                Err(error) => match state_file::errno(&error) {
                    Errno::EINTR => {}
                    errno => return Err(self.failed(request)(errno)),
                },
            }
        }
        Ok(())
    }

    fn get<T: ioctl::FeatureData>(&self) -> Result<T> {
        ioctl::repeated(|| ioctl::get_feature::<T>(self.as_fd())).map_err(self.failed(T::FEATURE))
    }

    fn probe(&self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        match ioctl::repeated(|| ioctl::probe_feature(self.as_fd(), feature, directions)) {
            Ok(()) => Ok(true),
            // EINVAL: the feature exists, but not in this direction.
            Err(Errno::ENOTTY | Errno::EINVAL) => Ok(false),
            Err(errno) => Err(self.failed(Operation::Probe(feature))(errno)),
        }
    }
}

/// Returns the argument of VFIO_DEVICE_SET_IRQS; `None` if its length does not fit `argsz`.
fn irq_set(index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Option<Vec<u8>> {
    let action = match action {
        IrqAction::Mask => IrqSetFlags::ACTION_MASK,
        IrqAction::Unmask => IrqSetFlags::ACTION_UNMASK,
        IrqAction::Trigger => IrqSetFlags::ACTION_TRIGGER,
    };
    let (data_type, count, items) = match data {
        IrqData::None(count) => (IrqSetFlags::DATA_NONE, count, Vec::new()),
        IrqData::Bool(items) => {
            let bytes = items.iter().map(|item| u8::from(*item)).collect();
            (IrqSetFlags::DATA_BOOL, u32::try_from(items.len()).ok()?, bytes)
        }
        IrqData::Eventfd(items) => {
            let fds = items.iter().map(|item| item.map_or(-1, |eventfd| eventfd.as_raw_fd()));
            let bytes = fds.flat_map(i32::to_ne_bytes).collect();
            (IrqSetFlags::DATA_EVENTFD, u32::try_from(items.len()).ok()?, bytes)
        }
    };
    let argsz = u32::try_from(size_of::<IrqSet>().checked_add(items.len())?).ok()?;
    let head = IrqSet { argsz, flags: (data_type | action).bits(), index, start, count };
    Some([head.as_bytes(), &items].concat())
}

impl<T: OnKernel> Migratable for T {
    fn name(&self) -> &str {
        self.vfio().name()
    }

    fn holder(&self) -> Option<String> {
        self.named_holder().map(str::to_string)
    }

    fn info(&mut self) -> Result<Info> {
        self.vfio().info()
    }

    fn identity(&mut self) -> Result<Identity> {
        Identity::of_device(self)
    }

    fn reset(&mut self) -> Result<()> {
        let device = self.vfio();
        let request = requests::VFIO_DEVICE_RESET;
        ioctl::with_number(device.as_fd(), request, 0).map_err(device.failed(request))?;
        Ok(())
    }

    fn probe_feature(&mut self, feature: Feature, directions: FeatureFlags) -> Result<bool> {
        self.vfio().probe(feature, directions)
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        match self.vfio().get::<DeviceFeatureMigration>() {
            Ok(migration) => Ok(Some(MigrationFlags::from_bits_retain(migration.flags))),
            Err(error) if error.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn state(&mut self) -> Result<State> {
        let device = self.vfio();
        let answer: DeviceFeatureMigState = device.get()?;
        let state = State::try_from(answer.device_state)
            .map_err(|unknown| device.invalid_reply(Feature::MigDeviceState, unknown))?;
        device.state.set(state);
        Ok(state)
    }

    fn set_state(&mut self, state: State) -> Result<Option<DataFile>> {
        let device = self.vfio();
        let request = Operation::SetState(state);
        // Not repeated after EINTR: the device may be in any state on the path, and the caller has to
        // check.
        let (number, fd) =
            ioctl::set_mig_state(device.as_fd(), state).map_err(device.failed(request.clone()))?;
        if number != state.number() {
            return Err(device.invalid_reply(request, format!("success with state {number}")));
        }
        device.state.set(state);
        let Some(fd) = fd else { return Ok(None) };
        let direction = match state {
            State::StopCopy | State::PreCopy | State::PreCopyP2p => Direction::Saving,
            State::Resuming => Direction::Resuming,
            State::Error | State::Stop | State::Running | State::RunningP2p => {
                return Err(device.invalid_reply(request, "data file for a state without one"));
            }
        };
        Ok(Some(DataFile::new(device.name(), direction, device.state.clone(), Box::new(DataFd::new(fd)))))
    }

    fn data_size(&mut self) -> Result<u64> {
        let answer: DeviceFeatureMigDataSize = self.vfio().get()?;
        Ok(answer.stop_copy_length)
    }

    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        let device = self.vfio();
        let feature = Feature::MigPrecopyInfoV2;
        if !device.probe(feature, FeatureFlags::SET)? {
            return Ok(false);
        }
        ioctl::repeated(|| ioctl::set_feature(device.as_fd(), feature)).map_err(device.failed(feature))?;
        Ok(true)
    }

    fn dma_logging_start(&mut self, page_size: u64, ranges: &[IovaRange]) -> Result<u64> {
        let device = self.vfio();
        let feature = Feature::DmaLoggingStart;
        let ranges: Vec<_> = ranges
            .iter()
            .map(|range| DeviceFeatureDmaLoggingRange { iova: range.iova(), length: range.length() })
            .collect();
        let kept =
            ioctl::start_dma_logging(device.as_fd(), page_size, &ranges).map_err(device.failed(feature))?;
        if !kept.is_power_of_two() {
            return Err(device.invalid_reply(feature, format!("invalid page size {kept} of the log")));
        }
        Ok(kept)
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        let device = self.vfio();
        let feature = Feature::DmaLoggingStop;
        ioctl::set_feature(device.as_fd(), feature).map_err(device.failed(feature))
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let device = self.vfio();
        let feature = Feature::DmaLoggingReport;
        ioctl::report_dma_logging(device.as_fd(), report).map_err(device.failed(feature))
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        DeviceSetup::of_device(self)
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        setup.restore_to(self)
    }
}

impl<T: OnKernel> Device for T {
    fn region_info(&mut self, index: u32) -> Result<Region> {
        self.vfio_mut().region_info(index)
    }

    fn irq_info(&mut self, index: u32) -> Result<Irq> {
        let device = self.vfio();
        let mut irq = IrqInfo { argsz: size_of::<IrqInfo>() as u32, index, ..IrqInfo::default() };
        ioctl::repeated(|| ioctl::with_struct(device.as_fd(), &mut irq))
            .map_err(device.failed(Operation::IrqInfo(index)))?;
        Ok(Irq::new(IrqInfoFlags::from_bits_retain(irq.flags), irq.count))
    }

    fn read_region(&mut self, index: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let request = Operation::ReadRegion { index, offset };
        let device = self.vfio_mut();
        let at = device.place(&request, index, offset, data.len())?;
        device.whole(request, data.len(), |file, done| file.read_at(&mut data[done..], at + done as u64))
    }

    fn write_region(&mut self, index: u32, offset: u64, data: &[u8]) -> Result<()> {
        let request = Operation::WriteRegion { index, offset };
        let device = self.vfio_mut();
        let at = device.place(&request, index, offset, data.len())?;
        device.whole(request, data.len(), |file, done| file.write_at(&data[done..], at + done as u64))
    }

    fn map_region(&mut self, index: u32, offset: u64, length: u64) -> Result<MappedRegion> {
        let region = self.region_info(index)?;
        self.vfio().map(index, &region, offset, length)
    }

    fn set_irqs(&mut self, index: u32, start: u32, action: IrqAction, data: IrqData<'_>) -> Result<()> {
        let device = self.vfio();
        let request = Operation::SetIrqs(index);
        let Some(mut bytes) = irq_set(index, start, action, data) else {
            return Err(device.failed(request)(Errno::EINVAL));
        };
        ioctl::with_bytes::<IrqSet>(device.as_fd(), &mut bytes).map_err(device.failed(request))?;
        self.vfio_mut().interrupts.record(index, start, action, data);
        Ok(())
    }

    fn armed_interrupts(&mut self) -> Vec<ArmedInterrupts> {
        self.vfio().interrupts.armed()
    }

    fn dma_map(&mut self) -> Option<&mut dyn DmaMap> {
        self.memory().map(|memory| memory as &mut dyn DmaMap)
    }

    fn raw(&mut self) -> Option<&mut dyn RawDevice> {
        Some(self.vfio_mut())
    }
}

impl RawDevice for VfioDevice {
    fn device_feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> std::result::Result<(), Errno> {
        ioctl::raw_feature(self.as_fd(), argsz, flags, data)
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use whimbrel_protocol::info::{Capability, MmapArea};
    use whimbrel_uapi::device::RegionInfoFlags;

    use super::*;
    use crate::kernel::Adopted;

    #[test]
    fn the_data_of_an_irq_set_follows_the_structure_without_a_gap() {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let fd = eventfd.as_raw_fd();
        let head = |argsz, flags, count| IrqSet { argsz, flags, index: 1, start: 2, count };
        let cases = [
            (IrqAction::Trigger, IrqData::Eventfd(&[None, Some(eventfd.as_fd())]), head(28, 0x24, 2), {
                [(-1_i32).to_ne_bytes(), fd.to_ne_bytes()].concat()
            }),
            (IrqAction::Unmask, IrqData::Bool(&[true, false]), head(22, 0x12, 2), vec![1, 0]),
            (IrqAction::Mask, IrqData::None(3), head(20, 0x09, 3), vec![]),
        ];
        for (action, data, head, items) in cases {
            let bytes = irq_set(1, 2, action, data).unwrap();
            assert_eq!(bytes, [head.as_bytes(), &items].concat(), "{action:?} {data:?}");
        }
    }

    fn device(size: u64, offset: u64) -> VfioDevice {
        let file = tempfile::tempfile().unwrap();
        let mut device = VfioDevice::new("test".into(), file.into());
        device.regions.insert(3, Place { offset, size });
        device
    }

    #[test]
    fn an_access_lies_within_its_region_and_the_file() {
        let cases = [
            (8, 0x300, 0, 8, Ok(0x300)),
            (8, 0x300, 7, 1, Ok(0x307)),
            (8, 0x300, 7, 2, Err("EINVAL")),
            (8, 0x300, u64::MAX, 2, Err("EINVAL")),
            (0, 0x300, 0, 1, Err("EINVAL")),
            (u64::MAX, 1 << 40, u64::MAX - 8, 4, Err("invalid file offset")),
            (16, i64::MAX as u64, 0, 1, Err("invalid file offset")),
        ];
        for (size, offset, at, length, expected) in cases {
            let got = device(size, offset).place(&"read".into(), 3, at, length);
            match expected {
                Ok(place) => assert_eq!(got.unwrap(), place),
                Err(part) => {
                    let message = got.unwrap_err().to_string();
                    assert!(message.contains(part), "{message}");
                }
            }
        }
    }

    /// A device whose driver shifts region offsets by 48, where vfio-pci has 40, as the kernel's ism does.
    struct Shifted(VfioDevice);

    impl OnKernel for Shifted {
        fn vfio(&self) -> &VfioDevice {
            &self.0
        }
        fn vfio_mut(&mut self) -> &mut VfioDevice {
            &mut self.0
        }
        fn memory(&mut self) -> Option<&mut AddressSpace> {
            None
        }
    }

    const SHIFT: u32 = 48;

    /// A region as GET_REGION_INFO reports it: 256 TiB, of which two parts can be mapped.
    fn shifted_region(index: u32) -> Region {
        let areas = vec![MmapArea::new(0x1000, 0x1000), MmapArea::new(0x20_0000_0000, 0x2000)];
        Region::new(RegionInfoFlags::all(), 1 << SHIFT)
            .offset(u64::from(index) << SHIFT)
            .capabilities(vec![Capability::SparseMmap(areas)])
    }

    #[test]
    fn accesses_go_where_the_driver_says_that_its_regions_lie() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("device", flags).unwrap());
        file.set_len(8 << SHIFT).unwrap();
        let mut device = Shifted(VfioDevice::new("ism".into(), file.try_clone().unwrap().into()));
        for index in [0, 2, 7] {
            let region = shifted_region(index);
            device.0.regions.insert(index, Place { offset: region.offset, size: region.size });
            let last = (1 << SHIFT) - 4;
            for offset in [0x10, last] {
                device.write_region(index, offset, &[index as u8 + 1; 4]).unwrap();
                let mut there = [0; 4];
                file.read_exact_at(&mut there, (u64::from(index) << SHIFT) + offset).unwrap();
                assert_eq!(there, [index as u8 + 1; 4], "region {index} at {offset:#x}");
                let mut back = [0; 4];
                device.read_region(index, offset, &mut back).unwrap();
                assert_eq!(back, there);
            }
            let past = device.read_region(index, last + 1, &mut [0; 4]).unwrap_err();
            assert_eq!(past.errno(), Some(Errno::EINVAL), "the next region is not reached");
        }

        let region = shifted_region(2);
        let [Capability::SparseMmap(areas)] = &region.capabilities[..] else { panic!("{region:?}") };
        for MmapArea { offset, size, .. } in areas {
            let mapped = device.0.map(2, &region, *offset, *size).unwrap();
            assert_eq!(mapped.size(), *size);
            mapped.write(8, b"mapped").unwrap();
            let mut there = [0; 6];
            file.read_exact_at(&mut there, (2 << SHIFT) + offset + 8).unwrap();
            assert_eq!(&there, b"mapped");
        }
    }

    #[test]
    fn a_transfer_goes_on_until_it_is_whole() {
        let mut taken = Vec::new();
        let mut answers =
            vec![Ok(2), Err(std::io::Error::from_raw_os_error(Errno::EINTR.raw_os_error())), Ok(3)];
        device(8, 0)
            .whole("read".into(), 5, |_, done| {
                taken.push(done);
                answers.pop().unwrap()
            })
            .unwrap();
        assert_eq!(taken, [0, 3, 3]);
    }

    #[test]
    fn a_transfer_that_stops_short_is_an_error_and_not_a_loop() {
        let error = device(8, 0).whole("read".into(), 5, |_, _| Ok(0)).unwrap_err();
        assert!(error.to_string().ends_with("short transfer: 0 of 5 bytes"), "{error}");
    }

    #[test]
    fn every_request_names_the_device_itself_and_the_errno() {
        let file = tempfile::tempfile().unwrap();
        let device = VfioDevice::new("0000:01:00.0".into(), file.into());
        let mut device = Adopted { device, holder: None };
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let mut words = [0; 1];
        let mut report = DirtyReport::new(0, 4096, 4096, &mut words).unwrap();
        let cases = [
            (device.info().unwrap_err(), "VFIO_DEVICE_GET_INFO"),
            (device.region_info(7).unwrap_err(), "VFIO_DEVICE_GET_REGION_INFO of region 7"),
            (device.irq_info(1).unwrap_err(), "VFIO_DEVICE_GET_IRQ_INFO of index 1"),
            (device.read_region(7, 0, &mut [0]).unwrap_err(), "VFIO_DEVICE_GET_REGION_INFO of region 7"),
            (
                device.set_irq_triggers(1, 0, &[Some(eventfd.as_fd())]).unwrap_err(),
                "VFIO_DEVICE_SET_IRQS of index 1",
            ),
            (device.reset().unwrap_err(), "VFIO_DEVICE_RESET"),
            (device.state().unwrap_err(), "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE"),
            (
                device.set_state(State::StopCopy).unwrap_err(),
                "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to STOP_COPY",
            ),
            (device.data_size().unwrap_err(), "VFIO_DEVICE_FEATURE_MIG_DATA_SIZE"),
            (device.dma_logging_start(4096, &[]).unwrap_err(), "VFIO_DEVICE_FEATURE_DMA_LOGGING_START"),
            (device.dma_logging_stop().unwrap_err(), "VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP"),
            (device.dma_logging_report(&mut report).unwrap_err(), "VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT"),
        ];
        for (error, request) in cases {
            assert_eq!(
                error.to_string(),
                format!("0000:01:00.0: {request}: ENOTTY: Inappropriate ioctl for device"),
                "{error:?}"
            );
        }
        assert_eq!(device.migration_flags().unwrap(), None, "ENOTTY is the one answer that means none");
        assert!(!device.enable_precopy_info_v2().unwrap());
        assert!(!device.probe_feature(Feature::Migration, FeatureFlags::GET).unwrap());
    }
}
