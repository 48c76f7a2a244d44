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
//! A file that a client has given as memory and then makes shorter would end it, by SIGBUS at the device's next
//! access: so a [`Backend`] handles that signal ([`survive_lost_memory`]), and such an access is a fault.
//!
//! Memory that is mapped without a descriptor is reached by asking for it: VFIO_USER_DMA_READ and
//! VFIO_USER_DMA_WRITE, over the twin socket if one was agreed on, else over that of the commands. Commands
//! that come meanwhile are executed in their order. A client that does not answer within five seconds loses
//! its connection, and what the device wanted of its memory is a fault.
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
mod interrupts;
mod listener;
mod mappings;
mod memory;
mod migration_data;
mod plain;
mod process;
mod queue;
mod region_info;
mod registers;
mod rest;
mod seat;
mod socket_file;
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
use whimbrel_device::{DataFile, DeviceFile, Errno, IoeventfdWrite, survive_lost_memory};

use self::channel::Channel;
use self::client::{Client, Served as ClientServed};
use self::client_memory::PATIENCE as ANSWER_PATIENCE;
pub use self::listener::{Served, Server, Stopper};
use self::rest::Rest;
pub use self::socket_file::Listener;
pub use self::takeover::{LinkError, Takeover, TakeoverError};
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
    /// The last data file that the device gave, whichever client asked for it.
    data_file: Mutex<Option<Arc<DataFile>>>,
    in_use: AtomicBool,
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
    #[error("the client did not answer {0} within {ANSWER_PATIENCE:?}")]
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
        Backend::with(device, Backend::capabilities(), Vec::new())
    }

    /// A device, with what a server shall offer, and writes for which clients get eventfds beside the doorbells
    /// that the driver names (VFIO_USER_DEVICE_GET_REGION_IO_FDS): each makes its write when it is signalled.
    ///
    /// Capabilities can be less than [`Backend::capabilities`], not more.
    pub fn with(device: DeviceFile, capabilities: Capabilities, ioeventfds: Vec<IoeventfdWrite>) -> Backend {
        if let Err(error) = survive_lost_memory() {
            tracing::warn!(%error, "SIGBUS cannot be handled: a client that shortens its memory ends this process");
        }
        let capabilities =
            Capabilities { max_msg_fds: capabilities.max_msg_fds.min(MAX_FDS as u32), ..capabilities };
        let (data_file, in_use) = (Mutex::new(None), AtomicBool::new(false));
        Backend { shared: Arc::new(Shared { device, capabilities, ioeventfds, data_file, in_use }) }
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
            turn_away(&stream, first_header(&stream).map_or(0, |(id, _)| id));
            return Err(ServeError::Busy);
        };
        turn.begin(stream, None).serve().map(drop)
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
        let (receiver, sender) = connection(stream, limits);
        let client = Client::new(self.0.clone(), Channel::new(receiver, sender), rest);
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
    let mut header = [0; HEADER];
    let got = recv(stream, &mut header, RecvFlags::DONTWAIT | RecvFlags::PEEK);
    let [i0, i1, c0, c1, ..] = header;
    matches!(got, Ok((_, HEADER..))).then_some((u16::from_ne_bytes([i0, i1]), u16::from_ne_bytes([c0, c1])))
}

/// Tells a client that the device is busy: as the answer to its first message, which has this id.
fn turn_away(stream: &UnixStream, id: u16) {
    let mut out = MessageBuffer::new();
    out.error(id, Command::Version.number(), Errno::EBUSY);
    let _ = rustix::net::send(
        stream,
        out.as_bytes(),
        rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL,
    );
}
