//! A listening socket, and the file of a Unix socket.

use std::fs::{self, Permissions};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

use super::{Address, Stream};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A non-blocking listening socket.
#[derive(Debug)]
pub(super) struct Bound {
    socket: OwnedFd,
    address: Address,
    #[expect(dead_code, reason = "removes the file when dropped")]
    file: Option<SocketFile>,
}

/// The file of a Unix socket. It is removed with the socket, unless another socket has replaced it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Bound {
    pub(super) fn new(address: &Address) -> io::Result<Bound> {
        match address {
            Address::Tcp(text) => {
                let socket = TcpListener::bind(text)?;
                socket.set_nonblocking(true)?;
                let address = Address::Tcp(socket.local_addr()?.to_string());
                Ok(Bound { socket: socket.into(), address, file: None })
            }
            Address::Unix(path) => {
                remove_dead(path)?;
                let socket = unix_socket()?;
                bind(&socket, &SocketAddrUnix::new(path)?)?;
                let file = SocketFile::at(path)?;
                // No peer can connect before it listens, and then its mode is right.
                fs::set_permissions(path, Permissions::from_mode(0o600))?;
                listen(&socket, BACKLOG)?;
                Ok(Bound { socket, address: address.clone(), file: Some(file) })
            }
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Accepts a pending connection, or returns [`Errno::AGAIN`].
    pub(super) fn accept(&self) -> Result<Stream, Errno> {
        let socket = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        // The peer has already closed the connection.
        Stream::try_from(socket).map_err(|_| Errno::CONNABORTED)
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl SocketFile {
    /// Returns the file of the socket just created at `path`. Removes it if it cannot be identified.
    fn at(path: &Path) -> io::Result<SocketFile> {
        let found = path.canonicalize().and_then(|absolute| {
            let metadata = fs::symlink_metadata(&absolute)?;
            Ok(SocketFile { path: absolute, device: metadata.dev(), inode: metadata.ino() })
        });
        found.inspect_err(|_| {
            let _ = fs::remove_file(path);
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == (self.device, self.inode));
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket file without a listener. Any other file at the path is EADDRINUSE.
fn remove_dead(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(Errno::ADDRINUSE.into()),
        Ok(_) => {}
    }
    match connect(&unix_socket()?, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        _ => Err(Errno::ADDRINUSE.into()),
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}
