//! Users that leave a device elsewhere than they say, or repeat a request without end.

use whimbrel_protocol::{Errno, State};

use super::hand::{Hand, finds, passes, saves, skips};
use crate::user::Request;

use State::{Error, PreCopy, Resuming, Running, Stop, StopCopy};

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
