//! The data file of a migration session: reads, writes, and the calls that it refuses.

use std::fmt;
use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_protocol::session::Direction;

use super::device::Shared;

/// The data file of a session. It stays open after the session has ended, and then fails with ENODEV.
pub struct DataFile {
    shared: Arc<Shared>,
    session: u64,
    direction: Direction,
}

impl DataFile {
    pub(crate) fn new(shared: Arc<Shared>, session: u64, direction: Direction) -> DataFile {
        DataFile { shared, session, direction }
    }

    /// The direction of the data.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// Returns whether the session is over: an arc or a reset has ended it, or the next one has begun.
    pub fn is_over(&self) -> bool {
        self.shared.session_is_over(self.session)
    }

    /// Reads the next bytes of the device's state.
    ///
    /// 0 is the end in STOP_COPY; ENOMSG is the temporary end in PRE_COPY and PRE_COPY_P2P. EBADF on a resuming file,
    /// ENODEV once the session is over.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        if self.direction != Direction::Saving {
            return Err(Errno::EBADF);
        }
        self.shared.read_state(self.session, buffer)
    }

    /// Writes the next bytes of a state to load, and returns the number accepted.
    ///
    /// EBADF on a saving file, ENODEV once the session is over.
    pub fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        if self.direction != Direction::Resuming {
            return Err(Errno::EBADF);
        }
        self.shared.write_state(self.session, data)
    }

    /// Returns the number of bytes that can be read now.
    ///
    /// ENOTTY on a resuming file, EINVAL outside PRE_COPY and PRE_COPY_P2P, then ENODEV if the session is over.
    pub fn precopy_info(&self) -> Result<PrecopyReport, Errno> {
        if self.direction != Direction::Saving {
            return Err(Errno::ENOTTY);
        }
        self.shared.precopy(self.session)
    }

    /// Returns the name of the device.
    pub(crate) fn device_name(&self) -> &str {
        self.shared.name()
    }

    /// Returns whether the device's user has opted into REINIT.
    pub(crate) fn reports_reinit(&self) -> bool {
        self.shared.precopy_info_v2()
    }

    /// Returns the errno of lseek, pread and pwrite: ESPIPE, because the file is a stream.
    pub const fn seek(&self) -> Errno {
        Errno::ESPIPE
    }

    /// Returns the errno of mmap: ENODEV.
    pub const fn mmap(&self) -> Errno {
        Errno::ENODEV
    }
}

impl fmt::Debug for DataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataFile")
            .field("device", &self.shared.name())
            .field("session", &self.session)
            .field("direction", &self.direction)
            .finish()
    }
}
