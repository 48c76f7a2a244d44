//! `whimbrel conform --sentences`: which sentences of a header the suite tests. This module opens the file and prints;
//! the suite compares.

use std::path::Path;

use serde::Serialize;
use whimbrel_conformance::sentences::{Coverage, MAX_BYTES, coverage};

use super::read_past;
use crate::failure::Failure;
use crate::output::Output;

/// The result, for scripts.
#[derive(Serialize)]
struct Report<'a> {
    path: String,
    #[serde(flatten)]
    coverage: &'a Coverage,
}

/// Compares a header with the suite.
pub(super) fn run(path: &Path, output: Output) -> Result<(), Failure> {
    let coverage = coverage(read_past(path, MAX_BYTES as u64)?)
        .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let report = Report { path: path.display().to_string(), coverage: &coverage };
    if coverage.is_complete() {
        return output.result(&report, &coverage);
    }
    output.partial(&coverage)?;
    let Coverage { uncovered, gone, new, .. } = &coverage;
    let verdict = format!(
        "{}: {} sentences without a case, {} gone or changed, {} new",
        path.display(),
        uncovered.len(),
        gone.len(),
        new.len()
    );
    Err(Failure::new(verdict).result(&report))
}
