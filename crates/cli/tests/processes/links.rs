//! Links that are slow, long, cut, or deliver byte by byte.

use std::fs::File;
use std::time::Duration;

use crate::host::{Contents, Host};
use crate::migration::{PATIENT, begins, listening, receive, send_within};
use crate::network::{End, Network};
use crate::proxy::{self, Manner};
use crate::seed::trials;
use crate::started::Started;
use crate::support::Run;

/// Takes 0.67 s at 100 Mbit/s.
const MUCH: [&str; 2] = ["serial?ports=2", "accel?state=8MiB"];
/// The same, all of which is sent after the stop.
const MUCH_AFTER_THE_STOP: [&str; 2] = ["serial?ports=2", "accel?state=8MiB&features=stop-copy"];

/// Two hosts, and devices at the source that have worked.
fn hosts(models: &[&str], rng: &mut fastrand::Rng) -> ([Host; 2], Contents) {
    let hosts = [Host::with(models), Host::with(models)];
    hosts[0].work(rng);
    let contents = hosts[0].contents();
    (hosts, contents)
}

/// Both commands, on two ends of a link.
fn start(network: &Network, hosts: &[Host; 2], options: &[&str]) -> [Started; 2] {
    let listen = format!("{}:0", End::Destination.address());
    let mut command = receive(&hosts[1], &listen);
    command.arg("--timeout=2");
    let (receiver, address) = listening(network.at(End::Destination, &command));
    [Started::plain(network.at(End::Source, &send_within(&hosts[0], &address, options))), receiver]
}

#[test]
fn devices_migrate_over_100_mbit_per_second() {
    let Some(network) = Network::new() else { return };
    trials("over_100_mbit", 1, 3, |_, rng| {
        let (hosts, contents) = hosts(&MUCH, rng);
        let [mut sender, mut receiver] = start(&network, &hosts, &[PATIENT]);
        let told = sender.end().succeeded().json();
        receiver.end().succeeded();
        hosts[1].assert_runs_with(&contents, "100 Mbit/s");
        // The link, and nothing else, has limited it.
        assert!(told["throughput_bytes_per_s"].as_f64().unwrap() < 15e6, "{told}");
    });
}

#[test]
fn connections_of_a_migration_take_two_links() {
    let Some(network) = Network::new() else { return };
    network.add_link();
    trials("two_links", 1, 3, |_, rng| {
        // Which link a connection takes depends on its port: all of them may take the same.
        let takes_both = (0..10).any(|_| {
            let before = network.sent();
            let (hosts, contents) = hosts(&["accel?state=1MiB"; 6], rng);
            let listen = format!("{}:0", Network::SHARED);
            let (mut receiver, address) =
                listening(network.at(End::Destination, &receive(&hosts[1], &listen)));
            let send = send_within(&hosts[0], &address, &[PATIENT, "--channels=6"]);
            let told = Started::plain(network.at(End::Source, &send)).end().succeeded().json();
            receiver.end().succeeded();
            hosts[1].assert_runs_with(&contents, "two links");
            assert_eq!(told["lanes"].as_array().unwrap().len(), 6, "{told}");
            let after = network.sent();
            before.iter().zip(after).all(|(before, after)| after - before > 1 << 20)
        });
        assert!(takes_both, "one link is never used");
    });
}

#[test]
fn a_lane_of_a_link_that_is_cut_after_the_stop_leaves_the_devices_running_at_the_source() {
    let Some(network) = Network::new() else { return };
    trials("lanes_cut_after_the_stop", 1, 3, |_, rng| {
        let options = [PATIENT, "--timeout=1", "--channels=2"];
        let (hosts, contents, ended) = cut_after_the_stop(&network, &options, rng);
        assert_runs_on(&network, &hosts, &contents, &ended);
    });
}

#[test]
fn devices_migrate_over_a_link_with_a_round_trip_of_90_ms() {
    let Some(network) = Network::new() else { return };
    trials("a_round_trip_of_90_ms", 1, 3, |_, rng| {
        let (hosts, contents) = hosts(&MUCH, rng);
        let listen = format!("{}:0", End::Destination.address());
        let (mut receiver, address) = listening(network.at(End::Destination, &receive(&hosts[1], &listen)));
        let manner = Manner { delay: Duration::from_millis(45), piece: usize::MAX };
        let address = proxy::start(Some(network.namespace(End::Source)), &address, manner);
        let send = network.at(End::Source, &send_within(&hosts[0], &address, &[PATIENT]));
        let told = Started::plain(send).end().succeeded().json();
        receiver.end().succeeded();
        hosts[1].assert_runs_with(&contents, "90 ms");
        assert!(told["round_trip_ms"].as_f64().unwrap() >= 90.0, "{told}");
    });
}

#[test]
fn a_stream_that_arrives_byte_by_byte_is_understood() {
    trials("byte_by_byte", 1, 3, |_, rng| {
        let (hosts, contents) = hosts(&["serial?ports=2", "accel?state=16KiB"], rng);
        let (mut receiver, address) = listening(receive(&hosts[1], "127.0.0.1:0"));
        let manner = Manner { delay: Duration::ZERO, piece: 1 };
        let address = proxy::start(None::<File>, &address, manner);
        Started::plain(send_within(&hosts[0], &address, &[PATIENT])).end().succeeded();
        receiver.end().succeeded();
        hosts[1].assert_runs_with(&contents, "byte by byte");
    });
}

/// Migrates over a link to which something happens in a phase, until it has happened in time. Returns how both commands
/// ended.
fn disturbed(
    network: &Network,
    models: &[&str],
    options: &[&str],
    phase: &str,
    rng: &mut fastrand::Rng,
    happens: impl Fn(),
    ends: impl Fn(),
) -> ([Host; 2], Contents, [Run; 2]) {
    for _ in 0..10 {
        let (hosts, contents) = hosts(models, rng);
        let [mut sender, mut receiver] = start(network, &hosts, options);
        sender.wait_for(&begins(phase)).unwrap_or_else(|| panic!("{}", sender.told()));
        happens();
        let (sent, taken) = (sender.end(), receiver.end());
        ends();
        if sent.status != 0 {
            return (hosts, contents, [sent, taken]);
        }
        // It was too late: this machine is busy.
        hosts[1].assert_runs_with(&contents, "the devices had migrated");
    }
    panic!("it is never in time");
}

/// Cuts the link once the devices have stopped.
fn cut_after_the_stop(
    network: &Network,
    options: &[&str],
    rng: &mut fastrand::Rng,
) -> ([Host; 2], Contents, [Run; 2]) {
    let (cut, mend) = (|| network.cut(), || network.mend());
    disturbed(network, &MUCH_AFTER_THE_STOP, options, "Stop", rng, cut, mend)
}

/// That the devices run on at the source, and migrate once the link is as before.
fn assert_runs_on(network: &Network, hosts: &[Host; 2], contents: &Contents, [sent, taken]: &[Run; 2]) {
    assert_eq!((sent.status, taken.status), (1, 1), "{}", sent.stderr);
    assert_eq!(sent.json()["outcome"], "runs_on", "{}", sent.stderr);
    hosts[0].assert_runs_with(contents, &sent.stderr);
    assert!(!hosts[1].works_with(contents).contains(&true), "{}", taken.stderr);
    let [mut sender, mut receiver] = start(network, hosts, &[PATIENT]);
    sender.end().succeeded();
    receiver.end().succeeded();
    hosts[1].assert_runs_with(contents, "again");
}

#[test]
#[ignore = "takes long, and much like the next one"]
fn a_link_that_is_cut_during_pre_copy_leaves_the_devices_running_at_the_source() {
    let Some(network) = Network::new() else { return };
    trials("cut_during_pre_copy", 1, 3, |_, rng| {
        let options = [PATIENT, "--timeout=1"];
        let (hosts, contents, ended) =
            disturbed(&network, &MUCH, &options, "RoundSend", rng, || network.cut(), || network.mend());
        assert!(!ended[0].stderr.contains(&begins("Stop")), "{}", ended[0].stderr);
        assert!(ended[0].stderr.contains("the destination for 1000 ms"), "{}", ended[0].stderr);
        assert!(ended[1].stderr.contains("the source for 2000 ms"), "{}", ended[1].stderr);
        assert_runs_on(&network, &hosts, &contents, &ended);
    });
}

#[test]
fn a_link_that_is_cut_after_the_stop_leaves_the_devices_running_at_the_source() {
    let Some(network) = Network::new() else { return };
    trials("cut_after_the_stop", 1, 3, |_, rng| {
        let options = [PATIENT, "--timeout=1"];
        let (hosts, contents, ended) = cut_after_the_stop(&network, &options, rng);
        assert!(ended[0].stderr.contains("the destination for 1000 ms"), "{}", ended[0].stderr);
        assert_runs_on(&network, &hosts, &contents, &ended);
    });
}

#[test]
fn a_link_that_falls_to_64_kib_per_second_after_the_stop_costs_no_more_than_the_budget() {
    let Some(network) = Network::new() else { return };
    trials("falls_to_64_kib", 1, 3, |_, rng| {
        let options = ["--downtime-limit=1000"];
        let (hosts, contents, ended) = disturbed(
            &network,
            &MUCH_AFTER_THE_STOP,
            &options,
            "Stop",
            rng,
            || network.set_rate("512kibit"),
            || network.set_rate("100mbit"),
        );
        let told = &ended[0].stderr;
        assert!(told.contains("the handover was not reached within 2000 ms of the stop"), "{told}");
        assert_runs_on(&network, &hosts, &contents, &ended);
    });
}
