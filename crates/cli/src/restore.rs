//! `whimbrel restore`: loads a device's state from a file.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Archived, Restore};
use whimbrel_engine::proto::problem::Problem;
use whimbrel_user::{Errno, Migratable, Operation, State};

use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::output::Output;
use crate::progress::Bar;
use crate::remedy;
use crate::save::{check_raw, device_names, told};
use crate::signals::{Signals, Waiting};
use crate::target::{Target, list};

/// Load a saved state into devices and run them
///
/// The devices' previous state is lost. A file that is damaged or not from Whimbrel, or that names other kinds of devices
/// (other flags, regions or interrupts), is rejected before a device is touched; one from stdin is checked while it is
/// loaded. If a device then rejects the state, or after SIGINT or SIGTERM, all are reset, so that none runs with a partial
/// state.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices, in the order in which they were saved (`whimbrel --help` says how to name one)
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// The file, as written by `whimbrel save`; - is stdin
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// The file holds only the driver's bytes, without header and checksums: for a single device
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    call_timeout: CallTimeout,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel restore 0000:3b:00.2 -i nic.whimbrel
  whimbrel restore model:serial --raw -i mtty.state";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Restored {
    #[serde(flatten)]
    archived: Archived,
    /// Bytes of state of all devices.
    device_bytes: u64,
    file: String,
    raw: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    check_raw(arguments.raw, &arguments.targets)?;
    let name = arguments.input.display().to_string();
    // Before a device is opened: that may reset it.
    let (file, size) = if name == "-" {
        (None, None)
    } else {
        let cannot_open = |error: io::Error| Failure::from_io(format!("cannot open {name}"), &error);
        let file = File::open(&arguments.input).map_err(cannot_open)?;
        let metadata = file.metadata().map_err(cannot_open)?;
        if metadata.is_dir() {
            return Err(Failure::new(format!("cannot read {name}: it is a folder")));
        }
        let size = metadata.is_file().then_some(metadata.len());
        if size.is_some() && !arguments.raw {
            check(&file, &name, size, output)?;
        }
        (Some(file), size)
    };
    let mut opened = arguments.call_timeout.open_all(&arguments.targets)?;
    let signals = Signals::catch()?;
    let cancel = || signals.arrived();
    let mut input: Box<dyn Read> = match file {
        Some(file) => Box::new(Waiting::new(file, &signals)),
        None => Box::new(Waiting::new(io::stdin().lock(), &signals)),
    };
    let bar = Bar::bytes(output, format!("restoring {}", list(&arguments.targets)), size);
    let devices = opened.iter_mut().map(|device| device as &mut dyn Migratable);
    let restore = Restore::new(devices).cancel(&cancel);
    let restored = if arguments.raw {
        restore.read_raw_from(bar.reading(&mut input))
    } else {
        restore.read_from(bar.reading(&mut input))
    };
    drop(bar);
    let archived = restored.map_err(|error| {
        let hint = remedy::after(&error, &arguments.targets);
        failed(error, &name, arguments.raw).hint_if(hint)
    })?;
    let (device_bytes, lines) = told(&archived, "now");
    let text = format!("restored {} from {name}: {lines}", device_names(&archived));
    output.result(&Restored { archived, device_bytes, file: name, raw: arguments.raw }, text)
}

/// Verifies a file that can be read twice, so that a damaged one costs no device its state.
fn check(mut file: &File, name: &str, size: Option<u64>, output: Output) -> Result<(), Failure> {
    let bar = Bar::bytes(output, format!("checking {name}"), size);
    let checked = archive::verify(bar.reading(file));
    drop(bar);
    checked.map_err(|error| failed(error, name, false))?;
    file.rewind().map_err(|error| Failure::from_io(format!("cannot read {name}"), &error))
}

/// Adds the file's name, which the crates below do not know.
fn failed(error: Error, name: &str, raw: bool) -> Failure {
    match error {
        Error::Malformed(error) => {
            let failure = Failure::new(format!("{name}: {error}"));
            match error.problem {
                Problem::Foreign => failure.hint("if it was saved with --raw, restore it with --raw"),
                Problem::Version { .. } => failure,
                _ => failure.hint(format!("`whimbrel inspect {name}` shows its contents")),
            }
        }
        Error::Unfit(_) | Error::Negotiation(_) | Error::Contents(_) | Error::NotReset { .. } => {
            Failure::new(format!("{name}: {error}")).hint_if(error.advice())
        }
        Error::File { error, .. } => Failure::from_io(format!("cannot read {name}"), &error),
        Error::Device(error) if !is_rejection(&error) => {
            // RUNNING is requested once the state is loaded, and at no other time.
            let what = match requested_state(&error) {
                Some(State::Running) => format!("the device has loaded {name} and does not run"),
                _ => format!("cannot restore {name}"),
            };
            Failure::new(format!("{what}: {error}")).hint_if(error.advice())
        }
        Error::Device(error) => {
            let what = match error.errno() {
                Some(Errno::ENOMEM) => ", which holds more state than it takes",
                _ => "",
            };
            Failure::new(format!("the device rejected {name}{what}: {error}")).hint(if raw {
                "check that the file is complete and from the same kind of device; files saved without --raw are \
                 verified"
            } else {
                "the file is intact: check that it is from the same kind of device, with the same settings"
            })
        }
        other => other.into(),
    }
}

/// Returns the migration state that a failed request was for, if it was for one.
fn requested_state(error: &whimbrel_user::Error) -> Option<State> {
    match error {
        whimbrel_user::Error::Request { request: Operation::SetState(state), .. }
        | whimbrel_user::Error::Answer { request: Operation::SetState(state), .. }
        | whimbrel_user::Error::NotReached { state, .. } => Some(*state),
        _ => None,
    }
}

/// Returns whether a device has answered that it does not load the state: at a part of it, or at its end, in STOP.
fn is_rejection(error: &whimbrel_user::Error) -> bool {
    use whimbrel_user::Error::{Answer, NotReached, Region, Request};
    matches!(error, Request { .. } | Answer { .. } | NotReached { .. } | Region { .. })
        && requested_state(error).is_none_or(|state| state == State::Stop)
}
