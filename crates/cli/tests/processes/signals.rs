//! SIGINT and SIGTERM to either command as each phase of a migration begins.

use fastrand::Rng;
use nix::sys::signal::Signal;
use whimbrel_engine::proto::{destination, source};

use crate::host::{Contents, Host, MODELS, serve};
use crate::migration::{begins, listening, receive, send};
use crate::operator::settle_and_migrate;
use crate::phases;
use crate::seed::trials;
use crate::started::Started;
use crate::support::Run;

/// How a command is found in a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// The server of each device of this host delays the way to a state: the signal finds the phase under way, and the
    /// migration is given up in it.
    Held(usize, &'static str),
    /// As `Held`, but the devices have been handed over, and the migration goes on to its end.
    TooLate(usize, &'static str),
    /// Nothing outside holds it: the signal arrives in it or soon after it.
    Passing,
    /// It follows on another signal, in the phase of this name, with the way to a state delayed on this host.
    After(&'static str, usize, &'static str),
    /// No signal leads there: it is the first one, which the command waits in for its peer, or follows on other failures.
    Never,
}

/// A new phase does not compile without a line here.
fn at_the_source(phase: source::Phase) -> Reach {
    use source::{Back, Phase, Then};
    match phase {
        Phase::Table => Reach::Held(1, "RESUMING"),
        Phase::Precopy => Reach::Held(0, "PRE_COPY"),
        Phase::Quiesce => Reach::Held(0, "PRE_COPY_P2P"),
        Phase::Stop => Reach::Held(0, "STOP_COPY"),
        Phase::End => Reach::Held(1, "STOP"),
        Phase::Committed => Reach::TooLate(1, "RUNNING"),
        Phase::Hello
        | Phase::RoundQuery
        | Phase::RoundSend
        | Phase::RoundEnd
        | Phase::RoundLeft
        | Phase::RoundMemoryLeft
        | Phase::Record
        | Phase::Pause
        | Phase::Rest
        | Phase::Release
        | Phase::Over => Reach::Passing,
        Phase::Settle(Then::Back)
        | Phase::Back(Back::Query | Back::Quiesce | Back::Run | Back::Owner | Back::Tell) => {
            Reach::After("Stop", 0, "STOP_COPY")
        }
        // PING needs more state to send, only a migration with memory slows its owner, and the others need options or a link
        // that is lost.
        Phase::Ping
        | Phase::Lanes
        | Phase::Broken
        | Phase::Reconnect
        | Phase::Join
        | Phase::Resend
        | Phase::Slow
        | Phase::Back(Back::Reset)
        | Phase::Settle(Then::Park | Then::Release)
        | Phase::Park => Reach::Never,
    }
}

/// As [`at_the_source`].
fn at_the_destination(phase: destination::Phase) -> Reach {
    use destination::Phase;
    match phase {
        Phase::Resume => Reach::Held(1, "RESUMING"),
        Phase::Finish => Reach::Held(1, "STOP"),
        Phase::Quiesce => Reach::TooLate(1, "RUNNING_P2P"),
        Phase::Start => Reach::TooLate(1, "RUNNING"),
        Phase::Table
        | Phase::Load
        | Phase::RoundEnd
        | Phase::Inspect
        | Phase::Ready
        | Phase::Run
        | Phase::Over => Reach::Passing,
        Phase::Settle | Phase::Reset | Phase::Tell => Reach::After("Finish", 1, "STOP"),
        Phase::Hello | Phase::Broken | Phase::Await | Phase::Rejoin | Phase::Record | Phase::Verify => {
            Reach::Never
        }
    }
}

/// A phase of a side: 0 is the source, 1 the destination.
#[derive(Clone, Copy, Debug)]
struct Case {
    side: usize,
    phase: &'static str,
    reach: Reach,
}

fn cases() -> Vec<Case> {
    let here = phases::SOURCE.iter().map(|&(phase, name)| (0, name, at_the_source(phase)));
    let there = phases::DESTINATION.iter().map(|&(phase, name)| (1, name, at_the_destination(phase)));
    let cases = here.chain(there).map(|(side, phase, reach)| Case { side, phase, reach });
    cases.filter(|case| case.reach != Reach::Never).collect()
}

/// Migrates, with signals to one side. Returns how both commands ended.
fn signalled(case: Case, signal: Signal, rng: &mut Rng) -> ([Host; 2], Contents, [Run; 2]) {
    let delayed = match case.reach {
        Reach::Held(host, state) | Reach::TooLate(host, state) | Reach::After(_, host, state) => {
            // The way to RESUMING leads through RUNNING_P2P and STOP.
            Some((host, format!("delay {state} 500ms {}", ["once", "2 times"][host])))
        }
        Reach::Passing | Reach::Never => None,
    };
    let hosts = [0, 1].map(|number| {
        let serve = |model: &str, socket: &std::path::Path| {
            let mut command = serve(model, socket);
            if let Some((host, fault)) = &delayed
                && *host == number
            {
                command.args(["--fault", fault]);
            }
            command
        };
        Host::try_with(&MODELS, serve).unwrap()
    });
    hosts[0].work(rng);
    let contents = hosts[0].contents();
    let mut command = receive(&hosts[1], &hosts[1].new_address());
    command.env("WHIMBREL_LOG", "whimbrel_engine=debug");
    let (receiver, address) = listening(command);
    let mut both = [Started::plain(send(&hosts[0], &address)), receiver];
    let before = match case.reach {
        Reach::After(phase, ..) => Some(phase),
        _ => None,
    };
    let process = &mut both[case.side];
    for phase in before.into_iter().chain([case.phase]) {
        process.wait_for(&begins(phase)).unwrap_or_else(|| panic!("{case:?}: {}", process.told()));
        process.signal(signal);
    }
    let [mut sender, mut receiver] = both;
    // A receiver whose sender has ended early waits for another one.
    let ended = [sender.end(), receiver.end_or_cancel()];
    (hosts, contents, ended)
}

/// Whether the migration was given up in the phase that the case is about.
fn is_given_up_in(case: Case, run: &Run) -> bool {
    let mut lines = run.stderr.lines().filter(|line| line.contains("the migration is given up"));
    lines.any(|line| line.split_whitespace().any(|word| word == format!("phase={}", case.phase)))
}

fn check(case: Case, signal: Signal, rng: &mut Rng) {
    for _ in 0..10 {
        let (hosts, contents, ended) = signalled(case, signal, rng);
        let what = format!("{case:?} {signal}");
        let own = &ended[case.side];
        let is_in_time = match case.reach {
            Reach::Held(..) => is_given_up_in(case, own),
            _ => true,
        };
        let statuses = [0, 1].map(|side| ended[side].status);
        match case.reach {
            Reach::Held(..) | Reach::After(..) if is_in_time => {
                assert_eq!(statuses, [1, 1], "{what}: {} {}", ended[0].stderr, ended[1].stderr);
                assert!(
                    own.stderr.contains(&format!("error: cancelled: {signal}")),
                    "{what}: {}",
                    own.stderr
                );
                let outcome = &ended[0].json()["outcome"];
                assert!(outcome == "runs_on" || outcome == "untouched", "{what}: {outcome}");
            }
            Reach::TooLate(..) => {
                assert_eq!(statuses, [0, 0], "{what}: {} {}", ended[0].stderr, ended[1].stderr);
            }
            _ => {}
        }
        // What the commands said is true, whichever it is.
        settle_and_migrate([&hosts[0], &hosts[1]], &contents, &ended, rng, &what);
        if is_in_time {
            return;
        }
        // It was too late: this machine is busy.
    }
    panic!("{case:?}: it is never in time");
}

/// Signals a side in each of its phases.
fn signal_side(test: &'static str, side: usize) {
    trials(test, 1, 6, |_, rng| {
        for case in cases().into_iter().filter(|case| case.side == side) {
            let signal = if rng.bool() { Signal::SIGINT } else { Signal::SIGTERM };
            check(case, signal, rng);
        }
    });
}

#[test]
fn a_signal_to_send_in_any_phase_leaves_the_devices_where_the_commands_say() {
    signal_side("a_signal_to_send_in_any_phase", 0);
}

#[test]
fn a_signal_to_receive_in_any_phase_leaves_the_devices_where_the_commands_say() {
    signal_side("a_signal_to_receive_in_any_phase", 1);
}
