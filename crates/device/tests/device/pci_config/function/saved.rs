//! The state of a function in a migration stream.

use std::os::fd::AsFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::pci::config::PciConfig;
use whimbrel_device::pci::function::{Function, FunctionStateError};
use whimbrel_device::{Bus, DeviceFile, State};

use super::{CONFIG, STATUS_INTERRUPT, config};

fn fresh() -> Function {
    Function::new(config(), Bus::new())
}

/// A function on the bus of a device, whose user is told of this interrupt.
fn telling(index: u32, vector: u32) -> (Function, EventFd, DeviceFile) {
    let device = super::card();
    let told = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let eventfd = told.as_fd().try_clone_to_owned().unwrap();
    device.set_irq_triggers(index, vector, vec![Some(eventfd)]).unwrap();
    (Function::new(config(), device.bus().clone()), told, device)
}

/// A function with a masked vector that is pending, an asserted line, and a BAR somewhere.
fn used() -> Function {
    let mut function = fresh();
    for (region, offset, data) in [
        (CONFIG, 0x04, &[0x06, 0][..]),
        (CONFIG, 0x10, &[0, 0, 0, 0xfe]),
        (CONFIG, 0x62, &[0, 0x80]),
        (1, 69 * 16, &[4, 0x10, 0xe0, 0xfe]),
        (1, 69 * 16 + 12, &[1, 0, 0, 0]),
    ] {
        function.write_region(region, offset, data).unwrap();
    }
    function.send_message(69);
    function.set_line(true);
    function
}

fn read32(function: &Function, region: u32, offset: u64) -> u32 {
    let mut data = [0; 4];
    function.read_region(region, offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

#[test]
fn a_function_continues_at_the_destination_with_its_line_and_its_pending_messages() {
    let source = used();
    let saved = source.save();
    assert_eq!(saved.len(), source.saved_bytes());
    let bus = Bus::new();
    let mut destination = Function::new(config(), bus);
    destination.load(&saved).unwrap();
    assert_eq!(destination.save(), saved);
    assert_eq!(read32(&destination, CONFIG, 0x10), 0xfe00_0000);
    assert_eq!(read32(&destination, 1, 69 * 16), 0xfee0_1004);
    assert_eq!(read32(&destination, 1, 0x808), 1 << 5, "vector 69 is pending");
    // The pin is free for the line again once messages are disabled.
    destination.write_region(CONFIG, 0x62, &[0, 0]).unwrap();
    assert!(read32(&destination, CONFIG, 4) >> 16 & u32::from(STATUS_INTERRUPT) != 0);
}

#[test]
fn a_pending_message_is_sent_at_the_destination_once_it_is_unmasked() {
    let device = DeviceFile::new("card", |bus| {
        let mut function = Function::new(config(), bus);
        function.load(&used().save()).unwrap();
        super::Card(function)
    });
    let told = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    device.set_irq_triggers(2, 69, vec![Some(told.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    assert!(told.read().is_err());
    device.write_region(1, 69 * 16 + 12, &[0; 4]).unwrap();
    assert_eq!(told.read().unwrap(), 1);
}

#[test]
fn a_state_that_no_function_of_this_shape_can_have_is_refused_and_changes_nothing() {
    let good = used().save();
    let mut function = used();
    let table = 20 + 256;
    let pending = good.len() - 16;
    let spoil = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("too short", good[..good.len() - 1].to_vec()),
        ("too long", [&good[..], &[0]].concat()),
        ("magic", spoil(0, 0)),
        ("version", spoil(4, 2)),
        ("flags", spoil(8, 2)),
        ("a fifth vector of MSI", spoil(12, 0x10)),
        ("a longer space", spoil(17, 0xff)),
        ("a shorter space", spoil(17, 0)),
        ("another vendor", spoil(20, 0xff)),
        ("a reserved bit of a control", spoil(table + 13, 1)),
        ("a flag that is no flag", spoil(table + 70 * 16, 2)),
        ("a 71st vector", spoil(pending + 8, 1 << 6)),
    ];
    for (name, bytes) in cases {
        assert!(function.load(&bytes).is_err(), "{name}");
        assert!(function.save() == good, "{name}");
    }
    let other = Function::new(PciConfig::builder(0x1234, 2).build().unwrap(), Bus::new());
    let refused = fresh().load(&other.save()).unwrap_err();
    assert!(matches!(refused, FunctionStateError::Length { .. }), "{refused}");
}

#[test]
fn a_disabled_line_that_is_loaded_asserted_signals_nobody() {
    use super::{COMMAND, INTX_DISABLE};
    let mut source = fresh();
    source.write_region(CONFIG, COMMAND, &INTX_DISABLE.to_le_bytes()).unwrap();
    source.set_line(true);
    let (mut destination, told, _device) = telling(0, 0);
    destination.load(&source.save()).unwrap();
    assert!(told.read().is_err(), "the guest had disabled it");
    destination.write_region(CONFIG, COMMAND, &[0, 0]).unwrap();
    assert_eq!(told.read().unwrap(), 1, "the line is still asserted");
}

#[test]
fn what_is_loaded_interrupts_nobody_before_the_device_runs() {
    let mut with_line = fresh();
    with_line.set_line(true);
    // Pending, bus master and MSI-X enabled, and not masked: it may be sent at once.
    let mut with_message = used();
    with_message.write_region(CONFIG, 0x04, &[0x02, 0]).unwrap();
    with_message.write_region(1, 69 * 16 + 12, &[0; 4]).unwrap();
    for (index, vector, source) in [(0, 0, with_line), (2, 69, with_message)] {
        let (mut function, told, _device) = telling(index, vector);
        function.enter(State::Resuming);
        function.load(&source.save()).unwrap();
        function.write_region(CONFIG, 0x04, &[0x06, 0]).unwrap();
        function.enter(State::Stop);
        assert!(told.read().is_err(), "index {index}: it does not run");
        function.enter(State::RunningP2p);
        assert_eq!(told.read().unwrap(), 1, "index {index}");
        function.enter(State::Running);
        assert!(told.read().is_err(), "index {index}: told once");
    }
}

#[test]
fn a_function_that_stops_keeps_its_line_and_holds_its_messages() {
    let (mut function, told, _device) = telling(0, 0);
    function.set_line(true);
    assert_eq!(told.read().unwrap(), 1);
    function.enter(State::Stop);
    function.set_line(false);
    assert!(read32(&function, CONFIG, 4) >> 16 & u32::from(STATUS_INTERRUPT) != 0, "it stays as it was");
    function.enter(State::Running);
    assert_eq!(read32(&function, CONFIG, 4) >> 16 & u32::from(STATUS_INTERRUPT), 0);
    assert!(told.read().is_err());
}
