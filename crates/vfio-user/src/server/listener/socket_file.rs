//! A socket with a name, at which others connect: who they are is not known here.

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

/// A socket at a path, for a [`Server`](super::Server) that is yet to be made: a program that confines itself makes its socket
/// before, and opens the device after. Clients that come in between wait.
///
/// The socket can be connected to by the user that made it alone (mode 0600), and goes away with this.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// The path from the root.
    #[cfg_attr(not(feature = "takeover"), allow(dead_code, reason = "for another process"))]
    absolute: PathBuf,
    /// Device and inode of the socket, so that another one at the path is left alone.
    identity: (u64, u64),
    /// Another process has it.
    is_anothers: AtomicBool,
}

impl Listener {
    /// Makes the socket. One that a dead server has left at the path is replaced; anything else there is
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

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// One that another process has made.
    #[cfg(feature = "takeover")]
    pub(crate) fn taken(socket: UnixListener, path: PathBuf, identity: (u64, u64)) -> Listener {
        let absolute = path.clone();
        Listener { socket, path, absolute, identity, is_anothers: AtomicBool::new(false) }
    }

    /// The path from the root, by which another process finds it too.
    #[cfg(feature = "takeover")]
    pub(crate) fn absolute(&self) -> &Path {
        &self.absolute
    }

    /// Device and inode of its file.
    #[cfg(feature = "takeover")]
    pub(crate) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Its file is left to another process from here on.
    #[cfg(feature = "takeover")]
    pub(crate) fn leave_file(&self) {
        self.is_anothers.store(true, Ordering::Relaxed);
    }

    /// Whether whoever connects at the path comes here.
    pub(super) fn has_file(&self) -> bool {
        has_identity(&self.path, self.identity)
    }

    /// Whether whoever connects at the path is known to come elsewhere. A confined process may not look, and does not know.
    #[cfg(feature = "takeover")]
    pub(crate) fn has_lost_file(&self) -> bool {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => !is_socket_of(&metadata, self.identity),
            Err(error) => error.kind() != io::ErrorKind::PermissionDenied,
        }
    }

    /// Who has connected; `None` if another process was faster.
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

/// Removes a socket that nobody listens to.
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

/// Whether a path leads to the socket of this device and inode.
pub(crate) fn has_identity(path: &Path, identity: (u64, u64)) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| is_socket_of(&metadata, identity))
}

fn is_socket_of(metadata: &fs::Metadata, identity: (u64, u64)) -> bool {
    metadata.file_type().is_socket() && (metadata.dev(), metadata.ino()) == identity
}

/// Connects without waiting: [`io::ErrorKind::WouldBlock`] if others wait to be accepted, as many as can.
pub(crate) fn connect_now(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
