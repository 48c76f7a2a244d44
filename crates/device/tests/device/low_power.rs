//! Low power: what the three features answer, and when a device sleeps and wakes.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use whimbrel_device::{
    Bus, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, IoeventfdWrite, Irq, IrqAction, IrqData,
    IrqInfoFlags, LowPower, Next, Region, RegionInfoFlags, SparseMemory, WriteWidth,
};
use whimbrel_uapi::feature::{DeviceFeature, DeviceLowPowerEntryWithWakeup, Feature, FeatureFlags};
use whimbrel_uapi::ioctl::VFIO_DEVICE_FEATURE;
use zerocopy::IntoBytes;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Suspend,
    Resume,
    Read,
    Reset,
}

struct Sleeper {
    pci: bool,
    sleeps: bool,
    seen: Arc<Mutex<Vec<Seen>>>,
    written: Sender<u64>,
}

impl Driver for Sleeper {
    fn info(&self) -> Info {
        let flags = if self.pci { DeviceInfoFlags::PCI } else { DeviceInfoFlags::PLATFORM };
        Info::new(flags | DeviceInfoFlags::RESET).num_regions(1).num_irqs(1)
    }

    fn region(&self, _index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(Region::new(flags, 0x1000))
    }

    fn irq(&self, _index: u32) -> Result<Irq, Errno> {
        let flags = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
        Ok(Irq::new(flags, 1))
    }

    fn read_region(
        &mut self,
        _: &Context,
        _index: u32,
        _offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        self.seen.lock().push(Seen::Read);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _index: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let _ = self.written.send(offset);
        Ok(data.len())
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.seen.lock().push(Seen::Reset);
        Ok(())
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        if self.sleeps { Some(self) } else { None }
    }

    fn advance(&mut self, context: &Context) -> Next {
        Next::At(context.now())
    }
}

impl LowPower for Sleeper {
    fn suspend(&mut self, _: &Context) {
        self.seen.lock().push(Seen::Suspend);
    }

    fn resume(&mut self, _: &Context) {
        self.seen.lock().push(Seen::Resume);
    }
}

struct Bench {
    device: DeviceFile,
    bus: Bus,
    seen: Arc<Mutex<Vec<Seen>>>,
    written: Receiver<u64>,
}

impl Bench {
    fn with(pci: bool, sleeps: bool) -> Bench {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (sender, written) = channel();
        let driver = Sleeper { pci, sleeps, seen: seen.clone(), written: sender };
        let device = DeviceFile::new("sleeper", |_| driver);
        Bench { bus: device.bus().clone(), device, seen, written }
    }

    fn new() -> Bench {
        Bench::with(true, true)
    }

    /// What happened since the last call.
    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock())
    }

    fn asleep(&self) -> bool {
        self.device.advance(Duration::ZERO) == Next::Idle
    }
}

const AT: u64 = 0x1000;

/// One VFIO_DEVICE_FEATURE with `data`, of which the user says that there are `room` bytes.
fn ask(
    device: &DeviceFile,
    flags: u32,
    data: &[u8],
    room: usize,
    process: &mut SparseMemory,
) -> Result<i32, Errno> {
    let head = DeviceFeature { argsz: (8 + room) as u32, flags };
    process.insert(AT, [head.as_bytes(), data].concat());
    device.ioctl(VFIO_DEVICE_FEATURE.number(), AT, process)
}

fn entry(wakeup_eventfd: i32, reserved: u32) -> Vec<u8> {
    DeviceLowPowerEntryWithWakeup { wakeup_eventfd, reserved }.as_bytes().to_vec()
}

const SET: FeatureFlags = FeatureFlags::SET;
const GET: FeatureFlags = FeatureFlags::GET;
const PROBE: FeatureFlags = FeatureFlags::PROBE;

#[test]
fn each_feature_checks_its_direction_then_its_size_then_its_data() {
    let bench = Bench::new();
    let mut process = SparseMemory::new();
    let file = process.insert_eventfd(OwnedFd::from(EventFd::new().unwrap()));
    let no_eventfd = 0x7fff;
    let (plain, wakeup, exit) =
        (Feature::LowPowerEntry, Feature::LowPowerEntryWithWakeup, Feature::LowPowerExit);
    let cases = [
        (plain, GET, vec![], 0, Err(Errno::EINVAL)),
        (plain, PROBE | GET, vec![], 0, Err(Errno::EINVAL)),
        (plain, PROBE | GET | SET, vec![], 0, Err(Errno::EINVAL)),
        (plain, PROBE | SET, vec![], 0, Ok(0)),
        (plain, PROBE, vec![], 0, Ok(0)),
        (plain, FeatureFlags::empty(), vec![], 0, Err(Errno::EINVAL)),
        (exit, GET, vec![], 0, Err(Errno::EINVAL)),
        (exit, PROBE | SET, vec![], 0, Ok(0)),
        (exit, SET, vec![], 0, Ok(0)),
        (wakeup, GET, entry(file, 0), 8, Err(Errno::EINVAL)),
        (wakeup, PROBE | SET, vec![], 0, Ok(0)),
        (wakeup, SET, vec![], 0, Err(Errno::EINVAL)),
        (wakeup, SET, entry(file, 0), 7, Err(Errno::EINVAL)),
        (wakeup, SET, entry(file, 0)[..7].to_vec(), 8, Err(Errno::EFAULT)),
        (wakeup, SET, entry(-1, 0), 8, Err(Errno::EINVAL)),
        (wakeup, SET, entry(i32::MIN, 0), 8, Err(Errno::EINVAL)),
        (wakeup, SET, entry(no_eventfd, 0), 8, Err(Errno::EBADF)),
    ];
    for (feature, flags, data, room, expected) in cases {
        let flags = u32::from(feature.number()) | flags.bits();
        let answer = ask(&bench.device, flags, &data, room, &mut process);
        assert_eq!(answer, expected, "{feature} {flags:#x} {data:?} {room}");
    }
    assert_eq!(bench.seen(), [], "nothing of this lets it sleep");
    let set = |feature: Feature| u32::from(feature.number()) | SET.bits();
    // The reserved word is not looked at, and more room than is needed is fine.
    assert_eq!(ask(&bench.device, set(wakeup), &entry(file, 7), 64, &mut process), Ok(0));
    assert_eq!(bench.seen(), [Seen::Suspend]);
}

#[test]
fn a_device_that_cannot_sleep_answers_enotty_whatever_is_wrong_beside() {
    for (pci, sleeps) in [(true, false), (false, true)] {
        let bench = Bench::with(pci, sleeps);
        for feature in [Feature::LowPowerEntry, Feature::LowPowerEntryWithWakeup, Feature::LowPowerExit] {
            for flags in [SET, GET, PROBE | SET] {
                let flags = u32::from(feature.number()) | flags.bits();
                let answer = ask(&bench.device, flags, &[], 0, &mut SparseMemory::new());
                assert_eq!(answer, Err(Errno::ENOTTY), "{feature} {flags:#x}");
            }
        }
        assert_eq!(bench.device.enter_low_power(None), Err(Errno::ENOTTY));
        assert_eq!(bench.device.exit_low_power(), Err(Errno::ENOTTY));
    }
}

#[test]
fn a_request_wakes_the_device_for_as_long_as_it_takes() {
    let bench = Bench::new();
    bench.device.enter_low_power(None).unwrap();
    assert_eq!(bench.seen(), [Seen::Suspend]);
    assert!(bench.asleep());
    bench.device.read_region(0, 0, &mut [0; 4]).unwrap();
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Read, Seen::Suspend]);
    bench.device.reset().unwrap();
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Reset, Seen::Suspend], "a reset does not end it");
    // One that comes to nothing does too.
    assert_eq!(bench.device.ioctl(0, 0, &mut SparseMemory::new()), Err(Errno::ENOTTY));
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Suspend]);
    assert_eq!(bench.device.read_region(1, 0, &mut [0; 4]), Err(Errno::EINVAL));
    assert_eq!(bench.seen(), [], "no region, no device that is needed");
    assert_eq!(bench.device.enter_low_power(None), Err(Errno::EINVAL), "twice");
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Suspend]);
    bench.device.exit_low_power().unwrap();
    assert_eq!(bench.seen(), [Seen::Resume]);
    assert!(!bench.asleep());
    bench.device.exit_low_power().unwrap();
    assert_eq!(bench.seen(), [], "it was awake");
}

#[test]
fn a_raw_request_of_several_steps_wakes_it_once() {
    let bench = Bench::new();
    bench.device.enter_low_power(None).unwrap();
    bench.seen();
    let flags = u32::from(Feature::LowPowerExit.number()) | SET.bits();
    assert_eq!(ask(&bench.device, flags | PROBE.bits(), &[], 0, &mut SparseMemory::new()), Ok(0));
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Suspend]);
    bench.device.set_irqs(0, 0, IrqAction::Trigger, IrqData::Eventfd(vec![None])).unwrap();
    assert_eq!(bench.seen(), [Seen::Resume, Seen::Suspend]);
    assert_eq!(ask(&bench.device, flags, &[], 0, &mut SparseMemory::new()), Ok(0));
    assert_eq!(bench.seen(), [Seen::Resume]);
}

#[test]
fn a_wakeup_that_is_no_eventfd_is_refused_and_the_device_stays_awake() {
    let bench = Bench::new();
    let null = std::fs::File::open("/dev/null").unwrap();
    assert_eq!(bench.device.enter_low_power(Some(null.into())), Err(Errno::EINVAL));
    bench.device.info();
    assert!(!bench.asleep());
}

#[test]
fn with_a_wakeup_eventfd_the_first_request_is_told_and_ends_it() {
    let bench = Bench::new();
    let wakeup = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    bench.device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    assert!(wakeup.read().is_err(), "not yet");
    bench.device.info();
    assert_eq!(wakeup.read().unwrap(), 1);
    assert!(!bench.asleep());
    bench.device.info();
    assert!(wakeup.read().is_err(), "once");
    assert_eq!(bench.seen(), [Seen::Suspend, Seen::Resume]);
    // The request to enter is itself one that wakes: a second one finds the first ended.
    bench.device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    bench.device.enter_low_power(None).unwrap();
    assert_eq!(wakeup.read().unwrap(), 1);
    bench.device.info();
    assert!(wakeup.read().is_err(), "the second has no eventfd");
    assert!(bench.asleep());
}

#[test]
fn leaving_with_a_wakeup_eventfd_is_a_wakeup_too() {
    let bench = Bench::new();
    let wakeup = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    bench.device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    bench.device.exit_low_power().unwrap();
    assert_eq!(wakeup.read().unwrap(), 1);
}

#[test]
fn a_device_wakes_itself_and_its_user_is_told() {
    let bench = Bench::new();
    bench.bus.wake();
    assert_eq!(bench.seen(), [], "it is awake");
    let wakeup = EventFd::new().unwrap();
    bench.device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    bench.bus.wake();
    // Waits for it.
    assert_eq!(wakeup.read().unwrap(), 1);
    assert!(!bench.asleep());
    assert_eq!(bench.seen(), [Seen::Suspend, Seen::Resume]);
}

#[test]
fn the_write_of_an_ioeventfd_does_not_wake_a_device_and_is_lost() {
    let bench = Bench::new();
    let write = |offset| IoeventfdWrite::new(0, offset, WriteWidth::Four, 1);
    let eventfds = [
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
        EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap(),
    ];
    for (offset, eventfd) in [8, 16].into_iter().zip(&eventfds) {
        bench
            .device
            .set_ioeventfd(write(offset), Some(eventfd.as_fd().try_clone_to_owned().unwrap()))
            .unwrap();
    }
    let wakeup = EventFd::new().unwrap();
    bench.device.enter_low_power(Some(wakeup.as_fd().try_clone_to_owned().unwrap())).unwrap();
    eventfds[0].write(1).unwrap();
    // Served after the write, by the same thread, which saw it later.
    bench.bus.wake();
    assert_eq!(wakeup.read().unwrap(), 1);
    eventfds[1].write(1).unwrap();
    assert_eq!(bench.written.recv().unwrap(), 16);
}

#[test]
fn the_intx_line_is_masked_while_the_device_sleeps() {
    let bench = Bench::new();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let data = IrqData::Eventfd(vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]);
    bench.device.set_irqs(0, 0, IrqAction::Trigger, data).unwrap();
    bench.device.enter_low_power(None).unwrap();
    bench.bus.interrupts().set_line(true);
    assert!(eventfd.read().is_err(), "masked");
    bench.device.exit_low_power().unwrap();
    assert_eq!(eventfd.read().unwrap(), 1);
    // What the user has masked stays masked.
    bench.bus.interrupts().set_line(false);
    bench.device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
    bench.device.set_irqs(0, 0, IrqAction::Mask, IrqData::None(1)).unwrap();
    bench.device.enter_low_power(None).unwrap();
    bench.device.exit_low_power().unwrap();
    bench.bus.interrupts().set_line(true);
    assert!(eventfd.read().is_err());
}

#[test]
fn the_intx_disable_bit_masks_the_line_and_keeps_it_masked() {
    let bench = Bench::new();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let data = IrqData::Eventfd(vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]);
    let line = bench.bus.interrupts();
    line.disable_line(true);
    bench.device.set_irqs(0, 0, IrqAction::Trigger, data).unwrap();
    line.set_line(true);
    assert!(eventfd.read().is_err());
    bench.device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
    assert!(eventfd.read().is_err(), "the bit is stronger");
    line.disable_line(false);
    assert_eq!(eventfd.read().unwrap(), 1);
}

#[test]
fn a_blocking_eventfd_that_is_full_does_not_hold_the_device_up() {
    let bench = Bench::new();
    let eventfd = EventFd::new().unwrap();
    let data = IrqData::Eventfd(vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]);
    bench.device.set_irqs(0, 0, IrqAction::Trigger, data).unwrap();
    eventfd.write(u64::MAX - 1).unwrap();
    bench.bus.interrupts().set_line(true);
    assert_eq!(eventfd.read().unwrap(), u64::MAX);
}
