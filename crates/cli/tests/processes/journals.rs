//! Both commands keep journals. One of them, or both, are killed at random moments, and `whimbrel resolve`, which is killed
//! as well, settles what is left.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use fastrand::Rng;

use crate::host::{Contents, Host, assert_at_most_one_runs};
use crate::migration::{receive, send};
use crate::moment::{Commands, Life, Moment, doomed, migrate_killed};
use crate::operator::Side;
use crate::seed::trials;
use crate::started::Started;
use crate::support::{Run, argument, command};

/// The journal of a host.
pub(crate) fn journal(host: &Host) -> PathBuf {
    host.path("journal")
}

/// A command that keeps the journal of a host.
pub(crate) fn with_journal(mut command: Command, host: &Host) -> Command {
    command.arg("--journal").arg(journal(host));
    command
}

const COMMANDS: Commands = |hosts, address| {
    [with_journal(send(hosts[0], address), hosts[0]), with_journal(receive(hosts[1], address), hosts[1])]
};

/// Runs `whimbrel resolve` on a host until it is not killed.
fn resolve(host: &Host, options: &[&str], rng: &mut Rng) -> Run {
    let resolve = || {
        let mut command = command(["resolve", "--json"]);
        command.args(options);
        with_journal(command, host)
    };
    while rng.u8(..3) == 0 {
        doomed(resolve(), Moment::Call(rng.u64(1..400))).end();
    }
    Started::plain(resolve()).end()
}

/// What `whimbrel resolve` says of the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// They were not touched.
    NotBegun,
    AtSource,
    AtDestination,
    Unknown,
}

fn outcome(run: &Run) -> Outcome {
    if run.stderr.contains("records no migration") || run.stderr.contains("ENOENT") {
        return Outcome::NotBegun;
    }
    let told = run.json();
    match (told["side"].as_str(), told["outcome"].as_str()) {
        (Some("source"), Some("returned")) | (Some("destination"), Some("discarded")) => Outcome::AtSource,
        (Some("source"), Some("gone")) | (Some("destination"), Some("started")) => Outcome::AtDestination,
        // Or the other side's journal has nothing of the migration.
        (_, None) => Outcome::Unknown,
        _ => panic!("{}: {}", run.text(), run.stderr),
    }
}

/// Settles a migration by both journals, as the guide says. Returns the host that has the devices.
fn settle(hosts: [&Host; 2], rng: &mut Rng, said: &mut String) -> Side {
    let mut ask = |host: usize, options: &[&str], rng: &mut Rng| {
        let run = resolve(hosts[host], options, rng);
        let (status, text, stderr) = (run.status, run.text(), &run.stderr);
        writeln!(said, "\nresolve at {host} {options:?}: {status} {text}{stderr}").unwrap();
        assert!(run.status == 0 || run.stderr.contains("error: "), "{said}");
        (outcome(&run), run.json()["side"].as_str().map(str::to_string))
    };
    let (there, its_side) = ask(1, &[], rng);
    // Its last migration may be an earlier one, in which it was the source.
    let there = if its_side.as_deref() == Some("source") { Outcome::NotBegun } else { there };
    let (here, its_side) = ask(0, &[], rng);
    let here = if its_side.as_deref() == Some("destination") { Outcome::NotBegun } else { here };
    eprintln!("by the journals: source {here:?}, destination {there:?}");
    match (here, there) {
        (Outcome::NotBegun | Outcome::AtSource, Outcome::NotBegun | Outcome::AtSource) => Side::Source,
        (Outcome::AtDestination, Outcome::AtDestination) => Side::Destination,
        // The side that knows decides for the other one: by its journal, or by what it has said.
        (Outcome::Unknown, known @ (Outcome::AtSource | Outcome::AtDestination))
        | (known @ (Outcome::AtSource | Outcome::AtDestination), Outcome::Unknown) => {
            let asks = usize::from(here != Outcome::Unknown);
            let copy = argument(&journal(hosts[1 - asks]));
            let is_here = (known == Outcome::AtSource) == (asks == 0);
            let by_hand = [if is_here { "--run-here" } else { "--run-there" }];
            // The journal of a side that ended before it had recorded the migration does not name it.
            if rng.bool() || ask(asks, &["--peer-journal", &copy], rng).0 != known {
                assert_eq!(ask(asks, &by_hand, rng).0, known);
            }
            if known == Outcome::AtSource { Side::Source } else { Side::Destination }
        }
        (Outcome::Unknown, Outcome::Unknown) => {
            let chosen = rng.usize(..2);
            let wanted = [Outcome::AtSource, Outcome::AtDestination][chosen];
            assert_eq!(ask(1 - chosen, &["--run-there"], rng).0, wanted);
            assert_eq!(ask(chosen, &["--run-here"], rng).0, wanted);
            [Side::Source, Side::Destination][chosen]
        }
        _ => panic!("source: {here:?}, destination: {there:?}{said}"),
    }
}

/// That what the commands said before agrees with where the devices are.
fn assert_agrees([sent, taken]: &[Run; 2], side: Side, why: &str) {
    match (sent.status, taken.status) {
        (0, _) | (_, 0) => assert_eq!(side, Side::Destination, "{why}"),
        (_, 1) => assert_eq!(side, Side::Source, "{why}"),
        (1, _) if sent.json()["outcome"] != "unknown" => assert_eq!(side, Side::Source, "{why}"),
        _ => {}
    }
}

/// One trial. Returns the host from which the devices were migrated to the other one in the end.
fn kill_and_resolve(
    hosts: [&Host; 2],
    contents: &Contents,
    moments: [Option<Moment>; 2],
    rng: &mut Rng,
) -> Side {
    let ended = migrate_killed(hosts, COMMANDS, moments);
    let [sent, taken] = &ended;
    let mut why = format!(
        "{moments:?}; send: {} {}; receive: {} {}",
        sent.status, sent.stderr, taken.status, taken.stderr
    );
    assert_at_most_one_runs(hosts, contents, &why);
    let side = settle(hosts, rng, &mut why);
    assert_at_most_one_runs(hosts, contents, &why);
    assert_agrees(&ended, side, &why);
    let [has, has_not] = match side {
        Side::Source => hosts,
        Side::Destination => [hosts[1], hosts[0]],
    };
    has.assert_runs_with(contents, &why);
    for run in migrate_killed([has, has_not], COMMANDS, [None; 2]) {
        assert_eq!(run.status, 0, "{}; before: {why}", run.stderr);
    }
    has_not.assert_runs_with(contents, &why);
    has.assert_stands(&why);
    side
}

fn kill_at_random_moments(test: &'static str, kills: fn(&mut Rng) -> [bool; 2]) {
    let hosts = [Host::start(), Host::start()];
    let lives = Life::measure([&hosts[0], &hosts[1]], COMMANDS);
    for host in &hosts {
        // What was measured is no trial's earlier migration.
        fs::remove_file(journal(host)).unwrap();
    }
    let mut owner = 0;
    trials(test, 2, 50, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        let kills = kills(rng);
        let moments = [0, 1].map(|side| kills[side].then(|| lives[side].moment(rng)));
        if kill_and_resolve([source, destination], &contents, moments, rng) == Side::Source {
            owner = 1 - owner;
        }
    });
}

#[test]
fn after_one_command_was_killed_at_any_moment_the_journals_leave_the_devices_running_once() {
    kill_at_random_moments("after_one_command_was_killed", |rng| {
        let sends = rng.bool();
        [sends, !sends]
    });
}

#[test]
fn after_both_commands_were_killed_at_any_moment_the_journals_leave_the_devices_running_once() {
    kill_at_random_moments("after_both_commands_were_killed", |_| [true, true]);
}
