//! Users that mistake the data of a device, or make requests and accesses that are not allowed.

use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::hand::{Hand, finds, passes, saves, skips};
use crate::user::{Exit, Interface, Record, Request, Socket};

use State::{Error, PreCopy, Resuming, Running, Stop, StopCopy};

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
