//! The option `--journal` of `send` and `receive`.

use std::path::Path;

use whimbrel_engine::{Error, Journal};
use whimbrel_protocol::handover::History;

use crate::failure::Failure;
use crate::output::warn;
use crate::remedy;
use crate::target::Target;

/// Opens the journal of a migration that is about to begin. `peer` names the other side.
pub(crate) fn open(path: &Path, peer: &str) -> Result<Journal, Failure> {
    let journal = Journal::open(path, peer).map_err(|error| failed(error, path))?;
    match journal.open_question() {
        None => Ok(journal),
        Some(history) => {
            let (path, migration) = (path.to_path_buf(), history.migration);
            let error = Error::Unresolved { path: path.clone(), migration };
            Err(failed(error, &path))
        }
    }
}

/// A failure of the journal, with the command that helps.
pub(crate) fn failed(error: Error, path: &Path) -> Failure {
    let hint = match &error {
        Error::Unresolved { .. } => Some(remedy::resolve(path)),
        Error::JournalInUse { .. } => {
            Some("wait until that process ends, or give each migration a journal of its own".to_string())
        }
        _ => None,
    };
    Failure::from(error).hint_if(hint)
}

/// TARGETs as the journal names them.
pub(crate) fn names(targets: &[Target], journal: Option<&Path>) -> Result<Vec<Target>, Failure> {
    match journal {
        Some(_) => targets.iter().map(Target::absolute).collect(),
        None => Ok(targets.to_vec()),
    }
}

/// Returns the command that settles the migration, if the journal does not know its outcome.
pub(crate) fn remedy(path: Option<&Path>) -> Option<String> {
    let path = path?;
    let records = Journal::read(path).ok()?;
    let is_open = History::of(&records).ok()?.iter().any(History::is_open);
    is_open.then(|| remedy::resolve(path))
}

/// Says after a success if the journal could not record it.
pub(crate) fn warn_if_open(path: Option<&Path>) {
    if let Some(remedy) = remedy(path) {
        warn([format_args!("the journal does not have the outcome: {remedy}")]);
    }
}
