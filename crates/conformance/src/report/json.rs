//! JSON lines: an event each.

use std::io::{self, Write};

use super::Reporter;
use crate::verdict::Event;

/// Writes an object a line, with a key `event` that tells its kind.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Json;

impl Reporter for Json {
    fn event(&mut self, event: &Event, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, event)?;
        writeln!(out)
    }
}
