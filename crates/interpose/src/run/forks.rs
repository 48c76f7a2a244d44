//! Keeps the forks of this process apart from memory files on their way to a program.
//!
//! A fork copies every descriptor, and the copy is closed only at exec. If the program closed its file before that, the last
//! close would be reported late, and what the program opens next could find its device busy. Other forks of the process that
//! serves programs are not seen here; they have the copy for a moment too.

use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static FORKS: RwLock<()> = RwLock::new(());

/// The longest that a start waits for files on their way: a program that is frozen takes none.
const PATIENCE: Duration = Duration::from_secs(1);

/// Begins to pass a file to a program.
pub(super) fn passing_file() -> RwLockReadGuard<'static, ()> {
    FORKS.read()
}

/// Begins a fork, which ends with exec.
pub(super) fn forking() -> Option<RwLockWriteGuard<'static, ()>> {
    FORKS.try_write_for(PATIENCE)
}
