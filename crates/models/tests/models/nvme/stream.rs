//! A stream of version 1 that was kept: later versions load it, and this one still writes it.

use std::time::Duration;

use whimbrel_device::State;
use whimbrel_models::nvme::guest::Command;

use super::host::{BLOCK, Bench, DATA, Host, Memory, load, pattern, save};

/// Written by the test below with `WHIMBREL_KEEP_STREAMS` set.
const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models/nvme/streams/busy-v1.bin");

/// A host with something of everything: features, queues, a request, an error, and commands in flight.
fn busy(bench: &Bench) -> Host {
    let mut host = bench.host_on(bench.device_of(bench.config().serial("KEPT"), ""), 16);
    host.write(0, &pattern(1, 4 * BLOCK));
    host.driver.set_feature(0x06, 0).unwrap();
    host.driver.set_feature(0x09, 0x1_0001).unwrap();
    let request = Command { identifier: 300, ..Command::admin(0x0c, [0; 6]) };
    host.driver.submit_as_it_is(0, request).unwrap();
    assert_eq!(host.raw(1, Command::read(u64::MAX, 1)).0, 0);
    for command in 0..4 {
        host.driver.submit(1, Command::read(command, 1), DATA + command * 0x1000, BLOCK).unwrap();
    }
    // They are fetched, and their operations have begun.
    host.device().advance(Duration::ZERO);
    host
}

#[test]
fn a_kept_stream_of_version_1_loads_and_is_what_is_written() {
    // So that the commands are in flight until the device goes on.
    let bench = Bench::with(Memory::with_remote_data());
    let mut host = busy(&bench);
    let stream = save(&host.device());
    if std::env::var_os("WHIMBREL_KEEP_STREAMS").is_some() {
        std::fs::write(KEPT, &stream).unwrap();
    }
    let kept = std::fs::read(KEPT).unwrap();
    assert!(stream == kept, "the stream has changed: give it a new version that contains this one");
    let destination = bench.device();
    load(&destination, &kept);
    destination.set_mig_state(State::Running).unwrap();
    host.move_to(destination);
    for _ in 0..4 {
        assert!(host.driver.await_completion(1).unwrap().is_success());
    }
    for command in 0..4 {
        let expected = &pattern(1, 4 * BLOCK)[(command * BLOCK) as usize..][..BLOCK as usize];
        assert_eq!(host.memory.read(DATA + command * 0x1000, BLOCK), expected);
    }
    assert_eq!(&host.driver.identify(1, 0).unwrap()[4..9], b"KEPT ");
    assert_eq!(host.driver.feature(0x06, 0).unwrap(), 0);
    assert_eq!(host.driver.log_page(1, 64).unwrap()[0], 1);
    host.driver.write_u32(0x1010, 1).unwrap();
    assert_eq!(host.driver.await_completion(0).unwrap().identifier, 300);
}
