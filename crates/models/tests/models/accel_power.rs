//! The engine asleep, its INTx line, and what it says of atomics.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{DeviceCapability, DeviceFile, Errno, Next, State};
use whimbrel_models::accel::{self, Accel, AccelConfig};
use whimbrel_uapi::device::PciAtomicFlags;
use whimbrel_uapi::pci::{VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_INTX_IRQ_INDEX};

fn engine(state_rate: u64) -> DeviceFile {
    let config = AccelConfig::default().state_bytes(1 << 20).state_rate(state_rate);
    DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap()
}

/// Offset of the power management control register.
fn power_control(device: &DeviceFile) -> u64 {
    let mut bytes = [0; 256];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut bytes).unwrap();
    let mut at = usize::from(bytes[0x34]);
    while bytes[at] != 0x01 {
        at = usize::from(bytes[at + 1]);
    }
    at as u64 + 4
}

/// Sets up INTx and makes a doorbell that is refused interrupt.
fn with_line(device: &DeviceFile) -> EventFd {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let told = eventfd.as_fd().try_clone_to_owned().unwrap();
    device.set_irq_triggers(VFIO_PCI_INTX_IRQ_INDEX, 0, vec![Some(told)]).unwrap();
    let enable = accel::INTERRUPT_ERROR.to_le_bytes();
    device.write_region(0, accel::REGISTER_INTERRUPT_ENABLE, &enable).unwrap();
    eventfd
}

fn cause(device: &DeviceFile) {
    // Its rings are not set up.
    device.write_region(0, accel::REGISTER_CONTROL, &accel::CONTROL_ENABLE.to_le_bytes()).unwrap();
    let mut status = [0; 4];
    device.read_region(0, accel::REGISTER_INTERRUPT_STATUS, &mut status).unwrap();
    assert_eq!(u32::from_le_bytes(status), accel::INTERRUPT_ERROR);
}

#[test]
fn the_line_is_asserted_as_long_as_a_cause_interrupts() {
    let device = engine(0);
    let eventfd = with_line(&device);
    cause(&device);
    assert_eq!(eventfd.read().unwrap(), 1);
    let unmask = || {
        use whimbrel_device::{IrqAction, IrqData};
        device.set_irqs(VFIO_PCI_INTX_IRQ_INDEX, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
    };
    unmask();
    assert_eq!(eventfd.read().unwrap(), 1, "the cause is still there");
    let taken = accel::INTERRUPT_ERROR.to_le_bytes();
    device.write_region(0, accel::REGISTER_INTERRUPT_STATUS, &taken).unwrap();
    unmask();
    assert!(eventfd.read().is_err());
}

#[test]
fn the_intx_disable_bit_keeps_the_line_down_until_it_is_cleared_or_the_device_reset() {
    for reset in [false, true] {
        let device = engine(0);
        let eventfd = with_line(&device);
        device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, 5, &[0x04]).unwrap();
        cause(&device);
        assert!(eventfd.read().is_err());
        if reset {
            device.reset().unwrap();
            assert!(eventfd.read().is_err(), "the cause is gone");
            let enable = accel::INTERRUPT_ERROR.to_le_bytes();
            device.write_region(0, accel::REGISTER_INTERRUPT_ENABLE, &enable).unwrap();
            cause(&device);
        } else {
            device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, 5, &[0]).unwrap();
        }
        assert_eq!(eventfd.read().unwrap(), 1, "reset {reset}");
    }
}

#[test]
fn a_sleeping_engine_does_not_work_and_wakes_in_d0() {
    let device = engine(1 << 20);
    let control = power_control(&device);
    device.write_region(VFIO_PCI_CONFIG_REGION_INDEX, control, &[3]).unwrap();
    assert_eq!(device.read_region(0, 0, &mut [0; 4]), Err(Errno::EIO), "D3hot");
    assert!(matches!(device.advance(Duration::ZERO), Next::At(_)));
    device.enter_low_power(None).unwrap();
    assert_eq!(device.advance(Duration::from_secs(1)), Next::Idle);
    assert_eq!(device.read_region(0, 0, &mut [0; 4]), Ok(4));
    let mut state = [0];
    device.read_region(VFIO_PCI_CONFIG_REGION_INDEX, control, &mut state).unwrap();
    assert_eq!(state[0] & 3, 0);
    device.exit_low_power().unwrap();
    assert!(matches!(device.advance(Duration::from_secs(2)), Next::At(_)));
}

#[test]
fn a_sleeping_engine_can_be_saved() {
    let device = engine(0);
    device.enter_low_power(None).unwrap();
    let data = device.set_mig_state(State::StopCopy).unwrap().unwrap();
    let mut bytes = vec![0; 1 << 16];
    assert!(data.read(&mut bytes).unwrap() > 0);
    device.set_mig_state(State::Running).unwrap();
}

#[test]
fn it_says_which_atomics_the_host_completes() {
    let flags = PciAtomicFlags::COMP32 | PciAtomicFlags::COMP64;
    assert_eq!(engine(0).info().capabilities, [DeviceCapability::PciAtomicComp(flags)]);
}
