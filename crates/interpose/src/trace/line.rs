//! A record as one line for people.

use std::fmt;
use std::time::Duration;

use super::record::{Action, Dirty, Map, Outcome, Place, Record, Request, Transfer};

/// The most bytes of an argument, an answer or a transfer that are shown as such.
pub const MAX_HEX: usize = 256;

impl fmt::Display for Record {
    /// Writes one line: time, thread, descriptor, file, call, result and duration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at.as_secs_f64();
        write!(f, "{at:>11.6} {} fd {} {}: ", self.thread, self.on.fd, self.on.name)?;
        match &self.action {
            Action::Request(request) => request.fmt(f)?,
            Action::Transfer(transfer) => transfer.fmt(f)?,
            Action::Map(map) => map.fmt(f)?,
            Action::Open { call } | Action::Close { call } | Action::Duplicate { call, to: None } => {
                write!(f, "{call}()")?;
            }
            Action::Duplicate { call, to: Some(to) } => write!(f, "{call}(to {to})")?,
            Action::Passed { bytes } => {
                return write!(f, "{bytes} bytes of state passed in calls that the trace did not see");
            }
        }
        write!(f, " = {}", self.outcome)?;
        if let (Action::Request(request), true) = (&self.action, self.has_answer()) {
            write_answer(request, f)?;
        }
        write!(f, " <{}>", Microseconds(self.took))?;
        match &self.action {
            Action::Request(request) if request.hex && !request.call().has_secret() => {
                write_hex("argument", &request.argument, f)?;
                if request.answer != request.argument {
                    write_hex("answer", &request.answer, f)?;
                }
                Ok(())
            }
            Action::Transfer(transfer) => write_hex("data", &transfer.data, f),
            _ => Ok(()),
        }
    }
}

impl Record {
    /// Returns whether the answer says something: after a success, and after a failure that changed the argument.
    pub(super) fn has_answer(&self) -> bool {
        match (&self.action, self.outcome) {
            (Action::Request(_), Outcome::Returned(_)) => true,
            (Action::Request(request), Outcome::Failed(_)) => request.answer != request.argument,
            _ => false,
        }
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let call = self.call();
        match call.request() {
            Some(_) => call.question().fmt(f),
            None => write!(f, "{}({:#x})", self.name(), self.value),
        }
    }
}

fn write_answer(request: &Request, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let answer = request.answered().answer().to_string();
    let dirty = request.dirty.map(|dirty| dirty.to_string());
    let parts: Vec<String> =
        [Some(answer), dirty].into_iter().flatten().filter(|part| !part.is_empty()).collect();
    if parts.is_empty() { Ok(()) } else { write!(f, " ({})", parts.join(", ")) }
}

impl fmt::Display for Dirty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dirty { dirty, counted, pages } = *self;
        if counted == pages {
            write!(f, "{dirty} of {pages} pages dirty")
        } else if counted == 0 {
            write!(f, "bitmap of {pages} pages cannot be read")
        } else {
            write!(f, "{dirty} of the first {counted} pages dirty, of {pages}")
        }
    }
}

impl fmt::Display for Transfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({} bytes", self.call, self.asked)?;
        match (self.place, self.offset) {
            (Some(place), _) => write!(f, " at {place})"),
            (None, Some(offset)) => write!(f, " at {offset:#x})"),
            (None, None) => f.write_str(")"),
        }
    }
}

impl fmt::Display for Map {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "mmap({} bytes at {place})", self.length),
            None => write!(f, "mmap({} bytes at {:#x})", self.length, self.offset),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {}+{:#x}", self.region, self.offset)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // An address, from mmap.
            Outcome::Returned(value) if *value > 1 << 32 => write!(f, "{value:#x}"),
            Outcome::Returned(value) => write!(f, "{value}"),
            Outcome::Failed(errno) => write!(f, "-1 {errno}"),
            Outcome::Interrupted => f.write_str("? interrupted by a signal"),
            Outcome::Unfinished => f.write_str("? the thread ended in the call"),
        }
    }
}

/// A duration as `12 us`.
pub(super) struct Microseconds(pub(super) Duration);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} us", self.0.as_micros())
    }
}

/// Writes bytes below the line, sixteen in each.
fn write_hex(what: &str, bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let shown = &bytes[..bytes.len().min(MAX_HEX)];
    for (index, line) in shown.chunks(16).enumerate() {
        write!(f, "\n{:13}{what:<8} {:04x} ", "", index * 16)?;
        for byte in line {
            write!(f, " {byte:02x}")?;
        }
    }
    if shown.len() < bytes.len() {
        write!(f, "\n{:13}{what:<8} .. {} more bytes", "", bytes.len() - shown.len())?;
    }
    Ok(())
}

/// Bytes as hexadecimal digits, at most [`MAX_HEX`] of them.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().take(MAX_HEX).map(|byte| format!("{byte:02x}")).collect()
}
