//! The models have no failure: one of them or two, with hooks for their registers and writes or without, by migration v2 and
//! by a region. These are the devices that mutants of the models are judged on: the tests of a model have its name.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use whimbrel_conformance::models::{AccelProbe, AccelWriter, SerialProbe};
use whimbrel_conformance::{Config, Event, RegisterProbe, Report, Subjects, Verdict, run_suite};
use whimbrel_models::{Model, Protocol};
use whimbrel_user::{Device, Local, Version, region};

use crate::states::MTTY;

/// Time for one case: a mutant that loops is not waited for any longer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Set to judge a mutant: then the first failure of a test here ends the runs of all, for one is enough.
const ONE_FAILURE_IS_ENOUGH: &str = "WHIMBREL_JUDGES_MUTANT";
static STOP: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// A device of a model, and what the run has besides.
#[derive(Clone, Copy, Default)]
struct Sound {
    model: &'static str,
    has_probe: bool,
    has_second: bool,
    has_writer: bool,
    /// Runs of each case beyond the first, with other registers each.
    more: u32,
    /// A state that an earlier version has saved, which this one loads.
    stream: Option<&'static [u8]>,
    /// Cases that have no verdict on this device.
    inconclusive: &'static [&'static str],
}

impl Sound {
    /// One device, without hooks.
    fn new(model: &'static str) -> Sound {
        Sound { model, ..Sound::default() }
    }

    /// Two devices, with a probe of their registers.
    fn two(model: &'static str) -> Sound {
        Sound { has_probe: true, has_second: true, ..Sound::new(model) }
    }

    fn subjects(self) -> Subjects {
        let model: Model = self.model.parse().expect("a model");
        let first = model.clone();
        let subjects = Subjects::new("first", move || Ok(opened(&first, "first")));
        if self.has_second {
            return subjects.second("second", move || Ok(opened(&model, "second")));
        }
        subjects
    }

    fn config(self) -> Config {
        let mut config = Config::default();
        config.timeout = TIMEOUT;
        config.case_timeout = TIMEOUT;
        config.repeat = 1 + self.more;
        config.allow_hang = true;
        if std::env::var_os(ONE_FAILURE_IS_ENOUGH).is_some() {
            config.stop = STOP.clone();
        }
        config.registers = self.has_probe.then(|| probe(self.model));
        if self.has_writer {
            config.writer = Some(Arc::new(AccelWriter::new()));
        }
        config.stream = self.stream.map(Arc::from);
        config
    }

    /// Fails unless every verdict is one that a sound device gets. The first other verdict ends the run, and where a mutant
    /// is judged, also those of the other tests.
    fn check(self) {
        let config = self.config();
        let mut report = Report::default();
        let mut wrong = Vec::new();
        run_suite(&self.subjects(), &config, &mut [], &mut |event| {
            report.add(event);
            if let Event::Result(result) = event
                && !self.expects(&result.id, result.verdict)
            {
                wrong.push((**result).clone());
                config.stop.store(true, Ordering::Relaxed);
            }
        });
        if wrong.is_empty() && STOP.load(Ordering::Relaxed) {
            return;
        }
        assert!(wrong.is_empty() && report.passed(), "{}: {wrong:#?}\n{report}", self.model);
    }

    fn expects(self, id: &str, verdict: Verdict) -> bool {
        if id == "v2/robust/saved-again" && self.model.starts_with("accel") {
            // Its state has a checksum: it takes none with a wrong bit.
            return verdict == Verdict::Skip;
        }
        let needs_pass = self.stream.is_some() && id.starts_with("v2/stream/")
            || self.has_writer && id.starts_with("v2/dma-writes/") && !id.ends_with("/in-precopy");
        match verdict {
            Verdict::Pass => true,
            Verdict::Skip => !needs_pass,
            Verdict::Inconclusive => self.inconclusive.contains(&id),
            _ => false,
        }
    }
}

/// Opens a model, with its migration region adapted if it has one.
fn opened(model: &Model, name: &str) -> Box<dyn Device> {
    let version = match model {
        Model::Serial(_, Protocol::Draft) | Model::Accel(_, Protocol::Draft) => Version::Draft,
        _ => Version::V1,
    };
    let device = model.open(name).expect("memory for a device");
    region::adapt_as(Box::new(Local::new(device)), version).expect("a region that can be used")
}

fn probe(model: &str) -> Arc<dyn RegisterProbe> {
    if model.starts_with("serial") {
        Arc::new(SerialProbe::default())
    } else {
        Arc::new(AccelProbe::default())
    }
}

#[test]
fn serial_models_are_sound() {
    for model in ["serial", "serial?ports=2", "serial?answers=mtty"] {
        Sound::new(model).check();
        Sound { has_probe: true, ..Sound::new(model) }.check();
    }
    Sound { stream: Some(&MTTY), ..Sound::new("serial") }.check();
    Sound { more: 4, ..Sound::two("serial?ports=2") }.check();
}

#[test]
fn serial_models_with_a_region_are_sound() {
    for model in ["serial?protocol=v1", "serial?protocol=draft"] {
        Sound::two(model).check();
    }
}

#[test]
fn accel_models_are_sound() {
    let streams: [&[u8]; 2] = [
        include_bytes!("../../../models/tests/models/accel/streams/empty-1KiB.bin"),
        include_bytes!("../../../models/tests/models/accel/streams/job-1KiB.bin"),
    ];
    for stream in streams {
        Sound { stream: Some(stream), ..Sound::new("accel?state=1KiB") }.check();
    }
    // The last block is not a whole one.
    Sound::new("accel?state=5000").check();
    Sound::new("accel?state=64KiB").check();
    Sound::two("accel?state=64KiB").check();
}

#[test]
fn accel_models_with_fewer_features_are_sound() {
    for model in [
        "accel?state=4KiB&features=stop-copy",
        "accel?state=4KiB&features=stop-copy,p2p",
        "accel?state=4KiB&features=stop-copy,pre-copy",
    ] {
        Sound::two(model).check();
    }
}

#[test]
fn accel_models_that_write_are_sound() {
    for model in ["accel?state=64KiB", "accel?state=64KiB&features=stop-copy"] {
        Sound { has_probe: true, has_writer: true, ..Sound::new(model) }.check();
    }
}

#[test]
fn accel_models_that_change_by_themselves_are_sound() {
    Sound { has_writer: true, ..Sound::new("accel?state=64KiB&rate=1MiB") }.check();
}

#[test]
fn accel_models_with_a_region_are_sound() {
    Sound::two("accel?state=4KiB&protocol=v1").check();
}

#[test]
fn legacy_models_are_sound() {
    for model in ["legacy?state=4KiB", "legacy?state=4KiB&section=1KiB"] {
        Sound::two(model).check();
    }
}

/// A controller with an image of its own.
fn nvme(name: &str) -> &'static str {
    let image = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    format!("nvme?image={}&size=1MiB", image.display()).leak()
}

#[test]
fn nvme_models_are_sound() {
    Sound::new(nvme("alone.img")).check();
}
