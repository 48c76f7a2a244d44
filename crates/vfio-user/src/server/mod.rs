//! The server: any driver-side device, for clients that come over sockets.
//!
//! [`Backend`] serves a device to one client at a time over a connected socket, [`Server`] accepts clients at
//! a path. A client may leave and another come: the device's state stays, and what the client had set up of
//! memory, interrupts and logs ends with it. Nothing that a client sends ends a server.
//!
//! Another process can take the place of a [`Server`], and have its device, its client's memory and its sockets, only
//! where the server was told to let that happen, and only if it runs as the same user: [`Server::allow_takeover`],
//! [`Server::takeover_socket`]. By default nobody can.
//!
//! A client's memory is a file in memory (memfd_create, tmpfs, hugetlbfs). Files of other file systems may never answer,
//! which nothing can end, not even SIGKILL: they are refused, and closed by a thread of the client's own. A server may
//! take them to be read and written ([`BackendOptions::foreign_memory`]), which that thread does then.
//!
//! A file that a client has given as memory and then makes shorter ends the process, by SIGBUS at the device's next
//! access, unless the program calls [`survive_lost_memory`] once, as `whimbrel serve` does: then such an access is a
//! fault. It installs a handler for the whole process, so it is left to the program.
//!
//! A client's descriptors leave the process some for itself: those beyond are EMFILE.
//!
//! Memory that is mapped without a descriptor is reached by asking for it: VFIO_USER_DMA_READ and
//! VFIO_USER_DMA_WRITE, over the twin socket if one was agreed on, else over that of the commands. Commands
//! that come meanwhile are executed in their order. A client that has not given all that one access of the device wants
//! within five seconds loses its connection, and the access is a fault.
//!
//! Answers are those of the kernel's VFIO, errno by errno. What the protocol's text says otherwise or leaves
//! open:
//!
//! - VFIO_USER_DMA_UNMAP takes away all mappings that lie wholly in its range, and says how many bytes those
//!   had. A range that cuts a mapping is EINVAL. The text wants a range to be exactly one mapping.
//! - Region reads and writes that reach past the region's end are done up to it.
//! - Migration data without a session is EBADF; after its end ENODEV.
//! - What the text leaves open about migration is agreed on ([`MigrationExtensions`]), or not there.
//! - A socket that comes with a message which has to wait is closed, and the message EINVAL: no command takes
//!   one, and if it is the client's own end of the connection, nobody would see the client leave.
//! - Unknown commands are ENOTTY, and messages longer than agreed EMSGSIZE, after which the connection is
//!   over.

mod channel;
mod client;
mod client_memory;
mod doorbells;
mod feature;
mod file_memory;
mod foreign;
mod interrupts;
mod listener;
mod log_limit;
mod mappings;
mod memory;
mod migration_data;
mod newcomers;
mod plain;
mod process;
mod queue;
mod region_info;
mod registers;
mod rest;
mod seat;
mod socket_file;
mod spare;
mod state_channel;
mod takeover;
mod takeovers;
mod twin;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};
use whimbrel_device::dma::DmaSpace;
#[cfg(doc)]
use whimbrel_device::survive_lost_memory;
use whimbrel_device::{DataFile, DeviceFile, Errno, IoeventfdWrite};

use self::channel::Channel;
use self::client::{Client, Served as ClientServed};
use self::foreign::{ForeignThread, ForeignThreads};
pub use self::listener::{Served, Server, Stopper};
use self::log_limit::LogLimit;
use self::rest::Rest;
pub use self::socket_file::Listener;
pub use self::takeover::{LinkError, Takeover, TakeoverError};
use crate::descriptors::Screen;
use crate::message::{Command, HEADER, Limits, MessageBuffer};
use crate::socket::{SocketError, connection};
use crate::{Capabilities, MAX_FDS, MigrationCapability, MigrationExtensions, NegotiationError, TwinSocket};

/// How long a client that is turned away may take to say what it is told an answer to.
const PATIENCE: Duration = Duration::from_millis(100);

/// Mappings that a client may have: a process can have twice as many (`vm.max_map_count`).
const MAX_DMA_MAPS: u32 = 32_768;

/// A device to serve. A clone is another handle to it.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::Backend;
///
/// let model = "serial".parse::<Model>()?.open("serial 0")?;
/// let backend = Backend::new(model.device);
/// let (server, client) = UnixStream::pair()?;
/// let serving = std::thread::spawn(move || backend.serve(server));
/// // A client that leaves at once is served too.
/// drop(client);
/// serving.join().expect("it does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backend {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    device: DeviceFile,
    capabilities: Capabilities,
    ioeventfds: Vec<IoeventfdWrite>,
    max_client_memory: u64,
    foreign_memory: bool,
    foreign_threads: ForeignThreads,
    /// Clients that are not served.
    not_served: LogLimit,
    /// The last data file that the device gave, whichever client asked for it.
    data_file: Mutex<Option<Arc<DataFile>>>,
    in_use: AtomicBool,
}

/// What a [`Backend`] offers to its clients, and what they may cost.
///
/// ```
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, BackendOptions};
///
/// let model = "serial".parse::<Model>()?.open("serial 0")?;
/// let backend = Backend::with(model.device, BackendOptions::default().max_client_memory(16 << 30));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BackendOptions {
    capabilities: Capabilities,
    ioeventfds: Vec<IoeventfdWrite>,
    max_client_memory: u64,
    foreign_memory: bool,
}

impl Default for BackendOptions {
    fn default() -> BackendOptions {
        BackendOptions {
            capabilities: Backend::capabilities(),
            ioeventfds: Vec::new(),
            max_client_memory: u64::MAX,
            foreign_memory: false,
        }
    }
}

impl BackendOptions {
    /// What the server can do: [`Backend::capabilities`], or less.
    #[must_use]
    pub fn capabilities(self, capabilities: Capabilities) -> BackendOptions {
        BackendOptions { capabilities, ..self }
    }

    /// Writes for which clients get eventfds beside the doorbells that the driver names
    /// (VFIO_USER_DEVICE_GET_REGION_IO_FDS): each makes its write when it is signalled.
    #[must_use]
    pub fn ioeventfds(self, ioeventfds: Vec<IoeventfdWrite>) -> BackendOptions {
        BackendOptions { ioeventfds, ..self }
    }

    /// Bytes of files that one client may map. Beyond them VFIO_USER_DMA_MAP is ENOSPC. There is no bound by default.
    ///
    /// A page that a client shares but has not touched is charged to the process that touches it first, which may be the
    /// server.
    #[must_use]
    pub fn max_client_memory(self, bytes: u64) -> BackendOptions {
        BackendOptions { max_client_memory: bytes, ..self }
    }

    /// Takes files of any file system to be read and written (VFIO_USER_F_DMA_REGION_FILE_IO), such as
    /// `/proc/PID/mem`; by default they are EINVAL.
    ///
    /// They may never answer: then accesses to them are faults, and the process can end only once they have answered.
    #[must_use]
    pub fn foreign_memory(self, takes: bool) -> BackendOptions {
        BackendOptions { foreign_memory: takes, ..self }
    }
}

/// Why a client is no longer served. The device is as before.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection ended in the middle of a message, or with what is no message.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The first message was not a valid VFIO_USER_VERSION.
    #[error("the client began with command {0}, and not with a valid VFIO_USER_VERSION")]
    NoVersion(u16),
    /// Client and server cannot work together.
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    /// The client did not answer in time. What the device wanted of its memory was a fault.
    #[error("the client did not answer {0} within {timeout:?}", timeout = DmaSpace::REMOTE_TIMEOUT)]
    NoAnswer(Command),
    /// The client sent more than can be kept, while the device waited for its memory.
    #[error(
        "the client went on after {commands} commands ({bytes} bytes) while its own answer was waited for"
    )]
    Flood {
        /// Commands that waited.
        commands: usize,
        /// Bytes that they had.
        bytes: usize,
    },
    /// The client sent a command over the twin socket.
    #[error("the client sent command {0} over the twin socket, which is for its answers alone")]
    CommandOverTwin(u16),
    /// Another client has the device. This one was told EBUSY.
    #[error("another client has the device")]
    Busy,
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> ServeError {
        SocketError::System(error).into()
    }
}

impl NegotiationError {
    /// What the client is told.
    pub const fn errno(&self) -> Errno {
        match self {
            NegotiationError::Version { .. } => Errno::EPROTONOSUPPORT,
            NegotiationError::NoData | NegotiationError::PageSizes { .. } => Errno::EINVAL,
        }
    }
}

impl Backend {
    /// A device, with what this server can do, and the doorbells that its driver names.
    pub fn new(device: DeviceFile) -> Backend {
        Backend::with(device, BackendOptions::default())
    }

    /// A device, with what is offered to its clients.
    pub fn with(device: DeviceFile, options: BackendOptions) -> Backend {
        let BackendOptions { mut capabilities, ioeventfds, max_client_memory, foreign_memory } = options;
        capabilities.max_msg_fds = capabilities.max_msg_fds.min(MAX_FDS as u32);
        let (data_file, in_use) = (Mutex::new(None), AtomicBool::new(false));
        Backend {
            shared: Arc::new(Shared {
                device,
                capabilities,
                ioeventfds,
                max_client_memory,
                foreign_memory,
                foreign_threads: ForeignThreads::default(),
                not_served: LogLimit::default(),
                data_file,
                in_use,
            }),
        }
    }

    /// What this server can do.
    pub fn capabilities() -> Capabilities {
        Capabilities {
            max_msg_fds: MAX_FDS as u32,
            max_dma_maps: MAX_DMA_MAPS,
            pgsizes: !0xfff,
            twin_socket: Some(TwinSocket { supported: true, fd_index: None }),
            write_multiple: true,
            migration: Some(MigrationCapability { pgsize: Some(4096), max_bitmap_size: Some(1 << 20) }),
            migration_extensions: Some(MigrationExtensions::ALL),
            ..Capabilities::default()
        }
    }

    /// The device.
    pub fn device(&self) -> &DeviceFile {
        &self.shared.device
    }

    /// Serves one client until it leaves. One that comes while another is served is told EBUSY at once.
    pub fn serve(&self, stream: UnixStream) -> Result<(), ServeError> {
        let Some(turn) = Turn::take(&self.shared) else {
            turn_away(&stream, first_header(&stream).map_or(0, |(id, _)| id), Errno::EBUSY);
            return Err(ServeError::Busy);
        };
        turn.begin(stream, None).serve().map(drop)
    }
}

impl Shared {
    /// What of a client's descriptors is let in.
    fn screen(&self, foreign: &Arc<ForeignThread>) -> Screen {
        Screen::new(foreign.clone(), self.foreign_memory)
    }
}

/// The one client at a time.
#[derive(Debug)]
struct Turn(Arc<Shared>);

/// A client that is served, or rests between two messages.
#[derive(Debug)]
struct Serving {
    client: Client,
    turn: Turn,
}

impl Turn {
    fn take(shared: &Arc<Shared>) -> Option<Turn> {
        (!shared.in_use.swap(true, Ordering::AcqRel)).then(|| Turn(shared.clone()))
    }

    /// A client of which nothing is known yet.
    fn begin(self, stream: UnixStream, rest: Option<Arc<Rest>>) -> Serving {
        let limits = Limits { max_data_xfer_size: self.0.capabilities.max_data_xfer_size };
        let (mut receiver, sender) = connection(stream, limits);
        let foreign = Arc::new(ForeignThread::new(&self.0.foreign_threads));
        receiver.screen(self.0.screen(&foreign));
        let client = Client::new(self.0.clone(), Channel::new(receiver, sender), rest, foreign);
        Serving { client, turn: self }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.in_use.store(false, Ordering::Release);
    }
}

impl Serving {
    /// Serves until the client leaves. Returns it if this is to rest.
    fn serve(self) -> Result<Option<Serving>, ServeError> {
        let Serving { client, turn } = self;
        Ok(match client.run()? {
            ClientServed::Left => None,
            ClientServed::Rests(client) => Some(Serving { client: *client, turn }),
        })
    }
}

/// Id and command of a newcomer's first message, if that comes soon. It stays in the socket.
fn first_header(stream: &UnixStream) -> Option<(u16, u16)> {
    let timeout = Timespec::try_from(PATIENCE).ok();
    // Whatever fails here, the client sees what becomes of its connection.
    let _ = poll(&mut [PollFd::new(stream, PollFlags::IN)], timeout.as_ref());
    header_so_far(stream)
}

/// As [`first_header`], of what has come already.
fn header_so_far(stream: &UnixStream) -> Option<(u16, u16)> {
    let mut header = [0; HEADER];
    let got = recv(stream, &mut header, RecvFlags::DONTWAIT | RecvFlags::PEEK);
    let [i0, i1, c0, c1, ..] = header;
    matches!(got, Ok((_, HEADER..))).then_some((u16::from_ne_bytes([i0, i1]), u16::from_ne_bytes([c0, c1])))
}

/// Tells a client why it is not served: as the answer to its first message, which has this id.
fn turn_away(stream: &UnixStream, id: u16, errno: Errno) {
    let mut out = MessageBuffer::new();
    out.error(id, Command::Version.number(), errno);
    let _ = rustix::net::send(
        stream,
        out.as_bytes(),
        rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
    );
}
