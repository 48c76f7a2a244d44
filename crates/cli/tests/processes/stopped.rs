//! Processes that are stopped by SIGSTOP, and continued.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;

use crate::host::{Host, state};
use crate::migration::{ENDLESS, PATIENT, begins, listening, migrate, receive, send_within};
use crate::operator::{Side, settle_and_migrate};
use crate::seed::trials;
use crate::started::Started;

/// The process that is stopped.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Send,
    Receive,
    /// The server of a device: its host, source or destination, and the number of its device.
    Serve(usize, usize),
}

const VICTIMS: [Victim; 6] = [
    Victim::Send,
    Victim::Receive,
    Victim::Serve(0, 0),
    Victim::Serve(0, 1),
    Victim::Serve(1, 0),
    Victim::Serve(1, 1),
];

/// A migration, one process of which can be stopped.
struct Moving<'a> {
    hosts: [&'a Host; 2],
    sender: Started,
    receiver: Started,
}

impl<'a> Moving<'a> {
    fn start(hosts: [&'a Host; 2], options: [&str; 2]) -> Moving<'a> {
        let mut command = receive(hosts[1], &hosts[1].new_address());
        command.arg(options[1]);
        let (receiver, address) = listening(command);
        let sender = Started::plain(send_within(hosts[0], &address, &[PATIENT, options[0]]));
        Moving { hosts, sender, receiver }
    }

    fn signal(&mut self, victim: Victim, signal: Signal) {
        match victim {
            Victim::Send => self.sender.signal(signal),
            Victim::Receive => self.receiver.signal(signal),
            Victim::Serve(host, device) => self.hosts[host].signal(device, signal),
        }
    }
}

/// How long an undisturbed migration takes.
fn life(hosts: &[Host; 2]) -> Duration {
    let started = Instant::now();
    migrate(&hosts[0], &hosts[1]);
    migrate(&hosts[1], &hosts[0]);
    started.elapsed() / 2
}

fn moment(life: Duration, rng: &mut Rng) -> Duration {
    life.mul_f64(rng.f64())
}

#[test]
fn a_process_that_is_stopped_for_a_moment_only_delays_the_migration() {
    let hosts = [Host::start(), Host::start()];
    let life = life(&hosts);
    let mut owner = 0;
    trials("stopped_for_a_moment", 6, 60, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        let victim = VICTIMS[rng.usize(..VICTIMS.len())];
        let mut moving = Moving::start([source, destination], ["--timeout=60"; 2]);
        std::thread::sleep(moment(life, rng));
        // Each time, calls that wait end with EINTR.
        for _ in 0..rng.usize(1..=10) {
            moving.signal(victim, Signal::SIGSTOP);
            std::thread::sleep(Duration::from_millis(rng.u64(1..=20)));
            moving.signal(victim, Signal::SIGCONT);
            std::thread::sleep(Duration::from_millis(rng.u64(0..=2)));
        }
        moving.sender.end().succeeded();
        moving.receiver.end().succeeded();
        destination.assert_runs_with(&contents, &format!("{victim:?}"));
        source.assert_stands(&format!("{victim:?}"));
        owner = 1 - owner;
    });
}

#[test]
fn a_command_that_is_stopped_for_longer_than_the_timeout_loses_the_migration_or_the_question() {
    let hosts = [Host::start(), Host::start()];
    let life = life(&hosts);
    let mut owner = 0;
    trials("stopped_for_longer", 3, 30, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        let stops_sender = rng.bool();
        let (victim, options) = if stops_sender {
            (Victim::Send, ["--timeout=60", "--timeout=1"])
        } else {
            (Victim::Receive, ["--timeout=1", "--timeout=60"])
        };
        let mut moving = Moving::start([source, destination], options);
        let after = moment(life, rng);
        std::thread::sleep(after);
        moving.signal(victim, Signal::SIGSTOP);
        let [sent, taken] = if stops_sender {
            // The receiver waits without end for one that it does not know yet.
            let taken = moving.sender.told().contains(&begins("Table")).then(|| moving.receiver.end());
            moving.signal(victim, Signal::SIGCONT);
            let sent = moving.sender.end();
            [sent, taken.unwrap_or_else(|| moving.receiver.end_or_cancel())]
        } else {
            let sent = moving.sender.end();
            moving.signal(victim, Signal::SIGCONT);
            [sent, moving.receiver.end_or_cancel()]
        };
        let why = format!("{victim:?} after {after:?}");
        if settle_and_migrate([source, destination], &contents, &[sent, taken], rng, &why) == Side::Source {
            owner = 1 - owner;
        }
    });
}

#[test]
#[ignore = "waits for the timeout of calls into drivers"]
fn a_server_that_is_stopped_for_longer_than_a_call_may_take_strands_only_its_own_device() {
    trials("stopped_for_longer_than_a_call", 2, 4, |seed, rng| {
        let hosts = [Host::start(), Host::start()];
        let [source, destination] = [&hosts[0], &hosts[1]];
        source.work(rng);
        let contents = source.contents();
        let (host, device) = (usize::from(seed % 2 == 0), rng.usize(..2));
        let (mut receiver, address) = listening(receive(destination, &destination.new_address()));
        let stop = || hosts[host].signal(device, Signal::SIGSTOP);
        if host == 1 {
            // Its first call is the way to RESUMING.
            stop();
        }
        let mut sender = Started::plain(send_within(source, &address, &ENDLESS));
        if host == 0 {
            sender.wait_for("round done").unwrap_or_else(|| panic!("{}", sender.told()));
            stop();
        }
        let [sent, taken] = [sender.end(), receiver.end()];
        hosts[host].signal(device, Signal::SIGCONT);
        let why = format!("host {host}, device {device}; send: {}; receive: {}", sent.stderr, taken.stderr);
        assert_eq!((sent.status, taken.status), (1, 1), "{why}");
        let own = if host == 0 { &sent } else { &taken };
        assert!(own.stderr.contains("has not returned for 10000 ms"), "{why}");
        assert!(own.stderr.contains(&hosts[host].devices[device].target), "{why}");
        assert_eq!(sent.json()["outcome"], ["stranded", "untouched"][host], "{why}");
        assert_eq!(state(&source.devices[1 - device]), "RUNNING", "{why}");
        source.resume();
        source.assert_runs_with(&contents, &why);
        assert!(!destination.works_with(&contents).contains(&true), "{why}");
        migrate(source, destination);
        destination.assert_runs_with(&contents, &why);
    });
}
