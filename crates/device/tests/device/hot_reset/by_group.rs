//! A device that is open through its group: neighbours are told by group, and the caller shows the groups.

use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{DeviceInfoFlags, Errno, PciDependentDevice, PciHotResetFlags};
use zerocopy::IntoBytes;

use super::support::{Machine, device, pci, raw_info, raw_reset};

#[test]
fn the_neighbours_are_told_by_group_and_address() {
    let machine = Machine::new(true);
    let info = machine.device.hot_reset_info().unwrap();
    assert_eq!(info.flags, PciHotResetFlags::empty());
    let told = |group_id, bus, devfn| PciDependentDevice { group_id, segment: 0, bus, devfn };
    assert_eq!(info.devices, [told(7, 1, 0), told(8, 1, 1), told(9, 2, 0xff)]);
}

#[test]
fn the_information_is_checked_in_the_kernels_order() {
    let machine = Machine::new(false);
    let devices = [[7u32, 1 << 16].as_bytes(), &[8, 0, 0, 0, 0, 0, 1, 1]].concat();
    let head = |argsz: u32, flags: u32, count: u32| [argsz, flags, count].as_bytes().to_vec();
    let junk = |argsz, size: usize| [head(argsz, 0xdead, 0xbeef), vec![0xee; size - 12]].concat();
    let untouched = |argsz, size, errno| (junk(argsz, size), Err(errno), junk(argsz, size));
    let too_small = |argsz, size| {
        (junk(argsz, size), Err(Errno::ENOSPC), [head(argsz, 0, 2), vec![0xee; size - 12]].concat())
    };
    let cases = [
        (junk(28, 12)[..11].to_vec(), Err(Errno::EFAULT), junk(28, 12)[..11].to_vec()),
        untouched(0, 12, Errno::EINVAL),
        untouched(11, 28, Errno::EINVAL),
        too_small(12, 28),
        too_small(27, 28),
        too_small(12, 12),
        // Devices first, as far as there is memory, then the head.
        untouched(28, 12, Errno::EFAULT),
        (junk(28, 15), Err(Errno::EFAULT), [&junk(28, 12)[..], &devices[..3]].concat()),
        (junk(28, 27), Err(Errno::EFAULT), [&junk(28, 12)[..], &devices[..15]].concat()),
        (junk(28, 28), Ok(0), [head(28, 0, 2), devices.clone()].concat()),
        (junk(u32::MAX, 30), Ok(0), [head(u32::MAX, 0, 2), devices, vec![0xee; 2]].concat()),
    ];
    for (bytes, result, after) in cases {
        let argsz = bytes[..4].to_vec();
        let size = bytes.len();
        assert_eq!(raw_info(&machine.device, &bytes), (result, after), "argsz {argsz:?}, {size} bytes");
    }
}

#[test]
fn a_device_that_is_not_pci_knows_neither_request_and_one_in_no_set_cannot_be_reset() {
    let (platform, _) = device("platform", DeviceInfoFlags::PLATFORM);
    let (alone, _) = pci("alone");
    let mut process = whimbrel_device::SparseMemory::new();
    for (device, errno) in [(&platform, Errno::ENOTTY), (&alone, Errno::ENODEV)] {
        let ask = [100u32, 0, 0, 0, 0].as_bytes().to_vec();
        assert_eq!(raw_info(device, &ask), (Err(errno), ask));
        assert_eq!(device.hot_reset_info(), Err(errno));
        assert_eq!(raw_reset(device, &mut process, &[16, 0, 1, 3]), Err(errno));
    }
    // What is wrong with the request itself is seen before that.
    assert_eq!(raw_info(&alone, &[11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).0, Err(Errno::EINVAL));
    assert_eq!(raw_reset(&alone, &mut process, &[16, 1, 1, 3]), Err(Errno::EINVAL));
    assert_eq!(raw_reset(&alone, &mut process, &[16, 0, 0, 3]), Err(Errno::EINVAL));
    assert_eq!(alone.hot_reset(&[]), Err(Errno::EINVAL));
}

#[test]
fn a_reset_is_checked_in_the_kernels_order() {
    let mut machine = Machine::new(false);
    let process = &mut machine.process;
    let [first, second] = machine.groups.clone().map(|group| process.insert_group(group));
    let eventfd = process.insert_eventfd(OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()));
    let closed = 999;
    let cases: [(&str, &[i32], Result<i32, Errno>); 18] = [
        ("no whole head", &[20, 0], Err(Errno::EFAULT)),
        ("a size below the head", &[11, 0, 2, first, second], Err(Errno::EINVAL)),
        ("any flag", &[20, 1, 2, first, second], Err(Errno::EINVAL)),
        ("the last flag", &[20, i32::MIN, 2, first, second], Err(Errno::EINVAL)),
        ("no groups", &[20, 0, 0, first, second], Err(Errno::EINVAL)),
        ("more groups than functions", &[24, 0, 3, first, second, second], Err(Errno::EINVAL)),
        ("far more", &[24, 0, i32::MAX, first, second], Err(Errno::EINVAL)),
        ("the most there can be", &[24, 0, -1, first, second], Err(Errno::EINVAL)),
        ("half a list", &[20, 0, 2, first], Err(Errno::EFAULT)),
        ("a closed descriptor", &[20, 0, 2, closed, eventfd], Err(Errno::EBADF)),
        ("another kind of file, before that", &[20, 0, 2, eventfd, closed], Err(Errno::EINVAL)),
        ("a closed descriptor, at the end", &[20, 0, 2, first, closed], Err(Errno::EBADF)),
        ("a negative one", &[20, 0, 2, first, -1], Err(Errno::EBADF)),
        ("one group alone", &[20, 0, 1, first], Err(Errno::EINVAL)),
        ("the other alone", &[20, 0, 1, second], Err(Errno::EINVAL)),
        ("one of them twice", &[20, 0, 2, first, first], Err(Errno::EINVAL)),
        // The list is not held against `argsz`.
        ("both", &[12, 0, 2, second, first], Ok(0)),
        ("both again", &[i32::MAX, 0, 2, first, second], Ok(0)),
    ];
    for (name, words, expected) in cases {
        let before = machine.resets[0].count().1;
        assert_eq!(raw_reset(&machine.device, process, words), expected, "{name}");
        let resets = u32::from(expected.is_ok());
        for counts in &machine.resets {
            assert_eq!(counts.count(), (0, before + resets), "{name}");
        }
    }
}

#[test]
fn both_functions_of_a_card_are_reset_though_only_one_is_open() {
    let machine = Machine::new(false);
    machine.device.hot_reset(&machine.groups).unwrap();
    assert_eq!(machine.resets.clone().map(|resets| resets.count()), [(0, 1), (0, 1)]);
}

#[test]
fn a_function_that_vfio_does_not_drive_is_told_and_keeps_the_bus_from_being_reset() {
    let machine = Machine::new(true);
    assert_eq!(machine.device.hot_reset(&machine.groups), Err(Errno::EINVAL));
    assert_eq!(machine.resets.clone().map(|resets| resets.count()), [(0, 0), (0, 0)]);
}

#[test]
fn a_group_that_has_nothing_to_do_with_the_bus_does_no_harm_and_does_not_help() {
    let mut machine = Machine::new(false);
    let (other, _) = pci("other");
    let other = whimbrel_device::Group::new(whimbrel_device::Translation::Emulated, vec![other]).unwrap();
    let other = machine.process.insert_group(other.open().unwrap());
    let [first, second] = machine.groups.clone().map(|group| machine.process.insert_group(group));
    let mut reset = |words: &[i32]| raw_reset(&machine.device, &mut machine.process, words);
    assert_eq!(reset(&[20, 0, 2, first, other]), Err(Errno::EINVAL));
    assert_eq!(reset(&[20, 0, 2, first, second]), Ok(0));
}
