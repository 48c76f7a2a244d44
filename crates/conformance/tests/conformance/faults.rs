//! A fault of a driver is found by the case whose sentence it breaks.

use whimbrel_conformance::{Config, Report, Subjects, Verdict, run_suite};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local};

fn run(model: &str, faults: &str, only: &str) -> Report {
    let (model, faults) = (model.parse::<Model>().expect("a model"), faults.to_string());
    let mut config = Config::default();
    config.only = vec![only.parse().expect("a pattern")];
    let subjects = Subjects::new("faulty", move || {
        let faults = faults.parse().expect("a list of faults");
        let device = model.open_with_faults("faulty", faults).expect("memory for a device");
        Ok(Box::new(Local::new(device)) as Box<dyn Device>)
    });
    let mut report = Report::default();
    run_suite(&subjects, &config, &mut [], &mut |event| report.add(event));
    report
}

#[test]
fn each_fault_fails_its_case() {
    let cases = [
        ("serial", "size: 60000", "v2/data-size/estimate"),
        ("serial", "size: 0", "v2/data-size/estimate"),
        ("serial", "size: 100GiB", "v2/data-size/estimate-in-precopy"),
        ("serial", "size: EIO", "v2/data-size/every-state"),
        ("serial", "precopy: initial 0 dirty 0", "v2/precopy-info/initial-bytes"),
        ("serial", "precopy: initial 24 dirty 0", "v2/precopy-info/initial-bytes"),
        ("serial", "precopy: initial 24 dirty 0", "v2/precopy-info/temporary-end"),
        ("serial", "precopy: initial 24000 dirty 0", "v2/precopy-info/initial-bytes-available"),
        ("serial", "precopy: initial 24 dirty 36", "v2/precopy-info/dirty-bytes"),
        ("serial", "precopy: initial 24 dirty 36000", "v2/precopy-info/estimate"),
        ("serial", "precopy: EIO", "v2/precopy-info/mandatory"),
        ("serial", "read after 24: EAGAIN", "v2/precopy/temporary-end"),
        ("serial", "read after 24: end", "v2/precopy/whole-state"),
        ("serial", "read after 24: end", "v2/precopy/nothing-read"),
        ("serial", "read after 24: end", "v2/precopy/left-early"),
        ("serial", "read after 24: end", "v2/precopy/given-up"),
        ("accel?state=64KiB", "reset: EIO", "v2/reset/every-state"),
        ("accel?state=64KiB", "reset: EIO", "v2/reset/in-precopy"),
        ("accel?state=64KiB", "log report: EIO", "v2/dma-logging/in-every-state"),
        ("accel?state=64KiB", "log report: EIO", "v2/dma-logging/never-clears"),
    ];
    for (model, faults, case) in cases {
        let report = run(model, faults, case);
        let result = report.results().first().unwrap_or_else(|| panic!("{case}: {report}"));
        assert_eq!((result.id.as_str(), result.verdict), (case, Verdict::Fail), "{faults}\n{report}");
        let sound = run(model, "", case);
        assert_eq!(sound.summary().passed, 1, "{sound}");
    }
}
