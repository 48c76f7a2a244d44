//! The connection of a peer at a listener, with TLS or without.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::tls::WatchedTls;
use super::{Channel, Stream, TlsError, TlsStream};

/// A connection, and TLS on it if the listener has that.
#[derive(Debug)]
pub(super) struct VisitorStream {
    socket: Arc<Stream>,
    tls: Option<Arc<TlsStream>>,
}

impl VisitorStream {
    pub(super) fn new(socket: Stream, tls: Option<&WatchedTls>) -> Result<VisitorStream, TlsError> {
        let socket = Arc::new(socket);
        let tls = tls.map(|tls| tls.begin(socket.clone())).transpose()?.map(Arc::new);
        Ok(VisitorStream { socket, tls })
    }

    /// Returns the channel that frames are sent and received on.
    pub(super) fn channel(&self) -> Arc<dyn Channel> {
        match &self.tls {
            Some(tls) => tls.clone(),
            None => self.socket.clone(),
        }
    }

    pub(super) fn socket(&self) -> &Stream {
        &self.socket
    }

    /// Returns whether frames that are sent now are kept until TLS is agreed on.
    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.is_handshaking())
    }

    /// Returns whether TLS has failed, and has told the peer the reason.
    pub(super) fn has_failed(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_failed())
    }

    /// Returns whether bytes of TLS wait until the socket takes them.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Sends bytes of TLS that wait, as far as that is possible now. Returns whether none are left that can still be sent.
    pub(super) fn flush(&self) -> bool {
        let Some(tls) = &self.tls else { return true };
        let _ = tls.try_flush();
        !tls.wants_write()
    }

    /// Reads some bytes that are not wanted any more, and goes on with the handshake.
    pub(super) fn discard(&self, scrap: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            Some(tls) if !tls.has_failed() => tls.try_read(scrap),
            _ => self.socket.try_read(scrap),
        }
    }
}

impl AsFd for VisitorStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
