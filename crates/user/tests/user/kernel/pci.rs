//! The setup of a network card that vfio-pci holds, an e1000e as the lab emulates it: it comes back after a reset, and on
//! a device that was opened anew, and the card's interrupt arrives.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use whimbrel_user::kernel::Group;
use whimbrel_user::{Device, DeviceSetup, Migratable};

const CARD: &str = "0000:01:00.0";
const REGISTERS: u32 = 0;
const CONFIG: u32 = 7;
const MSI: u32 = 1;

const COMMAND: u64 = 0x04;
/// Memory space and bus master.
const ENABLED: u16 = 0x0006;

/// The card's registers: cause set, mask set, cause read.
const ICS: u64 = 0xc8;
const IMS: u64 = 0xd0;
const ICR: u64 = 0xc0;
/// A change of the link.
const LSC: u32 = 1 << 2;

fn read(device: &mut Group, offset: u64, length: usize) -> u32 {
    let mut bytes = [0; 4];
    device.read_region(CONFIG, offset, &mut bytes[..length]).unwrap();
    u32::from_le_bytes(bytes)
}

fn write(device: &mut Group, offset: u64, length: usize, value: u32) {
    device.write_region(CONFIG, offset, &value.to_le_bytes()[..length]).unwrap();
}

/// The place of a capability.
fn capability(device: &mut Group, id: u32) -> u64 {
    let mut at = u64::from(read(device, 0x34, 1));
    while at != 0 {
        if read(device, at, 1) == id {
            return at;
        }
        at = u64::from(read(device, at + 1, 1));
    }
    panic!("capability {id:#x} is not there");
}

/// The place of an extended capability.
fn extended(device: &mut Group, id: u32) -> u64 {
    let mut at = 0x100;
    while at != 0 {
        let header = read(device, at, 4);
        if header & 0xffff == id {
            return at;
        }
        at = u64::from(header >> 20);
    }
    panic!("extended capability {id:#x} is not there");
}

fn arm(device: &mut Group) -> OwnedFd {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    device.set_irq_triggers(MSI, 0, &[Some(event.as_fd())]).unwrap();
    event
}

/// Sets the card up as a guest's driver does, with a value of its own in every kind of register that travels.
fn set_up(device: &mut Group) -> OwnedFd {
    write(device, 0x10, 4, 0xfeb8_0000);
    write(device, 0x0c, 1, 0x10);
    write(device, 0x3c, 1, 11);
    let event = arm(device);
    let msi = capability(device, 0x05);
    write(device, msi + 4, 4, 0xfee0_1000);
    write(device, msi + 12, 2, 0x4041);
    let express = capability(device, 0x10);
    // Without relaxed ordering, and with correctable errors reported.
    let control = read(device, express + 8, 2);
    write(device, express + 8, 2, (control | 0x0001) & !0x0010);
    let errors = extended(device, 0x0001);
    // Unsupported requests are masked, and receiver errors; poisoned packets are fatal.
    for (offset, bit) in [(0x08, 1 << 20), (0x0c, 1 << 12), (0x14, 1)] {
        let value = read(device, errors + offset, 4);
        write(device, errors + offset, 4, value ^ bit);
    }
    let command = read(device, COMMAND, 2);
    write(device, COMMAND, 2, command | u32::from(ENABLED));
    event
}

/// Lets the card raise its interrupt, which takes bus master and the enable bit of MSI.
fn assert_interrupts(device: &mut Group, event: &OwnedFd) {
    let mut card = |offset: u64, value: u32| {
        device.write_region(REGISTERS, offset, &value.to_le_bytes()).unwrap();
    };
    card(IMS, LSC);
    card(ICS, LSC);
    let patience = Timespec::try_from(Duration::from_secs(30)).unwrap();
    let arrived = poll(&mut [PollFd::new(event, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(arrived, 1, "the card's interrupt has not arrived");
    rustix::io::read(event, &mut [0; 8]).unwrap();
    device.read_region(REGISTERS, ICR, &mut [0; 4]).unwrap();
}

/// Both spaces are equal, but for the bits that the device itself changes.
fn assert_same(here: &DeviceSetup, there: &DeviceSetup) {
    let differences: Vec<_> = here
        .config_space()
        .iter()
        .zip(there.config_space())
        .enumerate()
        .filter(|(_, (here, there))| here != there)
        .map(|(at, (here, there))| format!("{at:#x}: {here:#x} {there:#x}"))
        .collect();
    assert!(differences.is_empty(), "{differences:?}");
    assert_eq!(here.config_space().len(), there.config_space().len());
    assert_eq!(here.interrupts(), there.interrupts());
}

#[test]
#[ignore = "needs the lab's machine with PCI devices: lab/run exec --pci"]
fn the_setup_of_a_card_comes_back_after_a_reset() {
    let mut device = Group::find(CARD).unwrap();
    let fresh = device.save_setup().unwrap().unwrap();
    assert_eq!(fresh.config_space()[4] & 4, 0, "bus master is off after the open");
    let event = set_up(&mut device);
    let setup = device.save_setup().unwrap().unwrap();
    assert!(setup.config_space().len() > 256, "error reporting lies in the extended part");
    assert_ne!(setup, fresh);
    assert_interrupts(&mut device, &event);

    device.reset().unwrap();
    // What a guest's driver has not set again is as after the reset.
    write(&mut device, COMMAND, 2, 0);
    device.restore_setup(&setup).unwrap();
    assert_same(&device.save_setup().unwrap().unwrap(), &setup);
    assert_interrupts(&mut device, &event);
}

#[test]
#[ignore = "needs the lab's machine with PCI devices: lab/run exec --pci"]
fn the_setup_of_a_card_arrives_on_one_that_was_just_opened() {
    let setup = {
        let mut source = Group::find(CARD).unwrap();
        let _event = set_up(&mut source);
        source.save_setup().unwrap().unwrap()
    };
    let setup = DeviceSetup::parse(&setup.to_bytes()).unwrap();
    let mut device = Group::find(CARD).unwrap();
    let fresh = device.save_setup().unwrap().unwrap();
    assert_eq!(fresh.config_space()[4] & 4, 0, "bus master is off after the open");
    assert_ne!(setup.config_space(), fresh.config_space());
    assert_eq!(setup.interrupts().iter().map(|irq| (irq.index, irq.vectors)).collect::<Vec<_>>(), [(MSI, 1)]);
    let event = arm(&mut device);
    device.restore_setup(&setup).unwrap();
    assert_same(&device.save_setup().unwrap().unwrap(), &setup);
    assert_interrupts(&mut device, &event);
}

#[test]
#[ignore = "needs the lab's machine with PCI devices: lab/run exec --pci"]
fn what_the_kernel_keeps_to_itself_is_neither_changed_nor_an_error() {
    let mut device = Group::find(CARD).unwrap();
    let event = arm(&mut device);
    let setup = device.save_setup().unwrap().unwrap();
    // A peer may say anything of the registers that travel.
    let mut bytes = setup.to_bytes();
    let express = capability(&mut device, 0x10) as usize;
    // Phantom functions and the largest payload, in the device control register behind the head of 16 bytes.
    for (byte, bits) in [(express + 8, 0xe0), (express + 9, 0x02)] {
        bytes[16 + byte] |= bits;
    }
    device.restore_setup(&DeviceSetup::parse(&bytes).unwrap()).unwrap();
    let control = read(&mut device, express as u64 + 8, 2);
    assert_eq!(control & 0x0200, 0, "phantom functions stay off");
    assert_eq!(
        control & 0x00e0,
        0x00e0,
        "the payload's size is the user's own value, which the card does not see"
    );
    drop(event);
}
