//! `whimbrel restore`: loads a device's state from a file.

use std::fs::File;
use std::io::{self, Read, Seek as _};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Summary};
use whimbrel_engine::stream::Problem;
use whimbrel_user::Errno;

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::remedy;
use crate::save::form;
use crate::target::Target;

/// Load a saved state into a device and run it
///
/// The device's previous state is lost. A file that is damaged or not from Whimbrel, or that names another kind of device
/// (other flags, regions or interrupts), is rejected before the device is touched; one from stdin is checked while it is
/// loaded. If the device then rejects the state, it is reset, so that it never runs with a partial state.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// The file, as written by `whimbrel save`; - is stdin
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// The file holds only the driver's bytes, without header and checksums
    #[arg(long)]
    raw: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel restore 0000:3b:00.2 -i nic.whimbrel
  whimbrel restore model:serial --raw -i mtty.state";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Restored {
    #[serde(flatten)]
    summary: Summary,
    file: String,
    raw: bool,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let name = arguments.input.display().to_string();
    // Before the device is opened: that may reset it.
    let (input, size): (Box<dyn Read>, Option<u64>) = if name == "-" {
        (Box::new(io::stdin().lock()), None)
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
        (Box::new(file), size)
    };
    let mut opened = arguments.target.open()?.migratable()?;
    let bar = Bar::bytes(output, format!("restoring {}", arguments.target), size);
    let restored = archive::restore(&mut *opened, bar.reading(input), form(arguments.raw));
    drop(bar);
    let summary = restored.map_err(|error| {
        let hint = remedy::after(&error, &arguments.target);
        failed(error, &name, arguments.raw).hint_if(hint)
    })?;
    let text = format!(
        "restored {} from {name}: {} of device state; the device is in {} now",
        summary.device,
        output::exact_bytes(summary.device_bytes),
        summary.state
    );
    output.result(&Restored { summary, file: name, raw: arguments.raw }, text)
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
        Error::Stream(error) => {
            let failure = Failure::new(format!("{name}: {error}"));
            match error.problem {
                Problem::Foreign => failure.hint("if it was saved with --raw, restore it with --raw"),
                Problem::Io(_) | Problem::Version { .. } => failure,
                _ => failure.hint(format!("`whimbrel inspect {name}` shows its contents")),
            }
        }
        Error::Mismatch(_) | Error::Contents(_) | Error::NotReset { .. } => {
            Failure::new(format!("{name}: {error}")).hint_if(error.advice())
        }
        Error::File { error, .. } => Failure::from_io(format!("cannot read {name}"), &error),
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
