//! The end of a connection, and the errors of requests.

use std::io;
use std::sync::atomic::Ordering;

use whimbrel_protocol::Errno;
use whimbrel_user::{Error, Result};

use super::{Command, Connection, Failed, timed_out};
use crate::client::deviations::Deviation;
use crate::client::reconnect::Migration;
use crate::socket::SocketError;

impl Connection {
    /// Returns whether no more requests are possible.
    pub(in crate::client) fn is_over(&self) -> bool {
        self.is_over
    }

    pub(in crate::client) fn refused(&self, what: impl ToString, errno: Errno) -> Error {
        Error::request(&self.name, what.to_string(), errno)
    }

    /// Returns the error for an invalid answer.
    pub(in crate::client) fn invalid_reply(&self, what: impl ToString, why: impl ToString) -> Error {
        Error::answer(&self.name, what.to_string(), why)
    }

    /// Ends the data session: its file fails from now on.
    pub(in crate::client) fn end_sessions(&self) {
        self.sessions.fetch_add(1, Ordering::AcqRel);
    }

    /// Returns whether the server is gone and the client waits for the next one, so that a change of the memory takes
    /// effect without a message.
    pub(in crate::client) fn is_away(&self) -> bool {
        self.is_over && self.presence.as_ref().is_some_and(|presence| presence.is_reconnecting())
    }

    /// Fails if the connection is over.
    pub(super) fn check(&self, what: impl Fn() -> String) -> Result<()> {
        if !self.is_over {
            return Ok(());
        }
        if let Some(presence) = &self.presence {
            return Err(presence.refusal(&self.name, what()));
        }
        let why = format!("{}: the connection to the server is closed; connect again", what());
        Err(Error::unusable(&self.name, why))
    }

    /// Fails if a migration was lost with its server: the device is in STOP then, until its owner resets it.
    pub(in crate::client) fn check_migration(&self, what: &str) -> Result<()> {
        if self.kept.as_ref().is_none_or(|kept| kept.migration != Migration::Lost) {
            return Ok(());
        }
        let why = format!(
            "{what}: the server crashed during a migration, and the device has lost its state; reset the device"
        );
        Err(Error::unusable(&self.name, why))
    }

    /// Returns the error for a failed request; `unnamed` is the errno to assume if the server gives none.
    pub(super) fn refusal(&self, what: String, command: Command, errno: u32, unnamed: Errno) -> Error {
        match (errno, Errno::try_from(errno)) {
            (0, _) => {
                self.deviations.tolerate(Deviation::NoErrno, command);
                self.refused(what, unnamed)
            }
            (_, Ok(errno)) => self.refused(what, errno),
            _ => self.invalid_reply(what, format_args!("error with invalid errno {errno}")),
        }
    }

    /// Ends the connection after an invalid reply, and returns the error.
    pub(super) fn failed(&mut self, what: String, failed: Failed) -> Error {
        match failed {
            Failed::Socket(error) => self.over(what, error),
            Failed::Other(why) => {
                self.close();
                self.invalid_reply(what, why)
            }
        }
    }

    /// Ends the connection, and returns the error.
    fn over(&mut self, what: String, error: SocketError) -> Error {
        self.close();
        match error {
            SocketError::HungUp { .. } if self.presence.is_some() => {
                let what = format!("{what}: the server closed the connection, and the outcome is unknown");
                self.refused(what, Errno::ECONNRESET)
            }
            SocketError::HungUp { .. } => self.refused(what, Errno::ECONNRESET),
            SocketError::System(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if self.limit.is_some() => {
                    self.refused(format!("{what}: no reply before the deadline"), Errno::ETIMEDOUT)
                }
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    timed_out(&self.name, what, self.request_timeout)
                }
                _ => self.refused(what, Errno::from_io_error(&error).unwrap_or(Errno::ECONNRESET)),
            },
            SocketError::Frame(error) => self.invalid_reply(what, error),
        }
    }

    pub(in crate::client) fn close(&mut self) {
        if let Some(presence) = &self.presence
            && !self.is_over
        {
            presence.lost();
        }
        self.is_over = true;
        self.sender.shutdown();
        if let Some(twin) = &self.twin {
            twin.shutdown();
        }
    }
}

/// The threads of the connection see the end of their sockets, and end.
impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}
