//! Hand-written records of good and of bad users: each bad one is found by the case that names its sentence.

use std::time::Duration;

use whimbrel_device::wrap::fault::{FaultKind, Faults};
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, MigrationFlags, State, fsm};

use super::{Exit, Interface, Record, Request, Role, Socket, UserCase, UserUnderTest, cases, run_user};
use crate::case::Level;
use crate::config::Config;
use crate::report::Report;
use crate::verdict::Verdict;

use State::{Error, PreCopy, Resuming, Running, Stop, StopCopy};

/// A record by hand, of one device.
struct Hand(Record, Socket, State);

impl Hand {
    fn new() -> Hand {
        Hand(Record::new(MigrationFlags::all()), Socket::First, Running)
    }

    fn pair() -> Hand {
        let Hand(record, socket, state) = Hand::new();
        Hand(record.with_second(), socket, state)
    }

    /// Goes on with the second device.
    fn second(self) -> Hand {
        Hand(self.0, Socket::Second, Running)
    }

    fn add(mut self, request: Request) -> Hand {
        self.0.add(self.1, request);
        self
    }

    fn set(self, to: State) -> Hand {
        let (from, saves) = (self.2, to.is_saving());
        let opens = match to {
            Resuming => Some((1, Direction::Resuming)),
            _ if saves && !from.is_saving() => Some((1, Direction::Saving)),
            _ => None,
        };
        let Hand(record, socket, _) = self;
        Hand(record, socket, to).add(Request::SetState { from, to, result: Ok(opens), now: to })
    }

    /// A SET that fails with EIO, after which the device is in `now`.
    fn set_fails(self, to: State, now: State) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, now).add(Request::SetState { from, to, result: Err(Errno::EIO), now })
    }

    /// A SET that succeeds, after which the device is in `now`.
    fn set_leads_to(self, to: State, now: State) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, now).add(Request::SetState { from, to, result: Ok(None), now })
    }

    fn get(self) -> Hand {
        let state = self.2;
        self.add(Request::GetState(state))
    }

    fn reset(self) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, Running).add(Request::Reset { from, result: Ok(()) })
    }

    fn close(self) -> Hand {
        let Hand(record, socket, from) = self;
        Hand(record, socket, Running).add(Request::Close { from, result: Ok(()) })
    }

    /// A close whose reset fails.
    fn close_fails(self) -> Hand {
        let from = self.2;
        self.add(Request::Close { from, result: Err(Errno::EIO) })
    }

    fn reset_fails(self) -> Hand {
        let from = self.2;
        self.add(Request::Reset { from, result: Err(Errno::EIO) })
    }

    fn read(self, result: Result<&[u8], Errno>) -> Hand {
        let state = self.2;
        self.add(Request::Read { session: 1, state, result: result.map(<[u8]>::to_vec) })
    }

    fn write(self, result: Result<&[u8], Errno>) -> Hand {
        let state = self.2;
        self.add(Request::Write { session: 1, state, result: result.map(<[u8]>::to_vec) })
    }

    fn info(self, initial: u64, dirty: u64, reinit: bool) -> Hand {
        let report = PrecopyReport::new(initial, dirty).reinit(reinit);
        self.add(Request::PrecopyInfo { session: 1, result: Ok(report) })
    }

    fn region(self, index: u32) -> Hand {
        let state = self.2;
        self.add(Request::Region { is_write: true, state, index, offset: 0, length: 4 })
    }

    fn done(self) -> Record {
        self.0.ended(Exit::Status(0), "done")
    }

    fn failed(self, said: &str) -> Record {
        self.0.ended(Exit::Status(1), said)
    }
}

fn case(id: &str) -> &'static UserCase {
    cases().find(|case| case.id() == id).unwrap_or_else(|| panic!("no case {id}"))
}

#[track_caller]
fn passes(id: &str, record: &Record) {
    assert_eq!(case(id).judge(record), Ok(()), "{id}: {:#?}", record.lines());
}

/// The case finds it, and its report says so.
#[track_caller]
fn finds(id: &str, record: &Record, found: &str) {
    match case(id).judge(record) {
        Err(crate::outcome::Stop::Failed { found: text, .. }) => {
            assert!(text.contains(found), "{id}: {text}");
        }
        other => panic!("{id}: {other:?}, {:#?}", record.lines()),
    }
}

#[track_caller]
fn skips(id: &str, record: &Record) {
    let outcome = case(id).judge(record);
    assert!(matches!(outcome, Err(crate::outcome::Stop::Skipped(_))), "{id}: {outcome:?}");
}

/// Saves the state, with its end.
fn saves() -> Hand {
    Hand::new().set(StopCopy).read(Ok(b"state")).read(Ok(b""))
}

#[test]
fn ids_are_unique_and_faults_can_be_parsed() {
    let mut ids: Vec<&str> = cases().map(UserCase::id).collect();
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count);
    for case in cases() {
        let parts: Vec<&str> = case.id().split('/').collect();
        assert!(parts.len() == 3 && parts[0] == "user", "{}", case.id());
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '/';
        assert!(case.id().chars().all(is_plain), "{}", case.id());
        let faults = case.fault_text().parse::<Faults>();
        assert!(faults.is_ok(), "{}: {faults:?}", case.id());
    }
}

#[test]
fn every_arc_fails_in_some_case() {
    let fails = |from: State, to: State| {
        cases().any(|case| {
            let faults: Faults = case.fault_text().parse().unwrap();
            faults.iter().any(|fault| match fault.kind {
                FaultKind::Arc { from: first, to: second, errno: Some(_), .. } => {
                    first.is_none_or(|state| state == from) && second.is_none_or(|state| state == to)
                }
                _ => false,
            })
        })
    };
    let states = [Stop, Running, StopCopy, Resuming, State::RunningP2p, PreCopy, State::PreCopyP2p];
    for flags in [MigrationFlags::all(), MigrationFlags::STOP_COPY] {
        for from in states {
            let arcs =
                states.into_iter().filter(|to| *to != from && fsm::next(flags, from, *to) == Some(*to));
            for to in arcs.filter(|to| fsm::supports(flags, from) && fsm::supports(flags, *to)) {
                assert!(fails(from, to), "{from} -> {to}");
            }
        }
    }
}

#[test]
fn a_success_without_the_end_of_the_state_is_found() {
    let id = "user/data-fd/end-of-stream";
    passes(id, &saves().set(Running).done());
    finds(id, &Hand::new().set(StopCopy).read(Ok(b"sta")).set(Running).done(), "after 3 bytes were read");
    finds(id, &saves().set(Running).failed("why not?"), "exit status 1");
    let id = "user/data-fd/failed-first-read";
    let read = || Hand::new().set(StopCopy).read(Err(Errno::EIO)).set(Running);
    passes(id, &read().failed("EIO"));
    finds(id, &read().done(), "then EIO");
    skips(id, &saves().set(Running).done());
}

#[test]
fn a_user_that_takes_enomsg_for_the_end_is_found() {
    let id = "user/data-fd/enomsg-in-stop-copy";
    let read = || {
        let size = Request::DataSize(Ok(5));
        Hand::new().add(size).set(StopCopy).read(Ok(b"s")).read(Err(Errno::ENOMSG)).set(Running)
    };
    passes(id, &read().failed("ENOMSG"));
    finds(id, &read().done(), "then ENOMSG");
    let plain = || Hand::new().set(StopCopy).read(Err(Errno::ENOMSG)).set(Running).done();
    // A plain client of vfio-user cannot know; a user of the kernel's VFIO can.
    skips(id, &plain().over(Interface::VfioUser));
    finds(id, &plain(), "then ENOMSG");
}

#[test]
fn a_close_brings_a_device_back_for_its_next_open_only() {
    let id = "user/error/reset";
    let broken = || Hand::new().set_fails(StopCopy, Error).get();
    finds(id, &broken().close().failed("done"), "with the device in ERROR");
    finds(id, &broken().close().close().failed("done"), "with the device in ERROR");
    passes(id, &broken().close().get().failed("done"));
    finds(id, &broken().close_fails().get().failed("done"), "with the device in ERROR");
    let id = "user/dirty/single-start";
    let logs = || Hand::new().add(Request::LoggingStart(Ok(())));
    passes(id, &logs().close().add(Request::LoggingStart(Ok(()))).done());
    let again = Request::LoggingStart(Err(Errno::EINVAL));
    finds(id, &logs().add(again).close().done(), "DMA_LOGGING_START");
}

#[test]
fn a_user_that_takes_the_temporary_end_for_the_end_is_found() {
    for end in [Ok(&b""[..]), Err(Errno::ENOMSG)] {
        let begun = || Hand::new().set(PreCopy).info(2, 0, false).read(Ok(b"st")).read(end);
        for id in ["user/pre-copy/temporary-end", "user/pre-copy/temporary-end-of-zero"] {
            passes(id, &begun().set(StopCopy).read(Ok(b"ate")).read(Ok(b"")).set(Running).done());
            finds(id, &begun().set(Running).done(), "after 2 bytes were read");
            finds(id, &begun().set(StopCopy).set(Running).done(), "after 2 bytes were read");
        }
        finds(
            "user/pre-copy/early-temporary-end",
            &begun().set(StopCopy).set(Running).done(),
            "after 2 bytes",
        );
        finds("user/pre-copy/end-is-not-taken", &begun().set(StopCopy).set(Running).done(), "after 2 bytes");
    }
}

#[test]
fn a_failed_set_that_is_taken_as_done_is_found() {
    let id = "user/state/failed-set-is-not-done";
    let begun = || Hand::new().set(PreCopy).set_fails(StopCopy, PreCopy);
    passes(id, &begun().get().read(Ok(b"s")).set(Running).failed("EIO"));
    passes(id, &begun().set(Running).failed("EIO"));
    passes(id, &begun().reset().failed("EIO"));
    finds(id, &begun().read(Ok(b"s")).set(Running).failed("EIO"), "after SET STOP_COPY = EIO: read");
}

#[test]
fn a_device_that_is_left_stopped_without_a_word_is_found() {
    let ids = [
        "user/state/recovery",
        "user/state/recovery-from-p2p",
        "user/state/any-step-along-the-path",
        "user/state/stays-stopped",
        "user/state/stays-in-stop-copy",
    ];
    for id in ids {
        let begun = || Hand::new().set_fails(StopCopy, Stop);
        passes(id, &begun().get().set(Running).failed("EIO"));
        passes(id, &begun().get().failed("EIO; the device is left in STOP"));
        passes(id, &begun().get().failed("EIO; Reset the device"));
        finds(id, &begun().get().failed("EIO, and STOP_COPY was not reached"), "with the device in STOP");
        finds(id, &begun().get().set(Running).done(), "no data_fd was opened");
    }
    let read = || Hand::new().set(StopCopy).read(Err(Errno::EIO));
    passes("user/data-fd/recovery", &read().set(Running).failed("EIO"));
    finds("user/data-fd/recovery", &read().failed("EIO"), "with the device in STOP_COPY");
    let pre_copy = || Hand::new().set(PreCopy).read(Err(Errno::EIO));
    passes("user/pre-copy/failed-read", &pre_copy().set(Running).failed("EIO"));
    finds("user/pre-copy/failed-read", &pre_copy().failed("EIO"), "with the device in PRE_COPY");
    let stays = || pre_copy().set_fails(Running, PreCopy).get();
    passes("user/state/stays-in-pre-copy", &stays().reset().failed("EIO"));
    finds("user/state/stays-in-pre-copy", &stays().failed("it runs on"), "with the device in PRE_COPY");
    let report = || Hand::new().set(PreCopy).add(Request::LoggingReport(Err(Errno::EIO)));
    passes("user/dirty/recovery", &report().set(Running).failed("EIO"));
    finds("user/dirty/recovery", &report().failed("EIO"), "with the device in PRE_COPY");
}

#[test]
fn a_user_that_takes_a_device_at_its_word_is_found() {
    let id = "user/state/does-not-stop";
    let begun = || Hand::new().set(PreCopy).read(Ok(b"st")).set_leads_to(StopCopy, PreCopy);
    passes(id, &begun().get().set(Running).failed("it does not stop"));
    finds(id, &begun().read(Ok(b"")).set(Running).done(), "after 2 bytes were read");
    skips(id, &saves().set(Running).done());
    let id = "user/state/does-not-run-again";
    let begun = || Hand::new().set(StopCopy).read(Err(Errno::EIO)).set_leads_to(Running, Stop);
    passes(id, &begun().get().failed("the device is in STOP"));
    passes(id, &begun().get().reset().failed("EIO"));
    finds(id, &begun().failed("EIO; it runs on"), "with the device in STOP");
    let id = "user/state/only-seems-to-run";
    let loads = || Hand::new().set(Resuming).write(Ok(b"state"));
    let begun = || loads().set(Stop).set_leads_to(Running, Stop);
    passes(id, &begun().get().failed("the device is in STOP"));
    finds(id, &begun().done(), "exit status 0, with the device in STOP");
    let id = "user/state/stays-in-p2p";
    let begun = || loads().set(Stop).set_fails(Running, State::RunningP2p);
    passes(id, &begun().get().failed("the device is in RUNNING_P2P"));
    finds(id, &begun().done(), "exit status 0, with the device in RUNNING_P2P");
    let id = "user/state/resuming-fails-on-the-way";
    let begun = || Hand::new().set_fails(Resuming, Running);
    passes(id, &begun().failed("EIO"));
    finds(id, &begun().done(), "no data_fd was opened");
    let id = "user/state/only-seems-to-be-loaded";
    let begun = || loads().set_leads_to(Stop, Resuming);
    passes(id, &begun().get().reset().failed("it was not taken"));
    finds(id, &begun().set_leads_to(Running, Resuming).done(), "after 5 bytes were written");
    let id = "user/error/without-an-errno";
    let begun = || Hand::new().set_leads_to(StopCopy, Error);
    passes(id, &begun().get().reset().failed("it broke"));
    finds(id, &begun().failed("it broke"), "with the device in ERROR");
    let lines = begun().failed("").lines();
    assert!(lines.iter().any(|line| line.contains("SET STOP_COPY = 0, but now in ERROR")), "{lines:#?}");
}

#[test]
fn a_retry_without_end_is_found() {
    let begun = |count| (0..count).fold(Hand::new(), |hand, _| hand.set_fails(StopCopy, Running).get());
    passes("user/state/retry", &begun(16).failed("EIO"));
    finds("user/state/retry", &begun(17).failed("EIO"), "17 times");
    let reads = |count| (0..count).fold(Hand::new().set(StopCopy), |hand, _| hand.read(Err(Errno::EIO)));
    passes("user/data-fd/retry", &reads(16).set(Running).failed("EIO"));
    finds("user/data-fd/retry", &reads(17).set(Running).failed("EIO"), "17 times");
    let writes = |count| (0..count).fold(Hand::new().set(Resuming), |hand, _| hand.write(Err(Errno::EIO)));
    passes("user/data-fd/retry-at-the-destination", &writes(2).reset().failed("EIO"));
    finds("user/data-fd/retry-at-the-destination", &writes(99).reset().failed("EIO"), "99 times");
    let stops = |count| (0..count).fold(Hand::new().set(Resuming), |hand, _| hand.set_fails(Stop, Resuming));
    finds("user/state/retry-at-the-destination", &stops(20).reset().failed("EIO"), "20 times");
    // Waiting at the temporary end is no retry.
    let waits =
        (0..99).fold(Hand::new().set(PreCopy), |hand, _| hand.read(Err(Errno::ENOMSG)).info(0, 0, false));
    passes("user/state/retry", &waits.set_fails(StopCopy, PreCopy).set(Running).failed("EIO"));
}

#[test]
fn a_device_in_error_that_is_driven_or_left_is_found() {
    for id in ["user/error/reset", "user/error/reset-after-stop", "user/error/reset-after-saving"] {
        let begun = || Hand::new().set_fails(StopCopy, Error);
        passes(id, &begun().get().reset().failed("EIO"));
        // The state is not known before it is asked for.
        passes(id, &begun().set_fails(Running, Error).get().reset().failed("EIO"));
        passes(id, &begun().get().reset_fails().failed("the device is in ERROR"));
        finds(id, &begun().get().set_fails(Running, Error).reset().failed("EIO"), "SET RUNNING = EIO");
        passes(id, &begun().get().region(7).reset().failed("EIO"));
        finds(id, &begun().get().region(0).reset().failed("EIO"), "in ERROR");
        finds(id, &begun().failed("error: EIO"), "with the device in ERROR");
    }
    let begun = || Hand::new().set_fails(StopCopy, Error).get().reset();
    passes("user/error/is-no-success", &begun().failed("EIO"));
    finds("user/error/is-no-success", &begun().done(), "exit status 0");
    let loads = || Hand::new().set(Resuming).write(Ok(b"state")).set_fails(Stop, Error).get();
    passes("user/error/reset-after-loading", &loads().reset().failed("EIO"));
    finds("user/error/reset-after-loading", &loads().failed("EIO"), "with the device in ERROR");
    finds("user/error/reset-of-a-destination", &loads().failed("EIO"), "with the device in ERROR");
}

#[test]
fn a_lost_device_that_is_not_told_is_found() {
    let saves = || Hand::new().set_fails(StopCopy, Error).get().reset_fails();
    let loads = || Hand::new().set(Resuming).set_fails(Stop, Error).get().reset_fails();
    let both: [(&str, &dyn Fn() -> Hand); 2] =
        [("user/error/reset-fails", &saves), ("user/error/reset-of-a-destination-fails", &loads)];
    for (id, begun) in both {
        passes(id, &begun().failed("it is in ERROR"));
        passes(id, &begun().failed("its reset has failed"));
        finds(id, &begun().failed("it failed"), "no word of ERROR");
        finds(id, &begun().done(), "exit status 0");
        let again = (0..20).fold(begun(), |hand, _| hand.reset_fails());
        finds(id, &again.failed("it is in ERROR"), "21 times");
    }
}

#[test]
fn a_state_that_was_not_taken_and_is_reported_as_restored_is_found() {
    let loads = || Hand::new().set(Resuming).write(Ok(b"state"));
    let rejected = || loads().set_fails(Stop, Resuming).get();
    for id in ["user/state/invalid-data", "user/state/abort-of-resuming"] {
        passes(id, &rejected().reset().failed("EINVAL"));
        finds(id, &rejected().reset().done(), "exit status 0");
    }
    let id = "user/state/abort-of-resuming";
    passes(id, &rejected().failed("the device is left in RESUMING"));
    finds(id, &rejected().failed("EINVAL"), "with the device in RESUMING");
    finds(id, &rejected().set(Stop).failed("EINVAL"), "after SET STOP = EIO");
    for id in ["user/data-fd/failed-write", "user/data-fd/write-failed-once"] {
        let cut = || Hand::new().set(Resuming).write(Ok(b"sta")).write(Err(Errno::EIO));
        passes(id, &cut().reset().failed("EIO"));
        finds(id, &cut().set(Stop).set(Running).done(), "SET STOP = 0");
        finds(id, &cut().write(Ok(b"te")).set(Stop).set(Running).done(), "SET STOP = 0");
        finds(id, &cut().failed("EIO"), "with the device in RESUMING");
        finds(id, &cut().set_fails(Stop, Resuming).reset().failed("EIO"), "SET STOP = EIO");
        passes(id, &cut().write(Ok(b"te")).set_fails(Stop, Resuming).reset().failed("EIO"));
    }
    let whole = || loads().set(Stop).set(Running);
    passes("user/data-fd/short-writes", &whole().done());
    finds("user/data-fd/short-writes", &loads().reset().failed("short"), "exit status 1");
    let refused = || Hand::new().set_fails(Resuming, Stop).get();
    passes("user/state/resuming-fails", &refused().set(Running).failed("EIO"));
    finds("user/state/resuming-fails", &refused().set(Running).done(), "exit status 0");
    let stopped = || loads().set(Stop).set_fails(Running, Stop);
    passes("user/state/does-not-run", &stopped().failed("it is in STOP"));
    finds("user/state/does-not-run", &stopped().done(), "with the device in STOP");
}

#[test]
fn initial_data_that_is_left_behind_is_found() {
    let id = "user/pre-copy/initial-bytes";
    let begun = || Hand::new().set(PreCopy).info(4, 8, false);
    passes(id, &begun().read(Ok(b"init")).set(StopCopy).read(Ok(b"")).done());
    passes(id, &begun().read(Err(Errno::ENOMSG)).set(StopCopy).read(Ok(b"")).done());
    passes(id, &begun().set(Running).failed("cancelled"));
    finds(id, &begun().read(Ok(b"in")).set(StopCopy).read(Ok(b"")).done(), "2 bytes of initial data left");
    let id = "user/pre-copy/reinit";
    let again = || begun().read(Ok(b"init")).info(6, 0, true);
    passes(id, &again().read(Ok(b"newest")).set(StopCopy).read(Ok(b"")).done());
    finds(id, &again().set(StopCopy).read(Ok(b"")).done(), "6 bytes of initial data left");
    skips(id, &begun().read(Ok(b"init")).set(StopCopy).read(Ok(b"")).done());
}

#[test]
fn a_user_that_trusts_estimates_is_found() {
    let id = "user/pre-copy/estimates-of-nothing";
    let begun = || Hand::new().set(PreCopy).info(0, 0, false).set(StopCopy);
    passes(id, &begun().read(Ok(b"state")).read(Ok(b"")).done());
    finds(id, &begun().set(Running).done(), "after 0 bytes were read");
    let begun = |size| Hand::new().add(Request::DataSize(size)).set(StopCopy).read(Ok(b"s"));
    finds("user/data-fd/estimate-of-nothing", &begun(Ok(0)).set(Running).done(), "after 1 bytes were read");
    for (id, size) in
        [("user/data-fd/huge-estimate", Ok(1 << 60)), ("user/data-fd/no-estimate", Err(Errno::EIO))]
    {
        passes(id, &begun(size).read(Ok(b"")).set(Running).done());
        passes(id, &begun(size).set(Running).failed("too large"));
        finds(id, &begun(size).failed("too large"), "with the device in STOP_COPY");
    }
}

#[test]
fn requests_that_are_not_allowed_are_found() {
    let without = |to| {
        let mut record = Record::new(MigrationFlags::STOP_COPY);
        let result = Err(Errno::EINVAL);
        record.add(Socket::First, Request::SetState { from: Running, to, result, now: Running });
        record.ended(Exit::Status(1), "")
    };
    for id in ["user/state/optional-states", "user/state/optional-states-at-the-destination"] {
        passes(id, &without(StopCopy));
        finds(id, &without(PreCopy), "SET PRE_COPY = EINVAL");
        finds(id, &without(State::RunningP2p), "SET RUNNING_P2P = EINVAL");
    }
    finds(
        "user/state/error-is-not-requested",
        &Hand::new().set_fails(Error, Running).failed(""),
        "SET ERROR",
    );
    let begun = Hand::new().set(PreCopy).set(StopCopy).set_fails(PreCopy, StopCopy).set(Running);
    finds("user/state/no-return-to-pre-copy", &begun.failed("EINVAL"), "SET PRE_COPY = EIO");
}

#[test]
fn accesses_to_regions_of_a_stopped_device_are_found() {
    let config = 7;
    let saves = |state, index| Hand::new().set(state).region(index).set(StopCopy).read(Ok(b"")).done();
    for id in ["user/regions/stop-copy", "user/regions/stop"] {
        passes(id, &saves(StopCopy, config));
        passes(id, &saves(PreCopy, 0));
        finds(id, &saves(StopCopy, 0), "region 0 in STOP_COPY");
    }
    finds("user/regions/stop", &saves(Stop, 0), "region 0 in STOP");
    let loads = |index| Hand::new().set(Resuming).region(index).set(Stop).done();
    passes("user/regions/resuming", &loads(config));
    finds("user/regions/resuming", &loads(2), "region 2 in RESUMING");
}

#[test]
fn other_bytes_at_the_destination_are_found() {
    let moved = |bytes: &[u8]| {
        let saved = Hand::pair().set(StopCopy).read(Ok(b"sta")).read(Ok(b"te")).read(Ok(b"")).second();
        saved.set(Resuming).write(Ok(bytes)).set(Stop).set(Running).done()
    };
    for id in ["user/data-fd/byte-order"] {
        passes(id, &moved(b"state"));
        for other in [&b"sttae"[..], b"stat", b"states", b""] {
            finds(id, &moved(other), "bytes, byte");
        }
        skips(id, &saves().done());
    }
    let again = |bytes: &[u8]| {
        let saved = Hand::pair().set(StopCopy).read(Ok(b"st")).read(Err(Errno::EIO)).set(Running);
        let mut saved = saved.set(StopCopy);
        // The second data file.
        if let Some(step) = saved.0.steps.last_mut()
            && let Request::SetState { result: Ok(Some((session, _))), .. } = &mut step.request
        {
            *session = 2;
        }
        for result in [Ok(b"state".to_vec()), Ok(Vec::new())] {
            saved = saved.add(Request::Read { session: 2, state: StopCopy, result });
        }
        saved.second().set(Resuming).write(Ok(bytes)).set(Stop).set(Running).done()
    };
    passes("user/data-fd/single-fd", &again(b"state"));
    finds("user/data-fd/single-fd", &again(b"ststate"), "7 bytes");
    // Not complete, and refused by the device before it is.
    let begun = |bytes: &[u8]| {
        let saved = Hand(saves().set(Running).0.with_second(), Socket::Second, Running);
        saved.set(Resuming).write(Ok(bytes)).write(Err(Errno::EINVAL)).reset().failed("EINVAL")
    };
    passes("user/data-fd/byte-order", &begun(b"sta"));
    finds("user/data-fd/byte-order", &begun(b"stst"), "byte 2 is");
    let refused = saves().set(Running).0.with_second();
    let refused =
        Hand(refused, Socket::Second, Running).set(Resuming).write(Ok(b"st")).set_fails(Stop, Resuming);
    finds("user/data-fd/byte-order", &refused.reset().failed("EINVAL"), "2 bytes");
}

#[test]
fn a_log_that_is_used_after_its_error_is_found() {
    let report = Request::LoggingReport;
    let begun = || Hand::new().set(PreCopy).add(Request::LoggingStart(Ok(())));
    let failed = || begun().add(report(Ok(()))).add(report(Err(Errno::EIO)));
    let ended = |hand: Hand| hand.set(StopCopy).read(Ok(b"")).done();
    let id = "user/dirty/failed-report";
    passes(id, &ended(failed()));
    let restarted = failed().add(Request::LoggingStop(Ok(()))).add(Request::LoggingStart(Ok(())));
    passes(id, &ended(restarted.add(report(Ok(())))));
    passes(id, &failed().add(report(Ok(()))).set(Running).failed("EIO"));
    finds(id, &ended(failed().add(report(Ok(())))), "after DMA_LOGGING_REPORT = EIO");
    let id = "user/dirty/single-start";
    passes(id, &ended(begun()));
    finds(id, &ended(begun().add(Request::LoggingStart(Err(Errno::EINVAL)))), "DMA_LOGGING_START = EINVAL");
}

/// A user that always leaves the same record.
struct Recorded(Record);

impl UserUnderTest for Recorded {
    fn name(&self) -> String {
        "recorded".to_string()
    }

    fn lacks(&self, case: &UserCase) -> Option<String> {
        (case.needs_second() && !self.0.has_second).then(|| "it has no second device".to_string())
    }

    fn run(&mut self, _case: Option<&UserCase>) -> Result<Record, String> {
        Ok(self.0.clone())
    }
}

fn run(record: Record, roles: &[Role]) -> Report {
    let mut report = Report::default();
    run_user(&mut Recorded(record), roles, &Config::default(), &mut |event| report.add(event));
    report
}

#[test]
fn a_run_has_a_result_for_each_case_and_judges_only_what_the_program_does() {
    let report = run(saves().set(Running).done(), &[]);
    assert!(report.passed(), "{report}");
    assert_eq!(report.results().len(), cases().count());
    for result in report.results() {
        let role = case(&result.id).role();
        assert!(
            result.verdict == Verdict::Skip || role == Role::Source,
            "{} {:?}",
            result.id,
            result.verdict
        );
    }
    assert_eq!(report.result("user/data-fd/end-of-stream").map(|result| result.verdict), Some(Verdict::Pass));
    let header = report.header().map(|header| header.features.clone());
    assert_eq!(header, Some(vec!["source".to_string()]));
}

#[test]
fn a_program_that_fails_on_a_sound_device_or_does_nothing_cannot_be_tested() {
    let report = run(saves().set(Running).failed("bad option\n\n"), &[]);
    assert_eq!(report.summary().exit_status(), 3);
    assert!(report.to_string().contains("exit status 1: bad option"), "{report}");
    let report = run(Hand::new().get().done(), &[]);
    assert!(report.to_string().contains("neither saves nor loads a state: done"), "{report}");
}

/// Ends in time with sound devices only.
struct Hangs;

impl UserUnderTest for Hangs {
    fn name(&self) -> String {
        "hangs".to_string()
    }

    fn lacks(&self, _case: &UserCase) -> Option<String> {
        None
    }

    fn run(&mut self, case: Option<&UserCase>) -> Result<Record, String> {
        let record = saves().set(Running).done();
        Ok(if case.is_some() { record.ended(Exit::TimedOut(Duration::from_secs(9)), "") } else { record })
    }
}

#[test]
fn a_program_that_does_not_end_has_hung_and_the_run_goes_on() {
    let mut report = Report::default();
    let config = Config { levels: vec![Level::Must], ..Config::default() };
    run_user(&mut Hangs, &[], &config, &mut |event| report.add(event));
    let hung = report.results().iter().filter(|result| result.verdict == Verdict::Hung).count();
    assert_eq!(report.summary().hung, hung);
    assert!(hung > 3, "{report}");
    let text = report.to_string();
    assert!(text.contains("still running after 9 s"), "{text}");
    assert!(text.contains("[the source's device: arc *->STOP_COPY: EIO broken]"), "{text}");
}
