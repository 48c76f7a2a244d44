//! The migration's arcs and its session.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::{Errno, MigrationFlags, State};
use whimbrel_models::nvme::guest::{Command, Completion, FUA};

use super::device::Device;
use super::host::{BLOCK, Bench, DATA, Host, Memory, load, pattern, read_all, save, settle};

fn registers(device: &Device) -> [u8; 0x40] {
    let mut registers = [0; 0x40];
    device.read_region(0, 0, &mut registers).unwrap();
    registers
}

/// Moves to a new device.
fn migrate(bench: &Bench, host: &mut Host) {
    let source = host.device();
    let destination = bench.device();
    load(&destination, &save(&source));
    destination.set_mig_state(State::Running).unwrap();
    host.move_to(destination);
}

#[test]
fn it_supports_all_of_migration() {
    let bench = Bench::new();
    let device = bench.device();
    assert_eq!(device.migration_flags(), Ok(MigrationFlags::all()));
    assert!(device.has_dma_logging());
}

#[test]
fn registers_queues_features_and_logs_travel() {
    let bench = Bench::new();
    let mut host = bench.host();
    for queue in [2, 4] {
        host.driver.create_queue(queue, 16, Some(queue)).unwrap();
    }
    host.driver.set_feature(0x06, 0).unwrap();
    host.driver.set_feature(0x0b, 0x100).unwrap();
    host.driver.write_u32(0x0c, 0b100).unwrap();
    host.write(0, &pattern(1, 4096));
    let _ = host.io(Command::read(u64::MAX, 1), DATA, 512);
    let (before, identity) = (registers(&host.device()), host.driver.identify(1, 0).unwrap());
    migrate(&bench, &mut host);
    assert_eq!(registers(&host.device()), before);
    assert_eq!(host.driver.identify(1, 0).unwrap(), identity);
    assert_eq!((host.driver.feature(0x06, 0).unwrap(), host.driver.feature(0x0b, 0).unwrap()), (0, 0x100));
    assert_eq!(host.driver.log_page(1, 64).unwrap()[0], 1, "one error");
    assert_eq!(host.read(0, 4096), pattern(1, 4096));
    for queue in [2, 4] {
        assert!(host.driver.execute(queue, Command::flush(), 0, 0).unwrap().is_success());
    }
    assert_eq!(host.driver.log_page(2, 512).unwrap()[64], 1, "one read");
}

#[test]
fn the_identity_is_that_of_the_source() {
    let bench = Bench::new();
    let mut host = bench.host_on(bench.device_of(bench.config().serial("SOURCE"), ""), 8);
    let destination = bench.device_of(bench.config().serial("DESTINATION"), "");
    load(&destination, &save(&host.device()));
    destination.set_mig_state(State::Running).unwrap();
    host.move_to(destination);
    assert_eq!(&host.driver.identify(1, 0).unwrap()[4..14], b"SOURCE    ");
}

#[test]
fn requests_for_events_and_events_travel() {
    let bench = Bench::new();
    let mut host = bench.host();
    for identifier in [200, 201] {
        let request = Command { identifier, ..Command::admin(0x0c, [0; 6]) };
        host.driver.submit_as_it_is(0, request).unwrap();
    }
    settle(&host.device());
    migrate(&bench, &mut host);
    host.driver.write_u32(0x1010, 1).unwrap();
    let Completion { identifier, result, .. } = host.driver.await_completion(0).unwrap();
    assert_eq!((identifier, result), (200, 1 << 16));
    // Another one waits for its log page to be read.
    host.driver.write_u32(0x1010, 1).unwrap();
    migrate(&bench, &mut host);
    settle(&host.device());
    assert!(host.driver.take_completion(0).unwrap().is_none());
    let log = Command { prp1: DATA, identifier: 9, ..Command::admin(0x02, [1, 0, 0, 0, 0, 0]) };
    host.driver.submit_as_it_is(0, log).unwrap();
    let found = [0; 2].map(|_| host.driver.await_completion(0).unwrap().identifier);
    assert!(found.contains(&9) && found.contains(&201), "{found:?}");
}

#[test]
fn the_clock_of_the_host_is_stopped_with_the_device() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    let command = |opcode| Command { prp1: DATA, ..Command::admin(opcode, [0x0e, 0, 0, 0, 0, 0]) };
    host.memory.write(DATA, &1_000_000_u64.to_le_bytes());
    assert_eq!(host.admin(command(0x09)), (0, 0, 0));
    host.device().advance(Duration::from_secs(5));
    let stream = save(&host.device());
    host.device().advance(Duration::from_secs(9));
    host.device().set_mig_state(State::Stop).unwrap();
    assert!(save(&host.device()) == stream, "the same state at any time");
    let destination = bench.device();
    destination.advance(Duration::from_secs(100));
    load(&destination, &stream);
    destination.set_mig_state(State::Running).unwrap();
    destination.advance(Duration::from_secs(101));
    host.move_to(destination);
    host.driver.submit_as_it_is(0, command(0x0a)).unwrap();
    host.device().advance(Duration::from_secs(101));
    assert_eq!(host.memory.read(DATA, 6), 1_006_000_u64.to_le_bytes()[..6]);
}

#[test]
fn in_the_p2p_states_it_starts_no_dma_and_takes_doorbells() {
    for (p2p, running) in [(State::RunningP2p, State::Running), (State::PreCopyP2p, State::PreCopy)] {
        let bench = Bench::new();
        let mut host = bench.host();
        host.write(0, &pattern(1, 4096));
        host.memory.write(DATA, &[0; 4096]);
        // Not straight to memory: it is in flight until the device goes on.
        host.driver.submit(1, Command::read(0, 8).with(FUA), DATA, 4096).unwrap();
        host.device().advance(Duration::ZERO);
        host.device().set_mig_state(p2p).unwrap();
        let before = host.memory.read(DATA - (8 << 20), 12 << 20);
        settle(&host.device());
        assert!(host.memory.read(DATA - (8 << 20), 12 << 20) == before, "{p2p}");
        host.driver.submit(1, Command::flush(), 0, 0).unwrap();
        settle(&host.device());
        assert!(host.driver.take_completion(1).unwrap().is_none(), "{p2p}");
        host.device().set_mig_state(running).unwrap();
        for _ in 0..2 {
            assert!(host.driver.await_completion(1).unwrap().is_success());
        }
        assert_eq!(host.memory.read(DATA, 4096), pattern(1, 4096));
    }
}

#[test]
fn while_it_is_stopped_nothing_can_be_written() {
    let bench = Bench::new();
    let mut host = bench.host();
    let device = host.device();
    for state in [State::Stop, State::StopCopy, State::Resuming] {
        device.set_mig_state(state).unwrap();
        assert_eq!(device.write_region(0, 0x1008, &[1, 0, 0, 0]), Err(Errno::EBUSY), "{state}");
        let read = device.read_region(0, 0, &mut [0; 4]);
        assert_eq!(read, if state == State::Resuming { Err(Errno::EBUSY) } else { Ok(4) }, "{state}");
    }
}

#[test]
fn commands_in_every_stage_end_once_at_the_destination() {
    for memory in [Memory::new(), Memory::remote()] {
        // The device gets this many steps with its commands before it is stopped.
        for steps in 0..12 {
            let bench = Bench::with(memory.clone());
            let mut host = bench.host();
            host.write(100, &pattern(7, 8 * BLOCK));
            let mut waiting = Vec::new();
            for command in 0..8 {
                let at = DATA + command * 0x4000;
                host.memory.write(at, &pattern(command, 8 * BLOCK));
                waiting.push(host.driver.submit(1, Command::write(command * 8, 8), at, 4096).unwrap());
                let read = Command::read(100, 8);
                waiting.push(host.driver.submit(1, read, at + 0x2000, 4096).unwrap());
            }
            for _ in 0..steps {
                host.device().advance(Duration::ZERO);
            }
            let source = host.device();
            migrate(&bench, &mut host);
            source.reset().unwrap();
            while !waiting.is_empty() {
                let end = host.driver.await_completion(1).unwrap();
                assert!(end.is_success(), "{end:?}");
                let at = waiting.iter().position(|identifier| *identifier == end.identifier);
                waiting.remove(at.expect("no completion comes twice"));
            }
            for command in 0..8 {
                assert_eq!(host.read(command * 8, 4096), pattern(command, 4096));
                let read = host.memory.read(DATA + command * 0x4000 + 0x2000, 4096);
                assert!(command == 0 || read == pattern(7, 4096), "the first was used by the test");
            }
        }
    }
}

#[test]
fn interrupts_that_were_pending_are_sent_again() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.driver.submit(1, Command::flush(), 0, 0).unwrap();
    settle(&host.device());
    let stream = save(&host.device());
    let destination = bench.device();
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let trigger = eventfd.as_fd().try_clone_to_owned().unwrap();
    destination.set_irq_triggers(2, 1, vec![Some(trigger)]).unwrap();
    load(&destination, &stream);
    assert!(eventfd.read().is_err(), "it does not run");
    destination.set_mig_state(State::Running).unwrap();
    settle(&destination);
    assert_eq!(eventfd.read(), Ok(1));
    host.move_to(destination);
    assert!(host.driver.take_completion(1).unwrap().is_some());
}

#[test]
fn pre_copy_sends_the_opening_and_the_stop_sends_the_rest() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 4096));
    let device = host.device();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    assert_eq!(data.precopy_info().unwrap().bytes.initial, 48);
    let mut stream = read_all(&data);
    assert_eq!(stream.len(), 48);
    assert_eq!(data.precopy_info().unwrap().bytes.total(), 0);
    host.write(8, &pattern(2, 4096));
    let size = device.mig_data_size().unwrap();
    device.set_mig_state(State::StopCopy).unwrap();
    assert_eq!(device.mig_data_size(), Ok(size - 48));
    stream.extend(read_all(&data));
    assert_eq!(stream.len() as u64, size);
    let destination = bench.device();
    load(&destination, &stream);
    destination.set_mig_state(State::Running).unwrap();
    host.move_to(destination);
    assert_eq!(host.read(8, 4096), pattern(2, 4096));
}

#[test]
fn a_shutdown_ends_where_the_device_goes() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &[1; 512]);
    host.driver.write_u32(0x14, 0x0046_4001).unwrap();
    migrate(&bench, &mut host);
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b1001, "its flush has ended with the stop");
}

#[test]
fn a_controller_that_has_failed_stays_so_where_it_goes() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    let request = Command { identifier: 5, ..Command::admin(0x0c, [0; 6]) };
    host.driver.submit_as_it_is(0, request).unwrap();
    host.driver.set_feature(0x0f, 100).unwrap();
    host.device().advance(Duration::from_secs(1));
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b10, "no sign of the host");
    migrate(&bench, &mut host);
    assert_eq!(host.driver.read_u32(0x1c).unwrap(), 0b10);
    bench.host_on(host.device(), 8).write(0, &[1; 512]);
}

#[test]
fn a_destination_of_another_shape_refuses_the_state() {
    let bench = Bench::new();
    let stream = save(&bench.host().device());
    for config in [bench.config().queues(5), bench.config().read_only(true)] {
        let device = bench.device_of(config, "");
        assert_ne!(device.compatibility(), bench.device().compatibility());
        let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
        assert_eq!(data.write(&stream), Err(Errno::EINVAL));
        assert_eq!(device.set_mig_state(State::Stop).err(), Some(Errno::EINVAL));
    }
}

#[test]
fn arcs_and_sessions_that_fail_leave_the_device_as_it_was() {
    for faults in [
        "arc RUNNING_P2P->STOP: EIO once",
        "arc STOP->STOP_COPY: ENOMEM once",
        "read after 60: EIO once",
        "arc RUNNING->RUNNING_P2P: EBUSY once",
    ] {
        let bench = Bench::new();
        let mut host = bench.host_on(bench.device_of(bench.config(), faults), 32);
        host.write(0, &pattern(1, 4096));
        let device = host.device();
        for command in 0..4 {
            host.driver.submit(1, Command::read(0, 8), DATA + command * 4096, 4096).unwrap();
        }
        match device.set_mig_state(State::StopCopy) {
            Err(_) => {}
            Ok(data) => {
                let (data, mut buffer) = (data.unwrap(), [0; 64]);
                while data.read(&mut buffer).is_ok_and(|count| count > 0) {}
            }
        }
        device.set_mig_state(State::Running).unwrap();
        for _ in 0..4 {
            assert!(host.driver.await_completion(1).unwrap().is_success(), "{faults}");
        }
        migrate(&bench, &mut host);
        assert_eq!(host.read(0, 4096), pattern(1, 4096), "{faults}");
    }
}
