//! The INTx line: its status bit, its disable bit, and what else keeps it down.

use proptest::prelude::*;
use whimbrel_device::{DeviceFile, IrqAction, IrqData};

use super::{
    COMMAND, CONFIG, INTX_DISABLE, LINE, MASTER, MEMORY, STATUS_INTERRUPT, act, card, command, eventfd,
    fired, power, read32, write,
};

/// `pci_check_and_set_intx_mask()` of `drivers/pci/pci.c`, step by step: whether the interrupt is the device's.
fn check_and_set_intx_mask(device: &DeviceFile, mask: bool) -> bool {
    let dword = read32(device, CONFIG, COMMAND);
    let is_pending = (dword >> 16) as u16 & STATUS_INTERRUPT != 0;
    // Nothing to mask, or nothing may be unmasked.
    if mask != is_pending {
        return false;
    }
    let original = dword as u16;
    let bits = if mask { original | INTX_DISABLE } else { original & !INTX_DISABLE };
    if bits != original {
        command(device, bits);
    }
    true
}

fn is_disabled(device: &DeviceFile) -> bool {
    read32(device, CONFIG, COMMAND) as u16 & INTX_DISABLE != 0
}

fn unmask(device: &DeviceFile) {
    device.set_irqs(0, 0, IrqAction::Unmask, IrqData::None(1)).unwrap();
}

#[test]
fn linux_owns_masks_and_unmasks_the_interrupt_of_the_device() {
    let device = card();
    let line = eventfd(&device, 0, 0);
    assert!(
        !check_and_set_intx_mask(&device, true),
        "nothing is asserted: the interrupt is another device's"
    );
    assert!(!is_disabled(&device));
    for round in 0..3 {
        act(&device, LINE | 1);
        assert!(fired(&line), "round {round}");
        assert!(check_and_set_intx_mask(&device, true), "round {round}: the interrupt is the device's");
        assert!(is_disabled(&device));
        assert!(!check_and_set_intx_mask(&device, false), "round {round}: it is still asserted");
        assert!(is_disabled(&device));
        act(&device, LINE);
        assert!(check_and_set_intx_mask(&device, false), "round {round}: it is not asserted any more");
        assert!(!is_disabled(&device) && !fired(&line));
    }
}

#[test]
fn an_interrupt_that_comes_while_it_is_disabled_is_told_when_that_ends() {
    let device = card();
    let line = eventfd(&device, 0, 0);
    command(&device, MEMORY | INTX_DISABLE);
    act(&device, LINE | 1);
    assert!(!fired(&line));
    assert!(
        read32(&device, CONFIG, COMMAND) >> 16 & u32::from(STATUS_INTERRUPT) != 0,
        "the status bit follows"
    );
    command(&device, MEMORY);
    assert!(fired(&line));
}

#[test]
fn the_line_is_down_in_d3hot_and_with_messages_enabled() {
    let enable_msi: (u64, &[u8], &[u8]) = (0x4a, &[1, 0], &[0, 0]);
    let enable_msix: (u64, &[u8], &[u8]) = (0x62, &[0, 0x80], &[0, 0]);
    for (offset, down, up) in [(0x44, &[3_u8][..], &[0_u8][..]), enable_msi, enable_msix] {
        let device = card();
        let line = eventfd(&device, 0, 0);
        act(&device, LINE | 1);
        assert!(fired(&line));
        write(&device, CONFIG, offset, down);
        assert!(!check_and_set_intx_mask(&device, true), "{offset:#x}");
        unmask(&device);
        assert!(!fired(&line), "{offset:#x}");
        write(&device, CONFIG, offset, up);
        assert!(fired(&line), "{offset:#x}");
    }
}

#[test]
fn a_reset_takes_the_line_down() {
    let device = card();
    let line = eventfd(&device, 0, 0);
    act(&device, LINE | 1);
    assert!(fired(&line));
    device.reset().unwrap();
    assert!(!check_and_set_intx_mask(&device, true));
    unmask(&device);
    assert!(!fired(&line));
}

proptest! {
    #[test]
    fn the_status_bit_is_what_the_device_asserts_whatever_the_guest_writes(
        steps in proptest::collection::vec((0..5_u8, any::<u16>()), 1..40),
    ) {
        let device = card();
        let (mut asserted, mut in_d3) = (false, false);
        for (step, value) in steps {
            match step {
                0 if !in_d3 => { act(&device, LINE | u8::from(value & 1 != 0)); asserted = value & 1 != 0; }
                1 => command(&device, (value | MEMORY) & (MEMORY | MASTER | INTX_DISABLE)),
                2 => write(&device, CONFIG, 0x06, &value.to_le_bytes()),
                3 => { in_d3 = value & 1 != 0; power(&device, if in_d3 { 3 } else { 0 }); }
                _ => { device.reset().unwrap(); (asserted, in_d3) = (false, false); }
            }
            let status = (read32(&device, CONFIG, COMMAND) >> 16) as u16;
            prop_assert_eq!(status & STATUS_INTERRUPT != 0, asserted && !in_d3);
        }
    }
}
