//! `whimbrel abi`: a header of the kernel's user API beside what Whimbrel was built with, without a compiler.

mod compare;
mod header;
mod report;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::Failure;
use crate::output::Output;

use compare::Comparison;

/// Compare a kernel's vfio.h with the names, numbers and layouts Whimbrel uses
///
/// Tells constants with another value, structures whose size or fields differ, names that Whimbrel does not
/// know or the header lacks, which migration protocol the header speaks, and names that get in one another's
/// way, such as a macro and an enumerator of one name. No C compiler is needed. linux/iommufd.h,
/// linux/vfio_ccw.h and linux/vfio_zdev.h can be compared likewise.
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

/// The largest header by far has a tenth of it.
const LARGEST: u64 = 1 << 20;

/// Does it.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let path = &arguments.check;
    let text = text_of(path)?;
    let comparison = Comparison::of(&text).ok_or_else(|| {
        Failure::new(format!("{} is no vfio.h: nothing that Whimbrel knows is defined in it", path.display()))
            .hint("it is include/uapi/linux/vfio.h in a kernel's source, or /usr/include/linux/vfio.h")
    })?;
    let value = report::json(path, &comparison);
    let text = report::Text { path, comparison: &comparison };
    match report::verdict(&comparison) {
        None => output.result(&value, text),
        Some(verdict) => {
            output.partial(text)?;
            Err(Failure::new(format!("{}: {verdict}", path.display())).result(&value))
        }
    }
}

fn text_of(path: &Path) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::from_io(format!("cannot read {}", path.display()), &error);
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > LARGEST {
        return Err(Failure::new(format!("{} is no vfio.h: it is larger than 1 MiB", path.display())));
    }
    // In comments names of people may stand in any encoding.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
