//! States of earlier versions, and devices that fail at an arc or in the middle of their state.

use std::sync::Arc;

use whimbrel_conformance::{Config, Report, Subjects, Verdict, run_suite};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local};

/// A state that a machine's mtty with one port has saved on Linux 6.12.
pub(crate) const MTTY: [u8; 60] = [
    0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x42, 0x68, 0x65,
    0x6c, 0x6c, 0x6f, 0x20, 0x6d, 0x74, 0x74, 0x79, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x0a,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
];

/// Runs the cases that match `only` on a model with faults, with a state of an earlier version.
fn run(model: &str, faults: &str, stream: Option<&[u8]>, only: &str) -> Report {
    let (model, faults) = (model.parse::<Model>().expect("a model"), faults.to_string());
    let mut config = Config::default();
    config.only = vec![only.parse().expect("a pattern")];
    config.stream = stream.map(Arc::from);
    let subjects = Subjects::new("faulty", move || {
        let faults = faults.parse().expect("a list of faults");
        let device = model.open_with_faults("faulty", faults).expect("memory for a device");
        Ok(Box::new(Local::new(device)) as Box<dyn Device>)
    });
    let mut report = Report::default();
    run_suite(&subjects, &config, &mut [], &mut |event| report.add(event));
    report
}

fn verdicts(report: &Report) -> Vec<(&str, Verdict)> {
    report.results().iter().map(|result| (result.id.as_str(), result.verdict)).collect()
}

#[test]
fn a_state_of_an_earlier_version_is_taken_or_refused() {
    let accel = include_bytes!("../../../models/tests/models/accel/streams/empty-1KiB.bin");
    for (model, stream) in [("serial", &MTTY[..]), ("accel?state=1KiB", accel)] {
        let report = run(model, "", Some(stream), "v2/stream/*");
        let expected = [
            ("v2/stream/taken-or-refused", Verdict::Pass),
            ("v2/stream/saved-again", Verdict::Pass),
            ("v2/stream/flipped-bit", Verdict::Pass),
        ];
        assert_eq!(verdicts(&report), expected, "{model}: {report}");
    }
    for (model, stream) in [("serial?ports=2", &MTTY[..]), ("serial", accel), ("accel?state=2KiB", accel)] {
        let report = run(model, "", Some(stream), "v2/stream/*");
        let expected = [
            ("v2/stream/taken-or-refused", Verdict::Pass),
            ("v2/stream/saved-again", Verdict::Skip),
            ("v2/stream/flipped-bit", Verdict::Pass),
        ];
        assert_eq!(verdicts(&report), expected, "{model}: {report}");
    }
}

#[test]
fn a_device_that_goes_to_error_is_brought_back_by_a_reset() {
    let case = "v2/resuming/error-needs-a-reset";
    let sound = run("serial", "arc RESUMING->STOP: EIO broken once", None, case);
    assert_eq!(verdicts(&sound), [(case, Verdict::Pass)], "{sound}");
    let stays = run("serial", "arc RESUMING->STOP: EIO broken once; reset: EIO", None, case);
    assert_eq!(verdicts(&stays), [(case, Verdict::Fail)], "{stays}");
}

#[test]
fn a_fault_fails_the_case_whose_sentence_it_breaks() {
    let cases = [
        ("arc RUNNING_P2P->RUNNING: EIO", "v2/p2p/quiescent-arcs"),
        ("arc STOP->RUNNING_P2P: EIO", "v2/arcs/combinations"),
        ("arc PRE_COPY_P2P->PRE_COPY: EIO", "v2/session/saving-group"),
        ("arc STOP_COPY->STOP: EIO", "v2/session/stop-copy-ends"),
        ("arc STOP_COPY->STOP: EIO broken", "v2/stop-copy/second-session"),
        ("arc RESUMING->STOP: EIO", "v2/resuming/every-way-out"),
        ("read after 60: EIO", "v2/stop-copy/end-of-stream"),
        ("read after 30 in STOP_COPY: ENOMSG", "v2/stop-copy/no-enomsg"),
        ("read after 30: EIO", "v2/stop-copy/behaves-as-in-stop"),
        ("read after 30: end", "v2/round-trip/bytes"),
        ("read after 30: EINVAL", "v2/round-trip/read-segments"),
        ("write after 30: ENOSPC", "v2/round-trip/write-segments"),
        ("write after 30: ENOSPC", "v2/resuming/many-small-writes"),
        ("reset: EIO", "v2/resuming/abort"),
        ("reset: EIO", "v2/robust/foreign"),
    ];
    for (faults, case) in cases {
        let report = run("serial", faults, None, case);
        assert_eq!(verdicts(&report), [(case, Verdict::Fail)], "{faults}: {report}");
    }
}
