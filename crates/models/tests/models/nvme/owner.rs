//! The image's owner: one running device at a time, whatever becomes of a migration.

use std::time::{Duration, Instant};

use whimbrel_device::{Errno, State};
use whimbrel_models::nvme::guest::Command;

use super::device::Device;
use super::host::{Bench, DATA, load, pattern, save, settle};

#[test]
fn a_device_waits_for_its_state_while_another_one_owns_the_image() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 4096));
    let other = bench.device();
    assert_eq!(other.mig_state(), Ok(State::Running), "it has not touched the image");
    other.set_mig_state(State::Resuming).unwrap();
    assert_eq!(host.read(0, 4096), pattern(1, 4096));
}

#[test]
fn a_command_to_an_image_of_another_device_is_not_executed_and_may_be_retried() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 512));
    let mut other = bench.host_on(bench.device(), 8);
    other.memory.write(DATA, &[9; 512]);
    let end = other.io(Command::write(0, 1), DATA, 512);
    assert_eq!((end.kind, end.code, end.do_not_retry), (0, 0x82, false), "namespace not ready");
    assert_eq!(bench.image()[..512], pattern(1, 512));
    host.device().reset().unwrap();
    assert!(other.io(Command::write(0, 1), DATA, 512).is_success(), "its owner has left");
    assert_eq!(bench.image()[..512], [9; 512]);
}

#[test]
fn a_device_cannot_run_without_the_image_and_can_be_tried_again() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 512));
    let (source, destination) = (host.device(), bench.device());
    let stream = save(&source);
    // The migration is cancelled at the source while the destination has already loaded.
    load(&destination, &stream);
    source.set_mig_state(State::Running).unwrap();
    for to in [State::Running, State::RunningP2p] {
        assert_eq!(destination.set_mig_state(to).err(), Some(Errno::EBUSY));
        assert_eq!(destination.mig_state(), Ok(State::Stop));
    }
    assert_eq!(host.read(0, 512), pattern(1, 512));
    source.set_mig_state(State::Stop).unwrap();
    destination.set_mig_state(State::Running).unwrap();
    assert_eq!(source.set_mig_state(State::Running).err(), Some(Errno::EBUSY), "now it is the other one");
    host.move_to(destination);
    assert_eq!(host.read(0, 512), pattern(1, 512));
}

/// A way out of RUNNING.
type Leave = fn(&Device);

#[test]
fn every_way_out_of_running_gives_the_image_up() {
    let leave: [(&str, Leave); 4] = [
        ("stop", |device| drop(device.set_mig_state(State::Stop).unwrap())),
        ("save", |device| drop(save(device))),
        ("reset", |device| device.reset().unwrap()),
        ("resume", |device| drop(device.set_mig_state(State::Resuming).unwrap())),
    ];
    for (name, leave) in leave {
        let bench = Bench::new();
        let mut host = bench.host();
        host.write(0, &[1; 512]);
        let other = bench.device();
        other.set_mig_state(State::Stop).unwrap();
        assert_eq!(other.set_mig_state(State::Running).err(), Some(Errno::EBUSY), "{name}");
        leave(&host.device());
        assert!(other.set_mig_state(State::Running).is_ok(), "{name}");
    }
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &[1; 512]);
    drop(host);
    let other = bench.device();
    other.set_mig_state(State::Stop).unwrap();
    // A thread that tells the device of an operation's end drops it, if it is the last that has it.
    let deadline = Instant::now() + Duration::from_mins(1);
    while other.set_mig_state(State::Running).is_err() {
        assert!(Instant::now() < deadline, "a device that is gone");
        std::thread::yield_now();
    }
}

#[test]
fn pre_copy_and_p2p_keep_the_image() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &[1; 512]);
    let other = bench.device();
    other.set_mig_state(State::Stop).unwrap();
    for state in [State::RunningP2p, State::Running, State::PreCopy, State::PreCopyP2p, State::Running] {
        host.device().set_mig_state(state).unwrap();
        assert_eq!(other.set_mig_state(State::Running).err(), Some(Errno::EBUSY), "{state}");
    }
    settle(&host.device());
}

#[test]
fn a_failed_load_keeps_a_device_from_the_image_until_it_is_reset() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &[1; 512]);
    let destination = bench.device();
    let data = destination.set_mig_state(State::Resuming).unwrap().unwrap();
    assert_eq!(data.write(&[0; 48]), Err(Errno::EINVAL));
    assert_eq!(destination.set_mig_state(State::Running).err(), Some(Errno::EINVAL));
    destination.reset().unwrap();
    host.write(1, &[2; 512]);
    assert_eq!(destination.mig_state(), Ok(State::Running), "it owns nothing");
}
