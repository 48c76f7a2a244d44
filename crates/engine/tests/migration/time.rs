//! Links that become slow, peers that stop, and long ways.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use vm_memory::{Bytes, GuestAddress};
use whimbrel_user::{MigrationFlags, State};

use crate::support::engine::{Error, Outcome, SourceOptions};
use crate::support::{At, Cut, Rig, Shape, Throttle, proxy_through};

/// For a busy machine. A wait without its bound would take 20 seconds and more.
const SLACK: Duration = Duration::from_secs(15);

/// A device that says it has little, and has much once it is stopped.
fn much_after_the_stop() -> Shape {
    let flags = MigrationFlags::STOP_COPY | MigrationFlags::P2P;
    Shape { flags, size: 4 << 20, claims: Some(1000), ..Shape::default() }
}

#[test]
fn a_link_that_falls_to_a_trickle_after_the_stop_gives_the_device_back_within_the_budget() {
    for rate in [64 << 10, 0] {
        let mut rig = Rig::new(&much_after_the_stop());
        rig.options = SourceOptions::default().downtime_limit(Duration::from_millis(100)).max_rounds(50);
        let budget = rig.options.stop_budget();
        assert_eq!(budget, Duration::from_secs(1));
        let throttle = Throttle::open();
        let (left, right, recording) = proxy_through(Cut::Never, Duration::ZERO, &throttle);
        let stood = Arc::new(Mutex::new((None, None)));
        let (begins, ends) = (stood.clone(), stood.clone());
        let (slow, fast) = (throttle.clone(), throttle.clone());
        rig.here.program.when("pause", move || {
            begins.lock().0 = Some(Instant::now());
            slow.set(rate);
        });
        rig.here.program.when("resume", move || {
            ends.lock().1 = Some(Instant::now());
            fast.set(u64::MAX);
        });
        let mut ended = rig.migrate_over(left, right);
        let (sent, received) = ended.refused("a trickle");
        assert!(sent.starts_with("the handover was not reached within 1000 ms of the stop"), "{sent}");
        assert!(received.contains("the handover was not reached"), "{received}");
        let (Some(begin), Some(end)) = *stood.lock() else { panic!("it was paused and let go") };
        assert!(end - begin < budget + SLACK, "{rate}: it stood still for {:?}", end - begin);
        recording.end();
    }
}

#[test]
fn a_source_that_waits_for_a_slow_device_of_the_destination_is_not_called_silent() {
    let mut rig = Rig::new(&Shape { initial: 8 << 20, ..Shape::default() });
    // Which is full after one frame, while the device takes the one before it.
    rig.there_options = rig.there_options.timeout(Duration::from_secs(1)).receive_memory(4 << 20);
    rig.there.control().when(At::Write, 0, || std::thread::sleep(Duration::from_secs(3)));
    let ended = rig.migrate();
    assert!(ended.received.is_ok(), "{:?}", ended.received);
    assert!(ended.sent.is_ok(), "{:?}", ended.sent);
}

#[test]
fn a_destination_that_stops_after_the_handover_leaves_the_outcome_open_in_time() {
    let timeout = Duration::from_secs(1);
    let rig = Rig::new(&Shape::default()).with_timeouts(timeout, Duration::from_secs(20));
    let throttle = Throttle::open();
    let (left, right, recording) = proxy_through(Cut::Never, Duration::ZERO, &throttle);
    let stops = throttle.clone();
    let stopped = Arc::new(Mutex::new(None));
    let its = stopped.clone();
    rig.there.control().when(At::Arc(State::Stop, State::RunningP2p), 0, move || {
        // The source waits for RUNNING from here on, and it will not come.
        stops.set(0);
        *its.lock() = Some(Instant::now());
        std::thread::sleep(Duration::from_millis(1500));
    });
    let released = throttle.clone();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(8));
        released.set(u64::MAX);
    });
    let mut ended = rig.migrate_over(left, right);
    ended.assert_sane("stopped after the handover");
    let sent = ended.sent.unwrap_err();
    assert!(matches!(sent.outcome, Outcome::Unknown), "{sent}");
    assert!(matches!(sent.cause, Error::Silent { .. }), "{sent}");
    assert!(ended.received.is_ok());
    drop(recording);
}

#[test]
fn an_idle_device_moves_over_a_long_way_with_the_default_limit() {
    let delay = Duration::from_millis(100);
    for count in [1, 3] {
        let mut rig = Rig::set(count, &Shape { size: 248, ..Shape::default() });
        rig.options = SourceOptions::default();
        let (left, right, recording) = proxy_through(Cut::Never, delay, &Throttle::open());
        let mut ended = rig.migrate_over(left, right);
        ended.assert_sane("a long way");
        let report = ended.sent.unwrap();
        assert_eq!(report.rounds, 1, "no round makes the way shorter: {report:?}");
        assert!(report.round_trip_ms >= 200.0, "{report:?}");
        assert!(report.downtime_ms >= 400.0, "END and HANDOVER are answered: {report:?}");
        recording.end();
    }
}

#[test]
fn a_migration_without_any_limit_of_time_moves_a_device() {
    let limit = Duration::MAX;
    for budget in [None, Some(limit)] {
        let mut rig = Rig::new(&much_after_the_stop()).with_timeouts(limit, limit);
        rig.options = rig.options.downtime_limit(limit);
        rig.options.budget = budget;
        let mut ended = rig.migrate();
        ended.assert_sane("no limit");
        ended.sent.unwrap();
    }
}

#[test]
fn a_round_trip_is_not_taken_for_the_time_of_a_transfer() {
    let mut rig = Rig::new(&Shape { size: 2 << 20, initial: 4 << 20, ..Shape::default() });
    rig.options = SourceOptions::default().downtime_limit(Duration::from_secs(20));
    let (left, right, recording) = proxy_through(Cut::Never, Duration::from_millis(150), &Throttle::open());
    let mut ended = rig.migrate_over(left, right);
    ended.assert_sane("a long way");
    let report = ended.sent.unwrap();
    // The way was more than half of a round trip, which the transfer did not take, however busy this machine is.
    let (round, round_trip) = (&report.round_list[0], report.round_trip_ms);
    let seconds = (round.ms - round_trip / 2.0) / 1000.0;
    assert!(round_trip >= 300.0, "{report:?}");
    assert!(report.throughput_bytes_per_s >= round.device_bytes as f64 / seconds, "{report:?}");
    recording.end();
}

#[test]
fn a_source_that_stops_in_the_middle_is_given_up_in_time() {
    let timeout = Duration::from_secs(1);
    let rig = Rig::new(&Shape::default())
        .with_memory(&[(0, 32 << 20)])
        .with_timeouts(timeout, Duration::from_secs(20));
    let data = vec![7; 32 << 20];
    rig.memory.as_ref().unwrap().0.write_slice(&data, GuestAddress(0)).unwrap();
    let throttle = Throttle::open();
    let (left, right, recording) = proxy_through(Cut::Never, Duration::ZERO, &throttle);
    let stops = throttle.clone();
    rig.here.control().when(crate::support::At::Precopy, 0, move || stops.set(0));
    let started = Instant::now();
    let mut ended = rig.migrate_over(left, right);
    let took = started.elapsed();
    let (sent, received) = ended.refused("nothing passes");
    throttle.set(u64::MAX);
    recording.end();
    // Whichever side notices first, the other one may hear of it.
    assert!(sent.contains("timed out: no data to or from the") && sent.contains("for 1000 ms"), "{sent}");
    assert!(received.contains("the source"), "{received}");
    assert!(took < timeout * 2 + SLACK, "{took:?}");
}
