//! A server of a device is killed during a migration: its device is lost, and nothing false is said of the others.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::host::{Contents, Host, state, works_with};
use crate::migration::{PATIENT, listening, migrate, receive, send_within};
use crate::seed::trials;
use crate::started::Started;
use crate::support::Run;

/// The server that is killed: its host, source or destination, and the number of its device.
type Victim = (usize, usize);

/// Checks what both commands say against the devices whose servers are alive.
fn check(
    [source, destination]: [&Host; 2],
    victim: Victim,
    contents: &Contents,
    [sent, taken]: &[Run; 2],
    why: &str,
) {
    let alive = |side| (0..contents.len()).filter(move |&device| (side, device) != victim);
    let at_source = |device: usize| works_with(&source.devices[device], &contents[device]);
    let at_destination = |device: usize| works_with(&destination.devices[device], &contents[device]);
    for device in alive(0).filter(|&device| (1, device) != victim) {
        assert!(!(at_source(device) && at_destination(device)), "{why}: device {device} works on both hosts");
    }
    match taken.status {
        0 => assert!(alive(1).all(at_destination), "{why}: {:?}", destination.states_of(alive(1))),
        1 => assert!(!alive(1).any(at_destination), "{why}"),
        status => panic!("{why}: {status}"),
    }
    if sent.status == 0 {
        assert_eq!(taken.status, 0, "{why}");
        return;
    }
    assert_eq!(sent.status, 1, "{why}");
    match sent.json()["outcome"].as_str() {
        // Without an outcome, it did not begin.
        None | Some("runs_on" | "untouched") => {
            for device in alive(0) {
                assert_eq!(state(&source.devices[device]), "RUNNING", "{why}");
                assert!(at_source(device), "{why}: device {device} is not what it was");
            }
        }
        Some("stranded") => {
            assert_eq!(victim.0, 0, "{why}");
            assert_eq!(taken.status, 1, "{why}");
            assert!(alive(0).all(at_source), "{why}: {:?}", source.states_of(alive(0)));
        }
        Some("unknown") => assert!(!alive(0).any(at_source), "{why}"),
        outcome => panic!("{outcome:?}: {why}"),
    }
}

#[test]
fn a_server_that_is_killed_at_any_moment_takes_only_its_own_device_with_it() {
    let life = {
        let hosts = [Host::start(), Host::start()];
        let started = Instant::now();
        migrate(&hosts[0], &hosts[1]);
        started.elapsed()
    };
    trials("a_server_that_is_killed", 4, 60, |_, rng| {
        let [source, destination] = [Host::start(), Host::start()];
        source.work(rng);
        let contents = source.contents();
        let victim = (rng.usize(..2), rng.usize(..2));
        let moment = life.mul_f64(rng.f64());
        let (mut receiver, address) = listening(receive(&destination, &destination.new_address()));
        let mut sender = Started::plain(send_within(&source, &address, &[PATIENT, "--timeout=20"]));
        std::thread::sleep(moment);
        [&source, &destination][victim.0].signal(victim.1, Signal::SIGKILL);
        let sent = sender.end();
        let taken = receiver.end_or_cancel();
        let why = format!(
            "{victim:?} after {moment:?}; send: {} {}; receive: {} {}",
            sent.status, sent.stderr, taken.status, taken.stderr
        );
        check([&source, &destination], victim, &contents, &[sent, taken], &why);
    });
}
