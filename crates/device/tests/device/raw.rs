//! Raw requests are answered in the kernel's order of checks, with the kernel's errnos.
//!
//! Where two checks fail at once, the earlier one decides: each case below breaks two rules or more. The
//! kernel's first check of VFIO_DEVICE_FEATURE, a cdev that is not bound, has no place here: an open
//! `DeviceFile` is always bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use whimbrel_device::{
    ArcError, Capability, Context, DataFile, DeviceCapability, DeviceFile, DeviceInfoFlags, DmaLogging,
    Driver, Errno, Fault, Info, Migration, MigrationFlags, MmapArea, PrecopyReport, Process, Region,
    RegionInfoFlags, SparseMemory, State,
};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::info::Irq;
use whimbrel_uapi::device::{DeviceInfo, IrqInfo, IrqInfoFlags, PciAtomicFlags, RegionInfo};
use whimbrel_uapi::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{
    Request, VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO,
    VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_RESET, VFIO_GROUP_GET_STATUS, VFIO_MIG_GET_PRECOPY_INFO,
};
use whimbrel_uapi::migration::{DeviceFeatureMigState, PrecopyInfo, PrecopyInfoFlags};
use zerocopy::{FromBytes, IntoBytes};

/// What the test sees of the driver.
#[derive(Clone, Default)]
struct Seen {
    logging: Arc<AtomicBool>,
    reports: Arc<AtomicU32>,
}

/// A device that answers everything, as far as it is told to have it.
struct Sample {
    flags: MigrationFlags,
    logs: bool,
    capabilities: Vec<Capability>,
    device_capabilities: Vec<DeviceCapability>,
    seen: Seen,
}

impl Driver for Sample {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET | DeviceInfoFlags::PCI)
            .num_regions(2)
            .num_irqs(1)
            .capabilities(self.device_capabilities.clone())
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let capabilities = if index == 1 { self.capabilities.clone() } else { Vec::new() };
        Ok(Region::new(RegionInfoFlags::READ, 0x1000).capabilities(capabilities))
    }

    fn irq(&self, _index: u32) -> Result<Irq, Errno> {
        Ok(Irq::new(IrqInfoFlags::EVENTFD, 3))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        if self.flags.is_empty() { None } else { Some(self) }
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        if self.logs { Some(self) } else { None }
    }
}

impl Migration for Sample {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn arc(&mut self, _: &Context, from: State, _to: State) -> Result<(), ArcError> {
        // As if no state had been written.
        if from == State::Resuming { Err(Errno::EINVAL.into()) } else { Ok(()) }
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0x1122_3344)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        buffer.fill(7);
        Ok(buffer.len())
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        Ok(PrecopyReport::new(5, 6).reinit(true))
    }
}

impl DmaLogging for Sample {
    fn start(&mut self, _: &Context, _ranges: &LoggingRanges) -> Result<u64, Errno> {
        self.seen.logging.store(true, Ordering::Relaxed);
        Ok(0x10000)
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.seen.logging.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn report(&mut self, _: &Context, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        self.seen.reports.fetch_add(1, Ordering::Relaxed);
        let range = report.range();
        report.set(range.iova(), 1);
        Ok(())
    }
}

impl Sample {
    fn new() -> Sample {
        Sample {
            flags: MigrationFlags::all(),
            logs: true,
            capabilities: Vec::new(),
            device_capabilities: Vec::new(),
            seen: Seen::default(),
        }
    }

    fn open(self) -> DeviceFile {
        DeviceFile::new("sample", |_| self)
    }
}

fn sample() -> DeviceFile {
    Sample::new().open()
}

/// Where arguments lie.
const AT: u64 = 0x1000;

/// Makes one request and returns its result with the argument as it is afterwards.
fn ask(device: &DeviceFile, request: Request, argument: &[u8]) -> (Result<i32, Errno>, Vec<u8>) {
    let mut process = SparseMemory::new();
    process.insert(AT, argument);
    let result = device.ioctl(request.number(), AT, &mut process);
    (result, process.piece(AT).unwrap().to_vec())
}

const GET: FeatureFlags = FeatureFlags::GET;
const SET: FeatureFlags = FeatureFlags::SET;
const PROBE: FeatureFlags = FeatureFlags::PROBE;
const NONE: FeatureFlags = FeatureFlags::empty();

/// A VFIO_DEVICE_FEATURE argument that says what it likes about its size.
fn raw_feature(argsz: u32, flags: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = DeviceFeature { argsz, flags }.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes
}

/// One of a known feature.
fn feature(feature: Feature, flags: FeatureFlags, data: &[u8]) -> Vec<u8> {
    raw_feature(8 + data.len() as u32, u32::from(feature.number()) | flags.bits(), data)
}

fn state(device_state: u32, data_fd: i32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(DeviceFeatureMigState { device_state, data_fd }.as_bytes());
    bytes
}

#[test]
fn of_two_failing_checks_of_a_feature_the_earlier_one_decides() {
    const STATE: u32 = 2;
    const UNKNOWN: u32 = 14;
    let with = |flags: FeatureFlags, index: u32| flags.bits() | index;
    let cases = [
        ("the head faults (2), its argsz is 0 (3)", vec![0; 7], Err(Errno::EFAULT)),
        ("argsz 7 (3), unknown index (6)", raw_feature(7, with(GET, UNKNOWN), &[]), Err(Errno::EINVAL)),
        ("unknown flag (4), unknown index (6)", raw_feature(8, 1 << 19 | UNKNOWN, &[]), Err(Errno::EINVAL)),
        ("the highest flag (4), PROBE (9)", raw_feature(8, 1 << 31 | PROBE.bits(), &[]), Err(Errno::EINVAL)),
        (
            "GET and SET (5), unknown index (6)",
            raw_feature(8, with(GET | SET, UNKNOWN), &[]),
            Err(Errno::EINVAL),
        ),
        ("unknown index (6), PROBE (9)", raw_feature(8, with(PROBE | GET, UNKNOWN), &[]), Err(Errno::ENOTTY)),
        ("unknown index (6), no direction (10)", raw_feature(8, UNKNOWN, &[]), Err(Errno::ENOTTY)),
        ("the last index (6), no direction (10)", raw_feature(8, 0xffff, &[]), Err(Errno::ENOTTY)),
        ("wrong direction (8), PROBE (9)", raw_feature(8, with(PROBE | SET, 1), &[]), Err(Errno::EINVAL)),
        (
            "one wrong direction (8), PROBE (9)",
            raw_feature(8, with(PROBE | GET | SET, 1), &[]),
            Err(Errno::EINVAL),
        ),
        ("wrong direction (8), data faults (12)", raw_feature(16, with(SET, 1), &[]), Err(Errno::EINVAL)),
        ("PROBE (9), no room (11)", raw_feature(8, with(PROBE | GET | SET, STATE), &[]), Ok(0)),
        ("PROBE (9), no direction (10)", raw_feature(8, with(PROBE, STATE), &[]), Ok(0)),
        ("no direction (10), data faults (12)", raw_feature(16, STATE, &[]), Err(Errno::EINVAL)),
        ("no room (11), data faults (12)", raw_feature(15, with(SET, STATE), &[]), Err(Errno::EINVAL)),
    ];
    let device = sample();
    for (what, argument, expected) in cases {
        assert_eq!(ask(&device, VFIO_DEVICE_FEATURE, &argument).0, expected, "{what}");
    }
    // Data that faults (12) comes before a state that does not exist.
    let argument = raw_feature(16, with(SET, STATE), &state(99, 0)[..7]);
    assert_eq!(ask(&device, VFIO_DEVICE_FEATURE, &argument).0, Err(Errno::EFAULT));
}

#[test]
fn a_feature_the_device_lacks_is_told_before_its_direction_is_looked_at() {
    let bare = Sample { flags: MigrationFlags::empty(), logs: false, ..Sample::new() }.open();
    for index in Feature::ALL {
        for flags in [NONE, GET, SET, PROBE, PROBE | GET | SET] {
            let (result, _) = ask(&bare, VFIO_DEVICE_FEATURE, &feature(index, flags, &[]));
            assert_eq!(result, Err(Errno::ENOTTY), "{index} {flags:?}");
        }
    }
    // Without PRE_COPY the second form of its info is refused, and PROBE with it.
    let no_precopy = Sample { flags: MigrationFlags::STOP_COPY, ..Sample::new() }.open();
    let (result, _) =
        ask(&no_precopy, VFIO_DEVICE_FEATURE, &feature(Feature::MigPrecopyInfoV2, PROBE | SET, &[]));
    assert_eq!(result, Err(Errno::EINVAL));
}

#[test]
fn each_feature_has_its_directions_and_its_least_room() {
    let cases = [
        (Feature::Migration, GET, 8),
        (Feature::MigDeviceState, GET | SET, 8),
        (Feature::DmaLoggingStart, SET, 24),
        (Feature::DmaLoggingStop, SET, 0),
        (Feature::DmaLoggingReport, GET, 32),
        (Feature::MigDataSize, GET, 8),
        (Feature::MigPrecopyInfoV2, SET, 0),
    ];
    let device = sample();
    for (index, directions, least) in cases {
        for direction in [GET, SET] {
            let probe = ask(&device, VFIO_DEVICE_FEATURE, &feature(index, PROBE | direction, &[])).0;
            let expected = if directions.contains(direction) { Ok(0) } else { Err(Errno::EINVAL) };
            assert_eq!(probe, expected, "{index} {direction:?}");
            if !directions.contains(direction) || least == 0 {
                continue;
            }
            // Of data that is not there, one byte too few is noticed before the fault.
            let flags = direction.bits() | u32::from(index.number());
            let short = ask(&device, VFIO_DEVICE_FEATURE, &raw_feature(8 + least - 1, flags, &[])).0;
            assert_eq!(short, Err(Errno::EINVAL), "{index} {direction:?}");
            let enough = ask(&device, VFIO_DEVICE_FEATURE, &raw_feature(8 + least, flags, &[])).0;
            assert_eq!(enough, Err(Errno::EFAULT), "{index} {direction:?}");
        }
    }
}

#[test]
fn more_room_than_a_feature_needs_is_fine() {
    let device = sample();
    let flags = GET.bits() | u32::from(Feature::MigDataSize.number());
    let (result, after) = ask(&device, VFIO_DEVICE_FEATURE, &raw_feature(u32::MAX, flags, &[0xff; 8]));
    assert_eq!(result, Ok(0));
    assert_eq!(after[8..], 0x1122_3344_u64.to_ne_bytes());
}

#[test]
fn a_fault_at_any_byte_is_efault_and_changes_nothing() {
    let report = DeviceFeatureDmaLoggingReport { iova: 0, length: 0, page_size: 4096, bitmap: 0 };
    let requests = [
        (VFIO_DEVICE_GET_INFO, DeviceInfo { argsz: 24, ..DeviceInfo::default() }.as_bytes().to_vec()),
        (VFIO_DEVICE_GET_REGION_INFO, RegionInfo { argsz: 32, ..RegionInfo::default() }.as_bytes().to_vec()),
        (VFIO_DEVICE_GET_IRQ_INFO, IrqInfo { argsz: 16, ..IrqInfo::default() }.as_bytes().to_vec()),
        (VFIO_DEVICE_FEATURE, feature(Feature::Migration, GET, &[0; 8])),
        (VFIO_DEVICE_FEATURE, feature(Feature::MigDeviceState, GET, &[0; 8])),
        (VFIO_DEVICE_FEATURE, feature(Feature::MigDataSize, GET, &[0; 8])),
        (VFIO_DEVICE_FEATURE, feature(Feature::DmaLoggingReport, GET, report.as_bytes())),
        (VFIO_DEVICE_FEATURE, feature(Feature::MigDeviceState, SET, &state(1, 0))),
    ];
    for (request, argument) in requests {
        let device = sample();
        for length in 0..argument.len() {
            let (result, after) = ask(&device, request, &argument[..length]);
            assert_eq!(result, Err(Errno::EFAULT), "{request} with {length} bytes");
            // The answer to this one is longer than what is read of it, and reaches as far as the memory.
            if request != VFIO_DEVICE_GET_INFO || length < 16 {
                assert_eq!(after, argument[..length], "{request} with {length} bytes");
            }
            assert_eq!(device.mig_state(), Ok(State::Running), "{request} with {length} bytes");
        }
        assert_eq!(ask(&device, request, &argument).0, Ok(0), "{request}");
    }
}

#[test]
fn a_failed_change_of_state_writes_the_request_back_without_a_file() {
    for asked in [0, 8, 9, u32::MAX] {
        let device = sample();
        let argument = feature(Feature::MigDeviceState, SET, &state(asked, 1234));
        let (result, after) = ask(&device, VFIO_DEVICE_FEATURE, &argument);
        assert_eq!(result, Err(Errno::EINVAL), "{asked}");
        assert_eq!(after[8..], state(asked, -1), "{asked}");
        assert_eq!(device.mig_state(), Ok(State::Running), "{asked}");
    }
}

#[test]
fn the_present_state_is_told_whatever_was_in_the_structure() {
    let (result, after) =
        ask(&sample(), VFIO_DEVICE_FEATURE, &feature(Feature::MigDeviceState, GET, &state(77, 88)));
    assert_eq!(result, Ok(0));
    assert_eq!(after[8..], state(State::Running.number(), -1));
}

#[test]
fn a_session_puts_its_file_into_the_process_and_only_when_it_opens() {
    let device = sample();
    let mut process = SparseMemory::new();
    let cases = [
        (State::PreCopy, true),
        (State::PreCopy, false),
        (State::PreCopyP2p, false),
        (State::StopCopy, false),
        (State::Stop, false),
        (State::StopCopy, true),
        (State::Resuming, true),
    ];
    for (to, opens) in cases {
        let files = process.open_files();
        process.insert(AT, feature(Feature::MigDeviceState, SET, &state(to.number(), 99)));
        assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Ok(0), "{to}");
        let answer = DeviceFeatureMigState::read_from_bytes(&process.piece(AT).unwrap()[8..]).unwrap();
        assert_eq!(answer.device_state, to.number());
        assert_eq!(answer.data_fd >= 0, opens, "{to}");
        assert_eq!(process.file(answer.data_fd).is_some(), opens, "{to}");
        assert_eq!(process.open_files() - files, usize::from(opens), "{to}");
    }
}

/// A process whose memory can be read but not written, and that may be out of descriptors.
struct Limited {
    memory: SparseMemory,
    writable: bool,
    descriptors: bool,
}

impl Limited {
    fn new(argument: &[u8], writable: bool, descriptors: bool) -> Limited {
        let mut memory = SparseMemory::new();
        memory.insert(AT, argument);
        Limited { memory, writable, descriptors }
    }
}

impl Process for Limited {
    fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.memory.read(address, buffer)
    }

    fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        if self.writable { self.memory.write(address, data) } else { Err(Fault::new(address)) }
    }

    fn install(&mut self, file: DataFile) -> Result<i32, Errno> {
        if self.descriptors { self.memory.install(file) } else { Err(Errno::EMFILE) }
    }

    fn uninstall(&mut self, fd: i32) {
        self.memory.uninstall(fd);
    }
}

#[test]
fn a_file_that_cannot_be_told_is_dropped_and_the_state_stays() {
    let device = sample();
    let argument = feature(Feature::MigDeviceState, SET, &state(State::StopCopy.number(), 5));
    let mut process = Limited::new(&argument, false, true);
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Err(Errno::EFAULT));
    assert_eq!(process.memory.open_files(), 0);
    assert_eq!(device.mig_state(), Ok(State::StopCopy));
    // The session is lost with its file; a new one needs a new entry.
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_none());
    device.set_mig_state(State::Stop).unwrap();
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_some());
}

#[test]
fn a_process_out_of_descriptors_gets_no_answer_and_the_state_stays() {
    let device = sample();
    let argument = feature(Feature::MigDeviceState, SET, &state(State::PreCopy.number(), 5));
    let mut process = Limited::new(&argument, true, false);
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Err(Errno::EMFILE));
    assert_eq!(process.memory.piece(AT).unwrap(), argument, "the structure is as it was");
    assert_eq!(device.mig_state(), Ok(State::PreCopy));
}

#[test]
fn a_refusal_that_cannot_be_written_back_is_efault() {
    let device = sample();
    let argument = feature(Feature::MigDeviceState, SET, &state(0, 5));
    let mut process = Limited::new(&argument, false, true);
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Err(Errno::EFAULT));
}

/// Where the ranges of a log lie.
const RANGES: u64 = 0x8000;

fn control(page_size: u64, num_ranges: u32) -> Vec<u8> {
    let control =
        DeviceFeatureDmaLoggingControl { page_size, num_ranges, __reserved: 0xabcd, ranges: RANGES };
    feature(Feature::DmaLoggingStart, SET, control.as_bytes())
}

fn ranges(list: &[(u64, u64)]) -> Vec<u8> {
    list.iter()
        .flat_map(|(iova, length)| {
            DeviceFeatureDmaLoggingRange { iova: *iova, length: *length }.as_bytes().to_vec()
        })
        .collect()
}

#[test]
fn the_start_of_a_log_is_checked_range_by_range() {
    const TOP: u64 = 0xffff_ffff_ffff_f000;
    let one = ranges(&[(0, 0x1000)]);
    let cases = [
        ("no range, and none there", 0, vec![], Err(Errno::EINVAL)),
        ("too many, and none there", 257, vec![], Err(Errno::E2BIG)),
        ("the most", 256, ranges(&(0..256).map(|n| (n << 12, 0x1000)).collect::<Vec<_>>()), Ok(0)),
        ("a range that faults", 1, one[..15].to_vec(), Err(Errno::EFAULT)),
        ("a second that faults", 2, one.clone(), Err(Errno::EFAULT)),
        ("a bad first before a second that faults", 2, ranges(&[(1, 0x1000)]), Err(Errno::EINVAL)),
        ("iova off its alignment, and past the end", 1, ranges(&[(TOP + 1, 0x1000)]), Err(Errno::EINVAL)),
        ("length off its alignment, and past the end", 1, ranges(&[(TOP, 0x1001)]), Err(Errno::EINVAL)),
        ("the last page of all", 1, ranges(&[(TOP, 0x1000)]), Err(Errno::EOVERFLOW)),
        (
            "past the end before the overlap",
            2,
            ranges(&[(TOP - 0x1000, 0x1000), (TOP - 0x1000, 0x2000)]),
            Err(Errno::EOVERFLOW),
        ),
        ("overlap", 2, ranges(&[(0, 0x2000), (0x1000, 0x1000)]), Err(Errno::EINVAL)),
        ("side by side", 2, ranges(&[(0x1000, 0x1000), (0, 0x1000)]), Ok(0)),
    ];
    for (what, count, list, expected) in cases {
        let sample = Sample::new();
        let seen = sample.seen.clone();
        let device = sample.open();
        let mut process = SparseMemory::new();
        process.insert(AT, control(4096, count));
        process.insert(RANGES, list);
        assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), expected, "{what}");
        assert_eq!(seen.logging.load(Ordering::Relaxed), expected.is_ok(), "{what}");
        let page_size = u64::read_from_bytes(&process.piece(AT).unwrap()[8..16]).unwrap();
        assert_eq!(page_size, if expected.is_ok() { 0x10000 } else { 4096 }, "{what}");
    }
}

#[test]
fn a_log_whose_page_size_cannot_be_told_is_stopped_again() {
    let sample = Sample::new();
    let seen = sample.seen.clone();
    let device = sample.open();
    let mut process = Limited::new(&control(4096, 1), false, true);
    process.memory.insert(RANGES, ranges(&[(0, 0x1000)]));
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Err(Errno::EFAULT));
    assert!(!seen.logging.load(Ordering::Relaxed));
}

#[test]
fn a_report_is_checked_before_the_driver_is_asked_and_the_bitmap_after() {
    let cases = [
        ("page size below 4096, and past the end", u64::MAX, 2, 2048, Err(Errno::EINVAL), 0),
        ("page size no power of two, and past the end", u64::MAX, 2, 0x3000, Err(Errno::EINVAL), 0),
        ("page size 0", 0, 4096, 0, Err(Errno::EINVAL), 0),
        ("past the end", u64::MAX, 2, 4096, Err(Errno::EOVERFLOW), 0),
        ("a bitmap that faults", 0, 4096, 4096, Err(Errno::EFAULT), 1),
        ("nothing asked", 1, 0, 4096, Ok(0), 1),
    ];
    for (what, iova, length, page_size, expected, asked) in cases {
        let sample = Sample::new();
        let seen = sample.seen.clone();
        let device = sample.open();
        let report = DeviceFeatureDmaLoggingReport { iova, length, page_size, bitmap: 0x9000 };
        let argument = feature(Feature::DmaLoggingReport, GET, report.as_bytes());
        assert_eq!(ask(&device, VFIO_DEVICE_FEATURE, &argument).0, expected, "{what}");
        assert_eq!(seen.reports.load(Ordering::Relaxed), asked, "{what}");
    }
}

#[test]
fn a_report_sets_bits_and_clears_none() {
    let device = sample();
    let mut process = SparseMemory::new();
    // Two words for 65 pages; the second needs no bit and is not touched, so it need not be there.
    let report = DeviceFeatureDmaLoggingReport { iova: 0, length: 65 << 12, page_size: 4096, bitmap: 0x9000 };
    process.insert(AT, feature(Feature::DmaLoggingReport, GET, report.as_bytes()));
    process.insert(0x9000, 0xf0_u64.to_le_bytes());
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Ok(0));
    assert_eq!(process.piece(0x9000).unwrap(), 0xf1_u64.to_le_bytes());
}

#[test]
fn a_report_takes_as_much_work_as_is_logged_however_much_is_asked_for() {
    const PIECE: u64 = 8192 * 64 * 4096;
    let sample = Sample::new();
    let seen = sample.seen.clone();
    let device = sample.open();
    let mut process = SparseMemory::new();
    process.insert(AT, control(4096, 2));
    process.insert(RANGES, ranges(&[(3 * PIECE, 0x1000), (1 << 60, 2 * PIECE)]));
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Ok(0));
    // The driver marks the first page of each piece that it is asked for.
    let marked = [0, 3 * PIECE, 1 << 60, (1 << 60) + PIECE];
    let bitmap = |iova: u64| 0x9000 + iova / 4096 / 8;
    let report = DeviceFeatureDmaLoggingReport { iova: 0, length: 1 << 63, page_size: 4096, bitmap: 0x9000 };
    let mut process = SparseMemory::new();
    process.insert(AT, feature(Feature::DmaLoggingReport, GET, report.as_bytes()));
    for iova in marked {
        process.insert(bitmap(iova), 0_u64.to_le_bytes());
    }
    assert_eq!(device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, &mut process), Ok(0));
    for iova in marked {
        assert_eq!(process.piece(bitmap(iova)).unwrap(), 1_u64.to_le_bytes(), "{iova:#x}");
    }
    assert_eq!(seen.reports.load(Ordering::Relaxed) as usize, marked.len());
}

/// The argument of an info request, in a buffer of `room` bytes.
fn info(argsz: u32, index: u32, room: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; room];
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    bytes[8..12].copy_from_slice(&index.to_ne_bytes());
    bytes
}

#[test]
fn device_info_fills_no_more_than_the_user_has_room_for() {
    let device = sample();
    for (room, expected) in [(15, Err(Errno::EINVAL)), (16, Ok(0)), (20, Ok(0)), (24, Ok(0)), (40, Ok(0))] {
        let (result, after) = ask(&device, VFIO_DEVICE_GET_INFO, &info(room, 0, 64));
        assert_eq!(result, expected, "{room}");
        assert_eq!(after[..4], room.to_ne_bytes(), "{room}: without capabilities argsz stays as it was");
        let filled = if expected.is_ok() { room.min(24) as usize } else { 12 };
        assert!(after[filled..].iter().all(|byte| *byte == 0xee), "{room}");
        if expected.is_ok() {
            assert_eq!(after[4..16], [3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0], "{room}");
        }
    }
}

#[test]
fn device_info_reaches_as_far_as_the_memory() {
    let device = sample();
    for length in [16, 20, 23] {
        let (result, after) = ask(&device, VFIO_DEVICE_GET_INFO, &info(24, 0, length));
        assert_eq!(result, Err(Errno::EFAULT), "{length}");
        assert_eq!(after[4..16], [3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0], "{length}");
        assert!(after[16..].iter().all(|byte| *byte == 0), "{length}");
    }
}

fn with_capabilities() -> DeviceFile {
    let capability = Capability::SparseMmap(vec![MmapArea::new(0, 0x1000)]);
    let atomic = DeviceCapability::PciAtomicComp(PciAtomicFlags::COMP64);
    Sample { capabilities: vec![capability], device_capabilities: vec![atomic], ..Sample::new() }.open()
}

#[test]
fn a_chain_without_room_is_told_by_its_size_alone() {
    let device = with_capabilities();
    let caps = |bytes: &[u8]| u32::read_from_bytes(&bytes[4..8]).unwrap();
    // What is said of atomics takes 16 bytes, a sparse map of one area 32.
    for room in [16, 20, 24, 39] {
        let (result, after) = ask(&device, VFIO_DEVICE_GET_INFO, &info(room, 0, 64));
        assert_eq!(result, Ok(0), "{room}");
        assert_eq!(after[..4], 40_u32.to_ne_bytes(), "{room}");
        assert_ne!(caps(&after) & DeviceInfoFlags::CAPS.bits(), 0, "{room}");
        if room >= 20 {
            assert_eq!(after[16..20], [0; 4], "{room}: no chain");
        }
        assert!(after[room.min(24) as usize..].iter().all(|byte| *byte == 0xee), "{room}");
    }
    let (_, after) = ask(&device, VFIO_DEVICE_GET_INFO, &info(41, 0, 64));
    assert_eq!(after[..4], 41_u32.to_ne_bytes(), "argsz is the user's where there is room");
    assert_eq!(after[16..20], 24_u32.to_ne_bytes(), "the chain follows");
    assert_eq!(after[24..40], [5, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert!(after[40..].iter().all(|byte| *byte == 0xee));
    // The memory ends within the chain, which comes first: nothing of the fixed part is written.
    for length in 24..40 {
        let argument = info(40, 0, length);
        let (result, after) = ask(&device, VFIO_DEVICE_GET_INFO, &argument);
        assert_eq!((result, &after[..24]), (Err(Errno::EFAULT), &argument[..24]), "{length}");
    }

    for room in [32, 63] {
        let (result, after) = ask(&device, VFIO_DEVICE_GET_REGION_INFO, &info(room, 1, 80));
        assert_eq!(result, Ok(0), "{room}");
        assert_eq!(after[..4], 64_u32.to_ne_bytes(), "{room}");
        assert_ne!(caps(&after) & RegionInfoFlags::CAPS.bits(), 0, "{room}");
        assert_eq!(after[12..16], [0; 4], "{room}: no chain");
        assert!(after[32..].iter().all(|byte| *byte == 0xee), "{room}");
    }
    let (_, after) = ask(&device, VFIO_DEVICE_GET_REGION_INFO, &info(64, 1, 80));
    assert_eq!(after[12..16], 32_u32.to_ne_bytes(), "the chain follows");
}

#[test]
fn region_and_irq_info_check_their_size_and_their_index() {
    let device = sample();
    let cases = [
        (VFIO_DEVICE_GET_REGION_INFO, 31, 0, Err(Errno::EINVAL)),
        (VFIO_DEVICE_GET_REGION_INFO, 32, 0, Ok(0)),
        (VFIO_DEVICE_GET_REGION_INFO, 4096, 1, Ok(0)),
        (VFIO_DEVICE_GET_REGION_INFO, 32, 2, Err(Errno::EINVAL)),
        (VFIO_DEVICE_GET_REGION_INFO, 32, u32::MAX, Err(Errno::EINVAL)),
        (VFIO_DEVICE_GET_IRQ_INFO, 15, 0, Err(Errno::EINVAL)),
        (VFIO_DEVICE_GET_IRQ_INFO, 16, 0, Ok(0)),
        (VFIO_DEVICE_GET_IRQ_INFO, 16, 1, Err(Errno::EINVAL)),
    ];
    for (request, argsz, index, expected) in cases {
        let argument = info(argsz, index, 64);
        let (result, after) = ask(&device, request, &argument);
        assert_eq!(result, expected, "{request} {argsz} {index}");
        assert_eq!(after[..4], argsz.to_ne_bytes(), "{request} {argsz} {index}");
        if expected.is_err() {
            assert_eq!(after, argument, "{request} {argsz} {index}");
        }
    }
    // The copy comes before the size.
    assert_eq!(ask(&device, VFIO_DEVICE_GET_INFO, &[0; 15]).0, Err(Errno::EFAULT));
    assert_eq!(ask(&device, VFIO_DEVICE_GET_REGION_INFO, &[0; 31]).0, Err(Errno::EFAULT));
    assert_eq!(ask(&device, VFIO_DEVICE_GET_IRQ_INFO, &[0; 15]).0, Err(Errno::EFAULT));
}

#[test]
fn requests_that_a_device_does_not_know_are_enotty_and_touch_no_memory() {
    let device = sample();
    for number in [0, VFIO_GROUP_GET_STATUS.number(), VFIO_MIG_GET_PRECOPY_INFO.number(), u32::MAX] {
        assert_eq!(device.ioctl(number, 0, &mut SparseMemory::new()), Err(Errno::ENOTTY), "{number:#x}");
    }
}

/// Asks a data file for its precopy info, in `bytes` of which the first four are `argsz`.
fn precopy(data: &DataFile, argsz: u32, bytes: usize) -> (Result<i32, Errno>, Vec<u8>) {
    let mut process = SparseMemory::new();
    let mut argument = vec![0xee; bytes];
    argument[..4].copy_from_slice(&argsz.to_ne_bytes());
    process.insert(AT, argument);
    let result = data.ioctl(VFIO_MIG_GET_PRECOPY_INFO.number(), AT, &mut process);
    (result, process.piece(AT).unwrap().to_vec())
}

#[test]
fn precopy_info_is_checked_in_the_drivers_order() {
    let device = sample();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let other = data.ioctl(VFIO_DEVICE_FEATURE.number(), 0, &mut SparseMemory::new());
    assert_eq!(other, Err(Errno::ENOTTY), "the command before the fault");
    assert_eq!(precopy(&data, 0, 23).0, Err(Errno::EFAULT), "the fault before argsz");
    assert_eq!(precopy(&data, 24, 24).0, Ok(0));
    device.set_mig_state(State::Running).unwrap();
    assert_eq!(precopy(&data, 23, 24).0, Err(Errno::EINVAL));
    assert_eq!(precopy(&data, 24, 24).0, Err(Errno::EINVAL), "the state before the session that is over");
    let _new = device.set_mig_state(State::PreCopy).unwrap();
    assert_eq!(precopy(&data, 23, 24).0, Err(Errno::EINVAL), "argsz before the session that is over");
    assert_eq!(precopy(&data, 24, 24).0, Err(Errno::ENODEV));
    let resuming = device.set_mig_state(State::Resuming).unwrap().unwrap();
    assert_eq!(precopy(&resuming, 0, 4).0, Err(Errno::ENOTTY), "no ioctl at all on a resuming file");
}

#[test]
fn precopy_flags_are_the_users_own_until_it_opts_in() {
    let device = sample();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let (_, after) = precopy(&data, 32, 32);
    let answer = PrecopyInfo { argsz: 32, flags: 0xeeee_eeee, initial_bytes: 5, dirty_bytes: 6 };
    assert_eq!(after[..24], *answer.as_bytes());
    assert_eq!(after[24..], [0xee; 8]);
    assert_eq!(ask(&device, VFIO_DEVICE_FEATURE, &feature(Feature::MigPrecopyInfoV2, SET, &[])).0, Ok(0));
    let (_, after) = precopy(&data, 24, 24);
    let answer = PrecopyInfo { argsz: 24, flags: PrecopyInfoFlags::REINIT.bits(), ..answer };
    assert_eq!(after, answer.as_bytes());
}

#[test]
fn a_reset_ends_the_session_from_every_state() {
    for state in [State::StopCopy, State::PreCopy, State::PreCopyP2p, State::Resuming] {
        let device = sample();
        let data = device.set_mig_state(state).unwrap().unwrap();
        assert_eq!(device.ioctl(VFIO_DEVICE_RESET.number(), 0, &mut SparseMemory::new()), Ok(0), "{state}");
        assert_eq!(device.mig_state(), Ok(State::Running), "{state}");
        if state == State::Resuming {
            assert_eq!(data.write(&[0]), Err(Errno::ENODEV));
            assert_eq!(data.read(&mut [0]), Err(Errno::EBADF), "the direction before the session");
        } else {
            assert_eq!(data.read(&mut [0]), Err(Errno::ENODEV), "{state}");
            assert_eq!(data.write(&[0]), Err(Errno::EBADF), "the direction before the session");
        }
    }
}
