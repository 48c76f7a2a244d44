//! The models that write to memory have no failure, and neither has one that changes by itself.

use std::sync::Arc;

use whimbrel_conformance::models::{AccelProbe, AccelWriter};
use whimbrel_conformance::{Config, Report, Subjects, Verdict, run_suite};
use whimbrel_models::Model;
use whimbrel_user::{Device, Local};

/// Runs the suite on a model with a writer, and perhaps a probe.
fn run(model: &str, has_probe: bool) -> Report {
    let model: Model = model.parse().expect("a model");
    let mut config = Config::default();
    config.writer = Some(Arc::new(AccelWriter::new()));
    if has_probe {
        config.registers = Some(Arc::new(AccelProbe::default()));
    }
    let subjects = Subjects::new("engine", move || {
        let device = model.open("engine").expect("memory for a device");
        Ok(Box::new(Local::new(device)) as Box<dyn Device>)
    });
    let mut report = Report::default();
    run_suite(&subjects, &config, &mut [], &mut |event| report.add(event));
    report
}

#[test]
fn an_engine_that_writes_is_sound() {
    for features in ["stop-copy", "stop-copy,p2p,pre-copy"] {
        let report = run(&format!("accel?state=64KiB&features={features}"), true);
        assert!(report.passed(), "{report}");
        let log = report.results().iter().filter(|result| result.id.starts_with("v2/dma-writes/"));
        for result in log {
            let is_skipped = result.id.ends_with("/in-precopy") && features == "stop-copy";
            let expected = if is_skipped { Verdict::Skip } else { Verdict::Pass };
            assert_eq!(result.verdict, expected, "{result:#?}");
        }
    }
}

#[test]
fn an_engine_that_changes_by_itself_is_sound() {
    let report = run("accel?state=64KiB&rate=1MiB", false);
    assert!(report.passed(), "{report}");
}
