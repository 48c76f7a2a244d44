//! A slow device is tried with less data, and every format of the report says so.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use whimbrel_conformance::models::SerialProbe;
use whimbrel_conformance::report::{Json, Junit, Ktap, Reporter, Text};
use whimbrel_conformance::{CaseResult, Config, Event, RegisterProbe, Subjects, Verdict, run_suite};
use whimbrel_models::Model;
use whimbrel_user::{Device, Error, Local};

/// Nine variations, each of which looks at the registers twice.
const CASE: &str = "v2/round-trip/registers-after-pre-copy";

/// A probe that takes its time.
struct Slow(SerialProbe, Duration);

impl RegisterProbe for Slow {
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<(), Error> {
        self.0.change(device, seed)
    }

    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>, Error> {
        thread::sleep(self.1);
        self.0.look(device)
    }
}

/// Runs the case, and returns its result and the report in this format.
fn run(look: Duration, mut format: impl Reporter) -> (CaseResult, String) {
    let mut config = Config::default();
    config.only = vec![CASE.parse().expect("a pattern")];
    config.registers = Some(Arc::new(Slow(SerialProbe::default(), look)));
    config.case_timeout = Duration::from_secs(6);
    let model: Model = "serial".parse().expect("a model");
    let subjects = Subjects::new("slow", move || {
        let device = model.open("slow").expect("memory for a device");
        Ok(Box::new(Local::new(device)) as Box<dyn Device>)
    });
    let (mut results, mut out) = (Vec::new(), Vec::new());
    run_suite(&subjects, &config, &mut [], &mut |event| {
        if let Event::Result(result) = event {
            results.push((**result).clone());
        }
        format.event(event, &mut out).expect("memory takes everything");
    });
    let [result] = &results[..] else { panic!("{results:?}") };
    (result.clone(), String::from_utf8(out).expect("text"))
}

/// Fails unless the report has the notice in this form.
fn check(format: impl Reporter, line: impl Fn(&str) -> String) {
    // The budget is 2 s, for variations of 0.8 s.
    let (result, text) = run(Duration::from_millis(400), format);
    assert_eq!(result.verdict, Verdict::Pass, "{result:?}");
    let notice = result.notice.expect("a notice");
    let (made, rest) = notice.split_once(' ').expect("a number");
    assert_eq!(rest, "of 9 variations were tried in 2 s: --case-timeout gives more time");
    assert!((1..=3).contains(&made.parse::<u32>().expect("a number")), "{notice}");
    let line = line(&notice);
    assert!(text.contains(&line), "{line}\n{text}");
}

#[test]
fn text_says_how_much_was_tried() {
    check(Text::new(false), |notice| format!("pass         {CASE}\n  note      {notice}\n"));
}

#[test]
fn ktap_says_how_much_was_tried() {
    check(Ktap::default(), |notice| format!("# {CASE}: {notice}\nok 1 {CASE}\n"));
}

#[test]
fn json_says_how_much_was_tried() {
    check(Json::default(), |notice| format!("\"notice\":\"{notice}\""));
}

#[test]
fn junit_says_how_much_was_tried() {
    check(Junit::default(), |notice| format!("<system-out>{notice}</system-out>"));
}

#[test]
fn a_device_that_is_fast_enough_has_no_notice() {
    let (result, text) = run(Duration::ZERO, Text::new(false));
    assert_eq!((result.verdict, result.notice), (Verdict::Pass, None));
    assert!(!text.contains(CASE), "{text}");
}
