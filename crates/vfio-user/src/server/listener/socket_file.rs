//! A socket with a path that others connect to. This module does not know who they are.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};

/// Time that other processes may take to replace dead sockets in the same folder.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// Creates the socket. A socket left by a dead server is replaced, under a lock (`flock`) on its folder; any other file at
    /// the path is [`AddrInUse`](io::ErrorKind::AddrInUse).
    ///
    /// The file appears once the socket listens, so that a client that waits for the file can connect. Until then it has
    /// a name of its own in the same folder, which `ss` and `/proc/net/unix` go on to show. A path that leaves no room
    /// for such a name, in the 107 bytes of an address, appears a moment before.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref().to_path_buf();
        remove_dead(&path)?;
        let socket = match listen_beside(&path) {
            Some(Err(error)) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Some(Ok(socket)) => socket,
            // The folder's file system may have no hard links.
            Some(Err(_)) | None => {
                // Before it listens, it looks dead.
                let _lock = lock_folder(&path)?;
                listen_at(&path)?
            }
        };
        match fs::symlink_metadata(&path).and_then(|metadata| Ok((metadata, path.canonicalize()?))) {
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

/// Creates a socket that listens at a path. Its file is removed after an error.
fn listen_at(path: &Path) -> io::Result<OwnedFd> {
    // Another process may have the socket too, and accept who was seen here: that is not waited for.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before it listens, and then its mode is right.
    let made = fs::set_permissions(path, Permissions::from_mode(0o600));
    match made.and_then(|()| Ok(listen(&socket, 16)?)) {
        Ok(()) => Ok(socket),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Creates a socket under another name, and gives it the path once it listens. `None` if there is no room for a name.
///
/// A process that is killed in between leaves the other name behind, which the next process with its number replaces.
fn listen_beside(path: &Path) -> Option<io::Result<OwnedFd>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(format!(".{}-{number}", std::process::id()));
    let beside = path.with_file_name(name);
    SocketAddrUnix::new(&beside).ok()?;
    Some(remove_dead(&beside).and_then(|()| listen_at(&beside)).and_then(|socket| {
        // A link, because a file that has come to be at the path is not replaced by it.
        let linked = fs::hard_link(&beside, path);
        let removed = fs::remove_file(&beside);
        match linked.and(removed) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(rustix::io::Errno::ADDRINUSE.into())
            }
            done => done.map(|()| socket),
        }
    }))
}

/// Removes a socket without a listener.
fn remove_dead(path: &Path) -> io::Result<()> {
    if !is_dead(path)? {
        return Ok(());
    }
    let _lock = lock_folder(path)?;
    // Another server may have replaced it meanwhile.
    if is_dead(path)? { fs::remove_file(path) } else { Ok(()) }
}

/// Returns whether there is a socket without a listener; `false` without any file.
fn is_dead(path: &Path) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(rustix::io::Errno::ADDRINUSE.into()),
        Ok(_) => {}
    }
    match connect_now(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        _ => Err(rustix::io::Errno::ADDRINUSE.into()),
    }
}

/// Locks the folder of a path against other servers that would take a socket there for dead. `None` if it cannot be read or
/// its file system has no locks.
fn lock_folder(path: &Path) -> io::Result<Option<OwnedFd>> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = open(folder, flags, Mode::empty()) else { return Ok(None) };
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(folder)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let why = "another process keeps the folder of the socket locked (flock)";
                return Err(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return Ok(None),
        }
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

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn who_waits_for_the_file_is_never_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for _ in 0..200 {
            let waiting = std::thread::spawn({
                let path = path.clone();
                move || {
                    let deadline = Instant::now() + Duration::from_secs(20);
                    while !path.exists() {
                        assert!(Instant::now() < deadline, "no file");
                    }
                    UnixStream::connect(&path).map(drop)
                }
            });
            let listener = Listener::bind(&path).unwrap();
            waiting.join().unwrap().unwrap();
            assert_eq!(names(folder.path()), ["socket"]);
            assert_eq!(fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            drop(listener);
            assert!(names(folder.path()).is_empty());
        }
    }

    #[test]
    fn a_path_without_room_for_another_name_can_be_bound() {
        let folder = tempfile::tempdir().unwrap();
        let room = 107 - folder.path().as_os_str().len() - 1;
        let path = folder.path().join("s".repeat(room));
        let listener = Listener::bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn of_servers_that_come_at_once_one_gets_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        for _ in 0..50 {
            let bound = std::thread::scope(|scope| {
                let servers: Vec<_> = (0..4).map(|_| scope.spawn(|| Listener::bind(&path))).collect();
                servers.into_iter().map(|server| server.join().unwrap()).collect::<Vec<_>>()
            });
            let errors = bound.iter().filter_map(|bound| bound.as_ref().err());
            for error in errors {
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
            }
            assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
            assert!(bound.iter().flatten().all(Listener::has_file));
            assert_eq!(names(folder.path()), ["socket"]);
        }
    }

    #[test]
    fn of_servers_that_replace_a_dead_one_at_once_one_gets_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let start = Barrier::new(8);
        for _ in 0..500 {
            drop(UnixListener::bind(&path).unwrap());
            let bound = std::thread::scope(|scope| {
                let bind = || {
                    start.wait();
                    Listener::bind(&path)
                };
                let servers: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
                servers.into_iter().map(|server| server.join().unwrap()).collect::<Vec<_>>()
            });
            assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
            assert!(bound.iter().flatten().all(Listener::has_file));
            assert_eq!(names(folder.path()), ["socket"]);
        }
    }
}
