//! Output: results go to stdout, as text for people or one JSON object for scripts; everything else goes to stderr.
//!
//! A reader that closes stdout early, such as `head`, has what it wanted: that is not a failure.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use indicatif::HumanBytes;
use serde::Serialize;

use crate::failure::Failure;
use crate::shown;
use crate::usage;

/// The failure of a write to stdout.
pub(crate) const STDOUT_FAILED: &str = "cannot write the result to stdout";

/// The form of a command's output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    verbosity: u8,
}

impl Output {
    /// Output according to the options of the command line.
    pub(crate) fn new(json: bool, verbosity: u8) -> Output {
        Output { json, verbosity }
    }

    /// Prints a result: `value` with `--json`, otherwise `text`.
    pub(crate) fn result(self, value: &impl Serialize, text: impl fmt::Display) -> Result<(), Failure> {
        write_result(io::stdout().lock(), &self.render(value, text))
    }

    /// Prints a result to stderr, for a command whose stdout carries something else.
    pub(crate) fn result_beside(self, value: &impl Serialize, text: impl fmt::Display) {
        note(self.render(value, text));
    }

    /// Prints the partial result before a failure. With `--json` the failure itself carries it ([`Failure::result`]).
    pub(crate) fn partial(self, text: impl fmt::Display) -> Result<(), Failure> {
        if self.json { Ok(()) } else { write_result(io::stdout().lock(), &text.to_string()) }
    }

    /// Prints a command's failure: to stderr for people, and with `--json` also to stdout as an object.
    pub(crate) fn failure(self, failure: &Failure) {
        note(failure);
        self.failure_object(failure);
    }

    /// Prints a failure to stderr only, for a command whose stdout carries something else.
    pub(crate) fn failure_beside(self, failure: &Failure) {
        if self.json { note(pretty(&failure.to_json())) } else { note(failure) }
    }

    fn failure_object(self, failure: &Failure) {
        if self.json {
            // There is nobody left to tell if this fails too.
            let _ = write_result(io::stdout().lock(), &pretty(&failure.to_json()));
        }
    }

    /// Prints the error of a command line that clap rejects: clap's own text to stderr, with the hint of a value
    /// parser, and with `--json` also an object to stdout.
    pub(crate) fn wrong_usage(self, error: &clap::Error) {
        let failure = usage::failure(error);
        if usage::is_shown_by_clap(error) {
            // A closed stderr must not hide the exit status.
            let _ = error.print();
        } else {
            note(&failure);
        }
        self.failure_object(&failure);
    }

    /// Returns whether scripts read the result.
    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// The number of `--verbose` options.
    pub(crate) fn verbosity(self) -> u8 {
        self.verbosity
    }

    /// Returns whether a progress bar may be drawn: on a terminal, and not between lines of a log.
    pub(crate) fn shows_progress(self) -> bool {
        self.verbosity == 0 && io::stderr().is_terminal()
    }

    fn render(self, value: &impl Serialize, text: impl fmt::Display) -> String {
        if self.json { pretty(value) } else { text.to_string() }
    }
}

fn pretty(value: &impl Serialize) -> String {
    // Results are structs, lists and maps with text as keys: they always serialise.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Prints a result of many lines.
pub(crate) fn lines(lines: impl IntoIterator<Item: fmt::Display>) -> Result<(), Failure> {
    let text: String = lines.into_iter().map(|line| format!("{line}\n")).collect();
    if text.is_empty() {
        return Ok(());
    }
    write_result(io::stdout().lock(), &text)
}

fn write_result(mut out: impl Write, text: &str) -> Result<(), Failure> {
    let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::from_io(STDOUT_FAILED, &error))
        }
        _ => Ok(()),
    }
}

/// Prints a note to stderr.
pub(crate) fn note(text: impl fmt::Display) {
    // A closed stderr must not stop the command.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints warnings to stderr, except those that the log has shown there.
pub(crate) fn warn(warnings: impl IntoIterator<Item: fmt::Display>) {
    for warning in warnings {
        if !shown::is_shown(&warning.to_string()) {
            note(format_args!("warning: {warning}"));
        }
    }
}

/// A table without lines, as wide as its contents.
pub(crate) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(header);
    // The first column starts where text starts.
    if let Some(column) = table.column_mut(0) {
        column.set_padding((0, 1));
    }
    table
}

/// Aligns columns of figures to the right.
pub(crate) fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

/// A number of bytes for people, such as `64.00 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// A number of bytes for people and exactly, such as `64.00 MiB (67108864 bytes)`.
pub(crate) fn exact_bytes(count: u64) -> String {
    if count < 1024 { bytes(count) } else { format!("{} ({count} bytes)", bytes(count)) }
}

/// Bytes per second for people, such as `1.20 GiB/s`.
pub(crate) fn rate(bytes_per_second: f64) -> String {
    #[expect(clippy::cast_sign_loss, reason = "the cast saturates: what is below zero is shown as zero")]
    let whole = bytes_per_second as u64;
    format!("{}/s", bytes(whole))
}

/// A time in milliseconds for people, such as `12.3 ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    format!("{ms:.1} ms")
}

/// A duration likewise.
pub(crate) fn duration(duration: Duration) -> String {
    milliseconds(duration.as_secs_f64() * 1000.0)
}

/// A list of names, or `none`.
pub(crate) fn names<T: fmt::Display>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.to_string()).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// A hex dump: offset, sixteen bytes a line, and the printable ones as text.
pub(crate) fn hexdump(data: &[u8]) -> String {
    let lines = data.chunks(16).enumerate().map(|(line, chunk)| {
        let hex: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown: String = chunk
            .iter()
            .map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '.' })
            .collect();
        format!("{:08x}  {:<47}  |{shown}|\n", line * 16, hex.join(" "))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_goes_away_is_no_failure_and_a_full_disk_is() {
        assert!(write_result(Broken(io::ErrorKind::BrokenPipe), "x").is_ok());
        assert!(write_result(Broken(io::ErrorKind::StorageFull), "x").is_err());
    }

    #[test]
    fn a_hexdump_shows_offset_bytes_and_text() {
        let dump = hexdump(b"0123456789abcdef\x00z");
        assert_eq!(
            dump,
            "00000000  30 31 32 33 34 35 36 37 38 39 61 62 63 64 65 66  |0123456789abcdef|\n\
             00000010  00 7a                                            |.z|\n"
        );
    }

    #[test]
    fn sizes_have_binary_units() {
        assert_eq!(bytes(64 << 20), "64.00 MiB");
        assert_eq!(exact_bytes(60), "60 B");
        assert_eq!(exact_bytes(2048), "2.00 KiB (2048 bytes)");
    }
}
