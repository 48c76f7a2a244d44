//! VFIO_DEVICE_SET_IRQS with real eventfds: the order of checks, each data type with each action, and both ways to ask.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;
use whimbrel_device::{
    Bus, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, InUse,
    Info, InterruptsInUse, Irq, IrqAction, IrqData, IrqInfoFlags, SparseMemory, Translation,
};
use whimbrel_uapi::device::{IrqSet, IrqSetFlags};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::VFIO_DEVICE_SET_IRQS;
use zerocopy::IntoBytes;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const ERR: u32 = 3;
const REQ: u32 = 4;

const NONE: u32 = IrqSetFlags::DATA_NONE.bits();
const BOOL: u32 = IrqSetFlags::DATA_BOOL.bits();
const EVENTFD: u32 = IrqSetFlags::DATA_EVENTFD.bits();
const MASK: u32 = IrqSetFlags::ACTION_MASK.bits();
const UNMASK: u32 = IrqSetFlags::ACTION_UNMASK.bits();
const TRIGGER: u32 = IrqSetFlags::ACTION_TRIGGER.bits();

/// Interrupts of MSI and of MSI-X.
const MESSAGES: u32 = 4;

/// A device with every kind of interrupt.
struct Card {
    flags: DeviceInfoFlags,
    dynamic: bool,
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(self.flags | DeviceInfoFlags::RESET).num_irqs(6)
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let (more, count) = match index {
            INTX => (IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED, 1),
            MSIX if self.dynamic => (IrqInfoFlags::empty(), MESSAGES),
            MSI | MSIX => (IrqInfoFlags::NORESIZE, MESSAGES),
            ERR | REQ => (IrqInfoFlags::NORESIZE, 1),
            _ => return Err(Errno::EINVAL),
        };
        Ok(Irq::new(IrqInfoFlags::EVENTFD | more, count))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

/// A device, and a process that holds eventfds.
struct Opened {
    bus: Bus,
    device: DeviceFile,
    process: SparseMemory,
}

const AT: u64 = 0x1000;

fn open_with(flags: DeviceInfoFlags, dynamic: bool) -> Opened {
    let device = DeviceFile::new("card", |_| Card { flags, dynamic });
    Opened { bus: device.bus().clone(), device, process: SparseMemory::new() }
}

fn open() -> Opened {
    open_with(DeviceInfoFlags::PCI, false)
}

impl Opened {
    fn eventfd(&mut self) -> (i32, Arc<EventFd>) {
        let eventfd = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        (self.process.insert_eventfd(eventfd.as_fd().try_clone_to_owned().unwrap()), eventfd)
    }

    fn raw(&mut self, head: IrqSet, data: &[u8]) -> Result<i32, Errno> {
        self.process.insert(AT, [head.as_bytes(), data].concat());
        self.device.ioctl(VFIO_DEVICE_SET_IRQS.number(), AT, &mut self.process)
    }

    fn set(&mut self, flags: u32, index: u32, start: u32, count: u32, data: &[u8]) -> Result<(), Errno> {
        let argsz = 20 + data.len() as u32;
        self.raw(IrqSet { argsz, flags, index, start, count }, data).map(|value| assert_eq!(value, 0))
    }

    fn tie(&mut self, index: u32, start: u32, fds: &[i32]) -> Result<(), Errno> {
        self.set(EVENTFD | TRIGGER, index, start, fds.len() as u32, fds.as_bytes())
    }

    fn done(&mut self, flags: u32, index: u32) -> Result<(), Errno> {
        self.set(flags, index, 0, 1, if flags & BOOL == 0 { &[] } else { &[1] })
    }
}

fn signals(eventfd: &EventFd) -> u64 {
    eventfd.read().unwrap_or(0)
}

#[test]
fn a_request_is_checked_before_anything_is_done() {
    let head = IrqSet { argsz: 24, flags: EVENTFD | TRIGGER, index: MSI, start: 0, count: 1 };
    let max = u32::MAX;
    let cases = [
        ("argsz", IrqSet { argsz: 19, ..head }, Err(Errno::EINVAL)),
        ("argsz before the action", IrqSet { argsz: 19, flags: EVENTFD, ..head }, Err(Errno::EINVAL)),
        ("an index that is not there", IrqSet { index: 6, ..head }, Err(Errno::EINVAL)),
        ("an index without interrupts", IrqSet { index: 5, ..head }, Err(Errno::EINVAL)),
        ("a huge index", IrqSet { index: max, ..head }, Err(Errno::EINVAL)),
        ("an unknown flag", IrqSet { flags: EVENTFD | TRIGGER | 0x40, ..head }, Err(Errno::EINVAL)),
        ("the highest flag", IrqSet { flags: EVENTFD | TRIGGER | 1 << 31, ..head }, Err(Errno::EINVAL)),
        ("a start past the end", IrqSet { start: MESSAGES, count: 0, ..head }, Err(Errno::EINVAL)),
        ("an end past the end", IrqSet { start: 3, count: 2, argsz: 28, ..head }, Err(Errno::EINVAL)),
        ("an end that overflows", IrqSet { start: 1, count: max, ..head }, Err(Errno::EINVAL)),
        ("a count that overflows", IrqSet { count: max, ..head }, Err(Errno::EINVAL)),
        ("a start that overflows", IrqSet { start: max, count: 1, ..head }, Err(Errno::EINVAL)),
        ("no data type", IrqSet { flags: TRIGGER, ..head }, Err(Errno::EINVAL)),
        ("two data types", IrqSet { flags: EVENTFD | BOOL | TRIGGER, ..head }, Err(Errno::EINVAL)),
        ("data types before the action", IrqSet { flags: EVENTFD | BOOL, ..head }, Err(Errno::EINVAL)),
        ("too little data", IrqSet { argsz: 23, ..head }, Err(Errno::EINVAL)),
        (
            "too little data before the action",
            IrqSet { argsz: 23, flags: EVENTFD, ..head },
            Err(Errno::EINVAL),
        ),
        (
            "bad memory before the action",
            IrqSet { argsz: 28, count: 2, flags: EVENTFD, ..head },
            Err(Errno::EFAULT),
        ),
        ("no action", IrqSet { flags: EVENTFD, ..head }, Err(Errno::ENOTTY)),
        ("two actions", IrqSet { flags: EVENTFD | MASK | TRIGGER, ..head }, Err(Errno::ENOTTY)),
        ("the action before the descriptor", IrqSet { flags: EVENTFD | MASK, ..head }, Err(Errno::ENOTTY)),
        ("a number without a descriptor", head, Err(Errno::EBADF)),
    ];
    for (what, head, expected) in cases {
        assert_eq!(open().raw(head, &77_i32.to_ne_bytes()), expected, "{what}");
    }
    let mut opened = open();
    opened.process.insert(AT, [0; 19]);
    let result = opened.device.ioctl(VFIO_DEVICE_SET_IRQS.number(), AT, &mut opened.process);
    assert_eq!(result, Err(Errno::EFAULT), "the fault before argsz");
}

#[test]
fn data_that_is_longer_than_needed_is_not_looked_at() {
    let mut opened = open();
    let (fd, eventfd) = opened.eventfd();
    let head = IrqSet { argsz: u32::MAX, flags: EVENTFD | TRIGGER, index: MSI, start: 0, count: 1 };
    assert_eq!(opened.raw(head, fd.as_bytes()), Ok(0));
    opened.bus.interrupts().trigger(MSI, 0);
    assert_eq!(signals(&eventfd), 1);
}

/// What one request does to an index: before it is set up, and then.
#[test]
fn every_data_type_with_every_action_on_every_index() {
    let (inval, notty) = (Err(Errno::EINVAL), Err(Errno::ENOTTY));
    // Index, flags, before, after, signals that come of it after.
    let cases = [
        (INTX, NONE | MASK, inval, Ok(()), 0),
        (INTX, BOOL | MASK, inval, Ok(()), 0),
        (INTX, EVENTFD | MASK, inval, notty, 0),
        (INTX, NONE | UNMASK, inval, Ok(()), 0),
        (INTX, BOOL | UNMASK, inval, Ok(()), 0),
        (INTX, EVENTFD | UNMASK, inval, Ok(()), 0),
        (INTX, NONE | TRIGGER, inval, Ok(()), 1),
        (INTX, BOOL | TRIGGER, inval, Ok(()), 1),
        (INTX, EVENTFD | TRIGGER, Ok(()), Ok(()), 0),
        (MSI, NONE | MASK, notty, notty, 0),
        (MSI, BOOL | MASK, notty, notty, 0),
        (MSI, EVENTFD | MASK, notty, notty, 0),
        (MSI, NONE | UNMASK, notty, notty, 0),
        (MSI, BOOL | UNMASK, notty, notty, 0),
        (MSI, EVENTFD | UNMASK, notty, notty, 0),
        (MSI, NONE | TRIGGER, inval, Ok(()), 1),
        (MSI, BOOL | TRIGGER, inval, Ok(()), 1),
        (MSI, EVENTFD | TRIGGER, Ok(()), Ok(()), 0),
        (MSIX, NONE | MASK, notty, notty, 0),
        (MSIX, EVENTFD | UNMASK, notty, notty, 0),
        (MSIX, NONE | TRIGGER, inval, Ok(()), 1),
        (MSIX, BOOL | TRIGGER, inval, Ok(()), 1),
        (MSIX, EVENTFD | TRIGGER, Ok(()), Ok(()), 0),
        (ERR, NONE | MASK, notty, notty, 0),
        (ERR, BOOL | UNMASK, notty, notty, 0),
        (ERR, NONE | TRIGGER, inval, Ok(()), 1),
        (ERR, BOOL | TRIGGER, Ok(()), Ok(()), 1),
        (ERR, EVENTFD | TRIGGER, Ok(()), Ok(()), 0),
        (REQ, NONE | UNMASK, notty, notty, 0),
        (REQ, EVENTFD | MASK, notty, notty, 0),
        (REQ, NONE | TRIGGER, inval, Ok(()), 1),
        (REQ, BOOL | TRIGGER, Ok(()), Ok(()), 1),
        (REQ, EVENTFD | TRIGGER, Ok(()), Ok(()), 0),
    ];
    for (index, flags, before, after, fires) in cases {
        for set_up in [false, true] {
            let mut opened = open();
            let (fd, eventfd) = opened.eventfd();
            let (other, _other) = opened.eventfd();
            if set_up {
                opened.tie(index, 0, &[fd]).unwrap();
            }
            let got = if flags & EVENTFD == 0 {
                opened.done(flags, index)
            } else {
                opened.set(flags, index, 0, 1, other.as_bytes())
            };
            let expected = if set_up { after } else { before };
            assert_eq!(got, expected, "index {index}, flags {flags:#x}, set up: {set_up}");
            assert_eq!(signals(&eventfd), if set_up { fires } else { 0 }, "index {index}, flags {flags:#x}");
        }
    }
}

#[test]
fn one_of_intx_msi_and_msix_is_in_use_and_the_others_wait_for_its_end() {
    for active in [INTX, MSI, MSIX] {
        let mut opened = open();
        let (fd, eventfd) = opened.eventfd();
        opened.tie(active, 0, &[fd]).unwrap();
        for other in [INTX, MSI, MSIX].into_iter().filter(|other| *other != active) {
            assert_eq!(opened.tie(other, 0, &[fd]), Err(Errno::EINVAL), "{other} while {active}");
            assert_eq!(opened.done(NONE | TRIGGER, other), Err(Errno::EINVAL), "{other} while {active}");
            let end = opened.set(NONE | TRIGGER, other, 0, 0, &[]);
            assert_eq!(end, Err(Errno::EINVAL), "the end of {other} while {active}");
        }
        // Both are apart from it.
        opened.tie(ERR, 0, &[fd]).unwrap();
        opened.tie(REQ, 0, &[fd]).unwrap();
        assert_eq!(opened.set(NONE | TRIGGER, active, 0, 0, &[]), Ok(()));
        opened.bus.interrupts().set_line(true);
        opened.bus.interrupts().trigger(MSI, 0);
        opened.bus.interrupts().trigger(MSIX, 0);
        assert_eq!(signals(&eventfd), 0, "{active} has ended");
        opened.bus.interrupts().set_line(false);
        for next in [INTX, MSI, MSIX] {
            assert_eq!(opened.tie(next, 0, &[fd]), Ok(()), "{next} after {active}");
            assert_eq!(opened.set(NONE | TRIGGER, next, 0, 0, &[]), Ok(()));
        }
    }
}

#[test]
fn only_a_dynamic_msix_grows_beyond_its_first_use() {
    for (index, dynamic, grows) in [(MSI, true, false), (MSIX, false, false), (MSIX, true, true)] {
        let mut opened = open_with(DeviceInfoFlags::PCI, dynamic);
        let (fd, eventfd) = opened.eventfd();
        opened.tie(index, 0, &[fd, -1]).unwrap();
        assert_eq!(opened.tie(index, 1, &[fd]), Ok(()), "within the first use");
        assert_eq!(opened.tie(index, 2, &[-1]), Ok(()), "nothing can be taken away anywhere");
        let expected = if grows { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(opened.tie(index, 1, &[-1, fd]), expected, "index {index}, dynamic: {dynamic}");
        for interrupt in 0..MESSAGES {
            opened.bus.interrupts().trigger(index, interrupt);
        }
        assert_eq!(signals(&eventfd), if grows { 2 } else { 1 }, "index {index}, dynamic: {dynamic}");
    }
}

#[test]
fn a_block_that_fails_leaves_nothing_of_what_it_had_reached() {
    let mut opened = open();
    let (fd, eventfd) = opened.eventfd();
    assert_eq!(opened.tie(MSI, 0, &[fd, 77]), Err(Errno::EBADF));
    opened.tie(INTX, 0, &[fd]).expect("MSI did not stay enabled");
    opened.set(NONE | TRIGGER, INTX, 0, 0, &[]).unwrap();

    opened.tie(MSI, 0, &[fd, fd, fd, fd]).unwrap();
    assert_eq!(opened.tie(MSI, 1, &[fd, 77]), Err(Errno::EBADF));
    for interrupt in 0..MESSAGES {
        opened.bus.interrupts().trigger(MSI, interrupt);
    }
    assert_eq!(signals(&eventfd), 2, "the first and the last are as before");
}

#[test]
fn numbers_below_minus_one_are_refused_where_the_kernel_does() {
    for (index, expected) in
        [(INTX, Ok(())), (MSI, Ok(())), (ERR, Err(Errno::EINVAL)), (REQ, Err(Errno::EINVAL))]
    {
        assert_eq!(open().tie(index, 0, &[-2]), expected, "index {index}");
    }
}

#[test]
fn msi_cannot_begin_with_no_interrupt_at_all() {
    let mut opened = open();
    assert_eq!(opened.tie(MSI, 0, &[]), Err(Errno::ERANGE));
    assert_eq!(opened.tie(MSI, 2, &[]), Ok(()), "those before the start are set up");
    assert_eq!(opened.tie(INTX, 0, &[-1]), Err(Errno::EINVAL), "MSI is in use");
}

#[test]
fn err_and_req_end_once() {
    for index in [ERR, REQ] {
        let mut opened = open();
        let (fd, eventfd) = opened.eventfd();
        assert_eq!(opened.set(NONE | TRIGGER, index, 0, 0, &[]), Err(Errno::EINVAL), "nothing to end");
        opened.tie(index, 0, &[fd]).unwrap();
        opened.bus.interrupts().trigger(index, 0);
        assert_eq!(signals(&eventfd), 1);
        assert_eq!(opened.set(BOOL | TRIGGER, index, 0, 0, &[]), Err(Errno::EINVAL));
        assert_eq!(opened.tie(index, 0, &[]), Err(Errno::EINVAL));
        assert_eq!(opened.set(NONE | TRIGGER, index, 0, 0, &[]), Ok(()));
        opened.bus.interrupts().trigger(index, 0);
        assert_eq!(signals(&eventfd), 0);
        assert_eq!(opened.set(NONE | TRIGGER, index, 0, 0, &[]), Err(Errno::EINVAL));
    }
}

#[test]
fn a_line_is_told_once_and_again_after_each_unmasking_while_it_is_asserted() {
    let mut opened = open();
    let (fd, eventfd) = opened.eventfd();
    let interrupts = opened.bus.clone();
    let interrupts = interrupts.interrupts();
    interrupts.set_line(true);
    opened.tie(INTX, 0, &[fd]).unwrap();
    assert_eq!(signals(&eventfd), 1, "asserted before it was set up");
    interrupts.set_line(true);
    assert_eq!(signals(&eventfd), 0, "it has masked itself");
    opened.done(BOOL | UNMASK, INTX).unwrap();
    assert_eq!(signals(&eventfd), 1, "still asserted");
    interrupts.set_line(false);
    opened.done(NONE | UNMASK, INTX).unwrap();
    assert_eq!(signals(&eventfd), 0, "no longer asserted");
    opened.done(NONE | MASK, INTX).unwrap();
    interrupts.set_line(true);
    assert_eq!(signals(&eventfd), 0, "masked by the user");
    opened.set(BOOL | UNMASK, INTX, 0, 1, &[0]).unwrap();
    assert_eq!(signals(&eventfd), 0, "false unmasks nothing");
    opened.done(NONE | UNMASK, INTX).unwrap();
    assert_eq!(signals(&eventfd), 1, "kept while it was masked");
    opened.done(NONE | TRIGGER, INTX).unwrap();
    assert_eq!(signals(&eventfd), 1, "the loopback passes the mask");
}

#[test]
fn a_signalled_eventfd_unmasks_a_line() {
    let mut opened = open();
    let (trigger, _) = opened.eventfd();
    // One that blocks, to be told by it.
    let told = Arc::new(EventFd::new().unwrap());
    let told_fd = opened.process.insert_eventfd(told.as_fd().try_clone_to_owned().unwrap());
    let (unmask_fd, unmask) = opened.eventfd();
    opened.tie(INTX, 0, &[told_fd]).unwrap();
    let tie = |opened: &mut Opened, fd: i32| opened.set(EVENTFD | UNMASK, INTX, 0, 1, fd.as_bytes());
    assert_eq!(tie(&mut opened, 77), Err(Errno::EBADF));
    assert_eq!(tie(&mut opened, unmask_fd), Ok(()));
    assert_eq!(tie(&mut opened, trigger), Err(Errno::EBUSY));
    assert_eq!(tie(&mut opened, 77), Err(Errno::EBADF), "the descriptor before the one that is there");
    opened.bus.interrupts().set_line(true);
    assert_eq!(told.read().unwrap(), 1);
    for _ in 0..100 {
        unmask.write(1).unwrap();
        assert_eq!(told.read().unwrap(), 1, "still asserted");
    }
    assert_eq!(signals(&unmask), 0, "the device has read it");
    assert_eq!(tie(&mut opened, -1), Ok(()));
    // The next one counts also if it was signalled before it was tied.
    let (next_fd, next) = opened.eventfd();
    next.write(1).unwrap();
    assert_eq!(tie(&mut opened, next_fd), Ok(()));
    assert_eq!(told.read().unwrap(), 1);
    assert_eq!(opened.set(NONE | TRIGGER, INTX, 0, 0, &[]), Ok(()));
    // The end of the index is the end of it too.
    opened.tie(INTX, 0, &[-1]).unwrap();
    assert_eq!(tie(&mut opened, unmask_fd), Ok(()), "nothing is in the way");
}

#[test]
fn a_reset_leaves_what_the_user_has_set_up() {
    let mut opened = open();
    let (fd, eventfd) = opened.eventfd();
    opened.tie(INTX, 0, &[fd]).unwrap();
    opened.done(NONE | MASK, INTX).unwrap();
    opened.device.reset().unwrap();
    opened.bus.interrupts().set_line(true);
    assert_eq!(signals(&eventfd), 0, "still masked");
    opened.done(NONE | UNMASK, INTX).unwrap();
    assert_eq!(signals(&eventfd), 1, "still tied");
}

#[test]
fn the_last_close_of_a_device_ends_what_its_user_has_set_up() {
    let flags = DeviceInfoFlags::PCI;
    let device = DeviceFile::new("card", |_| Card { flags, dynamic: false });
    let bus = device.bus().clone();
    let group = Group::new(Translation::Emulated, vec![device]).unwrap().open().unwrap();
    let container = Container::new(ContainerSettings::default());
    group.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let tie = |device: &DeviceFile, index| {
        device.set_irq_triggers(index, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())])
    };
    let (first, second) = (group.device("card").unwrap(), group.device("card").unwrap());
    tie(&first, MSI).unwrap();
    tie(&first, REQ).unwrap();
    drop(first);
    bus.interrupts().trigger(MSI, 0);
    assert_eq!(signals(&eventfd), 1, "another descriptor is open");
    drop(second);
    bus.interrupts().trigger(MSI, 0);
    bus.interrupts().trigger(REQ, 0);
    assert_eq!(signals(&eventfd), 0);
    assert_eq!(tie(&group.device("card").unwrap(), INTX), Ok(()), "nothing is in use");
}

#[test]
fn indices_of_another_bus_do_not_know_of_each_other() {
    let mut opened = open_with(DeviceInfoFlags::PLATFORM, false);
    let (fd, eventfd) = opened.eventfd();
    for index in [0, 3, 4] {
        opened.tie(index, 0, &[fd]).unwrap();
        opened.bus.interrupts().trigger(index, 0);
        assert_eq!(opened.done(NONE | MASK, index), Err(Errno::ENOTTY));
    }
    assert_eq!(signals(&eventfd), 3);
}

/// A request that can be made both ways.
#[derive(Clone, Debug)]
struct Asked {
    index: u32,
    start: u32,
    action: IrqAction,
    data: AskedData,
}

/// Eventfds by their place in a table.
#[derive(Clone, Debug)]
enum AskedData {
    None(u32),
    Bool(Vec<bool>),
    Eventfd(Vec<Option<usize>>),
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Asked),
    Line(bool),
    Message(u32, u32),
    Reset,
}

const EVENTFDS: usize = 3;

fn asked() -> impl Strategy<Value = Asked> {
    let action = prop_oneof![
        Just(IrqAction::Mask),
        Just(IrqAction::Unmask),
        Just(IrqAction::Trigger),
        Just(IrqAction::Trigger)
    ];
    let eventfds = prop::collection::vec(prop::option::of(0..EVENTFDS), 0..4);
    let data = prop_oneof![
        prop_oneof![0..4_u32, Just(u32::MAX)].prop_map(AskedData::None),
        prop::collection::vec(any::<bool>(), 0..4).prop_map(AskedData::Bool),
        eventfds.prop_map(AskedData::Eventfd),
    ];
    let start = prop_oneof![4 => Just(0), 1 => 1..5_u32, 1 => Just(u32::MAX)];
    (0..7_u32, start, action, data)
        .prop_map(|(index, start, action, data)| Asked { index, start, action, data })
        // An eventfd that unmasks acts a moment later: that is tested by itself.
        .prop_filter("no unmask eventfd", |asked| {
            !matches!((asked.action, &asked.data), (IrqAction::Unmask, AskedData::Eventfd(_)))
        })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => asked().prop_map(Step::Ask),
        2 => any::<bool>().prop_map(Step::Line),
        2 => (0..5_u32, 0..MESSAGES).prop_map(|(index, interrupt)| Step::Message(index, interrupt)),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..40)
}

fn ask_typed(device: &DeviceFile, asked: &Asked, table: &[Arc<EventFd>]) -> Result<(), Errno> {
    let data = match &asked.data {
        AskedData::None(count) => IrqData::None(*count),
        AskedData::Bool(items) => IrqData::Bool(items.clone()),
        AskedData::Eventfd(items) => IrqData::Eventfd(
            items
                .iter()
                .map(|item| item.map(|place| table[place].as_fd().try_clone_to_owned().unwrap()))
                .collect(),
        ),
    };
    device.set_irqs(asked.index, asked.start, asked.action, data)
}

fn ask_raw(opened: &mut Opened, asked: &Asked, fds: &[i32]) -> Result<(), Errno> {
    let action = match asked.action {
        IrqAction::Mask => MASK,
        IrqAction::Unmask => UNMASK,
        IrqAction::Trigger => TRIGGER,
    };
    let (flag, count, data) = match &asked.data {
        AskedData::None(count) => (NONE, *count, Vec::new()),
        AskedData::Bool(items) => {
            (BOOL, items.len() as u32, items.iter().map(|item| u8::from(*item)).collect())
        }
        AskedData::Eventfd(items) => {
            let fds: Vec<i32> = items.iter().map(|item| item.map_or(-1, |place| fds[place])).collect();
            (EVENTFD, items.len() as u32, fds.as_bytes().to_vec())
        }
    };
    opened.set(flag | action, asked.index, asked.start, count, &data)
}

proptest! {
    #[test]
    fn typed_and_raw_requests_agree(dynamic: bool, steps in steps()) {
        let mut raw = open_with(DeviceInfoFlags::PCI, dynamic);
        let typed = open_with(DeviceInfoFlags::PCI, dynamic);
        let (fds, raw_table): (Vec<_>, Vec<_>) = (0..EVENTFDS).map(|_| raw.eventfd()).unzip();
        let table: Vec<_> = (0..EVENTFDS).map(|_| Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap())).collect();
        for step in steps {
            match &step {
                Step::Ask(asked) => {
                    let got = ask_raw(&mut raw, asked, &fds);
                    prop_assert_eq!(got, ask_typed(&typed.device, asked, &table), "{:?}", &step);
                }
                Step::Line(asserted) => {
                    raw.bus.interrupts().set_line(*asserted);
                    typed.bus.interrupts().set_line(*asserted);
                }
                Step::Message(index, interrupt) => {
                    raw.bus.interrupts().trigger(*index, *interrupt);
                    typed.bus.interrupts().trigger(*index, *interrupt);
                }
                Step::Reset => prop_assert_eq!(raw.device.reset(), typed.device.reset()),
            }
            for (one, other) in raw_table.iter().zip(&table) {
                prop_assert_eq!(signals(one), signals(other), "{:?}", &step);
            }
        }
    }
}

#[test]
fn a_descriptor_that_is_no_eventfd_is_refused_where_it_would_be_used() {
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let device = open().device;
    for index in 0..5 {
        let refused = device.set_irq_triggers(index, 0, vec![Some(null())]);
        assert_eq!(refused, Err(Errno::EINVAL), "index {index}");
    }
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    device.set_irq_triggers(1, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    assert_eq!(device.set_irq_triggers(1, 1, vec![Some(null())]), Err(Errno::EINVAL));
    device.set_irqs(1, 0, IrqAction::Trigger, IrqData::None(1)).unwrap();
    assert_eq!(signals(&eventfd), 1, "what was set up before stays");
    device.set_irqs(1, 0, IrqAction::Trigger, IrqData::None(0)).unwrap();
    let active = InUse::Messages { index: 1, allocated: 1, eventfds: vec![(0, null())] };
    let in_use = InterruptsInUse::new(active, vec![]);
    assert_eq!(device.restore_interrupts(in_use), Err(Errno::EINVAL));
}
