//! Devices that migrate many times, and to whichever host takes them.

use fastrand::Rng;
use nix::sys::signal::Signal;

use crate::host::{Contents, Host, MODELS, serve};
use crate::migration::{ENDLESS, PATIENT, listening, migrate, receive, send_within};
use crate::seed::{is_long, trials};
use crate::started::Started;
use crate::support::KILLED;

#[test]
fn devices_that_migrate_there_and_back_keep_their_state() {
    trials("there_and_back", 1, 1, |_, rng| {
        let hosts = [Host::start(), Host::start()];
        for turn in 0..if is_long() { 20 } else { 4 } {
            let [here, there] = [turn % 2, 1 - turn % 2].map(|index| &hosts[index]);
            here.work(rng);
            let contents = here.contents();
            migrate(here, there);
            there.assert_runs_with(&contents, &format!("turn {turn}"));
            here.assert_stands(&format!("turn {turn}"));
        }
    });
}

#[test]
fn devices_migrate_on_to_a_third_host_and_from_there_to_the_first() {
    trials("a_third_host", 1, 1, |_, rng| {
        let hosts = [Host::start(), Host::start(), Host::start()];
        hosts[0].work(rng);
        let contents = hosts[0].contents();
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            migrate(&hosts[from], &hosts[to]);
            hosts[to].assert_runs_with(&contents, &format!("from {from} to {to}"));
            hosts[from].assert_stands(&format!("from {from} to {to}"));
        }
    });
}

/// The ways in which a migration fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    ReceiverKilled,
    ReceiverCancelled,
    SenderKilled,
    SenderCancelled,
    /// The destination's device refuses its state.
    Refused,
}

const FAILURES: [Failure; 5] = [
    Failure::ReceiverKilled,
    Failure::ReceiverCancelled,
    Failure::SenderKilled,
    Failure::SenderCancelled,
    Failure::Refused,
];

/// Fails to migrate devices of `source` to a new host: they run on, or are in PRE_COPY, from which the next `send` gets them.
fn fail(source: &Host, failure: Failure) {
    let destination = match failure {
        Failure::Refused => Host::try_with(&MODELS, |model, socket| {
            let mut command = serve(model, socket);
            command.args(["--fault", "write after 32: ENOSPC"]);
            command
        })
        .unwrap(),
        _ => Host::start(),
    };
    let (mut receiver, address) = listening(receive(&destination, &destination.new_address()));
    let limit: &[&str] = if matches!(failure, Failure::Refused) { &[PATIENT] } else { &ENDLESS };
    let mut sender = Started::plain(send_within(source, &address, limit));
    if !matches!(failure, Failure::Refused) {
        sender.wait_for("round done").unwrap_or_else(|| panic!("{}", sender.told()));
    }
    match failure {
        Failure::ReceiverKilled => receiver.signal(Signal::SIGKILL),
        Failure::ReceiverCancelled => receiver.signal(Signal::SIGTERM),
        Failure::SenderKilled => sender.signal(Signal::SIGKILL),
        Failure::SenderCancelled => sender.signal(Signal::SIGINT),
        Failure::Refused => {}
    }
    let (sent, taken) = (sender.end(), receiver.end());
    match failure {
        Failure::ReceiverKilled => assert_eq!(taken.status, KILLED),
        _ => drop(taken.failed()),
    }
    match failure {
        Failure::SenderKilled => assert_eq!(sent.status, KILLED),
        _ => assert_eq!(sent.failed().json()["outcome"], "runs_on", "{failure:?}"),
    }
}

fn two_failures_and_a_success(failures: [Failure; 2], rng: &mut Rng) {
    let source = Host::start();
    source.work(rng);
    let contents: Contents = source.contents();
    for failure in failures {
        fail(&source, failure);
    }
    let other = Host::start();
    migrate(&source, &other);
    other.assert_runs_with(&contents, &format!("{failures:?}"));
    source.assert_stands(&format!("{failures:?}"));
}

#[test]
fn after_two_failures_devices_migrate_to_another_host() {
    trials("after_two_failures", 2, 1, |_, rng| {
        if is_long() {
            for first in FAILURES {
                for second in FAILURES {
                    two_failures_and_a_success([first, second], rng);
                }
            }
        } else {
            let failures = [rng.usize(..FAILURES.len()), rng.usize(..FAILURES.len())];
            two_failures_and_a_success(failures.map(|index| FAILURES[index]), rng);
        }
    });
}
