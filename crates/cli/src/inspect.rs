//! `whimbrel inspect`: the contents of a saved file, and any damage.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::archive::{self, Contents};
use whimbrel_engine::stream::{PREAMBLE_BYTES, Preamble, Problem};
use whimbrel_protocol::MigrationFlags;
use whimbrel_uapi::device::DeviceInfoFlags;

use crate::failure::Failure;
use crate::fsm::flag_names;
use crate::output::{self, Output};
use crate::progress::Bar;

/// Show the contents of a saved file, and any damage
///
/// Reads the whole file and checks every checksum. The exit status is 1 for a damaged or foreign file.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  whimbrel inspect nic.whimbrel\n  whimbrel inspect nic.whimbrel --json")]
pub(crate) struct Arguments {
    /// The file, as written by `whimbrel save`; - is stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

/// The first bytes of a stream of the kernel's sample device mtty (its magic, host-endian).
const MTTY: [u8; 8] = 0x7e9d_0989_8c3e_2c4e_u64.to_le_bytes();

/// Bytes of a foreign file that are shown.
const SHOWN: u64 = 64;

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Inspected<'a> {
    file: String,
    #[serde(flatten)]
    contents: &'a Contents,
    /// The first bytes of the device's state, or of a foreign file.
    head: String,
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let name = arguments.file.display().to_string();
    let (mut input, size): (Box<dyn Read>, Option<u64>) = if name == "-" {
        (Box::new(io::stdin().lock()), None)
    } else {
        let cannot_open = |error: io::Error| Failure::from_io(format!("cannot open {name}"), &error);
        let file = File::open(&arguments.file).map_err(cannot_open)?;
        let metadata = file.metadata().map_err(cannot_open)?;
        if metadata.is_dir() {
            return Err(Failure::new(format!("cannot read {name}: it is a folder")));
        }
        (Box::new(file), metadata.is_file().then_some(metadata.len()))
    };
    let mut start = Vec::new();
    input
        .by_ref()
        .take(SHOWN)
        .read_to_end(&mut start)
        .map_err(|error| Failure::from_io(format!("cannot read {name}"), &error))?;
    let foreign = start
        .first_chunk::<PREAMBLE_BYTES>()
        .is_some_and(|preamble| matches!(Preamble::check(preamble), Err(Problem::Foreign)));

    let bar = Bar::bytes(output, format!("reading {name}"), size);
    let mut contents = archive::inspect(bar.reading(start.as_slice().chain(input)));
    drop(bar);
    if foreign {
        // Its first bytes may tell the reader what it is.
        contents.head = start;
    }
    let head: Vec<String> = contents.head.iter().map(|byte| format!("{byte:02x}")).collect();
    let inspected = Inspected { file: name.clone(), contents: &contents, head: head.concat() };
    let Some(problem) = &contents.problem else {
        return output.result(&inspected, Text(&inspected));
    };
    output.partial(Text(&inspected))?;
    let failure = Failure::new(format!("{name}: {problem}")).result(&inspected);
    Err(match foreign {
        true if contents.head.starts_with(&MTTY) => failure.hint(
            "it looks like the raw state of mtty or model:serial; a file saved with --raw has no header to \
             inspect: restore it with --raw",
        ),
        true => failure.hint(
            "a file saved with --raw holds the driver's own bytes and no header: there is nothing to inspect, but \
             `whimbrel restore --raw` accepts it",
        ),
        false => failure.hint("the file cannot be restored: save the device again, or use another copy"),
    })
}

struct Text<'a>(&'a Inspected<'a>);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = self.0.contents;
        writeln!(f, "file          {}", self.0.file)?;
        if let Some(hello) = &contents.hello {
            let device = &hello.device;
            let kind = DeviceInfoFlags::from_bits_truncate(device.flags) - DeviceInfoFlags::CAPS;
            let flags = MigrationFlags::from_bits_truncate(device.migration_flags);
            writeln!(f, "format        whimbrel stream {}", contents.version)?;
            writeln!(
                f,
                "device        {} ({}; {} regions, {} irqs)",
                device.name,
                output::names(kind.iter_names().map(|(name, _)| name)),
                device.num_regions,
                device.num_irqs
            )?;
            writeln!(f, "migration     {}", output::names(flag_names(flags)))?;
            if let Some(text) = &device.region {
                writeln!(f, "through       a migration region ({text})")?;
            }
            writeln!(f, "device state  {}", output::exact_bytes(contents.device_bytes))?;
            if device.transactions {
                writeln!(
                    f,
                    "transactions  {}, the longest of {}",
                    contents.transactions,
                    output::exact_bytes(contents.longest_transaction)
                )?;
            }
            for region in &hello.memory {
                writeln!(f, "memory        {} at {:#x}", output::exact_bytes(region.size), region.start)?;
            }
            if !hello.memory.is_empty() {
                writeln!(f, "carried       {} of memory", output::exact_bytes(contents.memory_bytes))?;
            }
            writeln!(f, "frames        {}", contents.frames)?;
        }
        let whole = match (contents.complete, &contents.hello) {
            (true, _) => "complete, all checksums match",
            (false, Some(_)) => "damaged from that point on",
            (false, None) => "not a stream that can be read",
        };
        writeln!(f, "read          {}: {whole}", output::exact_bytes(contents.file_bytes))?;
        if contents.head.is_empty() {
            return Ok(());
        }
        let what = if contents.hello.is_some() { "the device's state" } else { "the file" };
        write!(f, "\n{what} begins with\n{}", output::hexdump(&contents.head))
    }
}
