//! What an open device is asked, whichever way it was opened.

use whimbrel_uapi::device::IrqSet;
use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::pci::{DeviceIoeventfd, PciHotResetInfo};
use zerocopy::IntoBytes;

use super::devices::Facts;
use super::list::*;

/// How much to ask: what all devices do alike is asked of one at length.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    All,
    Some,
}

pub(crate) fn device(list: &mut List, facts: &Facts, depth: Depth) {
    let d = File::Device(facts.slot);
    if depth == Depth::All {
        list.unknown(d, (0x3b60..0x3b6b).chain([0x3b78, 0x3b79, 0x3b7a, 0x3bff, 0x3c6b, 0]));
    }
    info(list, d, depth);
    features(list, d, depth);
    irqs(list, facts, depth);
    ioeventfds(list, facts);
    gfx(list, d);
    list.number(d, VFIO_DEVICE_RESET, 0);
    list.number(d, VFIO_DEVICE_RESET, u64::MAX);
}

/// What a user reads to find out.
pub(crate) fn info(list: &mut List, d: File, depth: Depth) {
    let all = depth == Depth::All;
    let sizes = [0, 4, 8, 15, 16, 17, 19, 20, 21, 23, 24, 32, 36, 40, 64, MAX];
    list.sizes(d, VFIO_DEVICE_GET_INFO, &[0xff; 64], &sizes, &[1, 4, 15, 16, 20, 24]);
    for index in (0..=10).chain([255, MAX]) {
        let mut region = words(&[80, 7, index, 7]);
        region.resize(80, 7);
        let sizes: &[u32] = &[0, 31, 32, 33, 39, 40, 41, 47, 48, 49, 56, 64, 80, MAX];
        let sizes = if all { sizes } else { &[31, 32, 80] };
        let cuts: &[u64] = &[1, 12, 31, 32, 36, 48];
        list.sizes(d, VFIO_DEVICE_GET_REGION_INFO, &region, sizes, if all { cuts } else { &[] });
    }
    for index in (0..=6).chain([255, MAX]) {
        let sizes: &[u32] = &[0, 12, 15, 16, 17, MAX];
        let cuts: &[u64] = &[1, 15, 16];
        let (sizes, cuts) = if all { (sizes, cuts) } else { (&[16][..], &[][..]) };
        list.sizes(d, VFIO_DEVICE_GET_IRQ_INFO, &words(&[16, 7, index, 7]), sizes, cuts);
    }
    let sizes = [0, 11, 12, 13, 19, 20, 21, 27, 28, 29, 35, 36, 37, 43, 44, 64, MAX];
    list.sizes(d, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &[0xff; 64], &sizes, &[1, 11, 12, 16, 20]);
    for (flags, count) in [(0, 0), (1, 0), (2, 5), (MAX, MAX)] {
        let head = PciHotResetInfo { argsz: 44, flags, count };
        list.add(d, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &[head.as_bytes(), &[9; 32]].concat());
    }
}

/// Low power is entered and left elsewhere.
fn features(list: &mut List, d: File, depth: Depth) {
    for index in (0..=15).chain([255, 0xffff]) {
        for directions in 0..8 {
            let flags = index | directions << 16;
            let sizes: &[u32] = if flags & SET != 0 && (3..=5).contains(&index) && directions < 4 {
                &[0, 7]
            } else if depth == Depth::All || index == 0 {
                &[0, 7, 8, 11, 12, 15, 16, 23, 24, 64]
            } else {
                &[64]
            };
            for argsz in sizes {
                list.add(d, VFIO_DEVICE_FEATURE, &feature(flags, *argsz, &[0; 56]));
            }
            if depth == Depth::All {
                list.add(d, VFIO_DEVICE_FEATURE, &feature(flags | 1 << 19, 64, &[0; 56]));
            }
        }
        list.sizes(d, VFIO_DEVICE_FEATURE, &feature(index | GET, 64, &[0; 56]), &[], &[1, 7, 8, 12]);
    }
    list.sizes(d, VFIO_DEVICE_FEATURE, &feature(SET, 64, &[0; 56]), &[], &[8, 9, 23]);
}

fn gfx(list: &mut List, d: File) {
    for flags in [0, 1, 2, 3, 4, 5, 6, 8, MAX] {
        let mut plane = words(&[64, flags, 0]);
        plane.resize(64, 0);
        list.sizes(d, VFIO_DEVICE_QUERY_GFX_PLANE, &plane, &[0, 63, 64], &[1, 63]);
    }
    for id in [0, 1, MAX] {
        list.sizes(d, VFIO_DEVICE_GET_GFX_DMABUF, &words(&[id]), &[], &[1, 4]);
    }
}

const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

struct Irqs<'a> {
    list: &'a mut List,
    file: File,
}

impl Irqs<'_> {
    fn set(&mut self, argsz: u32, flags: u32, index: u32, start: u32, count: u32, data: &[u8]) {
        let head = IrqSet { argsz, flags, index, start, count };
        self.list.add(self.file, VFIO_DEVICE_SET_IRQS, &[head.as_bytes(), data].concat());
    }

    fn eventfds(&mut self, action: u32, index: u32, start: u32, fds: &[i32]) {
        let size = 20 + 4 * fds.len() as u32;
        self.set(size, EVENTFD | action, index, start, fds.len() as u32, fds.as_bytes());
    }

    fn disable(&mut self, index: u32) {
        self.set(20, NONE | TRIGGER, index, 0, 0, &[]);
    }

    /// Every range around the `has` interrupts of an index, with each type of data.
    fn ranges(&mut self, action: u32, index: u32, has: u32, after: impl Fn(&mut Self)) {
        let mut ranges = vec![(0, 0), (0, 1), (0, has), (0, has + 1), (1, 0), (1, 1), (has, 0), (has, 1)];
        ranges.extend([(has.saturating_sub(1), 1), (0, MAX), (MAX, 1), (MAX, MAX), (1, MAX - 1)]);
        ranges.dedup();
        for (start, count) in ranges {
            let length = if count > 8 { 8 } else { count as usize };
            let fds: Vec<i32> = (EVENT..).take(length).collect();
            self.set(20, NONE | action, index, start, count, &[]);
            after(self);
            self.set(20 + length as u32, BOOL | action, index, start, count, &vec![1; length]);
            after(self);
            self.set(20 + 4 * length as u32, EVENTFD | action, index, start, count, fds.as_bytes());
            after(self);
        }
    }
}

fn irqs(list: &mut List, facts: &Facts, depth: Depth) {
    let file = File::Device(facts.slot);
    let head = IrqSet { argsz: 20, flags: NONE | TRIGGER, index: 0, start: 0, count: 1 };
    list.sizes(file, VFIO_DEVICE_SET_IRQS, head.as_bytes(), &[0, 19, 20, 21, MAX], &[1, 19, 20]);
    let head = IrqSet { argsz: 24, flags: EVENTFD | TRIGGER, index: 4, start: 0, count: 1 };
    let set = [head.as_bytes(), EVENT.as_bytes()].concat();
    list.sizes(file, VFIO_DEVICE_SET_IRQS, &set, &[0, 20, 23, 24], &[20, 21, 23]);
    let mut irqs = Irqs { list, file };
    irqs.disable(4);
    for index in [0, 4] {
        for flags in (0..64).chain([64, 128, 1 << 31, 64 + 33]).filter(|_| depth == Depth::All) {
            irqs.set(24, flags, index, 0, 1, EVENT.as_bytes());
            irqs.disable(index);
        }
    }
    for index in (0..=5).chain([MAX]) {
        let has = facts.irqs.get(index as usize).copied().unwrap_or(0);
        if depth == Depth::All {
            irqs.ranges(TRIGGER, index, has, |irqs| irqs.disable(index));
        }
        for action in [TRIGGER, MASK, UNMASK].into_iter().filter(|_| depth == Depth::All) {
            irqs.ranges(action, index, has, |_| {});
        }
        irqs.eventfds(TRIGGER, index, 0, &[EVENT]);
        irqs.ranges(TRIGGER, index, has, |_| {});
        irqs.disable(index);
    }
    for (index, has) in (0..5).zip(facts.irqs).filter(|(_, has)| *has > 0 && depth == Depth::All) {
        in_use(&mut irqs, index, has);
    }
}

/// With an index that is in use.
fn in_use(irqs: &mut Irqs<'_>, index: u32, has: u32) {
    let all: Vec<i32> = (EVENT..).take(has as usize).collect();
    for fd in [-1, -2, i32::MIN, CLOSED, OTHER, CONTAINER] {
        irqs.eventfds(TRIGGER, index, 0, &[fd]);
        irqs.disable(index);
    }
    irqs.eventfds(TRIGGER, index, 0, &all);
    for other in 0..5 {
        irqs.eventfds(TRIGGER, other, 0, &[EVENT + 7]);
        irqs.eventfds(TRIGGER, other, 0, &[-1]);
        if other != index {
            irqs.disable(other);
        }
    }
    for action in [TRIGGER, MASK, UNMASK] {
        irqs.ranges(action, index, has, |_| {});
        // Ended by NONE of none.
        irqs.eventfds(TRIGGER, index, 0, &all);
    }
    for fd in [-1, -2, CLOSED, OTHER, EVENT + 1] {
        irqs.eventfds(TRIGGER, index, 0, &[fd]);
        irqs.set(20, NONE | TRIGGER, index, 0, 1, &[]);
        irqs.set(21, BOOL | TRIGGER, index, 0, 1, &[1]);
        irqs.set(21, BOOL | TRIGGER, index, 0, 1, &[0]);
        irqs.set(21, BOOL | TRIGGER, index, 0, 1, &[2]);
        irqs.eventfds(UNMASK, index, 0, &[fd]);
        irqs.eventfds(MASK, index, 0, &[fd]);
    }
    irqs.eventfds(UNMASK, index, 0, &[-1]);
    if has > 1 {
        irqs.eventfds(TRIGGER, index, 0, &[EVENT, -1]);
        irqs.eventfds(TRIGGER, index, 1, &[EVENT + 3]);
        irqs.set(22, BOOL | TRIGGER, index, 0, 2, &[1, 1]);
        irqs.eventfds(TRIGGER, index, 0, &[EVENT, CLOSED]);
        irqs.set(20, NONE | TRIGGER, index, 0, has, &[]);
    }
    irqs.disable(index);
    irqs.disable(index);
}

fn ioeventfds(list: &mut List, facts: &Facts) {
    let d = File::Device(facts.slot);
    let good = DeviceIoeventfd { argsz: 32, flags: 1, offset: 0, data: 0x1122, fd: EVENT, reserved: 0 };
    let untie = DeviceIoeventfd { fd: -1, ..good };
    for bytes in [good, untie] {
        list.sizes(d, VFIO_DEVICE_IOEVENTFD, bytes.as_bytes(), &[0, 27, 28, 29, MAX], &[1, 27, 28]);
    }
    for flags in (0..=16).chain([32, 0x11, 1 << 31, MAX]) {
        list.add(d, VFIO_DEVICE_IOEVENTFD, DeviceIoeventfd { flags, ..good }.as_bytes());
        list.add(d, VFIO_DEVICE_IOEVENTFD, DeviceIoeventfd { flags, ..untie }.as_bytes());
    }
    for fd in [-2, i32::MIN, CLOSED, OTHER, i32::MAX] {
        list.add(d, VFIO_DEVICE_IOEVENTFD, DeviceIoeventfd { fd, ..good }.as_bytes());
        list.add(d, VFIO_DEVICE_IOEVENTFD, untie.as_bytes());
    }
    // The same write with another eventfd, and other writes at the same place.
    for (data, fd) in [(1, EVENT), (1, EVENT), (1, EVENT + 1), (2, EVENT), (1, -1), (2, -1), (3, -1)] {
        list.add(d, VFIO_DEVICE_IOEVENTFD, DeviceIoeventfd { data, fd, ..good }.as_bytes());
    }
    // An offset with the top bit makes 6.12 look outside of its table of BARs.
    for region in (0..=9u64).chain([0x7f_ffff]) {
        let size =
            usize::try_from(region).ok().and_then(|region| facts.bars.get(region)).copied().unwrap_or(0);
        let mut offsets = vec![0, 1, size.wrapping_sub(8), size.wrapping_sub(1), size];
        if let Some((bar, table, bytes)) = facts.table.filter(|(bar, ..)| u64::from(*bar) == region) {
            assert!(bar < 6);
            offsets.extend([table.wrapping_sub(8), table.wrapping_sub(1), table]);
            offsets.extend([table + bytes - 1, table + bytes]);
        }
        offsets.retain(|offset| *offset < 1 << 40);
        offsets.dedup();
        for offset in offsets {
            for flags in [1, 2, 4, 8] {
                let tie = DeviceIoeventfd { flags, offset: region << 40 | offset, ..good };
                list.add(d, VFIO_DEVICE_IOEVENTFD, tie.as_bytes());
                list.add(d, VFIO_DEVICE_IOEVENTFD, DeviceIoeventfd { fd: -1, ..tie }.as_bytes());
            }
        }
    }
}

/// Low power, with and without an eventfd that tells the end of it.
pub(crate) fn low_power(list: &mut List, facts: &Facts) {
    let slot = facts.slot;
    let d = File::Device(slot);
    let enter = |list: &mut List| list.add(d, VFIO_DEVICE_FEATURE, &feature(3 | SET, 8, &[]));
    let leave = |list: &mut List| list.add(d, VFIO_DEVICE_FEATURE, &feature(5 | SET, 8, &[]));
    let wakeup = |list: &mut List, fd: i32, reserved: u32| {
        let bytes = feature(4 | SET, 16, &words(&[fd.cast_unsigned(), reserved]));
        list.add(d, VFIO_DEVICE_FEATURE, &bytes);
        // Whether it is woken must not hang on how soon it sleeps.
        list.0.push(Step::Settle(slot));
    };
    let settle = |list: &mut List| list.0.push(Step::Settle(slot));
    leave(list);
    leave(list);
    for index in [3, 4, 5] {
        let data = words(&[EVENT.cast_unsigned(), 0]);
        let data = if index == 4 { &data[..] } else { &[] };
        for argsz in [0, 7, 8, 9, 15, 16, 17, 64] {
            let mut padded = data.to_vec();
            padded.resize(56, 0);
            list.add(d, VFIO_DEVICE_FEATURE, &feature(index | SET, argsz, &padded));
            settle(list);
            leave(list);
        }
        let size = 8 + data.len() as u32;
        let bytes = feature(index | SET, size, data);
        list.sizes(d, VFIO_DEVICE_FEATURE, &bytes, &[], &[1, 7, 8, 12, 15, 16]);
        settle(list);
        leave(list);
    }
    for fd in [-1, -2, i32::MIN, CLOSED, OTHER, CONTAINER, EVENT] {
        for reserved in [0, 1, MAX] {
            wakeup(list, fd, reserved);
            leave(list);
        }
    }
    // Entered twice; asked something in between.
    for asleep in [false, true] {
        enter(list);
        if asleep {
            settle(list);
        }
        enter(list);
        wakeup(list, EVENT, 0);
        list.add(d, VFIO_DEVICE_GET_IRQ_INFO, &words(&[16, 0, 0, 0]));
        enter(list);
        leave(list);
        leave(list);
    }
    // What wakes it tells the eventfd, once; and then it is awake.
    for request in [VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_RESET, VFIO_DEVICE_QUERY_GFX_PLANE] {
        wakeup(list, EVENT + 1, 0);
        list.add(d, request, &words(&[16, 0, 0, 0]));
        list.add(d, request, &words(&[16, 0, 0, 0]));
        enter(list);
        leave(list);
    }
    wakeup(list, EVENT + 2, 0);
    leave(list);
    wakeup(list, EVENT + 2, 0);
    wakeup(list, EVENT + 3, 0);
    enter(list);
    leave(list);
    // An interrupt's set-up in low power.
    enter(list);
    settle(list);
    let head = IrqSet { argsz: 24, flags: EVENTFD | TRIGGER, index: 4, start: 0, count: 1 };
    list.add(d, VFIO_DEVICE_SET_IRQS, &[head.as_bytes(), EVENT.as_bytes()].concat());
    leave(list);
}
