//! Asynchronous events, and keep-alive.

use std::time::Duration;

use whimbrel_device::Next;
use whimbrel_models::nvme::guest::Command;

use super::host::{BLOCK, Bench, DATA, Host, settle};

fn request(host: &mut Host, identifier: u16) {
    let command = Command { identifier, ..Command::admin(0x0c, [0; 6]) };
    host.driver.submit_as_it_is(0, command).unwrap();
    settle(&host.device());
}

/// The identifier and dword 0 of the next admin completion, if there is one.
fn event(host: &mut Host) -> Option<(u16, u32)> {
    settle(&host.device());
    let end = host.driver.take_completion(0).unwrap()?;
    assert!(end.is_success(), "{end:?}");
    Some((end.identifier, end.result))
}

#[test]
fn invalid_doorbells_are_events_and_change_nothing() {
    let bench = Bench::new();
    let mut host = bench.host();
    let cases = [
        ("a submission queue that does not exist", 0x1010, 1, 0),
        ("a completion queue that does not exist", 0x1014, 1, 0),
        ("the last doorbell", 0x1ffc, 0, 0),
        ("a tail past the end", 0x1008, 32, 1),
        ("the tail that it is", 0x1008, 0, 1),
        ("a head past the tail", 0x100c, 1, 1),
        ("a head past the end", 0x100c, u32::MAX, 1),
    ];
    for (identifier, (name, doorbell, value, information)) in (100..).zip(cases) {
        request(&mut host, identifier);
        assert_eq!(event(&mut host), None, "{name}");
        host.driver.write_u32(doorbell, value).unwrap();
        assert_eq!(event(&mut host), Some((identifier, 1 << 16 | information << 8)), "{name}");
        // Reported once, until the log page is read.
        request(&mut host, identifier + 100);
        host.driver.write_u32(doorbell, value).unwrap();
        assert_eq!(event(&mut host), None, "{name}");
        let log = Command {
            prp1: DATA,
            namespace: u32::MAX,
            identifier: 9,
            ..Command::admin(0x02, [15 << 16 | 1, 0, 0, 0, 0, 0])
        };
        host.driver.submit_as_it_is(0, log).unwrap();
        let mut found = [event(&mut host).unwrap(), event(&mut host).unwrap()];
        found.sort_unstable();
        assert_eq!(found, [(9, 0), (identifier + 100, 1 << 16 | information << 8)], "{name}");
        assert_eq!(host.memory.read(DATA + 8, 4), [0xff; 4], "an error of no command");
        host.driver.log_page(1, 64).unwrap();
    }
    host.write(0, &[1; 512]);
}

#[test]
fn more_requests_than_the_limit_fail() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    for identifier in 0..4 {
        request(&mut host, identifier);
    }
    assert_eq!(host.admin(Command::admin(0x0c, [0; 6])), (1, 0x05, 0));
    assert_eq!(event(&mut host), None);
}

#[test]
fn a_temperature_past_a_threshold_is_an_event_if_the_host_wants_it() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    request(&mut host, 50);
    host.driver.set_feature(0x04, 300).unwrap();
    assert_eq!(event(&mut host), None, "not wanted");
    host.driver.set_feature(0x0b, 0b10).unwrap();
    let threshold = Command { identifier: 60, ..Command::admin(0x09, [0x04, 300, 0, 0, 0, 0]) };
    host.driver.submit_as_it_is(0, threshold).unwrap();
    let mut found = [event(&mut host).unwrap(), event(&mut host).unwrap()];
    found.sort_unstable();
    assert_eq!(found, [(50, 2 << 16 | 1 << 8 | 1), (60, 0)]);
    assert_eq!(host.driver.log_page(2, 512).unwrap()[0], 0b10, "a critical warning");
}

#[test]
fn reading_a_log_page_may_leave_its_events_as_they_are() {
    let bench = Bench::new();
    let mut host = bench.admin_on(bench.device());
    request(&mut host, 50);
    request(&mut host, 51);
    host.driver.write_u32(0x1010, 1).unwrap();
    assert!(event(&mut host).is_some());
    host.driver.write_u32(0x1010, 1).unwrap();
    let retain = Command {
        prp1: DATA,
        identifier: 9,
        ..Command::admin(0x02, [15 << 16 | 1 << 15 | 1, 0, 0, 0, 0, 0])
    };
    host.driver.submit_as_it_is(0, retain).unwrap();
    assert_eq!(event(&mut host), Some((9, 0)));
    assert_eq!(event(&mut host), None);
}

#[test]
fn without_a_sign_of_the_host_the_controller_fails_after_its_timeout() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.driver.set_feature(0x0f, 500).unwrap();
    let device = host.device();
    let at = |milliseconds| Duration::from_millis(milliseconds);
    assert_eq!(device.advance(at(100)), Next::At(at(500)));
    let command = Command { identifier: 40, ..Command::admin(0x18, [0; 6]) };
    host.driver.submit_as_it_is(0, command).unwrap();
    assert_eq!(device.advance(at(400)), Next::At(at(900)), "it lives");
    assert_eq!(device.advance(at(899)), Next::At(at(900)));
    assert_eq!(host.driver.read_u32(0x1c).unwrap() & 0b11, 0b01);
    assert_eq!(device.advance(at(900)), Next::Idle);
    assert_eq!(host.driver.read_u32(0x1c).unwrap() & 0b11, 0b10, "CFS");
    host.driver.write_u32(0x1008, 1).unwrap();
    assert_eq!(device.advance(at(1000)), Next::Idle, "nothing is executed");
    let mut host = bench.host_on(device, 8);
    host.write(0, &[3; BLOCK as usize]);
}
