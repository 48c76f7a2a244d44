//! What QEMU 7.2, the last user of v1, does (`hw/vfio/migration.c`), access by access, against the vendor
//! half.

use whimbrel_protocol::MigrationFlags;
use whimbrel_protocol::region::{Layout, SectionMemory, Version};

use super::qemu_record::{once, recorded};
use super::support::*;

/// QEMU's own way to change the state: keeps the bits of `mask`, sets those of `value`.
fn set_state(rig: &mut Rig, mask: u32, value: u32) {
    rig.made.push(Made::Read(DEVICE_STATE, 4));
    let register = rig.state().unwrap() & mask | value;
    rig.made.push(Made::Write(DEVICE_STATE, register.to_ne_bytes().into()));
    rig.set_state(register).unwrap();
}

fn field(rig: &mut Rig, offset: u64) -> u64 {
    rig.made.push(Made::Read(offset, 8));
    rig.field(offset).unwrap()
}

const MASK: u32 = 7;

/// The accesses that were made, as the record has them: what is repeated is there once.
fn asked(rig: &Rig) -> String {
    let name = |offset: &u64| match *offset {
        DEVICE_STATE => "state",
        PENDING_BYTES => "pending",
        DATA_OFFSET => "offset",
        DATA_SIZE => "size",
        _ => "data",
    };
    let words = rig
        .made
        .iter()
        .map(|made| match made {
            Made::Read(offset, _) => name(offset).to_owned(),
            Made::Write(DEVICE_STATE, register) => {
                format!("state={}", u32::from_ne_bytes(register.as_slice().try_into().unwrap()))
            }
            Made::Write(offset, _) => format!("{}=", name(offset)),
        })
        .collect();
    once(words)
}

/// Reads or writes as `vfio_mig_rw()` does where data is trapped, and by the mapping where it is mapped.
fn section(rig: &mut Rig, offset: u64, bytes: usize, mut each: impl FnMut(&mut Rig, u64, usize, bool)) {
    let areas = rig.vendor.layout().mapped_areas().to_vec();
    let (mut at, mut left) = (offset, bytes as u64);
    while left > 0 {
        let mapped = areas.iter().find(|area| area.offset <= at && at < area.offset + area.size);
        let piece = match mapped {
            Some(area) => left.min(area.offset + area.size - at),
            None => match left {
                8.. if at % 8 == 0 => 8,
                4.. if at % 4 == 0 => 4,
                2.. if at % 2 == 0 => 2,
                _ => 1,
            },
        };
        each(rig, at, piece as usize, mapped.is_some());
        at += piece;
        left -= piece;
    }
}

/// `vfio_save_buffer()`: data_offset, data_size, the data.
fn save_buffer(rig: &mut Rig) -> Vec<u8> {
    let offset = field(rig, DATA_OFFSET);
    let size = field(rig, DATA_SIZE);
    let mut data = Vec::new();
    section(rig, offset, size as usize, |rig, at, length, mapped| {
        let mut piece = vec![0; length];
        if mapped {
            rig.vendor.memory().read(at, &mut piece).unwrap();
        } else {
            rig.made.push(Made::Read(at, length));
            piece = rig.read(at, length).unwrap();
        }
        data.extend(piece);
    });
    data
}

/// `vfio_load_buffer()`: what does not fit the region is cut.
fn load_buffer(rig: &mut Rig, mut data: &[u8]) {
    while !data.is_empty() {
        let offset = field(rig, DATA_OFFSET);
        let room = rig.vendor.layout().size() - offset;
        let (now, later) = data.split_at(data.len().min(room as usize));
        section(rig, offset, now.len(), |rig, at, length, mapped| {
            let from = (at - offset) as usize;
            let piece = &now[from..from + length];
            if mapped {
                rig.vendor.memory_mut().write(at, piece).unwrap();
            } else {
                rig.made.push(Made::Write(at, piece.to_vec()));
                rig.vendor.write(&mut rig.device, at, piece).unwrap();
            }
        });
        rig.made.push(Made::Write(DATA_SIZE, now.len().to_ne_bytes().into()));
        rig.set_field(DATA_SIZE, now.len() as u64).unwrap();
        data = later;
    }
}

fn layouts(capacity: u64) -> [Layout; 3] {
    [
        Layout::trapped(Version::V1, capacity).unwrap(),
        Layout::mapped(Version::V1, capacity.next_multiple_of(4096)).unwrap(),
        Layout::partly_mapped(Version::V1, 4096, capacity).unwrap(),
    ]
}

/// A live migration: setup, iterations, the machine stops, completion.
#[test]
fn a_live_migration_of_qemu_carries_every_byte() {
    for source_layout in layouts(1000) {
        for destination_layout in layouts(1000) {
            let early: Vec<u8> = (0..5003_u32).map(|byte| byte as u8).collect();
            let late: Vec<u8> = (0..2999_u32).map(|byte| (byte / 7) as u8).collect();
            let mut source = Rig::new(source_layout.clone(), Device::with_data(&[&early], &[b"x", &late]));
            let mut destination = Rig::new(destination_layout.clone(), Device::new(MigrationFlags::all()));
            // vfio_load_setup
            set_state(&mut destination, !MASK, RESUMING);
            // vfio_vmstate_change, when the machine started
            set_state(&mut source, !MASK, RUNNING);
            // vfio_save_setup
            set_state(&mut source, MASK, SAVING);
            assert_eq!(source.state(), Ok(PRE_COPY));
            let mut stream = Vec::new();
            // vfio_save_pending, asked often, and vfio_save_iterate
            for _ in 0..2 {
                field(&mut source, PENDING_BYTES);
                if field(&mut source, PENDING_BYTES) > 0 {
                    stream.push(save_buffer(&mut source));
                }
                field(&mut source, PENDING_BYTES);
            }
            // vfio_vmstate_change: the machine stops, in the middle of the loop
            set_state(&mut source, !RUNNING, 0);
            assert_eq!(source.state(), Ok(SAVING));
            // vfio_save_complete_precopy
            set_state(&mut source, !RUNNING, SAVING);
            while field(&mut source, PENDING_BYTES) > 0 {
                stream.push(save_buffer(&mut source));
            }
            set_state(&mut source, !SAVING, 0);
            assert_eq!(source.state(), Ok(STOP));
            for data in &stream {
                load_buffer(&mut destination, data);
            }
            // vfio_vmstate_change: the machine runs
            set_state(&mut destination, !MASK, RUNNING);
            assert_eq!(destination.state(), Ok(RUNNING));
            assert_eq!(destination.device.loaded.concat(), source.device.all_data());
            // What goes through a mapping is no access.
            for (rig, name) in [(&source, "save in pre-copy"), (&destination, "load")] {
                if rig.vendor.layout().mapped_areas().is_empty() {
                    assert_eq!(asked(rig), recorded(name));
                }
            }
        }
    }
}

/// What is pending is small, and fits the downtime with the rest of memory: QEMU estimates it again and again, and reads no
/// data before the machine stops (seen under `whimbrel run`).
#[test]
fn a_device_whose_data_is_read_only_after_the_stop_gives_all_of_it() {
    for layout in layouts(1000) {
        let mut rig = Rig::new(layout, Device::with_data(&[b"early"], &[b"x", b"late"]));
        set_state(&mut rig, !MASK, RUNNING);
        set_state(&mut rig, MASK, SAVING);
        for _ in 0..30 {
            field(&mut rig, PENDING_BYTES);
        }
        set_state(&mut rig, !RUNNING, 0);
        set_state(&mut rig, !RUNNING, SAVING);
        let mut data = Vec::new();
        while field(&mut rig, PENDING_BYTES) > 0 {
            data.extend(save_buffer(&mut rig));
        }
        set_state(&mut rig, !SAVING, 0);
        assert_eq!(data, rig.device.all_data());
        if rig.vendor.layout().mapped_areas().is_empty() {
            assert_eq!(asked(&rig), recorded("save"));
        }
    }
}

/// The rule that QEMU breaks: a buffer larger than the destination's region arrives in parts.
#[test]
fn a_buffer_larger_than_the_destinations_region_arrives_cut() {
    let data: Vec<u8> = (0..250).collect();
    let mut rig = Rig::v1(100, Device::new(MigrationFlags::all()));
    set_state(&mut rig, !MASK, RESUMING);
    load_buffer(&mut rig, &data);
    set_state(&mut rig, !MASK, RUNNING);
    assert_eq!(rig.device.loaded, [&data[..100], &data[100..200], &data[200..]]);
}

/// `vfio_migration_state_notifier()` on a failure, before and after the machine has stopped.
#[test]
fn a_cancelled_migration_leaves_the_device_running() {
    for stopped in [false, true] {
        let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
        set_state(&mut rig, MASK, SAVING);
        field(&mut rig, PENDING_BYTES);
        save_buffer(&mut rig);
        if stopped {
            set_state(&mut rig, !RUNNING, 0);
            field(&mut rig, PENDING_BYTES);
        }
        set_state(&mut rig, !(SAVING | RESUMING), RUNNING);
        assert_eq!(rig.state(), Ok(RUNNING));
        assert!(rig.device.state.is_running());
        assert!(!rig.device.tracking);
        // And another attempt gives everything again.
        set_state(&mut rig, MASK, SAVING);
        set_state(&mut rig, !RUNNING, SAVING);
        assert_eq!(rig.take_all().concat(), rig.device.all_data());
    }
}

/// `savevm`: the machine stops straight into stop-and-copy.
#[test]
fn a_snapshot_goes_from_running_to_stop_and_copy() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    set_state(&mut rig, !RUNNING, SAVING);
    assert_eq!(rig.state(), Ok(SAVING));
    set_state(&mut rig, !RUNNING, SAVING);
    assert_eq!(rig.take_all().concat(), rig.device.all_data());
    set_state(&mut rig, !SAVING, 0);
    set_state(&mut rig, !MASK, RUNNING);
    assert!(rig.device.state.is_running());
}
