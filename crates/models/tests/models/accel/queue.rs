//! What a guest's work does.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{Errno, Next};
use whimbrel_models::accel::{self, Descriptor, SLICE_BYTES};

use super::guest::{COMPLETIONS, DATA, Guest, MEMORY, Memory, SUBMISSIONS, config, own_state, registers};

const UNMAPPED: u64 = 1 << 40;

fn numbers(count: u64) -> Vec<u8> {
    (0..count).map(|n| (n % 251) as u8).collect()
}

fn guest(memory: &Memory, size: u32) -> Guest {
    Guest::start(memory, memory.device(config(1 << 20)), size)
}

#[test]
fn it_says_what_it_is() {
    let memory = Memory::new();
    let device = memory.device(config(5000));
    let info = device.info();
    assert_eq!((info.num_regions, info.num_irqs), (9, 5));
    let sizes: Vec<u64> = (0..9).map(|index| device.region_info(index).unwrap().size).collect();
    assert_eq!(sizes, [0x1000, 0, 5000, 0, 0, 0, 0, 0x1000, 0]);
    let counts: Vec<u32> = (0..5).map(|index| device.irq_info(index).unwrap().count).collect();
    assert_eq!(
        counts,
        [1, 1, 0, 1, 0],
        "INTx, MSI, no MSI-X, the errors of a PCI Express device, no requests"
    );
    let image = registers(&device);
    assert_eq!(&image[..4], b"accl");
    assert_eq!(image[8..16], 5000u64.to_le_bytes());
}

#[test]
fn its_configuration_space_tells_its_regions_and_its_message() {
    let device = Memory::new().device(config(5000));
    device.write_region(7, 0x10, &[0xff; 24]).unwrap();
    let mut space = [0; 0x1000];
    assert_eq!(device.read_region(7, 0, &mut space), Ok(0x1000));
    let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
    assert_eq!(word(0x10), 0xffff_f000, "a page of registers");
    assert_eq!((word(0x14), word(0x20)), (0, 0));
    assert_eq!((word(0x18), word(0x1c)), (0xffff_e00c, 0xffff_ffff), "8 KiB hold 5000 bytes");
    assert_eq!(space[usize::from(space[0x34])], 0x05, "the message capability");
}

#[test]
fn copy_fill_and_checksum_do_what_they_say_over_any_length() {
    for length in [1, 7, 8, 4096, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 3 * SLICE_BYTES + 5] {
        let memory = Memory::new();
        let mut guest = guest(&memory, 4);
        let data = numbers(length);
        let (source, destination) = (DATA + 1, DATA + (2 << 20) + 3);
        memory.write(source, &data);
        let done = guest.execute(&Descriptor::copy(11, source, destination, length));
        assert_eq!((done.tag, done.status, done.result), (11, accel::STATUS_DONE, length));
        assert!(memory.read(destination, length) == data, "{length}");
        assert_eq!(memory.read(destination + length, 8), [0; 8]);

        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &data);
        assert_eq!(guest.execute(&Descriptor::checksum(12, source, length)).result, crc, "{length}");

        guest.execute(&Descriptor::fill(13, destination, length, u64::from_le_bytes(*b"patterns")));
        let expected: Vec<u8> = b"patterns".iter().copied().cycle().take(length as usize).collect();
        assert!(memory.read(destination, length) == expected, "{length}");
        assert_eq!(memory.read(destination + length, 8), [0; 8]);
    }
}

#[test]
fn work_that_cannot_be_done_is_completed_with_a_status_and_the_device_goes_on() {
    let end = super::guest::BASE + MEMORY;
    let cases = [
        (Descriptor::default(), accel::STATUS_INVALID, 0),
        (Descriptor { operation: 77, ..Descriptor::copy(0, DATA, DATA + 8, 8) }, accel::STATUS_INVALID, 0),
        (Descriptor::copy(0, DATA, DATA + 4, 8), accel::STATUS_INVALID, 0),
        (Descriptor::fill(0, u64::MAX, 2, 0), accel::STATUS_INVALID, 0),
        (Descriptor::scramble(0, 1 << 20, 8, 0), accel::STATUS_INVALID, 0),
        (Descriptor::copy(0, UNMAPPED, DATA, 8), accel::STATUS_DATA_FAULT, 0),
        (Descriptor::copy(0, DATA, UNMAPPED, 8), accel::STATUS_DATA_FAULT, 0),
        (Descriptor::fill(0, end - 8, 9, 0), accel::STATUS_DATA_FAULT, 0),
        (Descriptor::checksum(0, u64::MAX - 7, 8), accel::STATUS_DATA_FAULT, 0),
        (
            Descriptor::fill(0, end - SLICE_BYTES - 8, SLICE_BYTES + 9, 0),
            accel::STATUS_DATA_FAULT,
            SLICE_BYTES,
        ),
    ];
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    for (number, (work, status, result)) in (1..).zip(cases) {
        let failed = guest.execute(&Descriptor { tag: number, ..work });
        assert_eq!((failed.tag, failed.status, failed.result), (number, status, result), "{work:?}");
        assert_eq!(guest.get64(accel::REGISTER_ERRORS), number);
        let good = guest.execute(&Descriptor::fill(7, DATA, 8, 1));
        assert_eq!(good.status, accel::STATUS_DONE);
    }
}

#[test]
fn a_descriptor_that_cannot_be_read_is_completed_as_a_fault() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    guest.set32(accel::REGISTER_CONTROL, 0);
    guest.set64(accel::REGISTER_QUEUE_BASE, UNMAPPED);
    guest.set32(accel::REGISTER_CONTROL, accel::CONTROL_ENABLE);
    guest.set32(accel::REGISTER_TAIL, 2);
    guest.run();
    let statuses: Vec<u32> = guest.completions().iter().map(|completion| completion.status).collect();
    assert_eq!(statuses, [accel::STATUS_FETCH_FAULT; 2]);
}

#[test]
fn a_completion_that_cannot_be_written_is_counted_and_the_device_goes_on() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    guest.set32(accel::REGISTER_CONTROL, 0);
    guest.set64(accel::REGISTER_COMPLETION_BASE, UNMAPPED);
    guest.set32(accel::REGISTER_CONTROL, accel::CONTROL_ENABLE);
    for slot in 0..2 {
        use zerocopy::IntoBytes;
        memory.write(SUBMISSIONS + slot * 64, Descriptor::fill(slot, DATA + slot * 8, 8, 5).as_bytes());
    }
    guest.set32(accel::REGISTER_TAIL, 2);
    guest.run();
    assert_eq!(guest.get64(accel::REGISTER_COMPLETED), 2);
    assert_eq!(guest.get64(accel::REGISTER_ERRORS), 2);
    assert_eq!(guest.get32(accel::REGISTER_HEAD), 2);
    assert_eq!(memory.read(DATA, 16), [5, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn the_rings_go_round() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    let mut tag = 0;
    let mut seen = Vec::new();
    for batch in [4, 3, 1, 4, 4, 2, 4] {
        for _ in 0..batch {
            guest.put(&Descriptor::fill(tag, DATA, 8, tag));
            tag += 1;
        }
        guest.ring();
        guest.run();
        seen.extend(guest.completions().iter().map(|completion| completion.tag));
    }
    assert_eq!(seen, (0..tag).collect::<Vec<u64>>());
    assert_eq!(guest.get32(accel::REGISTER_HEAD), tag as u32);
    assert_eq!(guest.get64(accel::REGISTER_ERRORS), 0);
}

#[test]
fn the_digest_follows_from_the_completions() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 16);
    for (number, length) in (0..).zip([8, 16, 1000]) {
        guest.put(&Descriptor::checksum(number, DATA, length));
        guest.put(&Descriptor::default());
    }
    guest.ring();
    guest.run();
    let fold = |digest, completion: &accel::Completion| {
        accel::fold_digest(digest, completion.tag, completion.status, completion.result)
    };
    let expected = guest.completions().iter().fold(0, fold);
    assert_eq!(guest.get64(accel::REGISTER_DIGEST), expected);
}

#[test]
fn a_large_job_is_done_in_slices() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    guest.submit(&Descriptor::fill(1, DATA, 4 * SLICE_BYTES, 1));
    let mut calls = 0;
    while guest.device.advance(Duration::ZERO) == Next::Now {
        calls += 1;
        assert!(guest.completion().is_none());
    }
    assert!(calls >= 3, "{calls}");
    assert!(guest.completion().is_some());
    assert_eq!(guest.device.advance(Duration::ZERO), Next::Idle);
}

#[test]
fn a_queue_that_is_turned_off_forgets_its_work() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    guest.submit(&Descriptor::fill(1, DATA, 4 * SLICE_BYTES, u64::MAX));
    guest.device.advance(Duration::ZERO);
    guest.set32(accel::REGISTER_CONTROL, 0);
    assert_eq!(guest.device.advance(Duration::ZERO), Next::Idle);
    guest.set32(accel::REGISTER_CONTROL, accel::CONTROL_ENABLE);
    guest.run();
    assert!(guest.completion().is_none());
    assert_eq!(guest.get32(accel::REGISTER_HEAD), 0);
    assert_eq!(memory.read(DATA + 3 * SLICE_BYTES, 8), [0; 8]);
}

#[test]
fn completions_and_errors_interrupt_once_until_they_are_acknowledged() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    guest.device.set_irq_triggers(1, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    guest.execute(&Descriptor::fill(1, DATA, 8, 1));
    assert!(eventfd.read().is_err(), "not enabled");
    guest.set32(accel::REGISTER_INTERRUPT_STATUS, u32::MAX);
    guest.set32(accel::REGISTER_INTERRUPT_ENABLE, accel::INTERRUPT_COMPLETION);
    guest.execute(&Descriptor::fill(2, DATA, 8, 1));
    guest.execute(&Descriptor::fill(3, DATA, 8, 1));
    assert_eq!(eventfd.read().unwrap(), 1);
    guest.set32(accel::REGISTER_INTERRUPT_STATUS, accel::INTERRUPT_COMPLETION);
    guest.execute(&Descriptor::fill(4, DATA, 8, 1));
    assert_eq!(eventfd.read().unwrap(), 1);
    guest.set32(accel::REGISTER_INTERRUPT_ENABLE, accel::INTERRUPT_ERROR);
    guest.execute(&Descriptor::default());
    assert_eq!(eventfd.read().unwrap(), 1);
    assert_eq!(
        guest.get32(accel::REGISTER_INTERRUPT_STATUS),
        accel::INTERRUPT_COMPLETION | accel::INTERRUPT_ERROR
    );
}

#[test]
fn registers_are_written_in_aligned_words_only() {
    let memory = Memory::new();
    let guest = guest(&memory, 4);
    let before = registers(&guest.device);
    for (offset, length) in [(0x14, 1), (0x14, 2), (0x15, 4), (0x14, 6), (0x16, 4)] {
        let written = guest.device.write_region(0, offset, &vec![1; length]);
        assert_eq!(written, Err(Errno::EINVAL), "{length} bytes at {offset:#x}");
    }
    assert_eq!(registers(&guest.device), before);
}

#[test]
fn each_completion_changes_the_word_of_the_own_state_that_the_digest_chooses() {
    let memory = Memory::new();
    let mut guest = guest(&memory, 4);
    let mut expected = own_state(&guest.device);
    for tag in 1..20 {
        guest.execute(&Descriptor::fill(tag, DATA, 8, 1));
        let digest = guest.get64(accel::REGISTER_DIGEST);
        let at = (digest % (expected.len() as u64 / 8) * 8) as usize;
        let word = u64::from_le_bytes(expected[at..at + 8].try_into().unwrap()).rotate_left(9) ^ digest;
        expected[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    assert!(own_state(&guest.device) == expected);
}

#[test]
fn a_scramble_fills_its_stretch_of_the_own_state_alike_on_every_device() {
    let stretch = |device: &whimbrel_device::DeviceFile| {
        own_state(device)[4096..4096 + 3 * SLICE_BYTES as usize].to_vec()
    };
    let mut seen = Vec::new();
    for _ in 0..2 {
        let memory = Memory::new();
        let mut guest = guest(&memory, 4);
        guest.execute(&Descriptor::scramble(1, 4096, 3 * SLICE_BYTES, 5));
        seen.push(stretch(&guest.device));
    }
    assert!(seen[0] == seen[1]);
    let words_of_zero = seen[0].chunks(8).filter(|word| *word == [0; 8]).count();
    assert_eq!(words_of_zero, 0);
}

#[test]
fn the_own_state_changes_at_its_rate_and_cannot_be_written() {
    let memory = Memory::new();
    let device = memory.device(config(1 << 20).state_rate(64 << 10));
    assert_eq!(device.write_region(accel::STATE_REGION_INDEX, 0, &[1; 8]), Err(Errno::EINVAL));
    let mut now = Duration::from_secs(5);
    let mut changed = 0;
    let mut before = own_state(&device);
    while now <= Duration::from_secs(7) {
        let next = device.advance(now);
        let after = own_state(&device);
        changed += before.chunks(1024).zip(after.chunks(1024)).filter(|(old, new)| old != new).count();
        before = after;
        now = match next {
            Next::At(time) => time,
            other => panic!("{other:?}"),
        };
    }
    assert_eq!(changed, 2 * 64, "two seconds of 64 KiB, in blocks of 1 KiB");
}

#[test]
fn a_rate_above_a_slice_is_caught_up_with_in_slices() {
    let memory = Memory::new();
    let device = memory.device(config(1 << 20).state_rate(4 * SLICE_BYTES));
    device.advance(Duration::ZERO);
    let second = Duration::from_secs(1);
    for slice in 1..=4 {
        let before = own_state(&device);
        let next = device.advance(second);
        assert!(own_state(&device) != before);
        let caught_up = matches!(next, Next::At(time) if time > second);
        assert_eq!((caught_up, next == Next::Now), (slice == 4, slice < 4), "slice {slice}: {next:?}");
    }
}

#[test]
fn with_a_worker_the_work_is_done_without_anyone_s_help() {
    let opened = "accel?state=1MiB".parse::<whimbrel_models::Model>().unwrap().open("engine").unwrap();
    let memory = Memory::new();
    // The model has a bus of its own: its memory is mapped there.
    memory.map(opened.bus());
    let eventfd = EventFd::new().unwrap();
    opened.set_irq_triggers(1, 0, vec![Some(eventfd.as_fd().try_clone_to_owned().unwrap())]).unwrap();
    let mut guest = Guest::start(&memory, opened.device().clone(), 4);
    guest.set32(accel::REGISTER_INTERRUPT_ENABLE, accel::INTERRUPT_COMPLETION);
    guest.submit(&Descriptor::fill(9, DATA, SLICE_BYTES * 2, 3));
    // Blocks until the device interrupts.
    assert_eq!(eventfd.read().unwrap(), 1);
    assert_eq!(guest.completion().map(|completion| completion.tag), Some(9));
    assert_eq!(memory.read(COMPLETIONS, 8), 9u64.to_ne_bytes());
}
