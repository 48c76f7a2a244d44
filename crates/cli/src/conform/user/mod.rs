//! `whimbrel conform --user`: the conformance suite for the user side, on a program.

mod devices;
mod placeholders;
mod process;
mod program;
mod vfio;
mod vfio_user;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, ValueEnum};
use whimbrel_conformance::Config;
use whimbrel_conformance::user::{Role, UserCase, cases, run_user};
use whimbrel_device::survive_lost_memory;
use whimbrel_models::Model;

use self::placeholders::Words;
use self::program::Program;
use super::report::{Format, Replay, Report};
use super::{Arguments, read_known_failures};
use crate::failure::Failure;
use crate::output::{self, Output, note};
use crate::signals::Signals;
use crate::target::parse_model;

/// The options of `--user`.
#[derive(Debug, Args)]
#[command(next_help_heading = "Users under test")]
pub(super) struct UserArguments {
    /// Test a program that uses a device, such as a VMM, in place of a device
    ///
    /// PROGRAM is run once for each case. It saves the state of a device, loads one, or migrates one, and its exit status
    /// says whether that succeeded. The device misbehaves at a point of the case, and the program is judged by its
    /// requests and its exit status.
    ///
    /// The arguments name the device. {socket} is the path of a vfio-user socket. {address}, {group} and {cdev} are the PCI
    /// address, the group's file and the own file of a device of the kernel's VFIO, for which the program runs as under
    /// `whimbrel run`. {second}, or {second-address}, {second-group} and {second-cdev}, name a second device, the
    /// destination, beside the first. {folder} is an empty folder. The same values are in the variables WHIMBREL_SOCKET, WHIMBREL_ADDRESS,
    /// WHIMBREL_SECOND_ADDRESS and so on.
    #[arg(long)]
    #[arg(conflicts_with_all = ["target", "second", "dry_run", "allow", "stream", "force", "case_timeout", "state_limit"])]
    pub(super) user: bool,
    /// The device that the program is given: a model with settings, as after `model:` (`whimbrel --help`)
    #[arg(long, value_name = "MODEL", requires = "user", value_parser = parse_model)]
    #[arg(default_value = "accel?state=256KiB")]
    device: Model,
    /// Judge the program as a source that saves a state, or as a destination that loads one; by default by what it does
    #[arg(long, requires = "user", value_name = "ROLE")]
    role: Option<Side>,
    /// The program under test, with its arguments
    #[arg(last = true, value_name = "PROGRAM", requires = "user")]
    program: Vec<OsString>,
}

/// A side of a migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// It saves a state.
    Source,
    /// It loads a state.
    Destination,
}

impl Side {
    fn role(self) -> Role {
        match self {
            Side::Source => Role::Source,
            Side::Destination => Role::Destination,
        }
    }
}

/// Tests a program.
pub(super) fn run(arguments: &Arguments, format: Format, output: Output) -> Result<ExitCode, Failure> {
    let Arguments { settings, user, .. } = arguments;
    settings.check_patterns(cases().map(UserCase::id))?;
    let mut config = settings.config();
    if arguments.list {
        list(&config, format)?;
        return Ok(ExitCode::SUCCESS);
    }
    if user.program.is_empty() {
        return Err(Failure::usage("--user needs a program to test")
            .hint("add it after --, such as `-- vmm --device {socket}`"));
    }
    let words = Words::new(&user.program)?;
    if let Some(path) = &arguments.known_failures {
        (_, config.known_failures) = read_known_failures(path, cases().map(UserCase::id))?;
    }
    survive_lost_memory().map_err(|error| Failure::from_io("cannot handle SIGBUS", &error))?;
    let signals = Arc::new(Signals::catch()?);
    let mut program =
        Program::new(words, user.device.clone(), config.timeout, stop_flag(&signals, &config.stop));
    let roles: Vec<Role> = user.role.into_iter().map(Side::role).collect();
    let replay = replay(arguments);
    let mut report = Report::new(format, arguments.all, arguments.output.as_deref(), replay, output)?;
    let summary = run_user(&mut program, &roles, &config, &mut |event| report.event(event));
    report.finish()?;
    if let Some(signal) = signals.arrived() {
        note(format_args!("{signal}: the remaining cases were not run"));
        return Ok(ExitCode::FAILURE);
    }
    if format != Format::Text && arguments.output.is_none() {
        note(&summary);
    }
    Ok(ExitCode::from(summary.exit_status()))
}

/// Returns a function that tells whether to stop, and then stops the suite too.
fn stop_flag(signals: &Arc<Signals>, stop: &Arc<AtomicBool>) -> impl Fn() -> Option<String> + 'static {
    let (signals, stop) = (signals.clone(), stop.clone());
    move || signals.arrived().inspect(|_| stop.store(true, Ordering::Relaxed))
}

/// The command that runs a single case in the same way.
fn replay(arguments: &Arguments) -> Replay {
    let user = &arguments.user;
    let mut words: Vec<String> = ["whimbrel", "conform", "--user", "--device"].map(String::from).into();
    words.push(user.device.to_string());
    words.extend(user.role.into_iter().flat_map(|side| ["--role".to_string(), side.role().to_string()]));
    words.extend(arguments.settings.replay());
    // Only a word with a NUL cannot be quoted, and an argument has none.
    let before = shlex::try_join(words.iter().map(String::as_str)).unwrap_or_default();
    Replay { before, after: format!(" -- {}", joined(&user.program)) }
}

/// A command as a shell takes it.
fn joined(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
    shlex::try_join(words.iter().map(AsRef::as_ref)).unwrap_or_default()
}

/// Prints the selected cases.
fn list(config: &Config, format: Format) -> Result<(), Failure> {
    let selected = cases().filter(|case| config.selects(case.id(), case.level()));
    if format == Format::Json {
        return output::lines(selected.map(|case| {
            serde_json::json!({
                "id": case.id(),
                "level": case.level(),
                "sentence": case.sentence(),
                "role": case.role(),
                "faults": case.fault_text(),
            })
            .to_string()
        }));
    }
    output::lines(selected.map(|case| {
        let faults = if case.fault_text().is_empty() { "none" } else { case.fault_text() };
        format!(
            "{} ({}, {})\n  {}\n  faults: {faults}",
            case.id(),
            case.level(),
            case.role(),
            case.sentence()
        )
    }))
}
