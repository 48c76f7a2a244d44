//! A stream socket with TLS as a channel.

use std::fmt;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::{Connection, Error as Rustls, ServerConfig, ServerConnection};
use zerocopy::IntoBytes;

use super::error::TlsError;
use crate::channel::{Channel, Readiness, Stream, Until};
use crate::proto::frame::Preamble;

/// A connection with TLS 1.3 whose two sides have checked each other's certificates. [`Tls`](super::Tls) makes it.
pub struct TlsStream {
    socket: Arc<Stream>,
    session: Mutex<Session>,
}

/// The two directions: TLS answers on its own, so that neither can be handled without the other.
struct Session {
    connection: Connection,
    /// Set after an error of TLS: nothing can be sent or received any more.
    has_failed: bool,
    /// Set after a write has failed: what is encrypted cannot be sent any more.
    cannot_send: bool,
    /// The first bytes of the peer, as they came.
    head: Vec<u8>,
}

/// The first bytes to keep: those by which a peer without TLS is recognised.
const HEAD: usize = 8;
/// The bytes that are encrypted before they have to be sent.
const UNSENT: usize = 256 << 10;
/// The number of pieces of TLS to take in without data among them, before others get their turn.
const WITHOUT_DATA: u32 = 16;
/// The maximum of a record that may have arrived in part, in bytes: what is expected on the socket is less by this much.
const RECORD: usize = 18 << 10;

impl TlsStream {
    pub(super) fn new(socket: Arc<Stream>, mut connection: Connection) -> TlsStream {
        connection.set_buffer_limit(Some(UNSENT));
        let session = Session { connection, has_failed: false, cannot_send: false, head: Vec::new() };
        TlsStream { socket, session: Mutex::new(session) }
    }

    /// Begins as a server.
    pub(super) fn server(socket: Arc<Stream>, config: &Arc<ServerConfig>) -> Result<TlsStream, TlsError> {
        let connection =
            ServerConnection::new(config.clone()).map_err(|error| TlsError::of_connection(&error))?;
        Ok(TlsStream::new(socket, connection.into()))
    }

    /// Waits until both sides have agreed. As a client this is before the peer has checked this side's certificate.
    pub(super) fn handshake(&self, until: Until<'_>) -> Result<(), TlsError> {
        loop {
            let step = self.session.lock().shake_hands(&self.socket);
            let readiness = match step {
                Ok(None) => return Ok(()),
                Ok(Some(readiness)) => readiness,
                Err(error) => return Err(handshake_error(error)),
            };
            until.wait(self.socket.readiness_fd(), readiness).map_err(TlsError::Wait)?;
        }
    }

    /// Returns whether the two sides have yet to agree. What is written before that is kept until then.
    pub(in crate::channel) fn is_handshaking(&self) -> bool {
        let session = self.session.lock();
        !session.has_failed && session.connection.is_handshaking()
    }

    /// Returns whether an error has ended TLS. An alert that tells the peer the reason may be on its way.
    pub(in crate::channel) fn has_failed(&self) -> bool {
        self.session.lock().has_failed
    }

    /// Returns whether bytes of TLS wait until the socket takes them. A read sends them as well.
    pub(in crate::channel) fn wants_write(&self) -> bool {
        self.session.lock().wants_write()
    }
}

impl Session {
    /// Goes on as far as that needs no wait, and returns what to wait for; `None` once both sides have agreed.
    fn shake_hands(&mut self, socket: &Stream) -> io::Result<Option<Readiness>> {
        loop {
            if would_block(self.flush(socket))? {
                return Ok(Some(Readiness::Writable));
            }
            if !self.connection.is_handshaking() {
                return Ok(None);
            }
            match self.take_in(socket) {
                Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Readiness::Readable));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads some bytes of TLS, and answers what has to be answered. 0 at the end of the stream.
    fn take_in(&mut self, socket: &Stream) -> io::Result<usize> {
        let count = self.connection.read_tls(&mut Incoming { socket, head: &mut self.head })?;
        let processed = self.connection.process_new_packets();
        self.has_failed = processed.is_err();
        // Also the alert that tells the peer what is wrong. The next write finds out that the peer has gone: what it said
        // before that is read.
        let _ = self.flush(socket);
        processed.map_err(|error| match error {
            Rustls::InvalidMessage(_) if is_a_stream(&self.head) => TlsError::Plain,
            error => TlsError::of_connection(&error),
        })?;
        Ok(count)
    }

    /// Returns whether encrypted bytes are left that can still be sent.
    fn wants_write(&self) -> bool {
        !self.cannot_send && self.connection.wants_write()
    }

    /// Sends what is encrypted.
    fn flush(&mut self, socket: &Stream) -> io::Result<()> {
        while self.connection.wants_write() {
            let error = match self.connection.write_tls(&mut Outgoing(socket)) {
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(_) => continue,
                Err(error) => error,
            };
            self.cannot_send = error.kind() != io::ErrorKind::WouldBlock;
            return Err(error);
        }
        Ok(())
    }
}

/// Returns whether the first bytes of a peer are those of a stream without TLS.
fn is_a_stream(head: &[u8]) -> bool {
    head.len() >= HEAD / 2 && Preamble::CURRENT.as_bytes().starts_with(head)
}

/// Returns whether a call would have had to wait.
fn would_block(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}

fn handshake_error(error: io::Error) -> TlsError {
    match error.downcast::<TlsError>() {
        Ok(error) => error,
        Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
            TlsError::Foreign("the peer closed the connection during the handshake of TLS".into())
        }
        Err(error) => TlsError::Failed(error),
    }
}

impl Channel for TlsStream {
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut session = self.session.lock();
        if session.has_failed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        if session.wants_write() {
            // The peer may have to read it before it sends more. The next write finds out that the peer has gone.
            let _ = session.flush(&self.socket);
        }
        for _ in 0..WITHOUT_DATA {
            match session.connection.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The connection has ended, and the peer did not say so within TLS.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                result => return result,
            }
            session.take_in(&self.socket)?;
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn try_write(&self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut session = self.session.lock();
        if session.has_failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        session.flush(&self.socket)?;
        let count = session.connection.writer().write_vectored(data)?;
        would_block(session.flush(&self.socket))?;
        Ok(count)
    }

    fn try_flush(&self) -> io::Result<()> {
        self.session.lock().flush(&self.socket)
    }

    fn readiness_fd(&self) -> BorrowedFd<'_> {
        self.socket.readiness_fd()
    }

    fn expect(&self, bytes: usize) {
        self.socket.expect(bytes.saturating_sub(RECORD).max(1));
    }

    fn peer_identity(&self) -> Option<Vec<u8>> {
        let session = self.session.lock();
        session.connection.peer_certificates()?.first().map(|certificate| certificate.to_vec())
    }

    fn shutdown_write(&self) -> io::Result<()> {
        let mut session = self.session.lock();
        session.connection.send_close_notify();
        // A peer that does not read finds the end of the connection instead.
        let _ = session.flush(&self.socket);
        self.socket.shutdown_write()
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl AsFd for TlsStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The socket as rustls reads it.
struct Incoming<'a> {
    socket: &'a Stream,
    head: &'a mut Vec<u8>,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.socket.try_read(buffer)?;
        let missing = HEAD.saturating_sub(self.head.len());
        self.head.extend_from_slice(&buffer[..count.min(missing)]);
        Ok(count)
    }
}

/// The socket as rustls writes it.
struct Outgoing<'a>(&'a Stream);

impl Write for Outgoing<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.try_write(&[IoSlice::new(data)])
    }

    fn write_vectored(&mut self, data: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
