//! The client: uses a device in a server process as any other [`Device`](whimbrel_user::Device).
//!
//! The client does not trust the server: an invalid answer is an error, and ends the connection if the order of
//! messages is in doubt. Unexpected descriptors are closed.
//!
//! Known deviations of servers from the specification are tolerated if their meaning is clear, and logged once
//! (`docs/differences.md` lists them). A whole request has one deadline.
//!
//! Memory, interrupts and dirty logs end with the connection. The device's state stays with the server. With
//! [`ClientOptions::reconnect`] the client comes back to the next server after a crash ([`reconnect`]).
//!
//! The server requests the contents of memory without a file, and of all memory if it accepts no descriptors
//! (VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE). Requests on a twin socket are answered on a separate thread. Without
//! a twin socket they are answered while the client waits for a reply, and between requests by a thread that is
//! started when such memory is first mapped.
//!
//! A migration uses the agreed [`MigrationExtensions`]: with all of them, a device behind a socket reports as much
//! about its state as a local one, and transfers it over a separate socket, so that other requests do not wait for
//! it.

mod connection;
mod current;
mod deviations;
mod device;
mod dma_map;
mod doorbells;
mod holder;
mod idle;
mod memory;
mod migratable;
mod migration_state;
mod options;
mod posted_write;
mod reconnect;
mod reset;
mod state_channel;
mod state_file;
mod together;
mod twin;
mod unmap;
mod write_multiple;

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno as SystemError;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{Error, Result, SessionState, UNKNOWN_HOLDER};

use self::connection::{Connection, Features};
use self::current::Current;
pub use self::doorbells::{IoAccess, RegionIoFd};
pub use self::options::ClientOptions;
pub use self::reconnect::{ConnectionStatus, Reconnect};
use self::reconnect::{Kept, Reconnection};
pub use self::together::{DmaMapping, RegionRead};
use crate::capabilities::{Capabilities, TwinSocket, VERSION_MAJOR};
use crate::descriptors::MAX_FDS;
use crate::extensions::MigrationExtensions;
use crate::message::{Command, DeviceFeature, Reply, Request, Version};

/// Time that a server may be busy with a client that leaves.
const LEAVING: Duration = Duration::from_secs(1);
/// Interval between two connection attempts to a busy server.
const PAUSE: Duration = Duration::from_millis(10);

/// A device served over a socket. A clone is another handle to the same connection.
///
/// Beside the requests of every [`Device`](whimbrel_user::Device) it has some that only a socket offers: writes
/// without a reply ([`Client::post_write`]), several writes in a message ([`Client::write_multiple`]), many requests
/// at once ([`Client::read_regions`], [`Client::map_dma_all`]), doorbells without a message
/// ([`Client::region_io_fds`]), and unmapping with a dirty bitmap ([`Client::unmap_dma_dirty`]).
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_user::{Migratable, State};
/// use whimbrel_vfio_user::{Backend, Client, ClientOptions};
///
/// let backend = Backend::new("serial".parse::<Model>()?.open("serial 0")?.into_device());
/// let (server, stream) = UnixStream::pair()?;
/// let serving = std::thread::spawn(move || backend.serve(server));
///
/// let mut device = Client::new("serial", stream, &ClientOptions::default())?;
/// assert_eq!(device.info()?.num_regions, 9);
/// assert_eq!(device.state()?, State::Running);
/// drop(device);
/// serving.join().expect("it does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    name: String,
    current: Arc<Current>,
    state: SessionState,
    /// The thread that comes back to the next server; `None` without [`ClientOptions::reconnect`].
    reconnection: Option<Arc<Reconnection>>,
}

impl Client {
    /// Connects to the server at `path`. The device's name is `vfio-user:<path>`.
    ///
    /// Retries for a second if the server is busy: its previous client may just be leaving.
    pub fn connect(path: impl AsRef<Path>, options: &ClientOptions) -> Result<Client> {
        let path = path.as_ref();
        let name = format!("vfio-user:{}", path.display());
        let deadline = Instant::now() + LEAVING;
        loop {
            let stream = connect(path, options.request_timeout)
                .map_err(|error| cannot_connect(&name, path, &error))?;
            match Client::open(name.clone(), stream, options) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
                opened => {
                    let client = opened.map_err(busy_explained)?;
                    return match &options.reconnect {
                        Some(reconnect) => client.reconnecting(path, options, reconnect),
                        None => Ok(client),
                    };
                }
            }
        }
    }

    /// Uses a socket that is already connected to a server, and negotiates with it. Without a path there is no next
    /// server: options with [`ClientOptions::reconnect`] are refused.
    pub fn new(name: impl Into<String>, stream: UnixStream, options: &ClientOptions) -> Result<Client> {
        let name = name.into();
        if options.reconnect.is_some() {
            let why = "reconnection needs the path of the server's socket: use Client::connect";
            return Err(Error::unusable(&name, why));
        }
        Client::open(name, stream, options).map_err(busy_explained)
    }

    fn open(name: String, stream: UnixStream, options: &ClientOptions) -> Result<Client> {
        Client::open_before(None, name, stream, options)
    }

    /// As [`Client::open`], where every request until further notice ends at `limit`.
    fn open_before(
        limit: Option<Instant>,
        name: String,
        stream: UnixStream,
        options: &ClientOptions,
    ) -> Result<Client> {
        let proposed = Capabilities {
            max_msg_fds: options.capabilities.max_msg_fds.min(MAX_FDS as u32),
            max_data_xfer_size: options.capabilities.max_data_xfer_size.max(1),
            // Which comes as a descriptor.
            twin_socket: options.capabilities.twin_socket.filter(|_| options.capabilities.max_msg_fds > 0),
            ..options.capabilities.clone()
        };
        let holder = holder::of(&stream).unwrap_or_else(|| UNKNOWN_HOLDER.into());
        let mut connection = Connection::new(name.clone(), stream, proposed.clone(), options.request_timeout)
            .map_err(|error| Error::unusable(&name, format!("cannot use the socket: {error}")))?;
        connection.limit = limit;
        connection.kept = options.reconnect.as_ref().map(|_| Kept::default());
        negotiate(&mut connection, proposed)?;
        let current = Arc::new(Current::new(connection, holder));
        Ok(Client { name, current, state: SessionState::default(), reconnection: None })
    }

    /// Returns the capabilities of this client.
    pub fn capabilities() -> Capabilities {
        Capabilities {
            max_msg_fds: MAX_FDS as u32,
            pgsizes: !0xfff,
            twin_socket: Some(TwinSocket { supported: true, fd_index: None }),
            write_multiple: true,
            migration_extensions: Some(MigrationExtensions::ALL),
            ..Capabilities::default()
        }
    }

    /// VFIO_USER_DEVICE_RESET for the device's guest: the server's rule ([`Migratable::reset_rule`]) says what becomes of a
    /// migration under way. If it keeps pre-copy, the device stays in its state, and the data file stays valid.
    ///
    /// [`Migratable::reset`] instead always leaves the device in RUNNING.
    ///
    /// [`Migratable::reset`]: whimbrel_user::Migratable::reset
    /// [`Migratable::reset_rule`]: whimbrel_user::Migratable::reset_rule
    pub fn reset_for_guest(&self) -> Result<()> {
        let connection = &mut *self.connection();
        connection.check_migration(&Command::DeviceReset.to_string())?;
        reset::reset_for_guest(connection)
    }

    /// Returns the capabilities that client and server have agreed on.
    pub fn agreed(&self) -> Capabilities {
        self.connection().agreed.clone()
    }

    /// Closes the connection, and ends a [reconnection](ClientOptions::reconnect), for all handles to it. Requests in
    /// flight fail with ECONNRESET. Waits for nothing.
    pub fn close(&self) {
        if let Some(reconnection) = &self.reconnection {
            reconnection.cancel();
        }
        self.current.sender().shutdown();
    }
}

/// Connects, with a timeout in case the server does not accept.
fn connect(path: &Path, request_timeout: Duration) -> std::io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let request_timeout = request_timeout.max(Duration::from_millis(1));
    set_socket_timeout(&socket, Timeout::Send, Some(request_timeout))?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket.into()),
            Err(SystemError::INTR) => {}
            Err(SystemError::AGAIN) => return Err(SystemError::TIMEDOUT.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn cannot_connect(name: &str, path: &Path, error: &std::io::Error) -> Error {
    let is_other = || path.metadata().is_ok_and(|metadata| !metadata.file_type().is_socket());
    let why = match Errno::from_io_error(error) {
        // What the system says of any file that is not a socket, as of a socket without a server.
        Some(errno @ Errno::ECONNREFUSED) if is_other() => {
            format!("cannot connect: {errno}: not a socket; give the path from 'serve --socket'")
        }
        Some(errno @ (Errno::ENOENT | Errno::ECONNREFUSED)) => {
            format!("cannot connect: {errno}: no server is listening; start it first")
        }
        Some(errno @ Errno::ETIMEDOUT) => {
            format!(
                "cannot connect: {errno}: the server does not accept connections; check whether its process is stopped"
            )
        }
        Some(errno @ (Errno::EACCES | Errno::EPERM)) => {
            format!("cannot connect: {errno}: run as the server's user")
        }
        Some(errno) => format!("cannot connect: {errno}"),
        None => format!("cannot connect: {error}"),
    };
    Error::unusable(name, why)
}

fn is_busy(error: &Error) -> bool {
    matches!(error, Error::Request { errno: Errno::EBUSY, .. })
}

/// Explains EBUSY, which a server uses for another reason than a kernel.
fn busy_explained(error: Error) -> Error {
    match error {
        Error::Request { device, errno: errno @ Errno::EBUSY, .. } => Error::unusable(
            &device,
            format!("{errno}: the device is in use by another client; disconnect it first"),
        ),
        other => other,
    }
}

/// Negotiates by VFIO_USER_VERSION. The server's answer must be a subset of the proposal; limits that are not are
/// replaced by the proposal's.
fn negotiate(connection: &mut Connection, proposed: Capabilities) -> Result<()> {
    let what = || Command::Version.to_string();
    let request = Request::Version(Version::proposal(proposed.clone()));
    let (version, descriptors) = match connection.ask(what, &request, &[]) {
        Ok(answer) => match answer.reply {
            Reply::Version(version) => (version, answer.descriptors),
            _ => return Err(connection.invalid_reply(what(), "not a version")),
        },
        Err(error) => return Err(error),
    };
    let Version { major, minor, capabilities: server } = version;
    if major != VERSION_MAJOR {
        return Err(connection.invalid_reply(
            what(),
            format_args!(
                "unsupported version {major}.{minor} of the server: this client supports {VERSION_MAJOR}.x"
            ),
        ));
    }
    if server.max_data_xfer_size == 0 {
        return Err(
            connection.invalid_reply(what(), "invalid max_data_xfer_size 0: no data could be transferred")
        );
    }
    if minor == 0 {
        connection.features = Features::Doubtful;
    }
    let agreed = Capabilities {
        max_msg_fds: server.max_msg_fds.min(proposed.max_msg_fds),
        max_data_xfer_size: server.max_data_xfer_size.min(proposed.max_data_xfer_size),
        max_dma_maps: server.max_dma_maps.min(proposed.max_dma_maps),
        pgsizes: server.pgsizes & proposed.pgsizes,
        twin_socket: None,
        write_multiple: server.write_multiple && proposed.write_multiple,
        migration: server.migration,
        migration_extensions: MigrationExtensions::both(
            server.migration_extensions,
            proposed.migration_extensions,
            server.max_msg_fds.min(proposed.max_msg_fds),
        ),
        migration_compatibility: None,
        migration_reset_rule: None,
    };
    let extensions = agreed.extensions();
    let compatibility = extensions.compatibility.then(|| server.migration_compatibility.clone()).flatten();
    let reset_rule = server.migration_reset_rule.filter(|_| extensions.reset_rule);
    let agreed = agreed.migration_compatibility(compatibility).migration_reset_rule(reset_rule);
    connection.agree(agreed, &server);
    // With the limits that hold now.
    let descriptors = descriptors.map_err(|error| connection.invalid_reply(what(), error))?;
    match connection.take_twin(&proposed, &server, descriptors) {
        Ok(true) => connection.agreed.twin_socket = Some(TwinSocket { supported: true, fd_index: None }),
        Ok(false) => {}
        Err(error) => return Err(connection.invalid_reply(what(), error)),
    }
    Ok(())
}

/// Sends VFIO_USER_DEVICE_FEATURE and returns the data of the reply, for which there are `room` bytes.
fn feature(
    connection: &mut Connection,
    what: impl Fn() -> String,
    asked: Feature,
    flags: FeatureFlags,
    data: &[u8],
    room: usize,
) -> Result<Vec<u8>> {
    feature_with_descriptors(connection, what, asked, flags, data, room).map(|(data, _)| data)
}

/// As [`feature`], with the descriptors of the reply.
fn feature_with_descriptors(
    connection: &mut Connection,
    what: impl Fn() -> String,
    feature: Feature,
    flags: FeatureFlags,
    data: &[u8],
    room: usize,
) -> Result<(Vec<u8>, Vec<OwnedFd>)> {
    feature_with(connection, what, feature, flags, data, room, <[u8]>::to_vec)
}

/// As [`feature_with_descriptors`], but passes the data of the reply to `take`, and returns the result.
fn feature_with<T>(
    connection: &mut Connection,
    what: impl Fn() -> String,
    feature: Feature,
    flags: FeatureFlags,
    data: &[u8],
    room: usize,
    take: impl FnOnce(&[u8]) -> T,
) -> Result<(T, Vec<OwnedFd>)> {
    if !connection.knows_features(&what)? {
        return Err(connection.refused(what(), Errno::ENOTTY));
    }
    let argsz = DeviceFeature::FIXED + room.max(data.len()) as u32;
    let request = DeviceFeature { argsz, feature: feature.number(), flags, data };
    let request = Request::DeviceFeature(request);
    // A reply that only repeats the request: all that is set but the page size of a log, and what is probed.
    let is_repeated = flags.contains(FeatureFlags::PROBE)
        || flags.contains(FeatureFlags::SET) && feature != Feature::DmaLoggingStart;
    let answer = if is_repeated {
        match connection.ask_repeating(&what, &request, &[])? {
            Some(answer) => answer,
            None => return Ok((take(data), Vec::new())),
        }
    } else {
        connection.ask(&what, &request, &[])?
    };
    let taken = match answer.reply {
        Reply::DeviceFeature(reply) if (reply.feature, reply.flags) == (feature.number(), flags) => {
            Some((take(reply.data), answer.descriptors))
        }
        _ => None,
    };
    let Some((taken, descriptors)) = taken else {
        return Err(connection.invalid_reply(what(), "reply for a different feature or operation"));
    };
    match descriptors {
        Ok(descriptors) => Ok((taken, descriptors)),
        Err(error) => Err(connection.invalid_reply(what(), error)),
    }
}

/// Gets a feature with a fixed size in bytes.
fn get<const N: usize>(connection: &mut Connection, asked: Feature) -> Result<[u8; N]> {
    let what = || asked.to_string();
    let data = feature(connection, what, asked, FeatureFlags::GET, &[], N)?;
    data.first_chunk().copied().ok_or_else(|| {
        connection.invalid_reply(what(), format_args!("reply of {} bytes, expected {N}", data.len()))
    })
}

/// Returns the data size. ENOTTY, without a request, if the extension was not agreed on.
fn data_size(connection: &mut Connection) -> Result<u64> {
    if !connection.agreed.extensions().data_size {
        return Err(connection.refused(Feature::MigDataSize, Errno::ENOTTY));
    }
    get(connection, Feature::MigDataSize).map(u64::from_ne_bytes)
}
