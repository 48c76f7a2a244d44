//! The data of a session: over its own channel if there is one, otherwise in messages of the command socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyBytes;
use whimbrel_uapi::migration::{PrecopyInfo, PrecopyInfoFlags};
use whimbrel_user::{Direction, Error, PrecopyReport, SessionState, StateFile};

use super::connection::Connection;
use super::data_size;
use super::state_channel::StateChannel;
use crate::extensions::MigrationExtensions;
use crate::message::{Command, Reply, Request};

/// Handle for the data file, which the server itself keeps: the device's last one.
pub(super) struct RemoteFile {
    connection: Arc<Mutex<Connection>>,
    channel: Option<StateChannel>,
    extensions: MigrationExtensions,
    direction: Direction,
    /// The device's last known state, for answers that the plain protocol does not have.
    state: SessionState,
    /// The number of sessions that had begun or were ended by a reset, with this one, and the current number.
    session: u64,
    sessions: Arc<AtomicU64>,
    failure: Option<Error>,
}

/// The transport of a session's data.
enum Way<'a> {
    Channel(&'a mut StateChannel),
    Commands(&'a mut Connection),
}

impl RemoteFile {
    /// Creates the file of the session that has just begun.
    pub(super) fn new(
        connection: Arc<Mutex<Connection>>,
        channel: Option<StateChannel>,
        extensions: MigrationExtensions,
        direction: Direction,
        state: SessionState,
        sessions: Arc<AtomicU64>,
    ) -> RemoteFile {
        let session = sessions.load(Ordering::Acquire);
        RemoteFile { connection, channel, extensions, direction, state, session, sessions, failure: None }
    }

    /// Sends a request if the session is still the device's last one.
    fn with<T>(&mut self, request: impl FnOnce(Way<'_>) -> Result<T, Error>) -> Result<T, Errno> {
        self.failure = None;
        let result = if let Some(channel) = &mut self.channel {
            check(&self.sessions, self.session)?;
            request(Way::Channel(channel))
        } else {
            let mut connection = self.connection.lock();
            check(&self.sessions, self.session)?;
            request(Way::Commands(&mut connection))
        };
        result.map_err(|error| {
            if let Err(errno) = check(&self.sessions, self.session) {
                return errno;
            }
            // Nothing interrupts a message, and a server that always said so would be asked forever.
            let errno = error.errno().filter(|errno| *errno != Errno::EINTR).unwrap_or(Errno::EIO);
            self.failure = Some(error);
            errno
        })
    }
}

/// Fails with ENODEV, as a file of the kernel, if the session has ended.
fn check(sessions: &AtomicU64, session: u64) -> Result<(), Errno> {
    if sessions.load(Ordering::Acquire) == session { Ok(()) } else { Err(Errno::ENODEV) }
}

impl StateFile for RemoteFile {
    /// Without the extension `read_end` an empty reply does not say which end it is: in a pre-copy state it is the
    /// temporary one, ENOMSG.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        // Before the read, which may take so long that another thread changes the state.
        let is_precopy = self.state.get().is_precopy();
        let wants_data = !buffer.is_empty();
        let result = self.with(|way| match way {
            Way::Channel(channel) => channel.read(buffer),
            Way::Commands(connection) => read(connection, buffer),
        });
        match result {
            Ok(0) if is_precopy && wants_data && !self.extensions.read_end => Err(Errno::ENOMSG),
            result => result,
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.with(|way| match way {
            Way::Channel(channel) => channel.write(data),
            Way::Commands(connection) => write(connection, data),
        })
    }

    /// Without the extension there is no such request. The total size of the state is an equivalent report: none of
    /// it is initial data, and all that remains may change. A server that does not support that either reports
    /// nothing. Errors are those of a kernel's file: ENOTTY on a resuming file, EINVAL outside of the pre-copy states.
    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        if !self.extensions.precopy_info {
            match self.direction {
                Direction::Resuming => return Err(Errno::ENOTTY),
                Direction::Saving if !self.state.get().is_precopy() => return Err(Errno::EINVAL),
                Direction::Saving => {}
            }
            let connection = self.connection.clone();
            let left = self.with(|way| {
                let data_size = match way {
                    // The channel does not know features.
                    Way::Channel(_) => data_size(&mut connection.lock()),
                    Way::Commands(connection) => data_size(connection),
                };
                match data_size {
                    Err(error) if matches!(error.errno(), Some(Errno::ENOTTY | Errno::EINVAL)) => Ok(0),
                    other => other,
                }
            })?;
            return Ok(PrecopyReport::new(0, left));
        }
        let info = self.with(|way| match way {
            Way::Channel(channel) => channel.precopy_info(),
            Way::Commands(connection) => precopy_info(connection),
        })?;
        let bytes = PrecopyBytes { initial: info.initial_bytes, dirty: info.dirty_bytes };
        let flags = PrecopyInfoFlags::from_bits_truncate(info.flags);
        Ok(PrecopyReport::from(bytes).reinit(flags.contains(PrecopyInfoFlags::REINIT)))
    }

    fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }
}

fn read(connection: &mut Connection, buffer: &mut [u8]) -> Result<usize, Error> {
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
        connection.invalid_reply(what(), format_args!("{count} bytes of data, requested {size}"))
    })
}

fn write(connection: &mut Connection, data: &[u8]) -> Result<usize, Error> {
    let data = &data[..data.len().min(connection.piece())];
    connection.ask(|| Command::MigDataWrite.to_string(), &Request::MigDataWrite { data }, &[])?;
    Ok(data.len())
}

fn precopy_info(connection: &mut Connection) -> Result<PrecopyInfo, Error> {
    let what = || Command::MigGetPrecopyInfo.to_string();
    let argsz = size_of::<PrecopyInfo>() as u32;
    let asked = PrecopyInfo { argsz, ..PrecopyInfo::default() };
    match connection.ask(what, &Request::MigGetPrecopyInfo(asked), &[])?.reply {
        Reply::MigGetPrecopyInfo(info) => Ok(info),
        _ => Err(connection.invalid_reply(what(), "not a pre-copy info")),
    }
}
