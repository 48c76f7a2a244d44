//! Hosts that write whatever they like: the controller neither panics nor hangs, and each command has one end.

use std::time::Duration;

use proptest::prelude::*;
use whimbrel_device::{Next, State};
use whimbrel_models::nvme::guest::Command;

use super::device::Device;
use super::host::{Bench, DATA, IMAGE, Memory, load, save};

/// Advances for a bounded number of steps.
fn advance(device: &Device) {
    for _ in 0..2_000 {
        match device.advance(Duration::ZERO) {
            Next::Idle => return,
            // A host that has set up keep-alive is waited for.
            Next::At(time) if time > Duration::from_millis(5) => return,
            _ => std::thread::yield_now(),
        }
    }
}

/// A command of random bits, or one that is nearly right.
fn command() -> impl Strategy<Value = [u8; 64]> {
    let random = proptest::collection::vec(any::<u8>(), 64).prop_map(|bytes| {
        let mut command = [0; 64];
        command.copy_from_slice(&bytes);
        command
    });
    let opcodes = prop::sample::select(vec![0u8, 1, 2, 4, 5, 6, 8, 9, 10, 12, 0x18, 0x80]);
    let address = prop_oneof![
        Just(DATA),
        (0u64..0x2000).prop_map(|dwords| DATA + dwords * 4),
        Just(u64::MAX - 0xfff),
        Just(0),
    ];
    let small = prop_oneof![0u32..9, Just(u32::MAX), Just(0xff_ffff), (0u32..9).prop_map(|n| n << 16 | 1)];
    let near = (opcodes, any::<u16>(), address.clone(), address, proptest::array::uniform6(small), 0u32..3)
        .prop_map(|(opcode, identifier, prp1, prp2, dwords, namespace)| {
            Command { opcode, flags: 0, identifier, namespace, prp1, prp2, dwords }.to_bytes()
        });
    prop_oneof![1 => random, 4 => near]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Commands of all kinds, on both queues, from mapped and from remote memory.
    #[test]
    fn hostile_commands_have_one_end_each(
        commands in proptest::collection::vec((0u16..2, command()), 1..60),
        is_remote in any::<bool>(),
        moves in any::<bool>(),
    ) {
        let bench = Bench::with(if is_remote { Memory::remote() } else { Memory::new() });
        let mut host = bench.host();
        for (queue, bytes) in commands {
            let command = parse(bytes);
            // Requests for events do not end, and what is deleted is gone.
            if queue == 0 && matches!(command.opcode, 0x00 | 0x04 | 0x0c) {
                continue;
            }
            host.driver.submit_as_it_is(queue, command).unwrap();
            advance(&host.device());
            if moves && command.identifier.is_multiple_of(8) {
                let destination = bench.device();
                load(&destination, &save(&host.device()));
                destination.set_mig_state(State::Running).unwrap();
                host.move_to(destination);
            }
            let end = host.driver.await_completion(queue).unwrap();
            prop_assert_eq!(end.identifier, command.identifier);
            prop_assert!(host.driver.take_completion(queue).unwrap().is_none(), "no second one");
        }
        prop_assert_eq!(bench.image().len() as u64, IMAGE);
    }

    /// Writes to registers and doorbells, and commands at random, in any order and with any reset.
    #[test]
    fn hostile_registers_do_no_harm(
        writes in proptest::collection::vec(
            (prop_oneof![
                Just(0x14u64), Just(0x24), Just(0x28), Just(0x2c), Just(0x30), Just(0x0c), Just(0x20),
                (0u64..40).prop_map(|at| 0x1000 + at), 0u64..0x4000,
            ], prop_oneof![any::<u64>(), 0u64..40, Just(0x46_0001), Just(0x46_0000), Just(0x46_4001), Just(DATA)],
            prop::sample::select(vec![4usize, 4, 4, 8, 1, 2])),
            1..80,
        ),
        commands in proptest::collection::vec(command(), 64),
        is_remote in any::<bool>(),
    ) {
        let bench = Bench::with(if is_remote { Memory::remote() } else { Memory::new() });
        let host = bench.host();
        host.memory.write(DATA, &commands.concat());
        let device = { host }.device();
        for (at, value, width) in writes {
            let _ = device.write_region(0, at, &value.to_le_bytes()[..width]);
            advance(&device);
        }
        // Whatever state it is in, it can be saved, loaded, and used again.
        let destination = bench.device();
        load(&destination, &save(&device));
        destination.set_mig_state(State::Running).unwrap();
        advance(&destination);
        let mut host = bench.host_on(destination, 8);
        host.write(0, &[1; 512]);
    }
}

fn parse(bytes: [u8; 64]) -> Command {
    let dword = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let qword = |at: usize| u64::from(dword(at + 4)) << 32 | u64::from(dword(at));
    Command {
        opcode: bytes[0],
        flags: bytes[1],
        identifier: u16::from_le_bytes([bytes[2], bytes[3]]),
        namespace: dword(4),
        prp1: qword(24),
        prp2: qword(32),
        dwords: [40, 44, 48, 52, 56, 60].map(dword),
    }
}
