//! I/O commands beside what the image contains.

use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;
use whimbrel_models::nvme::guest::{Command, DEAC, FUA, ranges};

use super::host::{BLOCK, Bench, DATA, Host, IMAGE, Memory, pattern};

const BLOCKS: u64 = IMAGE / BLOCK;

#[test]
fn what_is_written_is_read_back_and_in_the_image() {
    for memory in [Memory::new(), Memory::remote()] {
        let bench = Bench::with(memory);
        let mut host = bench.host();
        // One block, one page, two pages, a list, and the most that is allowed.
        for (seed, bytes) in [512, 4096, 8192, 12288, 65536, 256 << 10].into_iter().enumerate() {
            let data = pattern(seed as u64, bytes);
            let start = seed as u64 * 1000;
            host.write(start, &data);
            assert_eq!(host.read(start, bytes), data, "{bytes}");
            let at = (start * BLOCK) as usize;
            assert_eq!(bench.image()[at..at + bytes as usize], data, "{bytes}");
        }
        host.write(BLOCKS - 1, &pattern(9, 512));
        assert_eq!(host.read(BLOCKS - 1, 512), pattern(9, 512));
    }
}

#[test]
fn data_may_begin_at_any_dword_of_a_page() {
    let bench = Bench::new();
    let mut host = bench.host();
    for (offset, bytes) in [(4, 512), (0xffc, 512), (0x800, 4096), (0xe00, 8192), (0x204, 65536)] {
        let (out, back) = (DATA + offset, DATA + (1 << 20) + offset);
        let data = pattern(offset, bytes);
        host.memory.write(out, &data);
        assert!(host.io(Command::write(64, (bytes / BLOCK) as u32), out, bytes).is_success());
        host.memory.write(back - 4, &vec![0xaa; bytes as usize + 8]);
        assert!(host.io(Command::read(64, (bytes / BLOCK) as u32), back, bytes).is_success());
        let found = host.memory.read(back - 4, bytes + 8);
        assert_eq!(found, [&[0xaa; 4], &data[..], &[0xaa; 4]].concat(), "and nothing beside it");
    }
}

#[test]
fn invalid_io_commands_get_the_status_of_the_specification_and_change_nothing() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(BLOCKS - 8, &pattern(1, 4096));
    host.write(0, &pattern(2, 4096));
    let before = bench.image();
    let at = |command: Command| Command { prp1: DATA, prp2: DATA + 0x1000, ..command };
    let on = |namespace, command| Command { namespace, ..at(command) };
    let cases: [(&str, Command, (u8, u8)); 26] = [
        ("an unknown opcode", at(Command { opcode: 0x7f, ..Command::flush() }), (0, 0x01)),
        ("compare", at(Command { opcode: 0x05, ..Command::flush() }), (0, 0x01)),
        ("a fused write", at(Command { flags: 1, ..Command::write(0, 1) }), (0, 0x02)),
        ("a scatter-gather list", at(Command { flags: 0x80, ..Command::write(0, 1) }), (0, 0x02)),
        ("a read of namespace 0", on(0, Command::read(0, 1)), (0, 0x0b)),
        ("a read of namespace 2", on(2, Command::read(0, 1)), (0, 0x0b)),
        ("a read of all namespaces", on(u32::MAX, Command::read(0, 1)), (0, 0x0b)),
        ("a flush of namespace 2", on(2, Command::flush()), (0, 0x0b)),
        ("a read past the end", at(Command::read(BLOCKS, 1)), (0, 0x80)),
        ("a read across the end", at(Command::read(BLOCKS - 1, 2)), (0, 0x80)),
        ("a read across 2^64", at(Command::read(u64::MAX, 2)), (0, 0x80)),
        ("a write past the end", at(Command::write(BLOCKS, 1)), (0, 0x80)),
        ("zeros past the end", at(Command::write_zeroes(BLOCKS - 1, 2)), (0, 0x80)),
        ("zeros across 2^64", at(Command::write_zeroes(u64::MAX - 1, 3)), (0, 0x80)),
        ("a read that is too long", at(Command::read(0, 513)), (0, 0x02)),
        ("a write that is too long", at(Command::write(0, 65536)), (0, 0x02)),
        ("a write from an odd address", Command { prp1: DATA + 2, ..Command::write(0, 1) }, (0, 0x13)),
        (
            "a second page with an offset",
            Command { prp1: DATA, prp2: DATA + 0x1008, ..Command::write(0, 16) },
            (0, 0x13),
        ),
        (
            "a list that is not aligned",
            Command { prp1: DATA, prp2: DATA + 0x1004, ..Command::write(0, 24) },
            (0, 0x13),
        ),
        (
            "a list outside of memory",
            Command { prp1: DATA, prp2: 1 << 40, ..Command::write(0, 24) },
            (0, 0x04),
        ),
        ("a write from outside of memory", Command { prp1: 1 << 40, ..Command::write(0, 1) }, (0, 0x04)),
        ("a read to outside of memory", Command { prp1: 1 << 40, ..Command::read(0, 1) }, (0, 0x04)),
        (
            "half of a write from outside of memory",
            Command { prp1: DATA, prp2: 1 << 40, ..Command::write(0, 16) },
            (0, 0x04),
        ),
        ("a deallocation past the end", Command { prp1: DATA + 0x2000, ..Command::deallocate(1) }, (0, 0x80)),
        ("a second range past the end", Command { prp1: DATA + 0x3000, ..Command::deallocate(2) }, (0, 0x80)),
        ("ranges outside of memory", Command { prp1: 1 << 40, ..Command::deallocate(1) }, (0, 0x04)),
    ];
    host.memory.write(DATA, &vec![0xff; 0x1000]);
    // A list whose first page has an offset would be found there.
    host.memory.write(DATA + 0x1000, &vec![0; 0x1000]);
    host.memory.write(DATA + 0x2000, &ranges(&[(BLOCKS, 1)]));
    host.memory.write(DATA + 0x3000, &ranges(&[(0, 8), (u64::MAX, 8)]));
    for (name, command, expected) in cases {
        let (kind, code, _) = host.raw(1, command);
        assert_eq!((kind, code), expected, "{name}");
    }
    assert!(bench.image() == before);
    assert_eq!(host.read(0, 4096), pattern(2, 4096), "it goes on");
}

#[test]
fn zeros_are_written_with_and_without_deallocation() {
    let bench = Bench::new();
    let mut host = bench.host();
    for bits in [0, DEAC, FUA, DEAC | FUA] {
        host.write(0, &vec![7; 32768]);
        assert!(host.io(Command::write_zeroes(3, 17).with(bits), 0, 0).is_success());
        let expected = [vec![7; 3 * 512], vec![0; 17 * 512], vec![7; 44 * 512]].concat();
        assert_eq!(host.read(0, 32768), expected, "{bits:#x}");
    }
    assert!(host.io(Command::write_zeroes(0, BLOCKS as u32), 0, 0).is_success(), "more than a transfer");
    assert!(bench.image().iter().all(|byte| *byte == 0));
}

#[test]
fn deallocation_punches_holes_that_read_as_zeros() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 256 << 10));
    host.io(Command::flush(), 0, 0);
    let space = || std::fs::metadata(bench.path()).unwrap().blocks();
    let full = space();
    host.memory.write(DATA, &ranges(&[(0, 128), (200, 0), (256, 128)]));
    assert!(host.io(Command::deallocate(3), DATA, 48).is_success());
    host.io(Command::flush(), 0, 0);
    assert!(space() < full);
    assert_eq!(host.read(0, 65536), vec![0; 65536]);
    assert_eq!(host.read(128, 65536), pattern(1, 256 << 10)[65536..131_072]);
    assert_eq!(host.read(256, 65536), vec![0; 65536]);

    // Without the attribute, ranges are hints.
    let mut hint = Command::deallocate(1);
    hint.dwords[1] = 1;
    host.memory.write(DATA, &ranges(&[(128, 128)]));
    assert!(host.io(hint, DATA, 16).is_success());
    assert_eq!(host.read(128, 512), pattern(1, 256 << 10)[65536..66048]);
}

#[test]
fn flushes_and_forced_accesses_succeed_also_without_a_write_cache() {
    let bench = Bench::new();
    let mut host = bench.host();
    assert!(host.io(Command { namespace: u32::MAX, ..Command::flush() }, 0, 0).is_success());
    for write_cache in [1, 0] {
        host.driver.set_feature(0x06, write_cache).unwrap();
        host.memory.write(DATA, &pattern(5, 4096));
        assert!(host.io(Command::write(8, 8).with(FUA), DATA, 4096).is_success());
        assert!(host.io(Command::read(8, 8).with(FUA), DATA + 4096, 4096).is_success());
        assert_eq!(host.memory.read(DATA + 4096, 4096), pattern(5, 4096));
        assert!(host.io(Command::flush(), 0, 0).is_success());
        host.write(8, &[0; 4096]);
    }
}

#[test]
fn a_write_protected_namespace_is_read_only() {
    let bench = Bench::new();
    let mut writer = bench.host();
    writer.write(0, &pattern(1, 4096));
    writer.device().reset().unwrap();
    let device = bench.device_of(bench.config().read_only(true), "");
    let mut host = bench.host_on(device, 32);
    assert_eq!(host.driver.identify(0, 1).unwrap()[99], 1);
    for command in [Command::write(0, 1), Command::write_zeroes(0, 1), Command::deallocate(1)] {
        let end = host.io(command, DATA, 512);
        assert_eq!((end.kind, end.code, end.do_not_retry), (0, 0x20, true), "{command:?}");
    }
    let end = host.io(Command::flush(), 0, 0);
    assert!(end.is_success(), "{end:?}");
    assert_eq!(host.read(0, 4096), pattern(1, 4096));
}

#[test]
fn an_image_that_fails_is_a_media_error_and_counted() {
    let bench = Bench::new();
    let mut host = bench.host();
    // Behind the device's back the image becomes shorter.
    std::fs::OpenOptions::new().write(true).open(bench.path()).unwrap().set_len(4096).unwrap();
    let end = host.io(Command::read(8, 1), DATA, 512);
    assert_eq!((end.kind, end.code), (2, 0x81), "unrecovered read error");
    assert_eq!(host.driver.log_page(2, 512).unwrap()[160], 1);
}

/// A random operation.
#[derive(Clone, Copy, Debug)]
enum Action {
    Write { start: u64, blocks: u32, offset: u64, seed: u64, bits: u32 },
    Read { start: u64, blocks: u32, offset: u64 },
    Zero { start: u64, blocks: u32, bits: u32 },
    Deallocate { start: u64, blocks: u32 },
    Flush,
}

fn actions() -> impl Strategy<Value = Action> {
    let place = (0..200u64, 1..64u32);
    let offset = (0..1024u64).prop_map(|dwords| dwords * 4);
    let bits = prop_oneof![Just(0), Just(FUA)];
    let deallocate = prop_oneof![Just(0), Just(DEAC)];
    prop_oneof![
        3 => (place.clone(), offset.clone(), any::<u64>(), bits).prop_map(|((start, blocks), offset, seed, bits)| {
            Action::Write { start, blocks, offset, seed, bits }
        }),
        3 => (place.clone(), offset).prop_map(|((start, blocks), offset)| Action::Read { start, blocks, offset }),
        1 => (place.clone(), deallocate).prop_map(|((start, blocks), bits)| Action::Zero { start, blocks, bits }),
        1 => place.prop_map(|(start, blocks)| Action::Deallocate { start, blocks }),
        1 => Just(Action::Flush),
    ]
}

fn act(host: &mut Host, shadow: &mut [u8], action: Action) {
    let span = |start: u64, blocks: u32| {
        let at = (start * BLOCK) as usize;
        at..at + (u64::from(blocks) * BLOCK) as usize
    };
    match action {
        Action::Write { start, blocks, offset, seed, bits } => {
            let data = pattern(seed, u64::from(blocks) * BLOCK);
            host.memory.write(DATA + offset, &data);
            assert!(
                host.io(Command::write(start, blocks).with(bits), DATA + offset, data.len() as u64)
                    .is_success()
            );
            shadow[span(start, blocks)].copy_from_slice(&data);
        }
        Action::Read { start, blocks, offset } => {
            let bytes = u64::from(blocks) * BLOCK;
            host.memory.write(DATA + offset, &vec![0xee; bytes as usize]);
            assert!(host.io(Command::read(start, blocks), DATA + offset, bytes).is_success());
            assert!(host.memory.read(DATA + offset, bytes) == shadow[span(start, blocks)]);
        }
        Action::Zero { start, blocks, bits } => {
            assert!(host.io(Command::write_zeroes(start, blocks).with(bits), 0, 0).is_success());
            shadow[span(start, blocks)].fill(0);
        }
        Action::Deallocate { start, blocks } => {
            host.memory.write(DATA, &ranges(&[(start, blocks)]));
            assert!(host.io(Command::deallocate(1), DATA, 16).is_success());
            shadow[span(start, blocks)].fill(0);
        }
        Action::Flush => assert!(host.io(Command::flush(), 0, 0).is_success()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Whatever is done, reads return what was written last, and so does the image.
    #[test]
    fn the_namespace_is_what_was_written_to_it(
        actions in proptest::collection::vec(actions(), 1..40),
        is_remote in any::<bool>(),
    ) {
        let bench = Bench::with(if is_remote { Memory::remote() } else { Memory::new() });
        let mut host = bench.host();
        let mut shadow = vec![0; IMAGE as usize];
        for action in actions {
            act(&mut host, &mut shadow, action);
        }
        prop_assert!(bench.image() == shadow);
    }
}
