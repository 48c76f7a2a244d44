//! `send` and `receive` are killed at random moments, and an operator settles what is left without journals.

use crate::host::Host;
use crate::migration::{receive, send};
use crate::moment::{Commands, Life, migrate_killed};
use crate::operator::{Side, settle_and_migrate};
use crate::seed::trials;

const COMMANDS: Commands = |hosts, address| [send(hosts[0], address), receive(hosts[1], address)];

/// Kills one of both commands.
fn kill_at_random_moments(test: &'static str, victim: usize) {
    let hosts = [Host::start(), Host::start()];
    let lives = Life::measure([&hosts[0], &hosts[1]], COMMANDS);
    let mut owner = 0;
    trials(test, 6, 100, |_, rng| {
        let [source, destination] = [owner, 1 - owner].map(|index| &hosts[index]);
        source.work(rng);
        let contents = source.contents();
        let mut moments = [None; 2];
        moments[victim] = Some(lives[victim].moment(rng));
        let ended = migrate_killed([source, destination], COMMANDS, moments);
        let why = format!("{moments:?}");
        if settle_and_migrate([source, destination], &contents, &ended, rng, &why) == Side::Source {
            owner = 1 - owner;
        }
    });
}

#[test]
fn a_sender_that_is_killed_at_any_moment_leaves_the_devices_running_once() {
    kill_at_random_moments("a_sender_that_is_killed", 0);
}

#[test]
fn a_receiver_that_is_killed_at_any_moment_leaves_the_devices_running_once() {
    kill_at_random_moments("a_receiver_that_is_killed", 1);
}
