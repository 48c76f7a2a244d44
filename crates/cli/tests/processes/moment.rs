//! Random moments of a process's life, and migrations in which processes are killed then.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;

use crate::host::Host;
use crate::started::Started;
use crate::support::Run;
use crate::tracer::Verdict;

/// The moment at which a process is killed.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment {
    /// Before its n-th system call, of all its threads.
    Call(u64),
    After(Duration),
}

/// How long an undisturbed process lives.
#[derive(Debug)]
pub(crate) struct Life {
    calls: u64,
    time: Duration,
}

/// The commands `send` and `receive` that migrate the devices of the first host to the second, over this address.
pub(crate) type Commands = fn([&Host; 2], &str) -> [Command; 2];

impl Life {
    /// Migrates the devices there and back, and returns the lives of both commands.
    pub(crate) fn measure([one, other]: [&Host; 2], commands: Commands) -> [Life; 2] {
        let calls = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let counting = |command, side: usize| {
            let calls = Arc::clone(&calls[side]);
            Started::traced(command, move |_| {
                calls.fetch_add(1, Ordering::Relaxed);
                Verdict::Pass
            })
        };
        let counted = migrate([one, other], commands, counting);
        let started = Instant::now();
        let timed = migrate([other, one], commands, |command, _| Started::plain(command));
        let time = started.elapsed();
        for run in counted.into_iter().chain(timed) {
            run.succeeded();
        }
        calls.map(|calls| Life { calls: calls.load(Ordering::Relaxed), time })
    }

    /// A moment of this life; one of two is near its end, where the handover is.
    pub(crate) fn moment(&self, rng: &mut Rng) -> Moment {
        let thousandths = if rng.bool() { rng.u32(..1000) } else { rng.u32(600..1000) };
        if rng.bool() {
            Moment::Call(self.calls * u64::from(thousandths) / 1000 + 1)
        } else {
            Moment::After(self.time * thousandths / 1000)
        }
    }
}

/// Starts a process that is killed at this moment.
pub(crate) fn doomed(command: Command, moment: Moment) -> Started {
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

/// Migrates the devices, each command started in its own way, and returns how both ended.
fn migrate(hosts: [&Host; 2], commands: Commands, start: impl Fn(Command, usize) -> Started) -> [Run; 2] {
    let [source, destination] = commands(hosts, &hosts[1].new_address());
    let mut receiver = start(destination, 1);
    // One that is killed before it listens has ended.
    let _ = receiver.wait_for("listening at ");
    let sent = start(source, 0).end();
    [sent, receiver.end_or_cancel()]
}

/// Migrates the devices while commands are killed, and returns how both ended.
pub(crate) fn migrate_killed(
    hosts: [&Host; 2],
    commands: Commands,
    moments: [Option<Moment>; 2],
) -> [Run; 2] {
    migrate(hosts, commands, |command, side| match moments[side] {
        Some(moment) => doomed(command, moment),
        None => Started::plain(command),
    })
}
