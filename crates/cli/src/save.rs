//! `whimbrel save`: the state of a device into a file.

use std::io;
use std::path::PathBuf;

use clap::Args;
use whimbrel_engine::archive::{self, Form, Summary};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::target::Target;

/// Save a device's state to a file
///
/// The device stops while its state is read, and then goes on in the state it was in. The file appears under its name
/// only when it is complete and on disk.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: String,
    /// Where to; - is stdout, and the result is told on stderr then
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write the driver's own bytes and nothing else: no header, no checksums
    #[arg(long)]
    raw: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel save 0000:3b:00.2 -o nic.whimbrel
  whimbrel save model:serial --raw -o - | xxd";

/// What a file is to hold, by the option.
pub(crate) fn form(raw: bool) -> Form {
    if raw { Form::Raw } else { Form::Stream }
}

/// Does it.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let mut opened = Target::open_text(&arguments.target)?.migratable()?;
    let form = form(arguments.raw);
    if arguments.output.as_os_str() == "-" {
        let bar = Bar::bytes(output, format!("saving {}", arguments.target), None);
        let saved = archive::save(&mut *opened, bar.writing(io::stdout().lock()), form);
        drop(bar);
        let summary = saved.map_err(|error| match error {
            whimbrel_engine::Error::Link(error) => Failure::from_io("cannot write to stdout", &error),
            other => other.into(),
        })?;
        output.result_beside(&summary, text(&summary, "stdout"));
        return Ok(());
    }
    let bar = Bar::waiting(output, format!("saving {}", arguments.target));
    let saved = archive::save_to_path(&mut *opened, &arguments.output, form);
    drop(bar);
    let summary = saved.map_err(|error| match error {
        whimbrel_engine::Error::File { what, error } => Failure::from_io(what, &error),
        other => other.into(),
    })?;
    output.result(&summary, text(&summary, &arguments.output.display().to_string()))
}

fn text(summary: &Summary, file: &str) -> String {
    format!(
        "saved {}: {} of device state in {file}; the device is in {} again",
        summary.device,
        output::exact_bytes(summary.device_bytes),
        summary.state
    )
}
