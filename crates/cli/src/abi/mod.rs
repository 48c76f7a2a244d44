//! `whimbrel abi`: compares a header of the kernel's user API with Whimbrel's own definitions. This module opens the
//! file and prints; `whimbrel-abi` parses and compares.

mod text;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use whimbrel_abi::{CompareError, Comparison, MAX_BYTES};

use crate::failure::Failure;
use crate::output::Output;

use text::{Text, verdict};

/// Compare a kernel's vfio.h with the names, numbers and layouts Whimbrel uses
///
/// Lists constants whose value differs, structures whose size or fields differ, names that Whimbrel does not know or
/// the header lacks, the header's migration protocols, and name clashes, such as a macro and an enumerator with the
/// same name. No C compiler is needed. Also compares linux/iommufd.h, linux/vfio_ccw.h and linux/vfio_zdev.h.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The header, such as /usr/include/linux/vfio.h or include/uapi/linux/vfio.h of a kernel's source
    #[arg(long, value_name = "HEADER")]
    check: PathBuf,
}

const AFTER_HELP: &str = "\
Exit status: 0 the header and Whimbrel agree in all that both have; 1 they differ, names clash,
or a part of the header cannot be read; 2 wrong usage.

Examples:
  whimbrel abi --check /usr/include/linux/vfio.h
  whimbrel abi --check include/uapi/linux/vfio.h --json";

/// The result, for scripts.
#[derive(Serialize)]
struct Report<'a> {
    path: String,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let path = &arguments.check;
    let comparison = whimbrel_abi::compare(bytes_of(path)?).map_err(|error| {
        let failure = Failure::new(format!("{} is not a vfio.h: {error}", path.display()));
        match error {
            CompareError::NothingKnown => failure
                .hint("use include/uapi/linux/vfio.h in a kernel's source, or /usr/include/linux/vfio.h"),
            _ => failure,
        }
    })?;
    let report = Report { path: path.display().to_string(), comparison: &comparison };
    let text = Text { path, comparison: &comparison };
    match verdict(&comparison) {
        None => output.result(&report, text),
        Some(verdict) => {
            output.partial(text)?;
            Err(Failure::new(format!("{}: {verdict}", path.display())).result(&report))
        }
    }
}

/// Reads a file, up to the size limit and one byte more.
fn bytes_of(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| Failure::from_io(format!("cannot read {}", path.display()), &error))?;
    Ok(bytes)
}
