//! An operator, who settles what a failed migration has left by what the commands said and by the states of the devices.

use fastrand::Rng;

use crate::host::{Contents, Host, assert_at_most_one_runs};
use crate::migration::migrate;
use crate::support::{KILLED, Run};

/// The host that has the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

/// Brings the devices to RUNNING on one host, unless they run. Returns that host.
pub(crate) fn settle([source, destination]: [&Host; 2], [sent, taken]: &[Run; 2], rng: &mut Rng) -> Side {
    match (sent.status, taken.status) {
        (0, 0 | KILLED) | (KILLED, 0) => return Side::Destination,
        // Nothing of what arrived is in use there.
        (KILLED, 1) => {
            source.resume();
            return Side::Source;
        }
        (1, _) => {}
        _ => panic!("sent: {sent:?}, taken: {taken:?}"),
    }
    match (sent.json()["outcome"].as_str(), taken.status) {
        // Without an outcome, it did not begin.
        (None | Some("runs_on" | "untouched"), 1 | KILLED) => Side::Source,
        (Some("unknown"), 0) => Side::Destination,
        (Some("unknown"), 1) => {
            source.resume();
            Side::Source
        }
        (Some("unknown"), KILLED) => {
            let states = destination.states();
            let is_started = states.iter().any(|state| state != "STOP");
            let may_be = ["STOP", "RUNNING_P2P", "RUNNING"];
            assert!(states.iter().all(|state| may_be.contains(&state.as_str())), "{states:?}");
            // If none has been started, either host may have them.
            if is_started || rng.bool() {
                destination.resume();
                Side::Destination
            } else {
                destination.reset();
                source.resume();
                Side::Source
            }
        }
        (outcome, status) => panic!("{outcome:?}: {}; {status}: {}", sent.stderr, taken.stderr),
    }
}

/// Settles a failed migration of devices with this state, and then migrates them. They run on one host at any time, and keep
/// their state. Returns the host from which they were migrated to the other one.
#[track_caller]
pub(crate) fn settle_and_migrate(
    hosts: [&Host; 2],
    contents: &Contents,
    ended: &[Run; 2],
    rng: &mut Rng,
    moment: &str,
) -> Side {
    let [sent, taken] = ended;
    let why = format!(
        "{moment}; send: {} {}; receive: {} {}",
        sent.status, sent.stderr, taken.status, taken.stderr
    );
    assert_at_most_one_runs(hosts, contents, &why);
    let side = settle(hosts, ended, rng);
    assert_at_most_one_runs(hosts, contents, &why);
    let [has, has_not] = match side {
        Side::Source => hosts,
        Side::Destination => [hosts[1], hosts[0]],
    };
    has.assert_runs_with(contents, &why);
    migrate(has, has_not);
    has_not.assert_runs_with(contents, &why);
    has.assert_stands(&why);
    side
}
