//! A conformance suite for VFIO device migration: does an implementation do what the header says?
//!
//! A [`Case`] is a sentence of `include/uapi/linux/vfio.h`, or a rule that every kernel follows, with the requests that
//! test it. [`run`] tests a driver in this process:
//!
//! ```
//! use whimbrel_conformance::{Config, run};
//! use whimbrel_models::Model;
//! use whimbrel_user::Local;
//!
//! let model: Model = "serial".parse()?;
//! let report = run(move || Local::new(model.open("serial 0").expect("memory for a device")), &Config::default());
//! assert!(report.passed(), "{report}");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`run_suite`] tests any device that [`whimbrel_user`] can open, and reports each event as it happens, for one of the
//! formats in [`report`].

mod bench;
mod case;
mod case_thread;
mod config;
mod data;
mod dma;
mod hooks;
mod interleaving;
mod known_failures;
mod known_issues;
#[cfg(feature = "models")]
pub mod models;
mod opening;
mod outcome;
mod pattern;
mod relay;
pub mod report;
mod run;
mod saved;
mod section;
pub mod sentences;
pub mod stdin;
mod subject;
mod subjects;
mod suite;
mod time_budget;
mod transcript;
pub mod user;
mod verdict;
pub mod witness;

pub use case::{Case, Danger, HEADER, Level, Need};
pub use config::Config;
pub use hooks::{DmaWriter, RegisterProbe};
pub use known_failures::{Date, KnownFailure, KnownFailures, KnownFailuresError};
pub use known_issues::{KNOWN_ISSUES, KnownIssue, blocked_arc_hangs, has_blocked_arc_fix};
pub use pattern::{Pattern, PatternError};
pub use relay::Relay;
pub use report::Report;
pub use run::{plan, run_suite};
pub use subjects::{Opener, StateWitness, Subjects};
pub use suite::cases;
pub use verdict::{CaseResult, Event, Header, Planned, Summary, Verdict};

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Runs the suite on a driver in this process: `device` makes a new device for each case.
///
/// [`Report::passed`] tells whether nothing failed; its text has all that is needed to reproduce a failure.
pub fn run<D>(device: impl Fn() -> D + Send + Sync + 'static, config: &Config) -> Report
where
    D: whimbrel_user::Device + 'static,
{
    let subjects =
        Subjects::new("the device", move || Ok(Box::new(device()) as Box<dyn whimbrel_user::Device>));
    let mut report = Report::default();
    run_suite(&subjects, config, &mut [], &mut |event| report.add(event));
    report
}
