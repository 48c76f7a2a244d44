//! Resets: of the controller, by shutdown, and of the function.

use whimbrel_device::Errno;
use whimbrel_models::nvme::guest::{Command, GuestError};

use super::host::{BLOCK, Bench, DATA, Memory, pattern, settle};

/// A way to reset.
type Reset = fn(&mut super::host::Host);

const RESETS: [(&str, Reset); 3] = [
    ("of the controller", |host| host.driver.reset().unwrap()),
    ("by shutdown", |host| {
        host.driver.shut_down().unwrap();
        host.driver.reset().unwrap();
    }),
    ("of the function", |host| host.device().reset().unwrap()),
];

#[test]
fn after_each_reset_it_starts_over_with_the_same_data() {
    for (name, reset) in RESETS {
        for memory in [Memory::new(), Memory::remote()] {
            let bench = Bench::with(memory);
            let mut host = bench.host();
            host.write(1, &pattern(1, 4096));
            host.driver.set_feature(0x06, 0).unwrap();
            host.driver.write_u32(0x0c, 1).unwrap();
            reset(&mut host);
            assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0, "{name}: CSTS");
            assert_eq!(host.driver.read_u32(0x0c).unwrap(), 0, "{name}: INTMS");
            let mut host = bench.host_on(host.device(), 16);
            assert_eq!(host.driver.feature(0x06, 0).unwrap(), 1, "{name}");
            assert_eq!(host.read(1, 4096), pattern(1, 4096), "{name}");
        }
    }
}

#[test]
fn commands_in_flight_end_with_a_reset_and_are_not_executed_after_later_ones() {
    for (name, reset) in RESETS {
        let bench = Bench::new();
        let mut host = bench.host();
        for round in 0..10 {
            host.memory.write(DATA, &pattern(round, 64 * BLOCK));
            for command in 0..16 {
                let start = DATA + command * BLOCK;
                host.driver.submit(1, Command::write(command, 8), start, 8 * BLOCK).unwrap();
            }
            host.device().advance(std::time::Duration::ZERO);
            reset(&mut host);
            let before = host.memory.read(super::host::DATA, 1 << 20);
            host = bench.host_on(host.device(), 32);
            host.write(0, &pattern(1000 + round, 32 * BLOCK));
            settle(&host.device());
            assert_eq!(host.read(0, 32 * BLOCK), pattern(1000 + round, 32 * BLOCK), "{name}");
            assert_eq!(host.memory.read(DATA + 0x8000, 0x1000), before[0x8000..0x9000], "{name}");
        }
    }
}

#[test]
fn the_admin_queue_registers_outlive_a_reset_of_the_controller_only() {
    let bench = Bench::new();
    let mut host = bench.host();
    let registers =
        |host: &mut super::host::Host| [0x24, 0x28, 0x30].map(|at| host.driver.read_u32(at).unwrap());
    let set = registers(&mut host);
    assert!(set.iter().all(|value| *value != 0));
    host.driver.write_u32(0x24, 0).unwrap();
    assert_eq!(registers(&mut host), set, "they cannot change while it is enabled");
    host.driver.reset().unwrap();
    assert_eq!(registers(&mut host), set);
    host.device().reset().unwrap();
    assert_eq!(registers(&mut host), [0; 3]);
}

#[test]
fn a_controller_that_cannot_be_enabled_reports_that_it_has_failed() {
    // Page size, arbitration, command set, and queues past the end of memory.
    for (configuration, base) in
        [(0x0046_0081, 0x1000), (0x0046_0801, 0x1000), (0x0046_0011, 0x1000), (0x0046_0001, u64::MAX - 0xfff)]
    {
        let bench = Bench::new();
        let mut host = bench.admin_on(bench.device());
        host.driver.reset().unwrap();
        host.driver.write_u32(0x24, 0x0fff_0fff).unwrap();
        for (at, half) in [(0x28, base as u32), (0x2c, (base >> 32) as u32)] {
            host.driver.write_u32(at, half).unwrap();
        }
        host.driver.write_u32(0x14, configuration).unwrap();
        assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b10, "{configuration:#x}");
        let mut host = bench.host_on(host.device(), 8);
        host.write(0, &[1; 512]);
    }
}

#[test]
fn queues_outside_of_memory_fail_the_controller_until_it_is_reset() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    host.driver.reset().unwrap();
    host.driver.write_u32(0x2c, 0x100).unwrap();
    host.driver.write_u32(0x14, 0x0046_0001).unwrap();
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b01, "ready: nothing was fetched");
    host.driver.write_u32(0x1000, 1).unwrap();
    settle(&host.device());
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b10);
    let mut host = bench.host_on(host.device(), 8);
    host.write(0, &[1; 512]);

    // A completion queue that goes away.
    let gone = Command { prp1: 1 << 40, ..Command::admin(0x05, [7 << 16 | 2, 1, 0, 0, 0, 0]) };
    assert_eq!(host.admin(gone), (0, 0, 0), "nobody has looked");
    let queue = Command { prp1: DATA, ..Command::admin(0x01, [7 << 16 | 2, 2 << 16 | 1, 0, 0, 0, 0]) };
    assert_eq!(host.admin(queue), (0, 0, 0));
    host.memory.write(DATA, &Command::flush().to_bytes());
    host.driver.write_u32(0x1010, 1).unwrap();
    settle(&host.device());
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b10);
}

#[test]
fn a_controller_that_is_shut_down_executes_nothing() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 512));
    host.driver.shut_down().unwrap();
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b1001, "ready, and shutdown complete");
    host.driver.submit(1, Command::flush(), 0, 0).unwrap();
    settle(&host.device());
    assert!(host.driver.take_completion(1).unwrap().is_none());
    host.driver.reset().unwrap();
    let mut host = bench.host_on(host.device(), 8);
    // A reset after a shutdown is safe.
    assert_eq!(host.driver.log_page(2, 512).unwrap()[144], 0);
    host.driver.reset().unwrap();
    let mut host = bench.host_on(host.device(), 8);
    assert_eq!(host.driver.log_page(2, 512).unwrap()[144], 1, "without a shutdown");
}

#[test]
fn a_controller_that_is_shut_down_while_it_is_disabled_can_be_enabled() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.driver.reset().unwrap();
    host.driver.shut_down().unwrap();
    host.driver.write_u32(0x14, 0).unwrap();
    let mut host = bench.host_on(host.device(), 8);
    host.write(0, &[1; 512]);
}

#[test]
fn nothing_is_executed_before_it_is_enabled() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    host.driver.reset().unwrap();
    host.driver.write_u32(0x1000, 1).unwrap();
    settle(&host.device());
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0);
    assert!(matches!(host.driver.submit(1, Command::flush(), 0, 0), Err(GuestError::NoQueue(1))));
}

#[test]
fn registers_answer_accesses_of_any_width_and_memory_space_can_be_off() {
    let bench = Bench::new();
    let device = bench.device();
    let mut wide = [0; 8];
    assert_eq!(device.read_region(0, 0, &mut wide), Ok(8));
    for at in 0..8 {
        let mut narrow = [0];
        device.read_region(0, at, &mut narrow).unwrap();
        assert_eq!(narrow[0], wide[at as usize]);
    }
    device.write_region(0, 0x30, &0x1234_5678_9000_u64.to_le_bytes()).unwrap();
    let mut back = [0; 8];
    device.read_region(0, 0x30, &mut back).unwrap();
    assert_eq!(u64::from_le_bytes(back), 0x1234_5678_9000);
    device.write_region(7, 4, &[0, 0]).unwrap();
    assert_eq!(device.read_region(0, 0, &mut wide), Err(Errno::EIO));
}
