//! The owner's lock on an image: at most one running device writes to it.
//!
//! It is flock(2), exclusive, or shared between devices that only read. It belongs to the open file, so that it ends when
//! the process dies in whatever way. NFS (Linux 2.6.12 and later), SMB (5.5 and later), Ceph, GFS2 and OCFS2 bring it to
//! all hosts that lock the same file, if they are mounted with locks; NFS needs the image open for writing, as it is.
//! A lock on a block device, or on a file system that is mounted with local locks, holds on one host only: there the
//! operator fences.

use std::fs::TryLockError;

use rustix::fs::{Advice, fadvise};
use whimbrel_device::Errno;

use super::ImageFile;

/// The lock of one device.
#[derive(Debug, Default)]
pub(super) struct OwnerLock {
    is_held: bool,
}

impl OwnerLock {
    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Takes the lock, unless it is held. EBUSY if another device has it.
    pub(super) fn take(&mut self, image: &ImageFile) -> Result<(), Errno> {
        if self.is_held {
            return Ok(());
        }
        let file = image.file();
        let taken = if image.is_read_only() { file.try_lock_shared() } else { file.try_lock() };
        taken.map_err(|error| match error {
            TryLockError::WouldBlock => Errno::EBUSY,
            TryLockError::Error(error) => {
                tracing::warn!(%error, "cannot lock the image");
                Errno::from_io_error(&error).unwrap_or(Errno::EIO)
            }
        })?;
        if image.is_block_device() {
            // Another host may have written since this one has read.
            if let Err(error) = fadvise(file, 0, None, Advice::DontNeed) {
                tracing::warn!(%error, "cannot drop the image's pages from the cache: they may be older than the disk");
            }
        }
        self.is_held = true;
        Ok(())
    }

    /// Releases the lock, if it is held.
    pub(super) fn release(&mut self, image: &ImageFile) {
        if std::mem::take(&mut self.is_held)
            && let Err(error) = image.file().unlock()
        {
            tracing::error!(%error, "cannot unlock the image: no other device can use it until this process exits");
        }
    }
}
