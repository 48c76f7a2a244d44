//! `send` and `receive` are killed at random moments, and an operator settles what is left.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::host::Host;
use crate::migration::{receive, send};
use crate::operator::{Side, settle_and_migrate};
use crate::seed::trials;
use crate::started::Started;
use crate::support::Run;
use crate::tracer::Verdict;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Send,
    Receive,
}

/// The moment at which a process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// Before its n-th system call, of all its threads.
    Call(u64),
    After(Duration),
}

/// How long an undisturbed process of each kind lives.
struct Life {
    calls: u64,
    time: Duration,
}

impl Life {
    fn measure(victim: Victim, hosts: &[Host; 2]) -> Life {
        let counted = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&counted);
        let mut time = Duration::ZERO;
        for is_counted in [true, false] {
            let [source, destination] = if is_counted { [0, 1] } else { [1, 0] }.map(|index| &hosts[index]);
            let start = |command: Command, kind| {
                let count = Arc::clone(&count);
                if is_counted && victim == kind {
                    Started::traced(command, move |_| {
                        count.fetch_add(1, Ordering::Relaxed);
                        Verdict::Pass
                    })
                } else {
                    Started::plain(command)
                }
            };
            let address = destination.new_address();
            let started = Instant::now();
            let mut receiver = start(receive(destination, &address), Victim::Receive);
            receiver.wait_for("listening at ").unwrap();
            start(send(source, &address), Victim::Send).end().succeeded();
            receiver.end().succeeded();
            time = started.elapsed();
        }
        Life { calls: counted.load(Ordering::Relaxed), time }
    }

    fn moment(&self, rng: &mut Rng) -> Moment {
        if rng.bool() {
            Moment::Call(rng.u64(1..=self.calls))
        } else {
            Moment::After(self.time.mul_f64(rng.f64()))
        }
    }
}

/// Starts a process that is killed at this moment.
fn doomed(command: Command, moment: Moment) -> Started {
    match moment {
        Moment::Call(last) => {
            let mut calls = 0;
            Started::traced(command, move |_| {
                calls += 1;
                if calls == last { Verdict::Kill } else { Verdict::Pass }
            })
        }
        Moment::After(time) => Started::killed_after(command, time),
    }
}

/// Migrates the devices while one process is killed, and returns how the sender and the receiver ended.
fn disturbed(hosts: [&Host; 2], victim: Victim, moment: Moment) -> [Run; 2] {
    let address = hosts[1].new_address();
    let start =
        |command, kind| if kind == victim { doomed(command, moment) } else { Started::plain(command) };
    let mut receiver = start(receive(hosts[1], &address), Victim::Receive);
    // One that is killed before it listens has ended.
    let _ = receiver.wait_for("listening at ");
    let sent = start(send(hosts[0], &address), Victim::Send).end();
    [sent, receiver.end_or_cancel()]
}

fn kill_at_random_moments(test: &'static str, victim: Victim) {
    let hosts = [Host::start(), Host::start()];
    let life = Life::measure(victim, &hosts);
    let mut owner = 0;
    trials(test, 6, 100, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        let moment = life.moment(rng);
        let ended = disturbed([source, destination], victim, moment);
        let side = settle_and_migrate([source, destination], &contents, &ended, rng, &format!("{moment:?}"));
        if side == Side::Source {
            owner = 1 - owner;
        }
    });
}

#[test]
fn a_sender_that_is_killed_at_any_moment_leaves_the_devices_running_once() {
    kill_at_random_moments("a_sender_that_is_killed", Victim::Send);
}

#[test]
fn a_receiver_that_is_killed_at_any_moment_leaves_the_devices_running_once() {
    kill_at_random_moments("a_receiver_that_is_killed", Victim::Receive);
}
