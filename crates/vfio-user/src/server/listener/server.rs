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

use super::newcomers::Newcomers;
use super::socket_file::Listener;
use super::spare::{Spare, is_exhausted};
#[cfg(feature = "takeover")]
use super::takeovers::{Found, Place, Takeovers, UnderWay};
use crate::server::backend::{Backend, Turn};
use crate::server::log_limit::LogLimit;
use crate::server::refusal::{first_header, header_so_far, turn_away};
use crate::server::session::rest::LOOK;
use crate::server::session::seat::{Current, Ready};
use crate::server::session::serving::Serving;
#[cfg(feature = "takeover")]
use crate::takeover::{self, Description, TakenOver};

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
    /// A takeover under way has something to say.
    changed: Arc<OwnedFd>,
    /// A client that was taken over, and is served first.
    taken: Mutex<Option<(Serving, Ready)>>,
    spare: Spare,
    /// What a client can have logged again and again.
    turned_away: LogLimit,
    not_accepted: LogLimit,
    #[cfg(feature = "takeover")]
    pub(super) takeovers: Takeovers,
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
        #[cfg(feature = "takeover")]
        let takeovers = Takeovers::new(
            Description::of(backend.device())
                .inspect_err(|error| {
                    tracing::debug!(%error, "the device cannot be taken over");
                })
                .ok(),
        );
        let Signals { stop, changed, spare } = signals;
        Ok(Server {
            backend,
            listener,
            stop,
            changed,
            taken: Mutex::new(None),
            spare,
            turned_away: LogLimit::default(),
            not_accepted: LogLimit::default(),
            #[cfg(feature = "takeover")]
            takeovers,
        })
    }

    /// A server that goes on where another one was.
    #[cfg(feature = "takeover")]
    pub(super) fn taken(taken: TakenOver, backend: Backend, ready: Ready, signals: Signals) -> Server {
        let TakenOver { clients, takeovers: listener, description, serving } = taken;
        let Signals { stop, changed, spare } = signals;
        Server {
            backend,
            listener: clients,
            stop,
            changed,
            taken: Mutex::new(serving.map(|serving| (serving, ready))),
            spare,
            turned_away: LogLimit::default(),
            not_accepted: LogLimit::default(),
            takeovers: Takeovers::at(listener, Some(description)),
        }
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
        let mut under_way = UnderWay::default();
        let mut newcomers = Newcomers::default();
        let result = loop {
            self.takeovers.begin_next(&mut under_way, &self.place());
            for silent in newcomers.take_silent(Instant::now()) {
                turn_away(&silent, 0, Errno::ETIMEDOUT);
            }
            let closed = under_way.closed_for(current.is_some());
            let open = if closed.is_some() { PollFlags::empty() } else { PollFlags::IN };
            let mut asked = vec![
                PollFd::new(&*self.stop, PollFlags::IN),
                PollFd::new(&*self.changed, PollFlags::IN),
                PollFd::new(&self.listener, if newcomers.have_room() { open } else { PollFlags::empty() }),
            ];
            asked.extend(self.takeovers.listener.as_ref().map(|listener| PollFd::new(listener, open)));
            let own = asked.len();
            asked.extend(newcomers.sockets().map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)));
            let now = Instant::now();
            let left =
                [closed, under_way.time_left(now), newcomers.time_left(now)].into_iter().flatten().min();
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
                let seat = || current.as_ref().map(Current::seat);
                match self.takeovers.look(&mut under_way, &self.listener, seat) {
                    Found::Nothing => {}
                    Found::Stays => continue,
                    Found::Gone(ended) => {
                        // Another process serves the client.
                        if let Some(gone) = current.take() {
                            gone.join();
                        }
                        break ended.map(|()| Served { clients, taken_over: true });
                    }
                }
            }
            if let Some(takeovers) = self.takeovers.listener.as_ref().filter(|_| has_takeover)
                && let Some(stream) = self.accept(takeovers)
            {
                self.takeovers.queue(stream, &mut under_way, &self.listener);
            }
            for stream in newcomers.take(have_said.into_iter()) {
                clients += u64::from(self.meet(stream, &mut current, &mut under_way));
            }
            if has_client && let Some(stream) = self.accept(&self.listener) {
                newcomers.add(stream, Instant::now());
            }
        };
        let result = if under_way.is_some() {
            // It may end for another reason than that.
            self.stopper().stop();
            match self.takeovers.end(&mut under_way, &self.listener) {
                None => result,
                Some(ended) => {
                    if let Some(gone) = current.take() {
                        gone.join();
                    }
                    ended.map(|()| Served { clients, taken_over: true })
                }
            }
        } else {
            result
        };
        if let Some(current) = current {
            current.end();
        }
        result
    }

    fn place(&self) -> Place<'_> {
        let Server { listener, stop, changed, .. } = self;
        Place { device: self.backend.device(), clients: listener, stop, changed }
    }

    /// A newcomer has said something, or has left. Whether it is the client from here on.
    fn meet(&self, stream: UnixStream, current: &mut Option<Current>, under_way: &mut UnderWay) -> bool {
        let first = header_so_far(&stream);
        let first_id = first.map_or(0, |(id, _)| id);
        if first.is_some_and(|(_, command)| command == takeover::COMMAND) {
            self.takeovers.meet(stream, under_way, &self.listener);
            return false;
        }
        let may_serve = under_way.lets_serve();
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
        let Some(turn) = Turn::take(&self.backend) else {
            turn_away(&stream, first_id, Errno::EBUSY);
            return Ok(None);
        };
        // So that its thread looks now and then whether it is to rest.
        stream.set_read_timeout(Some(LOOK))?;
        let ready = Ready::new(self.backend.device().name())?;
        Ok(Some(ready.serve(Serving::begin(turn, stream, Some(Arc::default())))))
    }
}

impl Stopper {
    /// Ends the server, which ends its connection.
    pub fn stop(&self) {
        // Only a counter that is full already refuses, which says the same.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}
