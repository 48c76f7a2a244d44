//! Which bits a write changes: every bit, against the table; and accesses of all kinds, against a model that
//! is nothing but the table.

use proptest::prelude::*;
use whimbrel_device::pci::config::{BusError, ExpressError, PciConfig, PciEvent, Settings};

use super::sample::{MSI, POWER, SERIAL_NUMBER, Table, everything, read};

fn raise_everything(space: &mut PciConfig) {
    for error in [
        BusError::MasterDataParity,
        BusError::SignaledTargetAbort,
        BusError::ReceivedTargetAbort,
        BusError::ReceivedMasterAbort,
        BusError::SignaledSystemError,
        BusError::DetectedParity,
    ] {
        space.raise(error);
    }
    for error in [
        ExpressError::Correctable,
        ExpressError::NonFatal,
        ExpressError::Fatal,
        ExpressError::UnsupportedRequest,
    ] {
        space.raise_express(error);
    }
    assert!(!space.raise_pme(), "it is not enabled");
    space.set_msi_pending(0x8000_0001);
}

#[test]
fn after_power_on_it_holds_what_the_table_says() {
    assert_eq!(read(&everything(), 0x104, 8), SERIAL_NUMBER);
    assert!(everything().to_bytes() == Table::new().value);
}

#[test]
fn a_write_changes_each_bit_that_can_be_written_and_no_other() {
    let table = Table::new();
    let fresh = everything();
    for offset in 0..4096 {
        for bit in (0..8).map(|bit| 1 << bit) {
            let mut space = fresh.clone();
            space.write(offset as u64, &[table.value[offset] ^ bit]);
            let mut expected = table.value.clone();
            expected[offset] ^= bit & table.writable[offset];
            assert!(space.to_bytes() == expected, "bit {bit:#04x} of byte {offset:#x}");
        }
    }
}

#[test]
fn a_one_clears_each_bit_that_is_cleared_so_and_a_zero_none() {
    let table = Table::new();
    let mut raised = everything();
    raise_everything(&mut raised);
    let before = raised.to_bytes();
    for offset in 0..4096 {
        let kept = before[offset] & table.writable[offset];
        for bit in (0..8).map(|bit| 1 << bit).filter(|bit| table.writable[offset] & bit == 0) {
            let mut space = raised.clone();
            space.write(offset as u64, &[kept | bit]);
            let mut expected = before.clone();
            expected[offset] &= !(bit & table.clearable[offset]);
            assert!(space.to_bytes() == expected, "bit {bit:#04x} of byte {offset:#x}");
        }
        let mut space = raised.clone();
        space.write(offset as u64, &[kept]);
        assert!(space.to_bytes() == before, "a zero at byte {offset:#x}");
    }
}

#[test]
fn what_the_device_raises_shows_in_its_registers() {
    let mut space = everything();
    raise_everything(&mut space);
    assert_eq!(read(&space, 0x06, 2), 0xf910);
    assert_eq!(read(&space, 0x8a, 2), 0x000f);
    assert_eq!(read(&space, 0x44, 2), 0x8000);
    assert_eq!(read(&space, 0x64, 4), 0x8000_0001);
    space.write(0x45, &[1]);
    assert!(space.raise_pme(), "the guest enabled it");
}

/// What the registers are, said as simply as can be: byte by byte.
struct Model {
    table: Table,
    bytes: Vec<u8>,
}

impl Model {
    fn write(&mut self, offset: usize, data: &[u8]) {
        for (at, new) in (offset..4096).zip(data) {
            let (old, writable, clearable) =
                (self.bytes[at], self.table.writable[at], self.table.clearable[at]);
            let mut byte = (old & !writable & !(new & clearable)) | (new & writable);
            // Of the power states only D0 and deeper ones are entered; of 32 vectors no more are enabled.
            if at == POWER + 4 && byte & 3 != 0 && byte & 3 < old & 3 {
                byte = (byte & !3) | (old & 3);
            }
            if at == MSI + 2 && (byte >> 4) & 7 > 5 {
                byte = (byte & !0x70) | 0x50;
            }
            self.bytes[at] = byte;
        }
    }
}

/// Where something is more often than nowhere.
fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![8 => 0..0x110usize, 1 => 0..4100usize]
}

fn data() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff)];
    prop_oneof![
        byte.clone().prop_map(|byte| vec![byte]),
        prop::collection::vec(byte.clone(), 2),
        prop::collection::vec(byte.clone(), 4),
        prop::collection::vec(byte, 0..40),
    ]
}

/// What a driver knows that only listens to events.
fn follow(known: &mut Settings, events: &[PciEvent]) {
    for event in events {
        match *event {
            PciEvent::IoDecoding(on) => known.io_decoding = on,
            PciEvent::MemoryDecoding(on) => known.memory_decoding = on,
            PciEvent::BusMaster(on) => known.bus_master = on,
            PciEvent::IntxDisabled(on) => known.intx_disabled = on,
            PciEvent::Bar { index, address } => known.bars[index] = Some(address),
            PciEvent::Rom(rom) => known.rom = rom,
            PciEvent::Power(power) => known.power = power,
            PciEvent::PmeEnabled(on) => known.pme_enabled = on,
            PciEvent::Msi(msi) => known.msi = Some(msi),
            PciEvent::MsiX(msix) => known.msix = Some(msix),
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn any_accesses_leave_what_the_table_alone_would(
        writes in prop::collection::vec((offset(), data()), 0..60),
        (from, length) in (offset(), 0..64usize),
    ) {
        let mut space = everything();
        let mut known = space.settings();
        let mut model = Model { bytes: Table::new().value, table: Table::new() };
        for (offset, data) in writes {
            follow(&mut known, &space.write(offset as u64, &data));
            model.write(offset, &data);
            prop_assert!(space.to_bytes() == model.bytes);
            prop_assert_eq!(space.settings(), known);
        }
        let mut seen = vec![0xee; length];
        space.read(from as u64, &mut seen);
        let expected: Vec<u8> = (from..from + length).map(|at| *model.bytes.get(at).unwrap_or(&0)).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn what_was_saved_is_restored_and_its_events_tell_all(
        before in prop::collection::vec((offset(), data()), 0..20),
        saved in prop::collection::vec((offset(), data()), 0..20),
    ) {
        let (mut space, mut other) = (everything(), everything());
        raise_everything(&mut other);
        for (offset, data) in before {
            space.write(offset as u64, &data);
        }
        for (offset, data) in saved {
            other.write(offset as u64, &data);
        }
        let mut known = space.settings();
        let events = space.restore(&other.to_bytes()).unwrap();
        follow(&mut known, &events);
        prop_assert_eq!(known, other.settings());
        prop_assert_eq!(space.settings(), other.settings());
        prop_assert!(space.to_bytes() == other.to_bytes());
        space.reset();
        prop_assert!(space.to_bytes() == Table::new().value);
    }

    #[test]
    fn bytes_of_anything_never_restore_what_cannot_be(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(everything().restore(&bytes).is_err());
    }
}
