//! The socket that clients connect to.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use whimbrel_device::Errno;

use super::rest::{LOOK, Rest};
use super::takeover::{self, Description, Given, Kept, LinkError, Takeover, TakeoverError};
use super::{Backend, ServeError, Serving, Turn, first_header, turn_away};

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
    /// What a server that takes over is told of the device; not of one whose migration makes no sense.
    description: Option<Description>,
    /// A client that was taken over, and is served first.
    taken: Mutex<Option<Serving>>,
}

/// How [`Server::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// How many clients there were.
    pub clients: u64,
    /// Another process serves the device from here on, and has the socket and the client.
    pub taken_over: bool,
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
    /// Another process has it.
    is_anothers: AtomicBool,
}

/// Ends [`Server::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

/// The client that is served.
struct Current {
    stream: UnixStream,
    thread: JoinHandle<()>,
    rest: Arc<Rest>,
    /// Where the thread gives back the client when it rests.
    rested: mpsc::Receiver<Serving>,
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
                let (socket, is_anothers) = (UnixListener::from(socket), AtomicBool::new(false));
                Ok(Listener { socket, path, identity, is_anothers })
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
    pub(super) fn taken(socket: UnixListener, path: PathBuf, identity: (u64, u64)) -> Listener {
        Listener { socket, path, identity, is_anothers: AtomicBool::new(false) }
    }
}

impl Server {
    /// Makes the socket as [`Listener::bind`], and serves there.
    pub fn bind(path: impl AsRef<Path>, backend: Backend) -> io::Result<Server> {
        Server::new(Listener::bind(path)?, backend)
    }

    /// Serves at a socket that there is.
    pub fn new(listener: Listener, backend: Backend) -> io::Result<Server> {
        let stop = Stopper::new()?.0;
        // Before a client can have changed anything.
        let description = Description::of(backend.device()).inspect_err(|error| {
            tracing::debug!(%error, "the device cannot be taken over");
        });
        Ok(Server { backend, listener, stop, description: description.ok(), taken: Mutex::new(None) })
    }

    /// Takes over from the server at a path, which is in another process: its device's state goes to that of
    /// `backend`, and its client and its socket come here. The client waits until [`Server::run`] is called. See
    /// [`Takeover`] for both in two steps, with an example.
    pub fn take_over(path: impl AsRef<Path>, backend: Backend) -> Result<Server, TakeoverError> {
        Takeover::connect(path)?.finish(backend)
    }

    pub(super) fn taken(
        listener: Listener,
        backend: Backend,
        description: Description,
        serving: Option<Serving>,
        stopper: Stopper,
    ) -> Server {
        let stop = stopper.0;
        Server { backend, listener, stop, description: Some(description), taken: Mutex::new(serving) }
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        &self.listener.path
    }

    /// What ends [`Server::run`].
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves one client after the other until it is stopped, or another process takes over.
    ///
    /// A client that comes while another is served is told so. What goes wrong with a client is traced and
    /// ends only the connection with it.
    ///
    /// A process that comes to take over is handed the device, the client and the socket; if that fails, all goes
    /// on as before. It is an error if the device may run in the other process, but nobody can say whether it does:
    /// it does not run here then.
    pub fn run(&self) -> io::Result<Served> {
        let mut current = match self.taken.lock().take() {
            Some(serving) => Some(self.spawn(serving)?),
            None => None,
        };
        let mut clients = u64::from(current.is_some());
        let result = loop {
            let mut asked =
                [PollFd::new(&self.listener.socket, PollFlags::IN), PollFd::new(&*self.stop, PollFlags::IN)];
            match poll(&mut asked, None) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => break Err(error.into()),
                Ok(_) if !asked[1].revents().is_empty() => break Ok(Served { clients, taken_over: false }),
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
            let first = first_header(&stream);
            if first.is_some_and(|(_, command)| command == takeover::COMMAND) {
                match self.give(stream, &mut current) {
                    Ok(Some(Given { outcome_unknown: None })) => {
                        break Ok(Served { clients, taken_over: true });
                    }
                    Ok(Some(Given { outcome_unknown: Some(why) })) => {
                        break Err(io::Error::other(OutcomeUnknown(why)));
                    }
                    Ok(None) => continue,
                    Err(error) => break Err(error),
                }
            }
            if current.as_ref().is_some_and(|current| !current.has_left()) {
                tracing::info!(path = %self.path().display(), "a second client is turned away");
                turn_away(&stream, first.map_or(0, |(id, _)| id));
                continue;
            }
            if let Some(left) = current.take() {
                left.join();
            }
            match self.start(stream, first.map_or(0, |(id, _)| id)) {
                Ok(Some(client)) => {
                    clients += 1;
                    current = Some(client);
                }
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "no thread for a client"),
            }
        };
        if let Some(current) = current {
            let _ = current.stream.shutdown(std::net::Shutdown::Both);
            current.join();
        }
        result
    }

    /// Hands over to another process. `None` if it comes to nothing, and then all is as before.
    fn give(&self, stream: UnixStream, current: &mut Option<Current>) -> io::Result<Option<Given>> {
        let path = self.path().display();
        let given = match &self.description {
            Some(description) => takeover::begin(stream, &self.backend, description, self.listener.identity),
            None => Err(Kept::refused(Errno::ENOTTY, "the device's migration makes no sense")),
        };
        let giving = match given {
            Ok(giving) => giving,
            Err(kept) => {
                tracing::warn!(%path, "the device stays here: {kept}");
                return Ok(None);
            }
        };
        let mut serving = match rest(current) {
            Ok(serving) => serving,
            Err(kept) => {
                let kept = giving.refuse(kept);
                tracing::warn!(%path, "the device stays here: {kept}");
                return Ok(None);
            }
        };
        match giving.finish(&self.listener.socket, serving.as_mut()) {
            Ok(given) => {
                self.listener.is_anothers.store(true, Ordering::Relaxed);
                Ok(Some(given))
            }
            Err(kept) => {
                tracing::warn!(%path, "the device stays here: {kept}");
                *current = serving.map(|serving| self.spawn(serving)).transpose()?;
                Ok(None)
            }
        }
    }

    /// Begins to serve a client. `None` if another program's handle to the backend serves one.
    fn start(&self, stream: UnixStream, first_id: u16) -> io::Result<Option<Current>> {
        let Some(turn) = Turn::take(&self.backend.shared) else {
            turn_away(&stream, first_id);
            return Ok(None);
        };
        // So that its thread looks now and then whether it is to rest.
        stream.set_read_timeout(Some(LOOK))?;
        self.spawn(turn.begin(stream, Some(Arc::default()))).map(Some)
    }

    fn spawn(&self, serving: Serving) -> io::Result<Current> {
        let device = self.backend.device().name().to_owned();
        let client = &serving.client;
        let stream = client.channel.socket().as_fd().try_clone_to_owned()?.into();
        let rest = client.rest.clone().unwrap_or_default();
        let (sender, rested) = mpsc::channel();
        let thread = std::thread::Builder::new().name(format!("vfio-user {device}")).spawn(move || {
            tracing::info!(device, "a client is served");
            match serving.serve() {
                Ok(None) => tracing::info!(device, "the client has left"),
                // Who wanted it waits for it.
                Ok(Some(serving)) => drop(sender.send(serving)),
                Err(error @ ServeError::Socket(_)) => {
                    tracing::info!(device, %error, "the connection with the client is over");
                }
                Err(error) => tracing::warn!(device, %error, "the client is not served"),
            }
        })?;
        Ok(Current { stream, thread, rest, rested })
    }
}

/// The device may run in another process, and nobody can say whether it does.
#[derive(Debug, thiserror::Error)]
#[error("the server that took over has not said that the device runs there: {0}")]
struct OutcomeUnknown(#[source] LinkError);

/// Brings the client that is served to rest. `None` if there is none, or it leaves; after an error it is served on.
fn rest(current: &mut Option<Current>) -> Result<Option<Serving>, Kept> {
    let Some(Current { rest, rested, .. }) = current else { return Ok(None) };
    rest.want();
    let serving = match rested.recv_timeout(takeover::REST_PATIENCE) {
        Err(RecvTimeoutError::Timeout) if rest.withdraw() => {
            let why = "the client takes no answers, or the device is busy with its request";
            return Err(Kept::refused(Errno::ETIMEDOUT, why));
        }
        // It rests, and has not said so yet.
        Err(RecvTimeoutError::Timeout) => rested.recv().ok(),
        Ok(serving) => Some(serving),
        Err(RecvTimeoutError::Disconnected) => None,
    };
    if let Some(ended) = current.take() {
        ended.join();
    }
    if let Some(serving) = &serving {
        serving.client.rest.as_ref().inspect(|rest| rest.end());
    }
    Ok(serving)
}

impl Stopper {
    pub(super) fn new() -> io::Result<Stopper> {
        Ok(Stopper(Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    }

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
        let is_anothers = self.is_anothers.load(Ordering::Relaxed);
        if !is_anothers && fs::symlink_metadata(&self.path).is_ok_and(is_ours) {
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
