//! What writes do beside changing bytes.

use whimbrel_device::pci::config::{PciConfigBytesError, PciEvent, PowerState};

use super::sample::{EXPRESS, POWER, everything, express, header, power, read};

const CONTROL: u64 = POWER as u64 + 4;
const DEVICE_CONTROL: u64 = EXPRESS as u64 + 8;

#[test]
fn the_command_register_tells_each_bit_that_changes_once() {
    let mut space = everything();
    assert_eq!(
        space.write(0x04, &0x0407_u16.to_le_bytes()),
        [
            PciEvent::IoDecoding(true),
            PciEvent::MemoryDecoding(true),
            PciEvent::BusMaster(true),
            PciEvent::IntxDisabled(true),
        ]
    );
    assert_eq!(space.write(0x04, &0x0407_u16.to_le_bytes()), []);
    assert_eq!(space.write(0x05, &[0]), [PciEvent::IntxDisabled(false)]);
    assert_eq!(space.write(0x04, &[3]), [PciEvent::BusMaster(false)]);
}

#[test]
fn a_reset_of_the_function_is_asked_for_once_and_reads_back_as_zero() {
    let mut space = everything();
    space.write(0x04, &[7]);
    let control = read(&space, EXPRESS + 8, 2) as u16;
    let before = space.to_bytes();
    let wide = (u32::from(control) | 0x8000).to_le_bytes();
    assert_eq!(space.write(DEVICE_CONTROL, &wide), [PciEvent::FunctionLevelReset]);
    assert_eq!(space.write(DEVICE_CONTROL + 1, &wide[1..2]), [PciEvent::FunctionLevelReset]);
    assert_eq!(space.write(DEVICE_CONTROL - 4, &[0xff; 4]), []);
    assert!(space.to_bytes() == before, "as the kernel restores it");
}

#[test]
fn a_device_that_cannot_be_reset_so_is_not_asked() {
    let express = express().function_level_reset(false);
    let mut space = header().capability_at(EXPRESS as u8, express).build().unwrap();
    assert_eq!(space.write(DEVICE_CONTROL, &[0, 0x80]), []);
}

#[test]
fn memory_answers_only_when_it_decodes_and_the_device_is_not_in_d3hot() {
    let mut space = everything();
    assert!(!space.settings().memory_accessible());
    space.write(0x04, &[2]);
    for (state, accessible) in [(0, true), (1, true), (2, true), (3, false), (0, true)] {
        space.write(CONTROL, &[state]);
        assert_eq!(space.settings().memory_accessible(), accessible, "D{state}");
    }
}

#[test]
fn power_states_are_entered_as_the_kernel_enters_them() {
    use PowerState::{D0, D1, D2, D3Hot};
    let all = [D0, D1, D2, D3Hot];
    for (d1, d2) in [(false, false), (false, true), (true, false), (true, true)] {
        for from in all {
            for to in all {
                let power = power().d1(d1).d2(d2);
                let mut space = header().capability_at(POWER as u8, power).build().unwrap();
                space.write(CONTROL, &[from as u8]);
                let there = |state| match state {
                    D1 => d1,
                    D2 => d2,
                    _ => true,
                };
                let from = if there(from) { from } else { D0 };
                assert_eq!(space.settings().power, from);
                let events = space.write(CONTROL, &[to as u8]);
                let enters = there(to) && (to == D0 || to > from);
                assert_eq!(space.settings().power, if enters { to } else { from }, "{from:?} to {to:?}");
                let mut expected = vec![];
                if enters && to != from {
                    expected.push(PciEvent::Power(to));
                }
                if (from, to) == (D3Hot, D0) {
                    expected.push(PciEvent::SoftReset);
                }
                assert_eq!(events, expected, "{from:?} to {to:?}");
            }
        }
    }
}

#[test]
fn a_device_that_keeps_its_state_in_d3hot_is_not_reset_on_the_way_back() {
    let power = power().no_soft_reset(true);
    let mut space = header().capability_at(POWER as u8, power).build().unwrap();
    space.write(CONTROL, &[3]);
    assert_eq!(space.write(CONTROL, &[0]), [PciEvent::Power(PowerState::D0)]);
}

#[test]
fn a_write_past_the_end_does_nothing_and_a_read_there_gives_zero() {
    let mut space = everything();
    let before = space.to_bytes();
    for offset in [4096, u64::MAX - 1, u64::MAX] {
        assert_eq!(space.write(offset, &[0xff; 8]), []);
        let mut data = [0xee; 8];
        space.read(offset, &mut data);
        assert_eq!(data, [0; 8]);
    }
    assert!(space.to_bytes() == before);
}

#[test]
fn a_space_of_another_device_is_not_restored() {
    let mut space = everything();
    let good = space.to_bytes();
    let damaged = |offset: usize, bits: u8| {
        let mut bytes = good.clone();
        bytes[offset] ^= bits;
        bytes
    };
    let short = space.restore(&good[..256]);
    assert_eq!(short, Err(PciConfigBytesError::Length { found: 256, expected: 4096 }));
    for (offset, bits) in [(0, 1), (0x10, 1), (0x11, 0x08), (0x42, 1), (0x89, 0x80), (0x104, 1), (0xfff, 1)] {
        let bytes = damaged(offset, bits);
        let found = bytes[offset];
        assert_eq!(space.restore(&bytes), Err(PciConfigBytesError::Byte { offset, found }));
    }
    // More MSI vectors than there are.
    let found = damaged(0x52, 0x70)[0x52];
    let refused = space.restore(&damaged(0x52, 0x70));
    assert_eq!(refused, Err(PciConfigBytesError::Byte { offset: 0x52, found }));
    // A power state that it does not have.
    let power = power().d1(false);
    let mut simple = header().capability_at(POWER as u8, power).build().unwrap();
    let mut bytes = simple.to_bytes();
    bytes[POWER + 4] |= 1;
    assert_eq!(simple.restore(&bytes), Err(PciConfigBytesError::Byte { offset: POWER + 4, found: 1 }));
    assert!(space.to_bytes() == good);
}
