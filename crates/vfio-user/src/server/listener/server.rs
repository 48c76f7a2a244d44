//! The server at a path: accepts clients, one at a time, and processes that take over.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::epoll::EventFlags;
use rustix::event::{EventfdFlags, eventfd};
use whimbrel_device::Errno;

use super::moved::Moved;
use super::poller::{FIRST_TOKEN, Poller, Token};
use super::socket_file::Listener;
use super::spare::{Spare, is_exhausted};
#[cfg(feature = "takeover")]
use super::takeovers::{Found, Place, Takeovers, UnderWay};
use super::unidentified::Unidentified;
use crate::server::backend::{Backend, Turn};
use crate::server::log_limit::LogLimit;
use crate::server::refusal::{first_header, header_so_far, reject};
use crate::server::session::current::Current;
use crate::server::session::inline::Inline;
#[cfg(feature = "takeover")]
use crate::server::session::rest::LOOK;
use crate::server::session::serving::Serving;
use crate::server::session::thread::Ready;
use crate::server::signal::signal;
#[cfg(feature = "takeover")]
use crate::takeover::{self, Description, TakenOver};

/// Time without accepting after a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Tokens of the descriptors that a server watches beside its connections.
pub(super) const STOP: Token = FIRST_TOKEN;
pub(super) const CHANGED: Token = FIRST_TOKEN + 1;
pub(super) const CLIENTS: Token = FIRST_TOKEN + 2;
#[cfg(feature = "takeover")]
pub(super) const TAKEOVERS: Token = FIRST_TOKEN + 3;
const FIRST_CONNECTION: Token = FIRST_TOKEN + 4;

/// Serves a device at a path. Only the user that created the socket can connect to it (mode 0600); the socket is
/// removed when this is dropped.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, Server};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("accel");
/// let model = "accel?state=1MiB".parse::<Model>()?.open("accel 0")?;
/// let server = Server::bind(&path, Backend::new(model))?;
/// let stopper = server.stopper();
/// let serving = std::thread::spawn(move || server.run());
///
/// drop(UnixStream::connect(&path)?);
/// stopper.stop();
/// serving.join().expect("it does not panic")?;
/// assert!(!path.exists());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # From an event loop
///
/// A program with its own event loop can serve in it: the server's descriptor ([`AsFd`]) is readable whenever
/// [`Server::dispatch`] has something to do. Several servers can share a thread this way (`examples/event_loop.rs`).
#[derive(Debug)]
pub struct Server {
    backend: Backend,
    pub(super) listener: Listener,
    pub(super) stop: Arc<OwnedFd>,
    /// Signalled when a takeover, or a client served without a thread, has something to do.
    pub(super) changed: Arc<OwnedFd>,
    pub(super) poller: Poller,
    pub(super) state: Mutex<ServerState>,
    spare: Spare,
    /// Limit for log messages that a client can cause again and again.
    rejections: LogLimit,
    pub(super) not_accepted: LogLimit,
    #[cfg(feature = "takeover")]
    pub(super) takeovers: Takeovers,
}

/// The state that changes while a server runs.
#[derive(Debug)]
pub(super) struct ServerState {
    /// A client that was taken over, and is served first.
    taken: Option<(Serving, Ready)>,
    pub(super) current: Option<Current>,
    clients: u64,
    pub(super) unidentified: Unidentified,
    /// The time from which connections are accepted again after a failure.
    pub(super) accepts_at: Option<Instant>,
    next_token: Token,
    /// Tokens of the sockets of the served client.
    pub(super) client_tokens: [Token; 2],
    ended: Option<Ended>,
    /// True during a turn. A turn that finds it set follows one that panicked.
    is_in_turn: bool,
    #[cfg(feature = "takeover")]
    pub(super) under_way: UnderWay,
}

/// Resources to stop a server and to hear of takeovers, acquired before anything changes.
#[derive(Debug)]
pub(super) struct Signals {
    stop: Arc<OwnedFd>,
    changed: Arc<OwnedFd>,
    poller: Poller,
    spare: Spare,
}

/// The outcome of a [`Server`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// The number of clients served.
    pub clients: u64,
    /// True if another process serves the device from now on, with the socket and the client.
    pub taken_over: bool,
    /// The figures of that takeover: the state that has moved, and the pause.
    pub moved: Option<Moved>,
}

/// The end of a server, for each call after it.
#[derive(Debug)]
enum Ended {
    Served(Served),
    Failed(io::ErrorKind, String),
}

/// Stops a [`Server`] from another thread.
#[derive(Clone, Debug)]
pub struct Stopper(Arc<OwnedFd>);

/// The place where clients are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// A thread per client. The server waits until it has something to do.
    Threads,
    /// The caller of `dispatch`.
    Dispatch,
}

impl Signals {
    pub(super) fn new() -> io::Result<Signals> {
        let (stop, changed) = (EventfdFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let (stop, changed) = (Arc::new(eventfd(0, stop)?), Arc::new(eventfd(0, changed)?));
        let poller = Poller::new()?;
        // The first dispatch says what is watched.
        poller.wake_after(Some(Duration::ZERO))?;
        Ok(Signals { stop, changed, poller, spare: Spare::new()? })
    }
}

impl ServerState {
    fn new(taken: Option<(Serving, Ready)>) -> ServerState {
        ServerState {
            taken,
            current: None,
            clients: 0,
            unidentified: Unidentified::default(),
            accepts_at: None,
            next_token: FIRST_CONNECTION,
            client_tokens: [0; 2],
            ended: None,
            is_in_turn: false,
            #[cfg(feature = "takeover")]
            under_way: UnderWay::default(),
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        self.next_token - 1
    }

    /// Returns the outcome: with `moved` another process has taken over.
    fn served(&self, moved: Option<Moved>) -> Served {
        Served { clients: self.clients, taken_over: moved.is_some(), moved }
    }
}

impl Server {
    /// Creates the socket, as [`Listener::bind`], and serves there.
    pub fn bind(path: impl AsRef<Path>, backend: Backend) -> io::Result<Server> {
        Server::new(Listener::bind(path)?, backend)
    }

    /// Serves at an existing socket.
    pub fn new(listener: Listener, backend: Backend) -> io::Result<Server> {
        let signals = Signals::new()?;
        // Before a client can have changed anything.
        #[cfg(feature = "takeover")]
        let description = Description::of(backend.device())
            .inspect_err(|error| tracing::debug!(%error, "the device does not support takeover"))
            .ok();
        Ok(Server::assemble(
            backend,
            listener,
            signals,
            ServerState::new(None),
            #[cfg(feature = "takeover")]
            Takeovers::new(None, description),
        ))
    }

    fn assemble(
        backend: Backend,
        listener: Listener,
        signals: Signals,
        state: ServerState,
        #[cfg(feature = "takeover")] takeovers: Takeovers,
    ) -> Server {
        let Signals { stop, changed, poller, spare } = signals;
        Server {
            backend,
            listener,
            stop,
            changed,
            poller,
            state: Mutex::new(state),
            spare,
            rejections: LogLimit::default(),
            not_accepted: LogLimit::default(),
            #[cfg(feature = "takeover")]
            takeovers,
        }
    }

    /// Creates a server that continues where another one was.
    #[cfg(feature = "takeover")]
    pub(super) fn taken(taken: TakenOver, backend: Backend, ready: Ready, signals: Signals) -> Server {
        let TakenOver { clients, takeovers: listener, description, serving } = taken;
        let state = ServerState::new(serving.map(|serving| (serving, ready)));
        Server::assemble(backend, clients, signals, state, Takeovers::new(listener, Some(description)))
    }

    /// Returns the path of the socket.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Returns a handle that ends [`Server::run`] and [`Server::dispatch`].
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves one client after the other until it is stopped, or another process takes over.
    ///
    /// A client that connects while another is served is refused. An error of a client is logged and ends only its
    /// connection.
    ///
    /// A process that takes over, if that is allowed, gets the device, the client and the socket; if that fails, this
    /// server continues as before. If it is unknown whether the device runs in the other process, the device stays
    /// stopped here until that process reports or dies; stopping the server then is an error.
    pub fn run(&self) -> io::Result<Served> {
        loop {
            if let ControlFlow::Break(served) = self.drive(Way::Threads)? {
                return Ok(served);
            }
        }
    }

    /// Handles everything that is ready, without waiting: accepts and refuses connections, executes requests, sends
    /// answers. Breaks when [`Server::run`] would return.
    ///
    /// Call it when the server's descriptor is readable, which it is initially and as long as there is more to do.
    /// One call executes at most 64 requests, so that other users of the thread get their turn. Partial messages are
    /// kept, and a client that reads no answers gets no more requests executed until it does. The driver is called on
    /// this thread: a call into it is not interrupted, and its panic is a panic of this call.
    ///
    /// Some tasks have their own threads here too: a data session with its socket, eventfds that clients signal
    /// ([`DeviceFile`](whimbrel_device::DeviceFile) listens to them), files that may never respond, and a takeover,
    /// which gets the client between two calls.
    ///
    /// The descriptor is level-triggered. One call accepts one connection: with an edge-triggered event loop, dispatch
    /// until a poll finds the descriptor not readable.
    ///
    /// A call waits for a client where its device, in a request or with its lock held, accesses memory that the client
    /// must be asked for, or a file that may not respond. Each such access has a timeout of [five
    /// seconds](whimbrel_device::dma::DmaSpace::REMOTE_TIMEOUT), after which it is a fault; a client that was asked
    /// loses its connection. An access that the core makes for the driver ([`AsyncDma`](whimbrel_device::AsyncDma)) keeps
    /// only a change of the migration state and a reset waiting, for up to two seconds. Refuse such memory if other
    /// clients must not wait for it: [`BackendOptions::remote_memory`](crate::BackendOptions::remote_memory). Files that
    /// may not respond are refused by default ([`BackendOptions::foreign_memory`](crate::BackendOptions::foreign_memory)).
    ///
    /// After an error or a panic the server has ended, and each further call fails: drop the server. The device may be
    /// another server's.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use whimbrel_models::Model;
    /// use whimbrel_vfio_user::{Backend, Server};
    /// # use std::os::fd::AsFd;
    /// # use rustix::event::{PollFd, PollFlags, poll};
    ///
    /// let folder = tempfile::tempdir()?;
    /// let model = "serial".parse::<Model>()?.open("serial 0")?;
    /// let server = Server::bind(folder.path().join("serial"), Backend::new(model))?;
    /// server.stopper().stop();
    /// let served = loop {
    ///     // With whatever else the program waits for.
    ///     poll(&mut [PollFd::new(&server, PollFlags::IN)], None)?;
    ///     if let ControlFlow::Break(served) = server.dispatch()? {
    ///         break served;
    ///     }
    /// };
    /// assert_eq!(served.clients, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn dispatch(&self) -> io::Result<ControlFlow<Served>> {
        self.drive(Way::Dispatch)
    }

    fn drive(&self, way: Way) -> io::Result<ControlFlow<Served>> {
        let mut state = self.state.lock();
        match &state.ended {
            Some(Ended::Served(served)) => return Ok(ControlFlow::Break(*served)),
            Some(Ended::Failed(kind, why)) => {
                return Err(io::Error::new(*kind, format!("the server has ended: {why}")));
            }
            None => {}
        }
        let result = if std::mem::replace(&mut state.is_in_turn, true) {
            // A reply may be half written, and nobody knows what the driver has done.
            Err(io::Error::other("a call of the driver panicked"))
        } else {
            match self.turn(&mut state, way) {
                Ok(ControlFlow::Continue(())) => {
                    state.is_in_turn = false;
                    return Ok(ControlFlow::Continue(()));
                }
                Ok(ControlFlow::Break(served)) => Ok(served),
                Err(error) => Err(error),
            }
        };
        #[cfg(feature = "takeover")]
        let result = self.end_takeover(&mut state, result);
        if let Some(current) = self.remove_client(&mut state) {
            current.end();
        }
        state.ended = Some(match &result {
            Ok(served) => Ended::Served(*served),
            Err(error) => Ended::Failed(error.kind(), error.to_string()),
        });
        result.map(ControlFlow::Break)
    }

    /// Waits until there is something to do, unless it is dispatched, and does it.
    fn turn(&self, state: &mut ServerState, way: Way) -> io::Result<ControlFlow<Served>> {
        if let Some((serving, ready)) = state.taken.take() {
            state.clients += 1;
            match way {
                Way::Threads => state.current = Some(Current::Threaded(ready.serve(serving))),
                // Its thread, which has nobody to serve, ends.
                Way::Dispatch => self.serve_inline(state, serving),
            }
        }
        #[cfg(feature = "takeover")]
        self.takeovers.begin_next(&mut state.under_way, &self.place());
        for (token, silent) in state.unidentified.take_silent(Instant::now()) {
            self.poller.watch(token, &silent, EventFlags::empty())?;
            reject(&silent, 0, Errno::ETIMEDOUT);
        }
        self.watch(state)?;
        let ready = self.poller.ready(way == Way::Threads)?;
        let is_ready = |token: Token| ready.contains(&token);
        if is_ready(STOP) {
            return Ok(ControlFlow::Break(state.served(None)));
        }
        if is_ready(CHANGED) {
            // A counter that is read twice is empty the second time.
            let _ = rustix::io::read(&*self.changed, &mut [0; 8]);
            #[cfg(feature = "takeover")]
            let ended = self.look_at_takeover(state);
            #[cfg(not(feature = "takeover"))]
            let ended = None;
            if let Some(ended) = ended {
                return ended;
            }
        }
        if let Some(Current::Inline(client)) = &mut state.current
            && client.dispatch()
        {
            drop(self.remove_client(state));
        }
        #[cfg(feature = "takeover")]
        if let Some(takeovers) = self.takeovers.listener.as_ref().filter(|_| is_ready(TAKEOVERS))
            && let Some(stream) = self.accept(takeovers, &mut state.accepts_at, way)
        {
            self.takeovers.queue(stream, &mut state.under_way, &self.listener);
        }
        for (token, stream) in state.unidentified.take(is_ready) {
            self.poller.watch(token, &stream, EventFlags::empty())?;
            state.clients += u64::from(self.take_first_message(stream, state, way));
        }
        if is_ready(CLIENTS)
            && let Some(stream) = self.accept(&self.listener, &mut state.accepts_at, way)
        {
            let token = state.token();
            state.unidentified.add(token, stream, Instant::now());
        }
        if way == Way::Dispatch {
            self.watch(state)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Starts to serve a client without a thread.
    fn serve_inline(&self, state: &mut ServerState, serving: Serving) {
        state.client_tokens = [state.token(), state.token()];
        state.current = Some(Current::Inline(Inline::new(serving, &self.changed)));
    }

    /// Removes and returns the served client, and stops watching its sockets.
    pub(super) fn remove_client(&self, state: &mut ServerState) -> Option<Current> {
        let current = state.current.take()?;
        if let Current::Inline(client) = &current {
            for (token, socket) in state.client_tokens.into_iter().zip(client.sockets()) {
                // One that is gone already is watched no longer.
                let _ = socket.map(|(socket, _)| self.poller.watch(token, socket, EventFlags::empty()));
            }
        }
        Some(current)
    }

    /// Handles the first message of an unidentified connection, or its end. Returns whether it is the client from now on.
    fn take_first_message(&self, stream: UnixStream, state: &mut ServerState, way: Way) -> bool {
        let first = header_so_far(&stream);
        let first_id = first.map_or(0, |(id, _)| id);
        #[cfg(feature = "takeover")]
        if first.is_some_and(|(_, command)| command == takeover::COMMAND) {
            self.takeovers.take_first_message(stream, &mut state.under_way, &self.listener);
            return false;
        }
        #[cfg(feature = "takeover")]
        let may_serve = state.under_way.lets_serve();
        #[cfg(not(feature = "takeover"))]
        let may_serve = true;
        if !may_serve || state.current.as_ref().is_some_and(|current| !current.has_left()) {
            if let Some(left_out) = self.rejections.admit(Instant::now()) {
                tracing::info!(path = %self.path().display(), left_out, "rejected a second client with EBUSY: the device is in use");
            }
            reject(&stream, first_id, Errno::EBUSY);
            return false;
        }
        if let Some(Current::Inline(left)) = &mut state.current {
            // It may have left after its turn, with a request that waited for a takeover.
            left.dispatch();
        }
        if let Some(left) = self.remove_client(state) {
            // It may have shut down its own direction alone, and take no answers: its thread would wait for that.
            left.end();
        }
        // `None` if another program's handle to the backend serves one.
        let Some(turn) = Turn::take(&self.backend) else {
            reject(&stream, first_id, Errno::EBUSY);
            return false;
        };
        match self.start(stream, turn, state, way) {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot start a thread for a client");
                false
            }
        }
    }

    /// Accepts a connection. Without a free descriptor for it, the peer is told so.
    fn accept(&self, listener: &Listener, accepts_at: &mut Option<Instant>, way: Way) -> Option<UnixStream> {
        let error = match listener.accept() {
            Ok(accepted) => return accepted,
            Err(error) => error,
        };
        if let Some(left_out) = self.not_accepted.admit(Instant::now()) {
            let path = listener.path().display();
            tracing::warn!(%path, %error, left_out, "cannot accept a client; raise the limit on open files (ulimit -n)");
        }
        let first = |stream: &UnixStream| match way {
            Way::Threads => first_header(stream),
            Way::Dispatch => header_so_far(stream),
        };
        let is_told = is_exhausted(&error)
            && self.spare.lend(|| match listener.accept() {
                Ok(Some(stream)) => {
                    reject(&stream, first(&stream).map_or(0, |(id, _)| id), Errno::EMFILE);
                    true
                }
                Ok(None) => true,
                Err(_) => false,
            });
        if !is_told {
            // It waits to be accepted, and so does this.
            *accepts_at = Some(Instant::now() + ACCEPT_PAUSE);
        }
        None
    }

    fn start(&self, stream: UnixStream, turn: Turn, state: &mut ServerState, way: Way) -> io::Result<()> {
        let rest = Some(Arc::default());
        match way {
            Way::Threads => {
                // So that its thread looks now and then whether it is to rest. A timer for each read costs a little.
                #[cfg(feature = "takeover")]
                if self.takeovers.is_allowed || self.takeovers.listener.is_some() {
                    stream.set_read_timeout(Some(LOOK))?;
                }
                let ready = Ready::new(self.backend.device().name())?;
                state.current = Some(Current::Threaded(ready.serve(Serving::begin(turn, stream, rest))));
            }
            Way::Dispatch => self.serve_inline(state, Serving::begin(turn, stream, rest)),
        }
        Ok(())
    }
}

#[cfg(feature = "takeover")]
impl Server {
    fn place(&self) -> Place<'_> {
        let Server { backend, listener, stop, changed, .. } = self;
        Place { backend, clients: listener, stop, changed }
    }

    /// Checks the takeover under way; `None` if nothing has changed.
    fn look_at_takeover(&self, state: &mut ServerState) -> Option<io::Result<ControlFlow<Served>>> {
        let ServerState { under_way, current, .. } = state;
        let handle = || current.as_ref().map(|current| current.handle().clone());
        Some(match self.takeovers.look(under_way, &self.listener, handle) {
            // A client that was away has come back, and is served below.
            Found::Nothing | Found::Stays => return None,
            Found::Gone(ended) => {
                // Another process serves the client.
                if let Some(gone) = self.remove_client(state) {
                    gone.join();
                }
                ended.map(|moved| ControlFlow::Break(state.served(Some(moved))))
            }
        })
    }

    /// Ends a takeover that is under way, and returns its result as that of the server.
    fn end_takeover(&self, state: &mut ServerState, result: io::Result<Served>) -> io::Result<Served> {
        if !state.under_way.is_some() {
            return result;
        }
        // It may end for another reason than that.
        self.stopper().stop();
        match self.takeovers.end(&mut state.under_way, &self.listener) {
            None => result,
            Some(ended) => {
                if let Some(gone) = self.remove_client(state) {
                    gone.join();
                }
                ended.map(|moved| state.served(Some(moved)))
            }
        }
    }
}

/// A takeover under way does not outlive its server.
#[cfg(feature = "takeover")]
impl Drop for Server {
    fn drop(&mut self) {
        let mut state = std::mem::replace(self.state.get_mut(), ServerState::new(None));
        let served = state.served(None);
        if let Err(error) = self.end_takeover(&mut state, Ok(served)) {
            tracing::warn!(path = %self.path().display(), %error, "server dropped during a takeover");
        }
    }
}

impl AsFd for Server {
    /// Readable whenever [`Server::dispatch`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poller.as_fd()
    }
}

impl Stopper {
    /// Ends the server, which ends its connection.
    pub fn stop(&self) {
        signal(&self.0);
    }
}
