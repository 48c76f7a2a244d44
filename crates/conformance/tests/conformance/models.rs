//! The models have no failure, with a probe of their registers or without, one of them or two.

use std::sync::Arc;

use whimbrel_conformance::models::{AccelProbe, SerialProbe};
use whimbrel_conformance::{Config, RegisterProbe, Report, Subjects, Verdict, run_suite};
use whimbrel_models::{Model, Protocol};
use whimbrel_user::{Device, Local, Version, region};

/// Opens a model, with its migration region adapted if it has one.
fn opened(model: &Model, name: &str) -> Box<dyn Device> {
    let version = match model {
        Model::Serial(_, Protocol::Draft) | Model::Accel(_, Protocol::Draft) => Version::Draft,
        _ => Version::V1,
    };
    let device = model.open(name).expect("memory for a device");
    region::adapt_as(Box::new(Local::new(device)), version).expect("a region that can be used")
}

fn probe(model: &Model) -> Arc<dyn RegisterProbe> {
    match model {
        Model::Serial(..) => Arc::new(SerialProbe::default()),
        _ => Arc::new(AccelProbe::default()),
    }
}

/// Runs the suite on one or two devices of a model.
fn run(model: &str, has_probe: bool, has_second: bool) -> Report {
    let model: Model = model.parse().expect("a model");
    let mut config = Config::default();
    config.registers = has_probe.then(|| probe(&model));
    let first = model.clone();
    let mut subjects = Subjects::new("first", move || Ok(opened(&first, "first")));
    if has_second {
        subjects = subjects.second("second", move || Ok(opened(&model, "second")));
    }
    let mut report = Report::default();
    run_suite(&subjects, &config, &mut [], &mut |event| report.add(event));
    report
}

/// Fails unless no case has failed, and every verdict is one that a sound device with bytes that can be compared gets.
fn assert_sound(report: &Report) {
    assert!(report.passed(), "{report}");
    for result in report.results() {
        assert!(matches!(result.verdict, Verdict::Pass | Verdict::Skip), "{result:#?}");
    }
}

#[test]
fn the_models_are_sound() {
    for model in ["serial", "serial?ports=2", "serial?answers=mtty", "accel?state=64KiB"] {
        for has_probe in [false, true] {
            assert_sound(&run(model, has_probe, false));
        }
    }
}

#[test]
fn models_with_fewer_features_are_sound() {
    for features in ["stop-copy", "stop-copy,p2p", "stop-copy,pre-copy"] {
        assert_sound(&run(&format!("accel?state=4KiB&features={features}"), true, true));
    }
}

#[test]
fn two_models_of_a_kind_are_sound() {
    for model in ["serial?ports=2", "accel?state=64KiB"] {
        assert_sound(&run(model, true, true));
    }
}

#[test]
fn models_with_a_migration_region_are_sound() {
    for model in
        ["serial?protocol=v1", "serial?protocol=draft", "accel?state=4KiB&protocol=v1", "legacy?state=4KiB"]
    {
        assert_sound(&run(model, true, true));
    }
}
