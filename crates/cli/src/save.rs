//! `whimbrel save`: writes a device's state to a file.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Form, Summary};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::remedy;
use crate::target::{Opened, Target};

/// Save a device's state to a file
///
/// The device stops while its state is read, and then returns to its previous state. The file appears under its name
/// only when it is complete and on disk.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The device (`whimbrel --help` says how to name it)
    #[arg(value_name = "TARGET")]
    target: Target,
    /// The output file; - is stdout, and the result then goes to stderr
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write only the driver's bytes, without header and checksums
    #[arg(long)]
    raw: bool,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel save 0000:3b:00.2 -o nic.whimbrel
  whimbrel save model:serial --raw -o - | xxd";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Saved {
    #[serde(flatten)]
    summary: Summary,
    file: String,
    raw: bool,
}

/// The file format that the option selects.
pub(crate) fn form(raw: bool) -> Form {
    if raw { Form::Raw } else { Form::Stream }
}

/// The destination of the state.
enum Place {
    Stdout,
    /// Not a regular file, such as a named pipe: it must not be replaced.
    Special(File),
    /// A regular file of this name.
    File(PathBuf),
}

impl Arguments {
    /// Returns whether stdout carries the device's state.
    pub(crate) fn uses_stdout(&self) -> bool {
        self.output.as_os_str() == "-"
    }
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    // Before the device is opened: that may reset it.
    let place = place(&arguments.output)?;
    let mut opened = arguments.target.open()?.migratable()?;
    let summary = save(&mut opened, &place, form(arguments.raw), &arguments.target, output)
        .map_err(|error| failed(error, &place, arguments))?;
    let to_stdout = matches!(place, Place::Stdout);
    let file = if to_stdout { "stdout".to_string() } else { arguments.output.display().to_string() };
    let saved = Saved { summary, file, raw: arguments.raw };
    let text = format!(
        "saved {} to {}: {} of device state; the device is in {} again",
        saved.summary.device,
        saved.file,
        output::exact_bytes(saved.summary.device_bytes),
        saved.summary.state
    );
    if to_stdout {
        output.result_beside(&saved, text);
        return Ok(());
    }
    output.result(&saved, text)
}

fn place(path: &Path) -> Result<Place, Failure> {
    if path.as_os_str() == "-" {
        if io::stdout().is_terminal() {
            return Err(Failure::new("refusing to write a device's state to a terminal")
                .hint("redirect stdout to a file or a program, such as `| xxd`"));
        }
        return Ok(Place::Stdout);
    }
    let cannot_write =
        |error: io::Error| Failure::from_io(format!("cannot write {}", path.display()), &error);
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(Failure::new(format!("cannot write {}: it is a folder", path.display())))
        }
        // The target of a link is replaced, not the link.
        Ok(metadata) if metadata.is_file() => fs::canonicalize(path).map(Place::File).map_err(cannot_write),
        Ok(_) => File::options().write(true).open(path).map(Place::Special).map_err(cannot_write),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                Some(folder) if !folder.is_dir() => Err(cannot_write(error)
                    .hint(format!("folder {} does not exist: create it first", folder.display()))),
                _ => Ok(Place::File(path.to_path_buf())),
            }
        }
        Err(error) => Err(cannot_write(error)),
    }
}

fn save(
    device: &mut Opened,
    place: &Place,
    form: Form,
    target: &Target,
    output: Output,
) -> Result<Summary, Error> {
    let message = format!("saving {target}");
    match place {
        Place::Stdout => {
            let bar = Bar::bytes(output, message, None);
            archive::save(&mut **device, bar.writing(io::stdout().lock()), form)
        }
        Place::Special(file) => {
            let bar = Bar::bytes(output, message, None);
            archive::save(&mut **device, bar.writing(file), form)
        }
        Place::File(path) => {
            let _bar = Bar::waiting(output, message);
            archive::save_to_path(&mut **device, path, form)
        }
    }
}

/// Adds the file's name, which the crates below know only if they have chosen it.
fn failed(error: Error, place: &Place, arguments: &Arguments) -> Failure {
    let hint = remedy::after(&error, &arguments.target);
    let Error::File { what, error } = error else { return Failure::from(error).hint_if(hint) };
    let what = match place {
        Place::Stdout => "writing to stdout".to_string(),
        Place::Special(_) => format!("writing {}", arguments.output.display()),
        Place::File(_) => what,
    };
    let failure = Failure::from_io(what, &error);
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded if matches!(place, Place::File(_)) => {
            failure.hint("`whimbrel probe` shows the size of the state; no partial file remains")
        }
        _ => failure,
    }
}
