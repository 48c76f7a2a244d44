//! A source that loses its link in pre-copy, and comes back over another one, from another address.

use std::process::Command;

use tempfile::TempDir;

use crate::authority::Authority;
use crate::host::Host;
use crate::migration::{PATIENT, begins, listening};
use crate::network::{End, Network};
use crate::seed::trials;
use crate::started::Started;
use crate::support::command;

/// Devices whose state takes four seconds at the bandwidth of [`SLOW`].
const MUCH: [&str; 2] = ["serial?ports=2", "accel?state=16MiB"];
const SLOW: &str = "--bandwidth=4MiB";

/// A command with the options of its side, for the devices of a host.
fn at_host(host: &Host, arguments: &[&str], protection: &[String]) -> Command {
    let mut command = command(arguments);
    command.args(protection).args(host.targets()).env("WHIMBREL_LOG", "whimbrel_engine=debug");
    command
}

/// Cuts the link that the migration uses in pre-copy, and leaves another one to come back over.
fn comes_back(test: &'static str, uses_tls: bool) {
    let Some(network) = Network::new() else { return };
    network.add_link();
    let folder = TempDir::new().unwrap();
    let protection = if uses_tls {
        let authority = Authority::new(folder.path(), "authority");
        [authority.options("source", 3000), authority.options(Network::SHARED, 3000)]
    } else {
        [(); 2].map(|()| vec!["--insecure".to_string()])
    };
    trials(test, 1, 5, |_, rng| {
        for _ in 0..10 {
            network.route_over(0);
            let hosts = [Host::with(&MUCH), Host::with(&MUCH)];
            hosts[0].work(rng);
            let contents = hosts[0].contents();
            let listen = format!("{}:0", Network::SHARED);
            let arguments = ["receive", "--json", "--listen", &listen, "--timeout=2", "--reconnect=60"];
            let receiving = at_host(&hosts[1], &arguments, &protection[1]);
            let (mut receiver, address) = listening(network.at(End::Destination, &receiving));
            let arguments =
                ["send", "--json", "--to", &address, PATIENT, SLOW, "--timeout=1", "--reconnect=60"];
            let sending = at_host(&hosts[0], &arguments, &protection[0]);
            let before = network.sent();
            let mut sender = Started::plain(network.at(End::Source, &sending));
            sender.wait_for(&begins("RoundSend")).unwrap_or_else(|| panic!("{}", sender.told()));
            let at_first = Network::OF_SOURCE.map(|address| network.connections_from(address));
            network.cut();
            network.route_over(1);
            let is_in_time = sender.wait_for(&begins("Resend")).is_some();
            let then = network.connections_from(Network::OF_SOURCE[1]);
            if !is_in_time || sender.has_ended() {
                // This machine is busy, and it was too late to cut the link or to look.
                network.mend();
                drop((sender.end(), receiver.end_or_cancel()));
                continue;
            }
            assert_eq!((at_first, then), ([1, 0], 1), "it comes back from the other address");
            let (sent, taken) = (sender.end().succeeded(), receiver.end().succeeded());
            network.mend();
            for run in [&sent, &taken] {
                assert!(run.json()["reconnections"].as_u64().unwrap() >= 1, "{}", run.stderr);
            }
            let over_second = network.sent()[1] - before[1];
            assert!(over_second > 1 << 20, "{over_second} bytes over the second link");
            hosts[1].assert_runs_with(&contents, "after the source came back from another address");
            hosts[0].assert_stands("after it came back from another address");
            return;
        }
        panic!("it is never in time");
    });
}

#[test]
fn a_source_that_comes_back_from_another_address_goes_on() {
    comes_back("comes_back_from_another_address", false);
}

#[test]
fn a_source_that_comes_back_from_another_address_over_tls_goes_on() {
    comes_back("comes_back_from_another_address_over_tls", true);
}
