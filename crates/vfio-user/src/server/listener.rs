//! The socket that clients connect to.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::{Backend, ServeError, turn_away};

/// A device at a path. The socket can be connected to by the user that made it alone (mode 0600), and goes
/// away with this.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, Server};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("accel");
/// let model = "accel?state=1MiB".parse::<Model>()?.open("accel 0")?;
/// let server = Server::bind(&path, Backend::new(model.device))?;
/// let stopper = server.stopper();
/// let serving = std::thread::spawn(move || server.run());
///
/// drop(UnixStream::connect(&path)?);
/// stopper.stop();
/// serving.join().expect("it does not panic")?;
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Server {
    backend: Backend,
    listener: Listener,
    stop: Arc<OwnedFd>,
}

/// A socket at a path, for a [`Server`] that is yet to be made: a program that confines itself makes its socket
/// before, and opens the device after. Clients that come in between wait.
///
/// The socket can be connected to by the user that made it alone (mode 0600), and goes away with this.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket, so that another one at the path is left alone.
    identity: (u64, u64),
}

/// Ends [`Server::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

/// The client that is served.
struct Current {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

impl Listener {
    /// Makes the socket. One that a dead server has left at the path is replaced; anything else there is
    /// [`AddrInUse`](io::ErrorKind::AddrInUse).
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Listener> {
        let path = path.as_ref().to_path_buf();
        remove_dead(&path)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        // Nobody can connect before it listens, and then its mode is right.
        let made = fs::set_permissions(&path, Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&socket, 16)?))
            .and_then(|()| fs::symlink_metadata(&path));
        match made {
            Ok(metadata) => {
                let identity = (metadata.dev(), metadata.ino());
                Ok(Listener { socket: UnixListener::from(socket), path, identity })
            }
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }
}

impl Server {
    /// Makes the socket as [`Listener::bind`], and serves there.
    pub fn bind(path: impl AsRef<Path>, backend: Backend) -> io::Result<Server> {
        Server::new(Listener::bind(path)?, backend)
    }

    /// Serves at a socket that there is.
    pub fn new(listener: Listener, backend: Backend) -> io::Result<Server> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        Ok(Server { backend, listener, stop })
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.listener.path
    }

    /// What ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves one client after the other until it is stopped, and says how many there were.
    ///
    /// A client that comes while another is served is told so. What goes wrong with a client is traced and
    /// ends only the connection with it.
    pub fn run(&self) -> io::Result<u64> {
        let mut current: Option<Current> = None;
        let mut served = 0;
        let result = loop {
            let mut asked =
                [PollFd::new(&self.listener.socket, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
            match poll(&mut asked, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => break Err(error.into()),
                Ok(_) if !asked[1].revents().is_empty() => break Ok(served),
                Ok(_) => {}
            }
            let stream = match self.listener.socket.accept() {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most likely there are no descriptors left for now, and the client waits.
                    tracing::warn!(path = %self.path().display(), %error, "a client cannot be accepted");
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    continue;
                }
            };
            if current.as_ref().is_some_and(|current| !current.has_left()) {
                tracing::info!(path = %self.path().display(), "a second client is turned away");
                turn_away(&stream);
                continue;
            }
            if let Some(left) = current.take() {
                left.join();
            }
            match self.start(stream) {
                Ok(client) => {
                    served += 1;
                    current = Some(client);
                }
                Err(error) => tracing::warn!(%error, "no thread for a client"),
            }
        };
        if let Some(current) = current {
            let _ = current.stream.shutdown(std::net::Shutdown::Both);
            current.join();
        }
        result
    }

    fn start(&self, stream: UnixStream) -> io::Result<Current> {
        let backend = self.backend.clone();
        let handle = stream.try_clone()?;
        let name = format!("vfio-user {}", backend.device().name());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let device = backend.device().name().to_owned();
            tracing::info!(device, "a client has come");
            match backend.serve(stream) {
                Ok(()) => tracing::info!(device, "the client has left"),
                Err(error @ ServeError::Socket(_)) => {
                    tracing::info!(device, %error, "the connection with the client is over");
                }
                Err(error) => tracing::warn!(device, %error, "the client is not served"),
            }
        })?;
        Ok(Current { stream: handle, thread })
    }
}

impl Stopper {
    /// Ends the server, which ends its connection.
    pub fn stop(&self) {
        // Only a counter that is full already refuses, which says the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl Current {
    /// Whether it has hung up, or its connection is over. Its thread ends soon then, if it has not.
    fn has_left(&self) -> bool {
        let mut asked = [PollFd::new(&self.stream, PollFlags::RDHUP)];
        let left = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        self.thread.is_finished()
            || (poll(&mut asked, Some(&Timespec::default())).is_ok() && asked[0].revents().intersects(left))
    }

    fn join(self) {
        // A driver that panicked has said so on stderr, and the next client may find that it works.
        let _ = self.thread.join();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let is_ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
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
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        _ => Err(rustix::io::Errno::ADDRINUSE.into()),
    }
}
