//! `whimbrel inspect`: the contents of a saved file, and any damage.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use whimbrel_engine::archive::{self, Contents, SavedDevice};
use whimbrel_engine::proto::frame::{PREAMBLE_BYTES, Preamble};
use whimbrel_engine::proto::problem::Problem;
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
    /// Bytes of state of all devices.
    device_bytes: u64,
    /// The first bytes of a foreign file.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    /// The first bytes of each device's state.
    heads: Vec<String>,
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
    let contents = archive::inspect(bar.reading(start.as_slice().chain(input)));
    drop(bar);
    let inspected = Inspected {
        file: name.clone(),
        contents: &contents,
        device_bytes: contents.device_bytes(),
        // They may tell the reader what the file is.
        head: foreign.then(|| hex(&start)),
        heads: contents.devices.iter().map(|device| hex(&device.head)).collect(),
    };
    let text = Text { inspected: &inspected, foreign: foreign.then_some(&start) };
    let Some(problem) = &contents.problem else {
        return output.result(&inspected, text);
    };
    output.partial(text)?;
    let failure = Failure::new(format!("{name}: {problem}")).result(&inspected);
    Err(match foreign {
        true if start.starts_with(&MTTY) => failure.hint(
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Text<'a> {
    inspected: &'a Inspected<'a>,
    /// The start of a foreign file.
    foreign: Option<&'a Vec<u8>>,
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = self.inspected.contents;
        writeln!(f, "file          {}", self.inspected.file)?;
        if !contents.devices.is_empty() {
            writeln!(f, "format        whimbrel stream {}", contents.version)?;
            if !contents.needs.is_empty() {
                writeln!(f, "needs         {}", output::names(contents.needs.iter().map(String::as_str)))?;
            }
            contents.devices.iter().try_for_each(|device| write_device(f, device))?;
            for blob in &contents.blobs {
                let size = output::exact_bytes(blob.bytes);
                writeln!(f, "owner's state {} version {}: {size}", blob.name, blob.version)?;
            }
            writeln!(f, "frames        {}", contents.frames)?;
        }
        let whole = match (contents.complete, contents.devices.is_empty()) {
            (true, _) => "complete, all checksums match",
            (false, false) => "damaged from that point on",
            (false, true) => "not a stream that can be read",
        };
        writeln!(f, "read          {}: {whole}", output::exact_bytes(contents.file_bytes))?;
        for device in contents.devices.iter().filter(|device| !device.head.is_empty()) {
            let what = match &contents.devices[..] {
                [_] => "the device's state",
                _ => &format!("the state of {}", device.identity.name),
            };
            write!(f, "\n{what} begins with\n{}", output::hexdump(&device.head))?;
        }
        match self.foreign.filter(|start| !start.is_empty()) {
            Some(start) => write!(f, "\nthe file begins with\n{}", output::hexdump(start)),
            None => Ok(()),
        }
    }
}

fn write_device(f: &mut fmt::Formatter<'_>, device: &SavedDevice) -> fmt::Result {
    let identity = &device.identity;
    let kind = DeviceInfoFlags::from_bits_truncate(identity.flags) - DeviceInfoFlags::CAPS;
    let flags = MigrationFlags::from_bits_truncate(identity.migration_flags);
    writeln!(
        f,
        "device        {} ({}; {} regions, {} irqs)",
        identity.name,
        output::names(kind.iter_names().map(|(name, _)| name)),
        identity.num_regions,
        identity.num_irqs
    )?;
    if let Some(pci) = identity.pci {
        writeln!(f, "pci           {:04x}:{:04x} class {:06x}", pci.vendor, pci.device, pci.class)?;
    }
    if let Some(model) = &identity.model {
        writeln!(f, "model         {model}")?;
    }
    writeln!(f, "migration     {}", output::names(flag_names(flags)))?;
    if let Some(text) = &identity.region {
        writeln!(f, "through       a migration region ({text})")?;
    }
    writeln!(f, "device state  {}", output::exact_bytes(device.device_bytes))?;
    if device.setup_bytes > 0 {
        writeln!(f, "setup         {}", output::exact_bytes(device.setup_bytes))?;
    }
    if identity.transactions {
        let longest = output::exact_bytes(device.longest_transaction);
        writeln!(f, "transactions  {}, the longest of {longest}", device.transactions)?;
    }
    Ok(())
}
