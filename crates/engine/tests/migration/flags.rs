//! What a device supports decides how it is moved.

use std::time::Duration;

use vm_memory::{Bytes, GuestAddress};
use whimbrel_user::{MigrationFlags, State};

use crate::support::engine::{Error, Outcome};
use crate::support::{At, Rig, Shape};

const STOP_COPY: MigrationFlags = MigrationFlags::STOP_COPY;
const P2P: MigrationFlags = MigrationFlags::P2P;
const PRE_COPY: MigrationFlags = MigrationFlags::PRE_COPY;

fn arcs(requests: &[At]) -> Vec<State> {
    requests.iter().filter_map(|at| if let At::Arc(_, to) = at { Some(*to) } else { None }).collect()
}

#[test]
fn a_device_moves_with_whatever_flags_it_has() {
    use State::{PreCopy, PreCopyP2p, Running, RunningP2p, Stop, StopCopy};
    let cases: [(MigrationFlags, &[State]); 4] = [
        (STOP_COPY, &[Stop, StopCopy, Stop]),
        (STOP_COPY | P2P, &[RunningP2p, Stop, StopCopy, Stop]),
        (STOP_COPY | PRE_COPY, &[PreCopy, StopCopy, Stop]),
        (STOP_COPY | P2P | PRE_COPY, &[PreCopy, PreCopyP2p, StopCopy, Stop]),
    ];
    for (flags, expected) in cases {
        let mut ended = Rig::new(&Shape { flags, ..Shape::default() }).migrate();
        ended.assert_sane(&format!("{flags:?}"));
        let report = ended.sent.unwrap();
        assert_eq!(arcs(&ended.rig.here.control().requests()), expected, "{flags:?}");
        let precopy = if flags.contains(PRE_COPY) { 5 + 3 } else { 0 };
        assert_eq!(report.round_list[0].device_bytes, precopy, "{flags:?}");
        assert_eq!(report.final_bytes, 16 + 6, "{flags:?}");
        assert_eq!(arcs(&ended.rig.there.control().requests()).last(), Some(&Running));
    }
}

#[test]
fn a_device_that_cannot_migrate_is_refused_on_either_side() {
    let flags = MigrationFlags::empty();
    let mut rig = Rig::new(&Shape { flags, ..Shape::default() });
    let (left, _right) = std::os::unix::net::UnixStream::pair().unwrap();
    let error = rig.send_to(left.into()).unwrap_err();
    assert!(matches!(error.cause, Error::NotMigratable { .. }), "{error}");

    let mut ended = Rig::of(&Shape::default(), &Shape { flags, ..Shape::default() }).migrate();
    let error = ended.sent.unwrap_err().to_string();
    assert!(error.contains("there: its driver does not support migration"), "{error}");
    ended.rig.assert_source_runs("refused");
}

#[test]
fn a_device_is_not_stopped_before_its_initial_data_has_been_read() {
    // Far more than one chunk, and a downtime limit that any round fits.
    let shape = Shape { initial: 9 << 20, ..Shape::default() };
    let mut ended = Rig::new(&shape).migrate();
    ended.assert_sane("much initial data");
    let requests = ended.rig.here.control().requests();
    let read_running = requests.iter().filter(|at| **at == At::Read(State::PreCopy)).count();
    assert!(read_running > 9, "{read_running} reads before the device was stopped");
    assert!(ended.sent.unwrap().round_list[0].device_bytes >= 9 << 20);
}

#[test]
fn a_device_is_given_the_rounds_it_needs_for_its_initial_data() {
    let shape = Shape { initial: 4, drips: true, ..Shape::default() };
    let mut ended = Rig::new(&shape).migrate();
    ended.assert_sane("initial data that comes slowly");
    assert_eq!(ended.sent.unwrap().rounds, 4, "every round fits the limit, but only one byte comes in each");

    let mut ended = Rig::new(&Shape { initial: 400, drips: true, ..Shape::default() }).migrate();
    let (sent, _) = ended.refused("initial data that does not come in time");
    assert!(sent.starts_with("did not converge: after 5 rounds 395 bytes of initial device data"), "{sent}");
    let requests = ended.rig.here.control().requests();
    assert!(!requests.contains(&At::Arc(State::PreCopyP2p, State::StopCopy)), "it was stopped all the same");
}

#[test]
fn the_expected_downtime_counts_all_memory_where_nobody_logs_the_devices_writes() {
    let all = 32 << 20;
    for (logging, left) in [(true, 0), (false, all)] {
        let shape = Shape { logging, ..Shape::default() };
        let rig = Rig::new(&shape).with_memory(&[(0, all as usize)]);
        rig.memory.as_ref().unwrap().0.write_slice(&vec![1; all as usize], GuestAddress(0)).unwrap();
        let mut ended = rig.migrate();
        ended.assert_sane("no log");
        let report = ended.sent.unwrap();
        assert_eq!(report.round_list[0].memory_left, left, "logging: {logging}");
        assert_eq!(report.memory_bytes, all + left, "logging: {logging}");
        let least = left as f64 / report.throughput_bytes_per_s * 1000.0;
        assert!(report.predicted_downtime_ms >= least * 0.99, "{report:?}");
    }
}

#[test]
fn empty_memory_that_must_be_sent_again_is_not_taken_for_a_long_downtime() {
    // Nearly nothing crosses the wire for it, so that it says nothing about how fast the link is.
    let shape = Shape { logging: false, ..Shape::default() };
    let mut ended = Rig::new(&shape).with_memory(&[(0, 8 << 20)]).migrate();
    ended.assert_sane("empty memory");
    let report = ended.sent.unwrap();
    assert_eq!(report.rounds, 1, "{report:?}");
    assert!(report.wire_bytes < 20_000, "{}", report.wire_bytes);
}

#[test]
fn a_device_that_gives_nothing_before_it_stops_is_judged_by_a_link_that_was_measured() {
    let shape = Shape { flags: STOP_COPY, size: 16 << 20, ..Shape::default() };
    let mut ended = Rig::new(&shape).migrate();
    ended.assert_sane("nothing before the stop");
    let report = ended.sent.unwrap();
    assert_eq!((report.rounds, report.device_bytes), (1, (16 << 20) + 6));
    assert_eq!(report.round_list[0].device_bytes, 0);
    assert!(
        report.wire_bytes > report.device_bytes + (4 << 20),
        "the padding is among what crossed the wire"
    );
    let limit = 1 << 20;
    assert!(report.throughput_bytes_per_s > f64::from(limit), "that is a round trip: {report:?}");
}

#[test]
fn a_device_that_never_fits_the_limit_is_given_up_and_runs_on() {
    for flags in [STOP_COPY, STOP_COPY | P2P | PRE_COPY] {
        let shape = Shape { claims: Some(u64::MAX), flags, ..Shape::default() };
        let mut rig = Rig::new(&shape).with_memory(&[(0, 1 << 20)]);
        rig.options.max_rounds = 3;
        let mut ended = rig.migrate();
        let (sent, received) = ended.refused("not converging");
        let cause = ended.sent.unwrap_err().cause;
        assert!(matches!(cause, Error::NotConverging { rounds: 3, .. }), "{sent}");
        assert!(sent.contains("allow more downtime or more rounds"), "{sent}");
        assert!(
            received.contains("the source ended the migration: did not converge: after 3 rounds"),
            "{received}"
        );
        assert!(ended.rig.here.program.calls.list().is_empty(), "the program was never disturbed");
    }
}

#[test]
fn a_limit_of_zero_is_never_met_and_harms_nobody() {
    let mut rig = Rig::new(&Shape::default());
    rig.options.downtime_limit = Duration::ZERO;
    rig.options.max_rounds = 0;
    let mut ended = rig.migrate();
    ended.refused("no downtime allowed");
    assert!(matches!(ended.sent.unwrap_err().outcome, Outcome::RunsOn));
}

#[test]
fn devices_that_claim_any_size_are_added_up_without_harm() {
    let mut rig = Rig::set(3, &Shape { claims: Some(u64::MAX), ..Shape::default() });
    rig.options.max_rounds = 2;
    let mut ended = rig.migrate();
    ended.refused("sizes beyond all bounds");
    assert!(matches!(ended.sent.unwrap_err().cause, Error::NotConverging { rounds: 2, .. }));
}
