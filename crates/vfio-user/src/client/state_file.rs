//! The data of a session, in messages of the command socket.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_user::{Error, PrecopyReport, StateFile};

use super::connection::Connection;
use super::data_size;
use crate::message::{Command, Reply, Request};

/// What stands for the data file: the server keeps that itself, and it is the device's last one.
pub(super) struct RemoteFile {
    pub(super) connection: Arc<Mutex<Connection>>,
    pub(super) session: u64,
    pub(super) failure: Option<Error>,
}

impl RemoteFile {
    /// Makes a request if the session is still the device's last one.
    fn with<T>(&mut self, request: impl FnOnce(&mut Connection) -> Result<T, Error>) -> Result<T, Errno> {
        self.failure = None;
        let mut connection = self.connection.lock();
        if connection.sessions != self.session {
            // As a file of the kernel whose session has ended.
            return Err(Errno::ENODEV);
        }
        request(&mut connection).map_err(|error| {
            // Nothing interrupts a message, and a server that always said so would be asked for ever.
            let errno = error.errno().filter(|errno| *errno != Errno::EINTR).unwrap_or(Errno::EIO);
            self.failure = Some(error);
            errno
        })
    }
}

impl StateFile for RemoteFile {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.with(|connection| {
            let most = connection.agreed.max_data_xfer_size;
            let size = u32::try_from(buffer.len()).unwrap_or(u32::MAX).min(most);
            let what = || Command::MigDataRead.to_string();
            let answer = connection.ask(what, &Request::MigDataRead { size }, &[])?;
            let count = match answer.reply {
                Reply::MigDataRead { data } if data.len() <= size as usize => {
                    buffer[..data.len()].copy_from_slice(data);
                    Ok(data.len())
                }
                Reply::MigDataRead { data } => Err(data.len()),
                _ => Err(0),
            };
            count.map_err(|count| {
                connection.nonsense(what(), format_args!("{count} bytes came where {size} were asked for"))
            })
        })
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.with(|connection| {
            let most = connection.agreed.max_data_xfer_size as usize;
            let data = &data[..data.len().min(most)];
            connection.ask(|| Command::MigDataWrite.to_string(), &Request::MigDataWrite { data }, &[])?;
            Ok(data.len())
        })
    }

    /// The protocol has no such request. What the whole state would take now says as much: none of it is
    /// initial data, and all that is left may change. A server that does not know that either tells nothing.
    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        let left = self.with(|connection| match data_size(connection) {
            Err(error) if matches!(error.errno(), Some(Errno::ENOTTY | Errno::EINVAL)) => Ok(0),
            other => other,
        })?;
        Ok(PrecopyReport { bytes: PrecopyBytes { initial: 0, dirty: left }, reinit: false })
    }

    fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}
