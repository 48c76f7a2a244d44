//! Arguments are read as far as they can be, and no further.

use std::sync::mpsc;
use std::time::Duration;

use libtest_mimic::Trial;
use whimbrel_interpose::trace::{Ended, Options, Outcome};
use whimbrel_uapi::Errno;

use super::programs::CANNOT_MOUNT;
use super::{command, skip, test, trace, trace_command, trace_with};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        test("arguments::requests_are_decoded_and_other_ioctls_are_not_shown", requests),
        test("arguments::bytes_are_shown_when_asked_for", hex),
        test("arguments::lies_about_sizes_and_pointers_to_nowhere_cut_the_argument", hostile),
        test("arguments::an_argument_that_changes_all_the_time_is_shown_as_it_was_at_some_moment", scribbles),
        test("arguments::a_token_is_never_shown", token),
        test("arguments::one_in_a_page_that_never_comes_holds_up_the_program_for_a_second", never_comes),
    ]
}

fn requests() {
    let traced = trace("requests", 7);
    let names: Vec<String> = traced.records().iter().map(|record| record.name()).collect();
    assert_eq!(names, ["VFIO_GET_API_VERSION", "VFIO_DEVICE_FEATURE", "ioctl 0x3bff"]);
    let refused = Outcome::Failed(Errno::ENOTTY);
    assert!(traced.records().iter().all(|record| record.outcome == refused && record.on.kind == "other"));
    let line = traced.records()[1].to_string();
    let expected = "/dev/null: VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 3 STOP_COPY) \
                    = -1 ENOTTY: ";
    assert!(line.contains(expected), "{line}");
    let unknown = traced.records()[2].to_string();
    assert!(unknown.contains("ioctl 0x3bff(0x1234) = -1 ENOTTY"), "{unknown}");
}

fn hex() {
    let traced = trace_with("requests", Options::default().hex(true), 7);
    let line = traced.records()[1].to_string();
    assert!(line.contains("argument 0000  10 00 00 00 02 00 02 00 03 00 00 00 ff ff ff ff"), "{line}");
    assert!(!line.contains("answer"), "nothing has changed: {line}");
}

fn hostile() {
    let traced = trace("hostile", 0);
    let features = traced.requests("VFIO_DEVICE_FEATURE");
    let lengths: Vec<usize> = features.iter().map(|(_, request)| request.argument.len()).collect();
    assert_eq!(lengths, [8, 4096, 0, 0, 0, 0, 0, 0]);
    for (record, _) in &features[2..] {
        assert!(record.to_string().contains("VFIO_DEVICE_FEATURE(cannot be read)"), "{record}");
    }
    let names = traced.requests("VFIO_GROUP_GET_DEVICE_FD");
    assert!(names[0].0.to_string().contains("VFIO_GROUP_GET_DEVICE_FD(\"ab\", ..)"), "{}", names[0].0);
    assert_eq!(names.len(), 7);
    let closed = traced.requests("VFIO_DEVICE_RESET");
    assert_eq!((closed.len(), closed[0].0.on.fd), (1, -1));
    assert_eq!(closed[0].0.outcome, Outcome::Failed(Errno::EBADF));
}

fn scribbles() {
    let traced = trace_with("scribbles", Options::default().hex(true), 0);
    let features = traced.requests("VFIO_DEVICE_FEATURE");
    assert_eq!(features.len(), 200);
    for (record, request) in features {
        assert!(request.argument.len() <= 4096);
        assert!(record.to_string().len() < 10_000);
    }
}

fn token() {
    let traced = trace_with("token", Options::default().hex(true), 0);
    let record = traced.requests("VFIO_DEVICE_FEATURE")[0].0;
    let shown = format!("{record} {}", serde_json::to_string(record).unwrap());
    assert!(shown.contains("token not shown"), "{shown}");
    for secret in ["5e e7 c1", "5ee7c1", "5ec1e75e"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

fn never_comes() {
    let (done, finished) = mpsc::channel();
    // The thread of a trace that waits for ever cannot be ended, so another one judges it.
    std::thread::spawn(move || {
        let traced = trace_command(&command("never_comes"), Options::default());
        let _ = done.send(traced.unwrap());
    });
    let traced = finished.recv_timeout(Duration::from_mins(1)).expect("the trace goes on");
    if traced.ended == Ended::Exited(CANNOT_MOUNT) {
        return skip("a page that never comes", "FUSE cannot be mounted");
    }
    assert_eq!(traced.ended, Ended::Exited(0));
    let features = traced.requests("VFIO_DEVICE_FEATURE");
    assert!(features.iter().all(|(_, request)| request.argument.is_empty()), "{features:?}");
    assert_eq!((features.len(), traced.requests("VFIO_DEVICE_RESET").len()), (2, 1));
}
