//! `whimbrel save`: writes a device's state to a file.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use whimbrel_engine::archive::{Archived, Save, Summary};
use whimbrel_engine::{Error, Progress};
use whimbrel_user::{Migratable, State, Timed};

use crate::call_timeout::CallTimeout;
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::progress::Bar;
use crate::remedy;
use crate::signals::{Signals, Waiting};
use crate::target::{Opened, Target, list};

/// Save the state of devices to a file
///
/// The devices stop while their state is read, and then return to their previous states, also after SIGINT or SIGTERM. The
/// file appears under its name only when it is complete and on disk.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The devices (`whimbrel --help` says how to name one)
    #[arg(value_name = "TARGET", required = true)]
    targets: Vec<Target>,
    /// The output file; - is stdout, and the result then goes to stderr
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Write only the driver's bytes, without header and checksums: for a single device
    #[arg(long)]
    raw: bool,
    #[command(flatten)]
    call_timeout: CallTimeout,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel save 0000:3b:00.2 -o nic.whimbrel
  whimbrel save 0000:3b:00.2 0000:3b:00.3 -o both.whimbrel
  whimbrel save model:serial --raw -o - | xxd";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Saved {
    #[serde(flatten)]
    archived: Archived,
    /// Bytes of state of all devices.
    device_bytes: u64,
    file: String,
    raw: bool,
}

/// Refuses raw files of several devices: nothing says where one ends.
pub(crate) fn check_raw(raw: bool, targets: &[Target]) -> Result<(), Failure> {
    if raw && targets.len() > 1 {
        return Err(Failure::usage("a raw file holds the state of a single device")
            .hint("name one TARGET, or omit --raw"));
    }
    Ok(())
}

/// Prints warnings, and returns the total of the devices' bytes with a line for each device.
pub(crate) fn told(archived: &Archived, now: &str) -> (u64, String) {
    output::warn(&archived.warnings);
    let line = |summary: &Summary| {
        format!(
            "{} of device state; the device is in {} {now}",
            output::exact_bytes(summary.device_bytes),
            summary.state
        )
    };
    let lines = match &archived.devices[..] {
        [summary] => line(summary),
        all => all.iter().map(|summary| format!("\n  {}: {}", summary.device, line(summary))).collect(),
    };
    (archived.devices.iter().map(|summary| summary.device_bytes).sum(), lines)
}

/// The names of the devices of a file.
pub(crate) fn device_names(archived: &Archived) -> String {
    output::names(archived.devices.iter().map(|summary| &summary.device))
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
    check_raw(arguments.raw, &arguments.targets)?;
    // Before a device is opened: that may reset it.
    let place = place(&arguments.output)?;
    let mut opened = arguments.call_timeout.open_all(&arguments.targets)?;
    let signals = Signals::catch()?;
    let before: Vec<_> = opened.iter_mut().map(|device| device.state().ok()).collect();
    let archived = save(&mut opened, &place, arguments, &signals, output).map_err(|error| {
        tell_where_they_are(&mut opened, &before);
        failed(error, &place, arguments)
    })?;
    let to_stdout = matches!(place, Place::Stdout);
    let file = if to_stdout { "stdout".to_string() } else { arguments.output.display().to_string() };
    let (device_bytes, lines) = told(&archived, "again");
    let text = format!("saved {} to {file}: {lines}", device_names(&archived));
    let saved = Saved { archived, device_bytes, file, raw: arguments.raw };
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
        Ok(metadata) if metadata.is_file() => Ok(Place::File(path.to_path_buf())),
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
    devices: &mut [Timed<Opened>],
    place: &Place,
    arguments: &Arguments,
    signals: &Signals,
    output: Output,
) -> Result<Archived, Error> {
    let message = format!("saving {}", list(&arguments.targets));
    let cancel = || signals.arrived();
    let bar = Bar::saving(output, message);
    let save = Save::new(devices.iter_mut().map(|device| device as &mut dyn Migratable))
        .cancel(&cancel)
        .observer(|progress: &Progress| bar.set(progress.done, progress.total));
    let write = |save: Save<'_>, file: &mut dyn Write| {
        if arguments.raw { save.write_raw_to(file) } else { save.write_to(file) }
    };
    match place {
        Place::Stdout => write(save, &mut Waiting::new(io::stdout().lock(), signals)),
        Place::Special(file) => write(save, &mut Waiting::new(file, signals)),
        Place::File(path) => {
            if arguments.raw {
                save.write_raw_to_path(path)
            } else {
                save.write_to_path(path)
            }
        }
    }
}

/// Says on stderr of each device that the save has left where it was that it is there.
fn tell_where_they_are(devices: &mut [Timed<Opened>], before: &[Option<State>]) {
    for (device, before) in devices.iter_mut().zip(before) {
        if let Some(state) = before.filter(|before| device.state().is_ok_and(|state| state == *before)) {
            output::note(format_args!("{} is in {state}, as before", device.name()));
        }
    }
}

/// Adds the file's name, which the crates below know only if they have chosen it.
fn failed(error: Error, place: &Place, arguments: &Arguments) -> Failure {
    let hint = remedy::after(&error, &arguments.targets);
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
