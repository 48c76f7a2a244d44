//! The journal in a file: records of a migration's devices that survive a crash.
//!
//! [`whimbrel_protocol::handover`] defines its records and the rule at a restart; [`Resolve`](super::Resolve) applies it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use whimbrel_protocol::handover::{DeviceRecord, Entry, History, Record, RecordError, Side, read_journal};
use whimbrel_user::Migratable;

use crate::error::Error;

/// A journal to which records are appended. Each is on disk before [`Journal::append`] returns.
///
/// The file is locked as long as the journal is open.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    peer: String,
    records: Vec<Record>,
    histories: Vec<History>,
    /// A write failed, and what it left behind the records could not be removed.
    has_remnant: bool,
}

/// The lock of a journal's file: see [`Journal::lock`].
#[derive(Debug)]
pub struct JournalLock {
    _file: File,
}

/// The number of entries that a migration can have, with room to spare.
const ENTRIES: usize = 6;

impl Journal {
    /// Opens a journal, and creates it if it does not exist, readable by its owner only. `peer` names the other side, for
    /// operators; only its first [`Record::MAX_TEXT`] bytes are kept.
    ///
    /// An incomplete record at its end, cut short by a crash, is removed.
    pub fn open(path: impl Into<PathBuf>, peer: &str) -> Result<Journal, Error> {
        Journal::open_with(path.into(), peer, true)
    }

    /// Opens a journal that exists, to resolve what it leaves open.
    pub fn open_existing(path: impl Into<PathBuf>) -> Result<Journal, Error> {
        Journal::open_with(path.into(), "", false)
    }

    fn open_with(path: PathBuf, peer: &str, create: bool) -> Result<Journal, Error> {
        let failed = |error: io::Error| Error::Journal { path: path.clone(), error };
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).append(true).create(create).mode(0o600).open(&path).map_err(failed)?;
        // A device such as /dev/full has no end.
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::JournalInUse { path }),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let invalid = |error: RecordError| failed(io::Error::new(io::ErrorKind::InvalidData, error));
        let records = read_journal(&bytes).map_err(invalid)?;
        let histories = History::of(&records).map_err(invalid)?;
        let whole = records.len() * Record::SIZE;
        if whole < bytes.len() {
            file.set_len(whole as u64).map_err(failed)?;
        }
        file.sync_all().map_err(failed)?;
        // The name is on disk once its folder is.
        if let Some(folder) = path.parent() {
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            match File::open(folder).and_then(|folder| folder.sync_all()) {
                // A filesystem without folders to sync.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                result => result.map_err(failed)?,
            }
        }
        let mut journal = Journal { file, path, peer: String::new(), records, histories, has_remnant: false };
        journal.set_peer(peer);
        Ok(journal)
    }

    /// Names the other side of the next migration, once that is known better than when the journal was opened.
    pub fn set_peer(&mut self, peer: &str) {
        let mut end = peer.len().min(Record::MAX_TEXT);
        while !peer.is_char_boundary(end) {
            end -= 1;
        }
        self.peer = peer[..end].to_string();
    }

    /// Returns the lock of the file, which then lasts as long as both the journal and this. A process that keeps the devices
    /// open after the migration keeps it until it closes them: nobody else may settle their outcome before.
    pub fn lock(&self) -> Result<JournalLock, Error> {
        let failed = |error: io::Error| Error::Journal { path: self.path.clone(), error };
        Ok(JournalLock { _file: self.file.try_clone().map_err(failed)? })
    }

    /// Returns the journal's file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the migrations that it records, in the order in which they began.
    pub fn histories(&self) -> &[History] {
        &self.histories
    }

    /// Returns the last migration if nothing of it was recorded but its devices: it was refused, or this side was interrupted
    /// before anything could be handed over.
    pub fn unrecorded(&self) -> Option<&History> {
        self.histories.last().filter(|history| history.is_unrecorded())
    }

    /// Returns the migration whose outcome it does not know, if there is one. Until that is resolved, no other one can
    /// use the journal.
    pub fn open_question(&self) -> Option<&History> {
        self.histories.iter().rev().find(|history| history.is_open())
    }

    /// Records that a migration begins with these devices, and reserves room for its entries where the filesystem can.
    /// Refuses while the outcome of another is unknown.
    pub(super) fn begin(&mut self, side: Side, devices: &[Box<dyn Migratable>]) -> Result<(), Error> {
        if let Some(history) = self.open_question() {
            return Err(Error::Unresolved { path: self.path.clone(), migration: history.migration });
        }
        let devices: Vec<DeviceRecord> =
            devices.iter().map(|device| DeviceRecord::new(device.name(), device.holder())).collect();
        let records = Record::begin(side, &devices).map_err(|error| self.invalid(error))?;
        let room = ((records.len() + ENTRIES) * Record::SIZE) as u64;
        let end = (self.records.len() * Record::SIZE) as u64;
        let reserve = || rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, end, room);
        match rustix::io::retry_on_intr(reserve) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(Error::Journal { path: self.path.clone(), error: error.into() }),
        }
        self.add(records, |path, error| Error::Journal { path, error })
    }

    fn invalid(&self, error: RecordError) -> Error {
        Error::Journal { path: self.path.clone(), error: io::Error::new(io::ErrorKind::InvalidInput, error) }
    }

    /// Appends an entry of a migration, and waits until it is on disk.
    pub fn append(&mut self, migration: u128, entry: Entry) -> Result<(), Error> {
        let is_same = |history: &&History| !history.is_unrecorded() && history.migration == migration;
        let known = self.histories.iter().find(is_same);
        let peer = known.map_or(&self.peer, |history| &history.peer);
        let record = Record::new(migration, peer.clone(), entry).map_err(|error| self.invalid(error))?;
        self.add(vec![record], |path, error| Error::JournalUncertain { path, entry, error })
    }

    /// Appends records. `uncertain` makes the error if they may be on disk although they could not be synced, or if the
    /// remnant of an earlier failure cannot be removed.
    fn add(
        &mut self,
        records: Vec<Record>,
        uncertain: impl FnOnce(PathBuf, io::Error) -> Error,
    ) -> Result<(), Error> {
        let before = (self.records.len() * Record::SIZE) as u64;
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        let mut all = self.records.clone();
        all.extend(records);
        let histories = History::of(&all).map_err(|error| self.invalid(error))?;
        // A partial record in the middle would make the whole journal unreadable.
        let remove = |file: &File| file.set_len(before).and_then(|()| file.sync_data());
        if self.has_remnant {
            if let Err(error) = remove(&self.file) {
                return Err(uncertain(self.path.clone(), error));
            }
            self.has_remnant = false;
        }
        if let Err(error) = self.file.write_all(&bytes).and_then(|()| self.file.sync_data()) {
            self.has_remnant = remove(&self.file).is_err();
            let path = self.path.clone();
            return Err(if self.has_remnant {
                uncertain(path, error)
            } else {
                Error::Journal { path, error }
            });
        }
        (self.records, self.histories) = (all, histories);
        Ok(())
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn records_are_read_back_and_a_torn_one_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert_eq!(Journal::read(&path).unwrap(), []);
        let mut journal = Journal::open(&path, "host-b").unwrap();
        journal.append(7, Entry::MayBeHandedOver).unwrap();
        assert_eq!(journal.open_question().unwrap().migration, 7);
        drop(journal);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[1; 100]).unwrap();
        let mut journal = Journal::open_existing(&path).unwrap();
        journal.append(7, Entry::Gone).unwrap();
        assert_eq!(journal.open_question(), None);
        let entries: Vec<_> = Journal::read(&path).unwrap().iter().filter_map(Record::entry).collect();
        assert_eq!(entries, [Entry::MayBeHandedOver, Entry::Gone]);
        assert_eq!(journal.histories()[0].peer, "host-b", "the name from the first entry");
    }

    #[test]
    fn a_partial_record_that_cannot_be_removed_is_removed_before_the_next_one_or_nothing_is_added() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, "host-b").unwrap();
        journal.append(7, Entry::MayBeHandedOver).unwrap();
        // A file that can neither be written nor truncated.
        let file = std::mem::replace(&mut journal.file, File::open(&path).unwrap());
        let uncertain = |result: Result<(), Error>| {
            assert!(matches!(result, Err(Error::JournalUncertain { entry: Entry::Gone, .. })), "{result:?}");
        };
        uncertain(journal.append(7, Entry::Gone));
        (&file).write_all(&[1; 100]).unwrap();
        uncertain(journal.append(7, Entry::Gone));
        journal.file = file;
        journal.append(7, Entry::Gone).unwrap();
        let entries: Vec<_> = Journal::read(&path).unwrap().iter().filter_map(Record::entry).collect();
        assert_eq!(entries, [Entry::MayBeHandedOver, Entry::Gone]);
    }

    #[test]
    fn it_is_for_its_owner_only_and_used_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let journal = Journal::open(&path, "host-b").unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Journal::open(&path, "host-b"), Err(Error::JournalInUse { .. })));
        drop(journal);
        Journal::open(&path, "host-b").unwrap();
        let missing = Journal::open_existing(folder.path().join("missing")).unwrap_err();
        assert!(missing.to_string().contains("missing: ENOENT: No such file"), "{missing}");
    }

    #[test]
    fn a_file_that_is_no_journal_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes");
        std::fs::write(&path, [7; 600]).unwrap();
        assert!(Journal::open(&path, "x").unwrap_err().to_string().contains("notes"));
        assert_eq!(std::fs::read(&path).unwrap(), [7; 600]);
        let full = Journal::open("/dev/full", "x").unwrap_err();
        assert!(full.to_string().contains("/dev/full: it is not a regular file"), "{full}");
    }

    #[test]
    fn a_long_name_of_a_peer_is_cut_at_a_character() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::open(&path, &"ä".repeat(200)).unwrap();
        journal.append(1, Entry::MayStart).unwrap();
        assert_eq!(journal.histories()[0].peer.chars().count(), Record::MAX_TEXT / 2);
    }
}
