//! Migrations of a guest in which a device fails: each fault of `whimbrel_device::wrap::fault` at each point of a migration, and
//! what QEMU makes of it. A guest boots once for many of them: it migrates again, from where it is.

mod destination;
mod region;
mod source;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Way;
use super::work::{PATIENCE, Work, address, ended_or_gone, listen};
use crate::lab::guest::running::Running;

/// How often a migration that would end estimates what is left, at most.
const MANY_ESTIMATES: u64 = 2000;

/// A fault during a migration, and what comes of it.
struct Trial {
    side: Side,
    /// That of a source which stays one happens once.
    fault: &'static str,
    comes: Comes,
    /// A part of QEMU's reason at the source.
    why: &'static str,
}

/// Whose device has the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

/// What comes of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comes {
    /// It fails, and the guest works on where it was.
    Fails,
    /// It fails, and the guest is where it was, with a device that was reset: its work is lost.
    FailsAndResets,
    /// It is completed, and the guest works on at the destination.
    Completes,
    /// QEMU says that it is completed. The guest is at the destination, with a device that was reset.
    CompletesAndResets,
    /// It never ends. Once it is cancelled the guest works on where it was.
    Never,
    /// QEMU at the source ends, and the guest with it.
    Aborts,
}

impl Comes {
    /// Whether the machine that was the source has ended.
    fn ends_source(self) -> bool {
        matches!(self, Comes::Completes | Comes::CompletesAndResets | Comes::Aborts)
    }
}

const fn source(fault: &'static str, comes: Comes, why: &'static str) -> Trial {
    Trial { side: Side::Source, fault, comes, why }
}

/// The source notices the end of the destination in one way or another: its reason varies.
const fn destination(fault: &'static str, comes: Comes) -> Trial {
    Trial { side: Side::Destination, fault, comes, why: "" }
}

/// The faults of the machine that is the source from the first of these trials on.
fn faults_of_source(trials: &[Trial]) -> Vec<&'static str> {
    let last = trials.iter().position(|trial| trial.comes.ends_source()).map_or(trials.len(), |at| at + 1);
    trials[..last].iter().filter(|trial| trial.side == Side::Source).map(|trial| trial.fault).collect()
}

fn options<'a>(faults: &[&'a str]) -> Vec<&'a str> {
    faults.iter().flat_map(|fault| ["--fault", fault]).collect()
}

/// Does the trials one after the other. Those that end otherwise than expected are told at the end, all of them.
#[track_caller]
fn hold(way: Way, model: &str, trials: &[Trial]) {
    let work = Work::new(way, &[model]).despite_losses();
    let (mut machine, mut others) = (None, Vec::new());
    for (number, trial) in trials.iter().enumerate() {
        let from = if let Some(machine) = machine.take() {
            machine
        } else {
            let Some(mut new) = work.start(&[], &options(&faults_of_source(&trials[number..]))) else {
                return;
            };
            new.wait_for("working");
            new
        };
        let mut faults = Vec::new();
        if trial.side == Side::Destination {
            faults.push(trial.fault);
        }
        if trial.comes.ends_source() {
            faults.extend(faults_of_source(&trials[number + 1..]));
        }
        let Some(to) = work.start(&["--incoming"], &options(&faults)) else { return };
        let (comes, why, next) = migrates(from, to);
        println!("{way:?} {model}, {:?} '{}': {comes:?}, {why}", trial.side, trial.fault);
        if comes != trial.comes || !why.contains(trial.why) {
            others.push(format!(
                "{:?} '{}': {comes:?}, \"{why}\", and not {:?}, \"{}\"",
                trial.side, trial.fault, trial.comes, trial.why
            ));
        }
        // Else the faults of later trials are at another machine.
        machine = next.filter(|_| comes.ends_source() == trial.comes.ends_source());
    }
    assert!(others.is_empty(), "{way:?} {model}:\n{}", others.join("\n"));
}

/// Migrates a guest. Returns what came of it, QEMU's reason at the source, and the machine in which the guest is.
fn migrates(mut from: Running, mut to: Running) -> (Comes, String, Option<Running>) {
    for machine in [&mut from, &mut to] {
        // By it the destination says whether it has loaded everything. Without it the source is done once all is sent.
        let wanted = json!({ "capabilities": [{ "capability": "return-path", "state": true }] });
        machine.execute("migrate-set-capabilities", &wanted);
    }
    let uri = listen(&mut to);
    from.execute("migrate", &uri);
    let (told, is_endless) = ended_or_endless(&mut from);
    let Some(told) = told else { return (Comes::Aborts, String::new(), None) };
    let why = told["error-desc"].as_str().unwrap_or_default().to_owned();
    if told["status"] == "completed" {
        from.stop();
        let comes = if has_lost(&mut to) { Comes::CompletesAndResets } else { Comes::Completes };
        return (comes, why, Some(to));
    }
    drop(to);
    let comes = match (is_endless, has_lost(&mut from)) {
        (true, false) => Comes::Never,
        (false, false) => Comes::Fails,
        (_, true) => Comes::FailsAndResets,
    };
    (comes, why, Some(from))
}

/// Waits until a migration has ended, and returns what QEMU says of it, `None` if QEMU ends. One that has estimated what is
/// left many times is cancelled: it does not end by itself.
fn ended_or_endless(machine: &mut Running) -> (Option<Value>, bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let Some(told) = machine.query("query-migrate") else { return (None, false) };
        assert!(Instant::now() < deadline, "the migration stands still: {told}");
        if matches!(told["status"].as_str(), Some("completed" | "failed" | "cancelled")) {
            return (Some(told), false);
        }
        if told["ram"]["dirty-sync-count"].as_u64().is_some_and(|count| count >= MANY_ESTIMATES) {
            machine.execute("migrate_cancel", &json!({}));
            return (ended_or_gone(machine), true);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until the guest has worked for a whole round, and returns whether its device had lost its state before.
fn has_lost(machine: &mut Running) -> bool {
    let (round, lost) = (format!("round {}", address(0)), format!("lost {}", address(0)));
    machine.lines_until_more(&round).contains(&lost)
}
