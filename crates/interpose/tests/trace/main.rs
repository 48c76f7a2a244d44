//! Programs under trace: this program starts itself again, traced, and is then one of those in `programs`.
//!
//! Without VFIO devices the kernel refuses their requests. That is an answer like any other.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, with the line where it did")]

mod arguments;
#[path = "../support/cgroup.rs"]
mod cgroup;
mod endings;
mod endurance;
mod files;
mod following;
mod programs;
mod signals;
mod silent;

use std::ffi::OsString;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use whimbrel_interpose::trace::{Action, Ended, Event, Options, Record, Request, TraceError, Tracer};

/// Names the program that is traced.
const PROGRAM: &str = "WHIMBREL_TRACED_PROGRAM";

fn main() -> ExitCode {
    if let Ok(program) = std::env::var(PROGRAM) {
        return programs::run(&program);
    }
    let arguments = Arguments::from_args();
    if ["ASAN_OPTIONS", "TSAN_OPTIONS"].into_iter().any(|name| std::env::var_os(name).is_some()) {
        eprintln!("SKIPPED: traces: a sanitizer cannot be traced");
        return ExitCode::SUCCESS;
    }
    let trials = [
        arguments::trials(),
        endings::trials(),
        endurance::trials(),
        files::trials(),
        following::trials(),
        signals::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

fn test(name: &str, run: fn()) -> Trial {
    Trial::test(name, move || {
        run();
        Ok::<(), Failed>(())
    })
}

/// Says that a test cannot be made here, or fails where everything is required.
fn skip(what: &str, why: &str) {
    assert!(std::env::var_os("WHIMBREL_REQUIRE_ALL").is_none(), "{what}: {why}");
    eprintln!("SKIPPED: {what}: {why}");
}

/// The command that starts one of the programs.
fn command(program: &str) -> Vec<OsString> {
    let own = std::env::current_exe().unwrap();
    vec!["env".into(), format!("{PROGRAM}={program}").into(), own.into()]
}

/// A finished trace.
struct Traced {
    ended: Ended,
    events: Vec<Event>,
}

impl Traced {
    fn records(&self) -> Vec<&Record> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Record(record) => Some(record),
                _ => None,
            })
            .collect()
    }

    /// The requests with this name.
    fn requests(&self, name: &str) -> Vec<(&Record, &Request)> {
        self.records()
            .into_iter()
            .filter_map(|record| match &record.action {
                Action::Request(request) if record.name() == name => Some((record, request)),
                _ => None,
            })
            .collect()
    }
}

fn trace_command(command: &[OsString], options: Options) -> Result<Traced, TraceError> {
    let mut events = Vec::new();
    let ended = Tracer::start(command, options)?.run(&mut |event| events.push(event))?;
    Ok(Traced { ended, events })
}

/// Traces one of the programs, which must exit with this status.
#[track_caller]
fn trace_with(program: &str, options: Options, status: i32) -> Traced {
    let traced = trace_command(&command(program), options).unwrap();
    assert_eq!(traced.ended, Ended::Exited(status), "{program}: {:?}", traced.events);
    traced
}

#[track_caller]
fn trace(program: &str, status: i32) -> Traced {
    trace_with(program, Options::default(), status)
}
