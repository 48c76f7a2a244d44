//! The server at a path: it accepts clients, one at a time, and processes that want to take over.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use whimbrel_device::Errno;

use super::log_limit::LogLimit;
use super::newcomers::Newcomers;
use super::rest::LOOK;
use super::seat::{Current, Ready};
use super::socket_file::Listener;
use super::spare::{Spare, is_exhausted};
use super::takeover::{self, Attempt, Description, Kept, TakeoverError};
use super::takeovers::Next;
use super::{Backend, Serving, Takeover, Turn, first_header, header_so_far, turn_away};

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
    pub(super) backend: Backend,
    pub(super) listener: Listener,
    pub(super) stop: Arc<OwnedFd>,
    /// A takeover under way has something to say.
    pub(super) changed: Arc<OwnedFd>,
    /// What a server that takes over is told of the device; not of one whose migration makes no sense.
    pub(super) description: Option<Description>,
    /// A client that was taken over, and is served first.
    taken: Mutex<Option<(Serving, Ready)>>,
    spare: Spare,
    /// What a client can have logged again and again.
    turned_away: LogLimit,
    not_accepted: LogLimit,
    pub(super) turned_down: LogLimit,
    /// Whether who connects where the clients do may take over.
    allows_takeover: bool,
    /// Where processes connect that take over, and nobody else.
    pub(super) takeovers: Option<Listener>,
    pub(super) pause: Duration,
}

/// What a server needs that is stopped, and hears of takeovers: had before anything can have changed.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Arc<OwnedFd>,
    changed: Arc<OwnedFd>,
    spare: Spare,
}

/// How [`Server::run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Served {
    /// How many clients there were.
    pub clients: u64,
    /// Another process serves the device from here on, and has the socket and the client.
    pub taken_over: bool,
}

/// Ends [`Server::run`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

impl Signals {
    pub(super) fn new() -> io::Result<Signals> {
        let (stop, changed) = (EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (stop, changed) = (Arc::new(eventfd(0, stop)?), Arc::new(eventfd(0, changed)?));
        Ok(Signals { stop, changed, spare: Spare::new()? })
    }
}

impl Server {
    /// Makes the socket as [`Listener::bind`], and serves there.
    pub fn bind(path: impl AsRef<Path>, backend: Backend) -> io::Result<Server> {
        Server::new(Listener::bind(path)?, backend)
    }

    /// Serves at a socket that there is.
    pub fn new(listener: Listener, backend: Backend) -> io::Result<Server> {
        let signals = Signals::new()?;
        // Before a client can have changed anything.
        let description = Description::of(backend.device()).inspect_err(|error| {
            tracing::debug!(%error, "the device cannot be taken over");
        });
        Ok(Server::with(listener, backend, description.ok(), signals))
    }

    fn with(
        listener: Listener,
        backend: Backend,
        description: Option<Description>,
        signals: Signals,
    ) -> Server {
        let Signals { stop, changed, spare } = signals;
        let (taken, takeovers) = (Mutex::new(None), None);
        let allows_takeover = false;
        Server {
            backend,
            listener,
            stop,
            changed,
            description,
            taken,
            spare,
            turned_away: LogLimit::default(),
            not_accepted: LogLimit::default(),
            turned_down: LogLimit::default(),
            allows_takeover,
            takeovers,
            pause: takeover::PAUSE,
        }
    }

    /// Takes over from the server at a path, which is in another process and lets that happen: its device's state
    /// goes to that of `backend`, and its client and its socket come here. The client waits until [`Server::run`] is
    /// called. See [`Takeover`] for both in two steps, with an example.
    pub fn take_over(path: impl AsRef<Path>, backend: Backend) -> Result<Server, TakeoverError> {
        Takeover::connect(path)?.finish(backend)
    }

    pub(super) fn taken(
        listener: Listener,
        takeovers: Option<Listener>,
        backend: Backend,
        description: Description,
        serving: Option<(Serving, Ready)>,
        signals: Signals,
    ) -> Server {
        let server = Server::with(listener, backend, Some(description), signals);
        Server { taken: Mutex::new(serving), takeovers, ..server }
    }

    /// Lets any process of the same user take over that connects where the clients do, except the client's own.
    ///
    /// That process gets the device's state, and the client's memory and sockets. A server that lets nobody take over
    /// (the default) gives them to nobody.
    #[must_use]
    pub fn allow_takeover(mut self) -> Server {
        self.allows_takeover = true;
        self
    }

    /// Lets any process of the same user take over that connects at this socket, which is for nothing else. Who takes
    /// over gets the socket too, so that it can be taken over from in turn.
    #[must_use]
    pub fn takeover_socket(mut self, listener: Listener) -> Server {
        self.takeovers = Some(listener);
        self
    }

    /// How long the device may stand still in a takeover: 30 seconds if nothing is said, and ten minutes at most. A
    /// takeover that takes longer is given up, and the device goes on.
    #[must_use]
    pub fn takeover_pause(mut self, pause: Duration) -> Server {
        self.pause = pause.min(takeover::MAX_PAUSE);
        self
    }

    /// Where clients connect.
    pub fn path(&self) -> &Path {
        self.listener.path()
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
    /// A process that comes to take over, where that is allowed, is handed the device, the client and the socket; if
    /// that fails, all goes on as before. Where nobody can say whether the device runs in the other process, it stands
    /// here until that process says so or dies; to be stopped then is an error.
    pub fn run(&self) -> io::Result<Served> {
        let mut current = self.taken.lock().take().map(|(serving, ready)| ready.serve(serving));
        let mut clients = u64::from(current.is_some());
        let mut attempt: Option<Attempt> = None;
        let mut next: Option<Next> = None;
        let mut newcomers = Newcomers::default();
        let result = loop {
            self.begin_next(&mut attempt, &mut next);
            for silent in newcomers.take_silent(Instant::now()) {
                turn_away(&silent, 0, Errno::ETIMEDOUT);
            }
            let closed = attempt.as_ref().and_then(|attempt| attempt.closed_for(current.is_some()));
            let open = if closed.is_some() { PollFlags::empty() } else { PollFlags::IN };
            let mut asked = vec![
                PollFd::new(&*self.stop, PollFlags::IN),
                PollFd::new(&*self.changed, PollFlags::IN),
                PollFd::new(&self.listener, if newcomers.have_room() { open } else { PollFlags::empty() }),
            ];
            asked.extend(self.takeovers.as_ref().map(|listener| PollFd::new(listener, open)));
            let own = asked.len();
            asked.extend(newcomers.sockets().map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
            let now = Instant::now();
            let turn = next.as_ref().map(|(_, until)| until.saturating_duration_since(now));
            let left = [closed, turn, newcomers.time_left(now)].into_iter().flatten().min();
            let timeout = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut asked, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => break Err(error.into()),
                Ok(_) if !asked[0].revents().is_empty() => break Ok(Served { clients, taken_over: false }),
                Ok(_) => {}
            }
            let [_, has_changed, has_client, ..] = [0, 1, 2].map(|index| !asked[index].revents().is_empty());
            let has_takeover = own > 3 && !asked[3].revents().is_empty();
            let have_said: Vec<bool> = asked[own..].iter().map(|asked| !asked.revents().is_empty()).collect();
            drop(asked);
            if has_changed {
                // A counter that is read twice is empty the second time.
                let _ = rustix::io::read(&*self.changed, &mut [0; 8]);
                let has_ended = |attempt: &mut Attempt| attempt.look(|| current.as_ref().map(Current::seat));
                if let Some(ended) = attempt.take_if(|attempt| has_ended(attempt)) {
                    match self.ended(ended.end(), &mut current) {
                        None => continue,
                        Some(Ok(())) => break Ok(Served { clients, taken_over: true }),
                        Some(Err(error)) => break Err(error),
                    }
                }
            }
            if let Some(takeovers) = self.takeovers.as_ref().filter(|_| has_takeover)
                && let Some(stream) = self.accept(takeovers)
            {
                self.queue_takeover(stream, &mut next);
            }
            for stream in newcomers.take(have_said.into_iter()) {
                clients += u64::from(self.meet(stream, attempt.as_ref(), &mut current, &mut next));
            }
            if has_client && let Some(stream) = self.accept(&self.listener) {
                newcomers.add(stream, Instant::now());
            }
        };
        let result = self.end_takeover(attempt, &mut current, result, clients);
        if let Some(current) = current {
            current.end();
        }
        result
    }

    /// A newcomer has said something, or has left. Whether it is the client from here on.
    fn meet(
        &self,
        stream: UnixStream,
        attempt: Option<&Attempt>,
        current: &mut Option<Current>,
        next: &mut Option<Next>,
    ) -> bool {
        let first = header_so_far(&stream);
        let first_id = first.map_or(0, |(id, _)| id);
        if first.is_some_and(|(_, command)| command == takeover::COMMAND) {
            if self.allows_takeover {
                self.queue_takeover(stream, next);
            } else {
                let why = "it was not started to be taken over at this socket (serve --allow-takeover, or \
                           --takeover-socket for another one)";
                self.turn_down(stream, Kept::refused(Errno::EOPNOTSUPP, why));
            }
            return false;
        }
        let may_serve = attempt.is_none_or(Attempt::lets_serve);
        if !may_serve || current.as_ref().is_some_and(|current| !current.has_left()) {
            if let Some(left_out) = self.turned_away.admit(Instant::now()) {
                tracing::info!(path = %self.path().display(), left_out, "a second client is turned away");
            }
            turn_away(&stream, first_id, Errno::EBUSY);
            return false;
        }
        if let Some(left) = current.take() {
            // It may have shut down its own direction alone, and take no answers: its thread would wait for that.
            left.end();
        }
        match self.start(stream, first_id) {
            Ok(client) => {
                *current = client;
                current.is_some()
            }
            Err(error) => {
                tracing::warn!(%error, "no thread for a client");
                false
            }
        }
    }

    /// Who has connected, and can be let in. Without descriptors for it, it is told so.
    fn accept(&self, listener: &Listener) -> Option<UnixStream> {
        let error = match listener.accept() {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        if let Some(left_out) = self.not_accepted.admit(Instant::now()) {
            let path = listener.path().display();
            tracing::warn!(%path, %error, left_out, "a client cannot be accepted: raise RLIMIT_NOFILE");
        }
        let is_told = is_exhausted(&error)
            && self.spare.lend(|| match listener.accept() {
                Ok(Some(stream)) => {
                    turn_away(&stream, first_header(&stream).map_or(0, |(id, _)| id), Errno::EMFILE);
                    true
                }
                Ok(None) => true,
                Err(_) => false,
            });
        if !is_told {
            // It waits to be accepted, and so does this.
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    /// Begins to serve a client. `None` if another program's handle to the backend serves one.
    fn start(&self, stream: UnixStream, first_id: u16) -> io::Result<Option<Current>> {
        let Some(turn) = Turn::take(&self.backend.shared) else {
            turn_away(&stream, first_id, Errno::EBUSY);
            return Ok(None);
        };
        // So that its thread looks now and then whether it is to rest.
        stream.set_read_timeout(Some(LOOK))?;
        let ready = Ready::new(self.backend.device().name())?;
        Ok(Some(ready.serve(turn.begin(stream, Some(Arc::default())))))
    }
}

impl Stopper {
    /// Ends the server, which ends its connection.
    pub fn stop(&self) {
        // Only a counter that is full already refuses, which says the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
