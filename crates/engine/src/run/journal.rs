//! The journal in a file: records of a migration's devices that survive a crash.
//!
//! [`whimbrel_protocol::handover`] defines its records and the rule at a restart.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use whimbrel_protocol::handover::{Entry, Record, RecordError, read_journal};

use crate::error::Error;

/// A journal to which records are appended. Each is on disk before [`Journal::append`] returns.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    peer: String,
}

impl Journal {
    /// Opens a journal, and creates it if it does not exist. `peer` names the other side, for operators; only its first
    /// [`Record::MAX_PEER`] bytes are kept.
    ///
    /// An incomplete record at its end, cut short by a crash, is removed.
    pub fn open(path: impl Into<PathBuf>, peer: &str) -> Result<Journal, Error> {
        let path = path.into();
        let failed = |error: io::Error| Error::Journal { path: path.clone(), error };
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let records = read_journal(&bytes)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        let whole = records.len() * Record::SIZE;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        // The name is on disk once its folder is.
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        let mut end = peer.len().min(Record::MAX_PEER);
        while !peer.is_char_boundary(end) {
            end -= 1;
        }
        Ok(Journal { file, peer: peer[..end].to_string(), path })
    }

    /// Appends an entry of a migration, and waits until it is on disk.
    pub fn append(&mut self, migration: u128, entry: Entry) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Journal { path: self.path.clone(), error };
        let record = Record::new(migration, self.peer.clone(), entry)
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let before = self.file.metadata().map_err(failed)?.len();
        let written = self.file.write_all(&record.to_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|error| {
            // A partial record in the middle would make the whole journal unreadable.
            let _ = self.file.set_len(before);
            failed(error)
        })
    }

    /// Reads the records of a journal, in order; none if it does not exist.
    pub fn read(path: &Path) -> Result<Vec<Record>, Error> {
        let failed = |error: io::Error| Error::Journal { path: path.to_path_buf(), error };
        match std::fs::read(path) {
            Ok(bytes) => read_journal(&bytes)
                .map_err(|error: RecordError| failed(io::Error::new(io::ErrorKind::InvalidData, error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_back_and_a_torn_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert_eq!(Journal::read(&path).unwrap(), []);
        let mut journal = Journal::open(&path, "host-b").unwrap();
        journal.append(7, Entry::MayBeHandedOver).unwrap();
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[1; 100]).unwrap();
        let mut journal = Journal::open(&path, "host-b").unwrap();
        journal.append(7, Entry::Gone).unwrap();
        let entries: Vec<Entry> = Journal::read(&path).unwrap().iter().map(Record::entry).collect();
        assert_eq!(entries, [Entry::MayBeHandedOver, Entry::Gone]);
    }

    #[test]
    fn a_file_that_is_no_journal_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, [7; 600]).unwrap();
        assert!(Journal::open(&path, "x").unwrap_err().to_string().contains("notes"));
        assert_eq!(std::fs::read(&path).unwrap(), [7; 600]);
    }

    #[test]
    fn a_long_name_of_a_peer_is_cut_at_a_character() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        Journal::open(&path, &"ä".repeat(200)).unwrap().append(1, Entry::Started).unwrap();
        assert_eq!(Journal::read(&path).unwrap()[0].peer().chars().count(), Record::MAX_PEER / 2);
    }
}
