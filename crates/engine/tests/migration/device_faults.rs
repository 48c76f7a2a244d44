//! Devices and programs that fail, at each request a migration makes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use whimbrel_device::{ArcError, Errno};
use whimbrel_engine::{CpuLog, GuestError};
use whimbrel_protocol::dirty::PageBitmap;
use whimbrel_user::State;

use crate::support::engine::{Error, Outcome};
use crate::support::{At, Ended, Program, Rig, Shape};
use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};

fn rig() -> Rig {
    Rig::new(&Shape::default()).with_memory(&[(0, 0x4000)])
}

/// What the source asks of its device, how often it passes first, and how errors name it.
const AT_SOURCE: [(At, u32, &str); 10] = [
    (At::LogStart, 0, "DMA_LOGGING_START"),
    (At::Arc(Running, PreCopy), 0, "MIG_DEVICE_STATE to PRE_COPY"),
    (At::Precopy, 0, "VFIO_MIG_GET_PRECOPY_INFO"),
    (At::Precopy, 1, "VFIO_MIG_GET_PRECOPY_INFO"),
    (At::Read(PreCopy), 0, "read of data_fd"),
    (At::Read(PreCopy), 1, "read of data_fd"),
    (At::Arc(PreCopy, PreCopyP2p), 0, "MIG_DEVICE_STATE to STOP_COPY"),
    (At::Arc(PreCopyP2p, StopCopy), 0, "MIG_DEVICE_STATE to STOP_COPY"),
    (At::LogReport, 1, "DMA_LOGGING_REPORT"),
    (At::Read(StopCopy), 0, "read of data_fd"),
];

#[test]
fn a_request_that_fails_at_the_source_leaves_it_running_and_both_sides_know_why() {
    for (at, passes, request) in AT_SOURCE {
        let what = format!("{at:?} after {passes}");
        let rig = rig();
        rig.here.control().fail(at, passes, ArcError::Stays(Errno::EIO));
        let mut ended = rig.migrate();
        let (sent, received) = ended.refused(&what);
        assert!(!ended.rig.here.control().has_faults_left(), "{what}: it was never asked");
        let tells = |text: &str| text.contains("here: ") && text.contains(&format!("{request}: EIO"));
        assert!(tells(&sent), "{what}: {sent}");
        assert!(sent.ends_with("the devices run on at the source"), "{what}: {sent}");
        assert!(
            received.contains("the source ended the migration") && tells(&received),
            "{what}: {received}"
        );
    }
}

#[test]
fn a_device_that_an_arc_breaks_is_reset_and_the_outcome_names_it() {
    for (at, passes, _) in AT_SOURCE.into_iter().filter(|(at, ..)| matches!(at, At::Arc(..))) {
        let what = format!("{at:?}");
        let rig = rig();
        rig.here.control().fail(at, passes, ArcError::Broken(Errno::EIO));
        let mut ended = rig.migrate();
        let error = ended.sent.unwrap_err();
        assert!(
            matches!(&error.outcome, Outcome::RunsOnAfterReset { devices } if *devices == ["here"]),
            "{what}: {error}"
        );
        assert!(error.to_string().contains("here had to be reset and lost its state"), "{what}: {error}");
        let resets: Vec<_> = error.report.transitions.iter().filter(|it| it.by_reset).collect();
        assert!(matches!(&resets[..], [reset] if reset.to == "RUNNING"), "{what}: {resets:?}");
        assert!(error.report.transitions.last().is_some_and(|last| last.by_reset), "{what}: nothing follows");
        assert_eq!(ended.rig.here.state(), Running);
        assert!(ended.rig.here.control().is_fresh(), "{what}");
        assert!(!ended.rig.here.control().is_logging(), "{what}");
        assert!(!ended.rig.here.program.calls.is_paused(), "{what}: the device works again");
        assert!(ended.received.is_err());
        ended.rig.assert_destination_is_fresh(&what);
    }
}

#[test]
fn a_way_back_that_fails_ends_in_a_reset() {
    for (from, to) in [(StopCopy, Stop), (Stop, RunningP2p), (RunningP2p, Running)] {
        let what = format!("{from} to {to}");
        let mut rig = rig();
        rig.there.program = Program::refusing("inspect");
        rig.here.control().fail(At::Arc(from, to), 0, ArcError::Stays(Errno::EBUSY));
        let mut ended = rig.migrate();
        let error = ended.sent.unwrap_err();
        assert!(matches!(&error.outcome, Outcome::RunsOnAfterReset { .. }), "{what}: {error}");
        assert!(error.to_string().contains("it does not inspect"), "{what}: {error}");
        assert_eq!(ended.rig.here.state(), Running, "{what}");
        assert!(!ended.rig.here.program.calls.is_paused(), "{what}");
        ended.rig.assert_destination_is_fresh(&what);
    }
}

#[test]
fn a_device_that_cannot_be_brought_back_nor_reset_is_stranded_with_both_causes_told() {
    for (from, to) in [(StopCopy, Stop), (Stop, RunningP2p), (RunningP2p, Running)] {
        let what = format!("{from} to {to}");
        let mut rig = rig();
        rig.there.program = Program::refusing("inspect");
        rig.here.control().fail(At::Arc(from, to), 0, ArcError::Stays(Errno::EBUSY));
        rig.here.control().fail(At::Reset, 0, ArcError::Stays(Errno::EIO));
        let mut ended = rig.migrate();
        let error = ended.sent.unwrap_err();
        assert!(matches!(error.outcome, Outcome::Stranded(_)), "{what}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("it does not inspect") && text.contains("VFIO_DEVICE_RESET: EIO"),
            "{what}: {text}"
        );
        assert!(ended.rig.here.program.calls.is_paused(), "{what}: a program without its device was let go");
        assert!(!ended.rig.here.control().is_logging(), "{what}");
        ended.rig.assert_destination_is_fresh(&what);
    }
}

#[test]
fn a_size_that_the_device_cannot_tell_does_not_matter_where_precopy_tells_it() {
    let rig = rig();
    for _ in 0..2 {
        rig.here.control().fail(At::DataSize, 0, ArcError::Stays(Errno::ENOTTY));
    }
    let mut ended = rig.migrate();
    ended.assert_sane("no data size");
    assert!(!ended.rig.here.control().has_faults_left());
    ended.sent.unwrap();
}

#[test]
fn a_log_that_starts_and_cannot_be_read_is_given_up_and_all_memory_is_sent_again() {
    let rig = rig();
    rig.here.control().fail(At::LogReport, 0, ArcError::Stays(Errno::EOPNOTSUPP));
    let mut ended = rig.migrate();
    ended.assert_sane("no report");
    assert!(!ended.rig.here.control().is_logging());
    let report = ended.sent.unwrap();
    assert_eq!(report.round_list[0].memory_left, 0x4000, "any page may have changed until the device stops");
    assert_eq!(report.memory_bytes, 2 * 0x4000);
}

#[test]
fn a_log_that_cannot_be_stopped_afterwards_does_not_undo_the_migration() {
    let rig = rig();
    rig.here.control().fail(At::LogStop, 0, ArcError::Stays(Errno::EIO));
    let mut ended = rig.migrate();
    ended.sent.unwrap();
    assert_eq!(ended.rig.states(), (Stop, Running));
}

#[test]
fn a_device_given_away_that_cannot_leave_stop_copy_has_been_given_away_all_the_same() {
    let rig = rig();
    rig.here.control().fail(At::Arc(StopCopy, Stop), 0, ArcError::Stays(Errno::EIO));
    let mut ended = rig.migrate();
    ended.sent.unwrap();
    assert_eq!(ended.rig.states(), (StopCopy, Running));
    ended.rig.assert_destination_has_it("given away");
}

/// What the destination asks of its device, and how errors name it.
const AT_DESTINATION: [(At, &str); 7] = [
    (At::Arc(Running, RunningP2p), "to RESUMING: "),
    (At::Arc(RunningP2p, Stop), "to RESUMING: "),
    (At::Arc(Stop, Resuming), "to RESUMING: "),
    (At::Write, "write to data_fd: "),
    (At::Arc(Resuming, Stop), "to STOP: "),
    (At::Arc(Stop, RunningP2p), "to RUNNING: "),
    (At::Arc(RunningP2p, Running), "to RUNNING: "),
];

#[test]
fn a_request_that_fails_at_the_destination_leaves_the_source_running_and_the_device_there_fresh() {
    for (at, request) in AT_DESTINATION {
        for error in [ArcError::Stays(Errno::EIO), ArcError::Broken(Errno::EIO)] {
            let what = format!("{at:?} {error:?}");
            let rig = rig();
            rig.there.control().fail(at, 0, error);
            let mut ended = rig.migrate();
            let (sent, received) = ended.refused(&what);
            let why = format!("{request}EIO");
            assert!(received.starts_with("there: ") && received.contains(&why), "{what}: {received}");
            assert!(sent.starts_with("the destination ended the migration: there: "), "{what}: {sent}");
            assert!(sent.contains(&why), "{what}: {sent}");
        }
    }
}

#[test]
fn a_device_that_cannot_be_reset_after_a_failure_is_told_apart_from_one_that_was() {
    for (at, _) in AT_DESTINATION {
        let what = format!("{at:?}");
        let rig = rig();
        rig.there.control().fail(at, 0, ArcError::Stays(Errno::EIO));
        rig.there.control().fail(At::Reset, 0, ArcError::Stays(Errno::EBUSY));
        let Ended { sent, received, mut rig } = rig.migrate();
        let (sent, received) = (sent.unwrap_err(), received.unwrap_err());
        assert!(matches!(received, Error::NotReset { .. }), "{what}: {received}");
        for text in [received.to_string(), sent.to_string()] {
            assert!(text.contains("VFIO_DEVICE_RESET: EBUSY"), "{what}: {text}");
        }
        assert!(matches!(sent.outcome, Outcome::RunsOn | Outcome::Untouched), "{what}: {sent}");
        rig.assert_source_runs(&what);
        let state = rig.states().1;
        let has_it = rig.there.control().state() == rig.here.control().state();
        assert!(!(has_it && state.is_running()), "{what}: it runs on both sides, there in {state}");
    }
}

#[test]
fn a_destination_that_cannot_stop_what_it_could_not_start_does_not_say_that_it_failed() {
    let rig = rig();
    rig.there.control().fail(At::Arc(RunningP2p, Running), 0, ArcError::Stays(Errno::EIO));
    rig.there.control().fail(At::Reset, 0, ArcError::Stays(Errno::EIO));
    rig.there.control().fail(At::Arc(RunningP2p, Stop), 1, ArcError::Stays(Errno::EIO));
    let Ended { sent, received, mut rig } = rig.migrate();
    assert!(matches!(received.unwrap_err(), Error::NotReset { .. }));
    assert!(matches!(sent.unwrap_err().outcome, Outcome::Unknown));
    assert_eq!(rig.states(), (Stop, RunningP2p));
    rig.assert_source_stands("the device may run there");
}

#[test]
fn a_program_that_refuses_is_heard_on_both_sides() {
    let cases = [("pause", true), ("inspect", false)];
    for (request, at_source) in cases {
        let mut rig = rig();
        if at_source {
            rig.here.program = Program::refusing(request);
        } else {
            rig.there.program = Program::refusing(request);
        }
        let mut ended = rig.migrate();
        let (sent, received) = ended.refused(request);
        let why = format!("the program that owns the devices: it does not {request}");
        assert!(sent.contains(&why) && received.contains(&why), "{sent} / {received}");
        assert_eq!(ended.rig.here.program.calls.list(), ["pause", "resume"], "what paused in part goes on");
    }
}

#[test]
fn a_program_that_does_not_go_on_is_told_with_where_the_device_is() {
    let mut rig = rig();
    rig.there.program = Program::refusing("run");
    let mut ended = rig.migrate();
    let error = ended.received.unwrap_err().to_string();
    assert!(
        error.contains("have been taken over and run here") && error.contains("it does not run"),
        "{error}"
    );
    ended.sent.unwrap();
    ended.rig.assert_destination_has_it("the device itself runs");

    let mut rig = self::rig();
    (rig.here.program, rig.there.program) = (Program::refusing("resume"), Program::refusing("inspect"));
    let mut ended = rig.migrate();
    let error = ended.sent.unwrap_err();
    assert!(matches!(&error.outcome, Outcome::Stranded(_)), "{error}");
    assert!(error.to_string().contains("it does not resume"), "{error}");
    assert_eq!(ended.rig.here.state(), Running);
}

#[test]
fn a_log_of_the_cpus_that_fails_ends_the_migration_and_no_log_is_left_running() {
    struct Log {
        fails_at: u32,
        asked: u32,
        running: Arc<AtomicBool>,
    }
    impl Log {
        fn ask(&mut self) -> Result<(), GuestError> {
            self.asked += 1;
            if self.asked > self.fails_at { Err("KVM says no".into()) } else { Ok(()) }
        }
    }
    impl CpuLog for Log {
        fn start(&mut self) -> Result<(), GuestError> {
            self.ask()?;
            self.running.store(true, Ordering::SeqCst);
            Ok(())
        }
        fn collect(&mut self, _: &mut [PageBitmap]) -> Result<(), GuestError> {
            self.ask()
        }
        fn stop(&mut self) {
            self.running.store(false, Ordering::SeqCst);
        }
    }
    for fails_at in 0..4 {
        let rig = rig();
        let running = Arc::new(AtomicBool::new(false));
        if fails_at == 3 {
            // Three requests are all there are; here the device's log fails after the CPUs' was started.
            rig.here.control().fail(At::LogStart, 0, ArcError::Stays(Errno::ENOSPC));
        }
        let log = Log { fails_at, asked: 0, running: running.clone() };
        let memory = Arc::new(rig.memory.as_ref().unwrap().0.clone());
        let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut ended = rig.migrate_with(left.into(), right.into(), |source| source.memory(memory, log));
        let (sent, _) = ended.refused(&format!("{fails_at}"));
        let why = if fails_at == 3 { "ENOSPC" } else { "the CPUs' dirty log: KVM says no" };
        assert!(sent.contains(why), "{fails_at}: {sent}");
        assert!(!running.load(Ordering::SeqCst), "{fails_at}: the log was left running");
    }
}
