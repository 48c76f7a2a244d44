//! `whimbrel conform`: the conformance suite on a device, or on two of a kind.

mod cases;
mod report;
mod sentences;
mod subject;
mod user;
mod watch;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use whimbrel_conformance::{
    Case, Config, KnownFailures, KnownFailuresError, Level, Pattern, Planned, cases as suite,
};

use self::report::Format;
use self::subject::Subject;
use self::user::UserArguments;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::size;

pub(crate) use self::cases::{Arguments as CasesArguments, run as run_cases};

/// Test a device's migration against the sentences of the kernel's header
///
/// Each case is a sentence of include/uapi/linux/vfio.h (MUST, SHOULD), a rule that every kernel follows (KERNEL) or a misuse that a
/// device survives (ROBUST). The suite changes the device's state and loads states into it: use a device that is not in use. The cases
/// run in a process of their own; if a case hangs or kills it, the report is still complete.
///
/// Exit status: 0 all passed, 1 failures, 2 wrong usage, 3 nothing could be tested.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it), or program:COMMAND: a program that stands for a device, with
    /// requests on its stdin and answers on its stdout (docs/conformance-stdin.md)
    #[arg(value_name = "TARGET", required_unless_present_any = ["list", "sentences", "user"])]
    target: Option<Subject>,
    /// A second device of the same kind, for cases that move a state. A model may be given twice
    #[arg(value_name = "SECOND")]
    second: Option<Subject>,
    /// List the selected cases with their sentences, without a device
    #[arg(long, conflicts_with_all = ["dry_run", "target"])]
    list: bool,
    /// Compare a kernel's vfio.h with the suite, without a device: sentences with and without cases, and changed ones
    #[arg(long, value_name = "HEADER", conflicts_with_all = ["list", "dry_run", "target", "format"])]
    sentences: Option<PathBuf>,
    /// List the cases that would run or be skipped on this device, and why, without running them
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    settings: Settings,
    /// TOML file with known failures: cases that may fail, and must not pass
    #[arg(long, value_name = "FILE")]
    known_failures: Option<PathBuf>,
    /// Format of the report
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write the report to this file, and text to stderr
    #[arg(long, short, value_name = "FILE", conflicts_with_all = ["list", "sentences", "dry_run"])]
    output: Option<PathBuf>,
    /// Also print the cases that passed or were skipped, in the text
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    user: UserArguments,
}

/// The settings of a run, also for the process that runs the cases.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
struct Settings {
    /// Run only the cases that match a pattern, such as 'v2/reset/*'. May repeat
    #[arg(long, value_name = "PATTERN")]
    only: Vec<Pattern>,
    /// Do not run the cases that match a pattern. May repeat
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<Pattern>,
    /// Run only the cases of these levels, separated by commas: must, should, kernel, robust
    #[arg(long, value_name = "LEVEL", value_delimiter = ',', value_parser = parse_level)]
    level: Vec<Level>,
    /// Seed of the random numbers
    #[arg(long, value_name = "N", default_value_t = Config::default().seed)]
    seed: u64,
    /// Run all cases this many times, each time with the next seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Timeout for each request of a case, in seconds: one that has not returned by then has hung. With --user, for each run
    /// of the program
    #[arg(long, value_name = "SECONDS", default_value_t = Config::default().timeout.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
    /// Upper bound for all requests of one case together, in seconds. Not with --user, where a case is one run of the program
    #[arg(long, value_name = "SECONDS", default_value_t = Config::default().case_timeout.as_secs())]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    case_timeout: u64,
    /// Also run cases that reset the device, or that may hang its driver or the kernel; separated by commas
    #[arg(long, value_enum, value_name = "DANGER", value_delimiter = ',')]
    allow: Vec<Allow>,
    /// File with the state that an earlier version of the driver has saved: the device must take it, or refuse it cleanly
    #[arg(long, value_name = "FILE")]
    stream: Option<PathBuf>,
    /// Largest state that a case holds in memory; with a larger one, cases that compare states are inconclusive.
    /// Not with --user
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value_t = Config::default().state_limit)]
    state_limit: u64,
    /// Test a device in STOP, STOP_COPY or RESUMING too, although it may hold the only copy of a migrated device
    #[arg(long)]
    force: bool,
}

/// A danger of cases that is not allowed unasked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
enum Allow {
    /// Reset the device.
    Reset,
    /// Make requests that may hang the driver or the kernel.
    Hang,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel conform 0000:3b:00.2 --allow reset
  whimbrel conform 0000:3b:00.2 0000:3b:00.3 --known-failures failures.toml
  whimbrel conform vfio-user:/run/accel --format ktap --output report.ktap
  whimbrel conform model:serial model:serial --only 'v2/data-fd/*'
  whimbrel conform program:./driver program:./driver
  whimbrel conform --list --level must
  whimbrel conform --sentences /usr/include/linux/vfio.h
  whimbrel conform --user -- whimbrel save vfio-user:{socket} -o {folder}/state
  whimbrel conform --user -- ./my-vmm --device {address} --migrate-to {folder}/state";

fn parse_level(text: &str) -> Result<Level, String> {
    Level::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let names = Level::ALL.map(|level| level.name().to_lowercase());
        format!("expected one of {}", names.join(", "))
    })
}

impl Settings {
    /// The suite's settings, without what is read from files.
    fn config(&self) -> Config {
        let mut config = Config::default();
        config.allow_reset = self.allow.contains(&Allow::Reset);
        config.allow_hang = self.allow.contains(&Allow::Hang);
        config.only.clone_from(&self.only);
        config.exclude.clone_from(&self.exclude);
        config.levels.clone_from(&self.level);
        config.seed = self.seed;
        config.repeat = self.repeat;
        config.timeout = Duration::from_secs(self.timeout);
        config.case_timeout = Duration::from_secs(self.case_timeout);
        config.state_limit = self.state_limit;
        config.force = self.force;
        config
    }

    /// Reads the state of `--stream`.
    fn read_stream(&self) -> Result<Option<Vec<u8>>, Failure> {
        self.stream.as_deref().map(|path| read_limited(path, self.state_limit)).transpose()
    }

    /// Refuses a pattern that matches no case, as after a mistyped id.
    fn check_patterns(&self, ids: impl Iterator<Item = &'static str> + Clone) -> Result<(), Failure> {
        let is_unused = |pattern: &&Pattern| !ids.clone().any(|id| pattern.matches(id));
        match self.only.iter().chain(&self.exclude).find(is_unused) {
            Some(pattern) => Err(Failure::usage(format!("no case matches '{pattern}'"))
                .hint("`whimbrel conform --list` lists the cases; * stands for any characters")),
            None => Ok(()),
        }
    }

    /// The options of a command that runs a single case in the same way, without its id and seed.
    fn replay(&self) -> Vec<String> {
        let defaults = Config::default();
        let mut options = Vec::new();
        let mut add = |option: &str, value: Option<String>| {
            options.extend(value.into_iter().flat_map(|value| [option.to_string(), value]));
        };
        let allowed: Vec<&str> = [(Allow::Reset, "reset"), (Allow::Hang, "hang")]
            .into_iter()
            .filter_map(|(danger, name)| self.allow.contains(&danger).then_some(name))
            .collect();
        add("--allow", (!allowed.is_empty()).then(|| allowed.join(",")));
        add("--stream", self.stream.as_ref().map(|path| path.display().to_string()));
        let limit = (self.state_limit != defaults.state_limit).then(|| self.state_limit.to_string());
        add("--state-limit", limit);
        let timeout = (self.timeout != defaults.timeout.as_secs()).then(|| self.timeout.to_string());
        add("--timeout", timeout);
        let case_timeout = self.case_timeout;
        let case_timeout =
            (case_timeout != defaults.case_timeout.as_secs()).then(|| case_timeout.to_string());
        add("--case-timeout", case_timeout);
        options.extend(self.force.then(|| "--force".to_string()));
        options
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<ExitCode, Failure> {
    if let Some(path) = &arguments.sentences {
        return sentences::run(path, output).map(|()| ExitCode::SUCCESS);
    }
    let format = format(arguments, output)?;
    if arguments.user.user {
        return user::run(arguments, format, output);
    }
    arguments.settings.check_patterns(suite().map(Case::id))?;
    let Some(target) = &arguments.target else {
        list(&arguments.settings.config(), format)?;
        return Ok(ExitCode::SUCCESS);
    };
    subject::check(target, arguments.second.as_ref())?;
    let read = |path: &PathBuf| read_known_failures(path, suite().map(Case::id)).map(|(text, _)| text);
    let known_failures = arguments.known_failures.as_ref().map(read).transpose()?;
    // The process that runs the cases reads it again.
    arguments.settings.read_stream()?;
    let order = cases::Order {
        target: target.clone(),
        second: arguments.second.clone(),
        settings: arguments.settings.clone(),
        known_failures,
        requests: None,
        reported: 0,
        plan: arguments.dry_run,
    };
    watch::run(order, arguments, format, output)
}

/// The format of the report: `--json` is `--format json`.
fn format(arguments: &Arguments, output: Output) -> Result<Format, Failure> {
    let is_list = arguments.list || arguments.dry_run;
    if is_list && matches!(arguments.format, Some(Format::Ktap | Format::Junit)) {
        return Err(Failure::usage("a list of cases is either text or JSON").hint("omit --format"));
    }
    match (arguments.format, output.is_json()) {
        (None, false) => Ok(Format::Text),
        (None | Some(Format::Json), true) => Ok(Format::Json),
        (Some(format), false) => Ok(format),
        (Some(_), true) => {
            Err(Failure::usage("--json cannot be used with another --format").hint("omit one of them"))
        }
    }
}

/// Maximum size of a list of known failures, in bytes.
const MAX_LIST: u64 = 1 << 20;

/// Reads a file up to `limit` bytes and one byte more. One that cannot be read is wrong usage: the device has not failed.
fn read_past(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes)).map_err(
        |error| Failure::usage(Failure::from_io(format!("cannot read {}", path.display()), &error).message()),
    )?;
    Ok(bytes)
}

/// Reads a file of at most `limit` bytes, like [`read_past`].
fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let bytes = read_past(path, limit)?;
    if bytes.len() as u64 > limit {
        return Err(Failure::usage(format!("{}: the file is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// Reads the list of known failures of these cases, and returns its text too.
fn read_known_failures(
    path: &Path,
    ids: impl Iterator<Item = &'static str> + Clone,
) -> Result<(String, KnownFailures), Failure> {
    let text = String::from_utf8(read_limited(path, MAX_LIST)?)
        .map_err(|_| Failure::usage(format!("{}: it is not text", path.display())))?;
    let known = KnownFailures::parse(&text, ids)
        .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    Ok((text, known))
}

fn parse_known_failures(text: &str) -> Result<KnownFailures, KnownFailuresError> {
    KnownFailures::parse(text, suite().map(Case::id))
}

/// Prints the selected cases.
fn list(config: &Config, format: Format) -> Result<(), Failure> {
    let selected = suite().filter(|case| config.selects(case.id(), case.level()));
    let planned: Vec<Planned> = selected.map(Planned::from).collect();
    print_planned(&planned, false, format)
}

/// Prints cases: as text, or as an object a line. `asked` says whether a device was asked for what it has.
fn print_planned(planned: &[Planned], asked: bool, format: Format) -> Result<(), Failure> {
    if format == Format::Json {
        let lines: Vec<String> =
            planned.iter().map(|case| serde_json::to_string(case).unwrap_or_default()).collect();
        return output::lines(lines);
    }
    output::lines(planned.iter().map(|Planned { id, level, danger, sentence, skip, .. }| match skip {
        Some(why) => format!("skip  {id}: {why}"),
        None if asked => format!("run   {id} ({level}, {danger})"),
        None => format!("{id} ({level}, {danger})\n  {sentence}"),
    }))
}
