//! A socket with a path that others connect to. This module does not know who they are.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// A socket at a path, for a later [`Server`](crate::Server): a program that confines itself creates the socket
/// before, and opens the device after. Clients that connect in between wait.
///
/// Only the user that created the socket can connect to it (mode 0600); the socket is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// The absolute path.
    #[cfg_attr(not(feature = "takeover"), allow(dead_code, reason = "for another process"))]
    absolute: PathBuf,
    /// Device and inode of the socket, so that a different file at the path is not removed.
    identity: (u64, u64),
    /// True if another process has the socket.
    is_anothers: AtomicBool,
}

impl Listener {
    /// Creates the socket. A socket left by a dead server is replaced; any other file at the path is
    /// [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref().to_path_buf();
        remove_dead(&path)?;
        // Another process may have the socket too, and accept who was seen here: that is not waited for.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        // Nobody can connect before it listens, and then its mode is right.
        let made = fs::set_permissions(&path, Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&socket, 16)?))
            .and_then(|()| Ok((fs::symlink_metadata(&path)?, path.canonicalize()?)));
        match made {
            Ok((metadata, absolute)) => {
                let identity = (metadata.dev(), metadata.ino());
                let (socket, is_anothers) = (UnixListener::from(socket), AtomicBool::new(false));
                Ok(Listener { socket, path, absolute, identity, is_anothers })
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adopts a socket that another process has created.
    #[cfg(feature = "takeover")]
    pub(crate) fn taken(socket: UnixListener, path: PathBuf, identity: (u64, u64)) -> Listener {
        let absolute = path.clone();
        Listener { socket, path, absolute, identity, is_anothers: AtomicBool::new(false) }
    }

    /// Returns the absolute path, by which another process finds the socket too.
    #[cfg(feature = "takeover")]
    pub(crate) fn absolute(&self) -> &Path {
        &self.absolute
    }

    /// Returns device and inode of the socket's file.
    #[cfg(feature = "takeover")]
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Leaves the file to another process from now on.
    #[cfg(feature = "takeover")]
    pub(crate) fn leave_file(&self) {
        self.is_anothers.store(true, Ordering::Relaxed);
    }

    /// Returns whether connections to the path arrive here.
    pub(super) fn has_file(&self) -> bool {
        has_identity(&self.path, self.identity)
    }

    /// Returns whether connections to the path are known to arrive elsewhere. A confined process may not look, and
    /// does not know.
    #[cfg(feature = "takeover")]
    pub(crate) fn has_lost_file(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => !is_socket_of(&metadata, self.identity),
            Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
        }
    }

    /// Accepts a connection; `None` if another process was faster.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if !self.is_anothers.load(Ordering::Relaxed) && self.has_file() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket without a listener.
fn remove_dead(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(rustix::io::Errno::ADDRINUSE.into()),
        Ok(_) => {}
    }
    match connect_now(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(rustix::io::Errno::ADDRINUSE.into()),
    }
}

/// Returns whether a path refers to the socket with this device and inode.
pub(crate) fn has_identity(path: &Path, identity: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| is_socket_of(&metadata, identity))
}

fn is_socket_of(metadata: &fs::Metadata, identity: (u64, u64)) -> bool {
    metadata.file_type().is_socket() && (metadata.dev(), metadata.ino()) == identity
}

/// Connects without waiting: [`io::ErrorKind::WouldBlock`] if the queue of connections is full.
pub(crate) fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
