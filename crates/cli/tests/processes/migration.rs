//! `whimbrel send` and `receive` between two hosts.

use std::process::Command;

use crate::host::Host;
use crate::started::Started;
use crate::support::{Run, command};

/// A limit on the downtime that holds whatever else the machine does.
pub(crate) const PATIENT: &str = "--downtime-limit=60000";
/// A limit that never holds: the migration does not end by itself.
pub(crate) const ENDLESS: [&str; 2] = ["--downtime-limit=0", "--max-rounds=4000000000"];

/// `whimbrel receive` for the devices of a host.
pub(crate) fn receive(host: &Host, address: &str) -> Command {
    let mut command = command(["receive", "--json", "--insecure", "--listen", address]);
    command.args(host.targets());
    command
}

/// What a sender logs when a phase begins.
pub(crate) fn begins(phase: &str) -> String {
    format!("phase{{name={phase}}}: phase begins")
}

/// `whimbrel send` for the devices of a host, with the limit on the downtime that is given.
pub(crate) fn send_within(host: &Host, address: &str, limit: &[&str]) -> Command {
    let mut command = command(["send", "--json", "--insecure", "--to", address]);
    command.args(limit).args(host.targets()).env("WHIMBREL_LOG", "whimbrel_engine=debug");
    command
}

/// `whimbrel send` for the devices of a host.
pub(crate) fn send(host: &Host, address: &str) -> Command {
    send_within(host, address, &[PATIENT])
}

/// A receiver that listens, and where.
#[track_caller]
pub(crate) fn listening(command: Command) -> (Started, String) {
    let mut receiver = Started::plain(command);
    let address = receiver.wait_for("listening at ").unwrap_or_else(|| panic!("{}", receiver.told()));
    (receiver, address)
}

/// Migrates the devices, undisturbed.
#[track_caller]
pub(crate) fn migrate(source: &Host, destination: &Host) -> [Run; 2] {
    let (mut receiver, address) = listening(receive(destination, &destination.new_address()));
    let sent = Started::plain(send(source, &address)).end().succeeded();
    [sent, receiver.end().succeeded()]
}
