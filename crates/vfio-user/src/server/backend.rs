//! A device to serve, the options for its clients, and the state that all handles to it share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use whimbrel_device::{DataFile, DeviceFile, IoeventfdWrite, ResetRule, WorkingDevice};

use super::foreign::{ForeignThread, ForeignThreads};
use super::hidden_precopy::HiddenPrecopy;
use super::log_limit::LogLimit;
use super::screen::Screen;
use crate::capabilities::{Capabilities, MigrationCapability, TwinSocket};
use crate::descriptors::MAX_FDS;
use crate::extensions::MigrationExtensions;

/// Maximum mappings of a client: half the number that a process can have (`vm.max_map_count`).
const MAX_DMA_MAPS: u32 = 32_768;

/// A device to serve. A clone is another handle to it.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::Backend;
///
/// let model = "serial".parse::<Model>()?.open("serial 0")?;
/// let backend = Backend::new(model);
/// let (server, client) = UnixStream::pair()?;
/// let serving = std::thread::spawn(move || backend.serve(server));
/// // A client that leaves at once is served too.
/// drop(client);
/// serving.join().expect("it does not panic")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Backend {
    pub(super) shared: Arc<Shared>,
}

/// The state shared by all handles to a backend.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) device: WorkingDevice,
    pub(super) capabilities: Capabilities,
    pub(super) ioeventfds: Vec<IoeventfdWrite>,
    pub(super) max_client_memory: u64,
    pub(super) foreign_memory: bool,
    pub(super) remote_memory: bool,
    pub(super) foreign_threads: ForeignThreads,
    /// Refused clients.
    pub(super) not_served: LogLimit,
    /// The last data file that the device opened, for any client.
    pub(super) data_file: Mutex<Option<Arc<DataFile>>>,
    /// The pre-copy of a takeover, if one is in it.
    pub(super) hidden_precopy: Arc<HiddenPrecopy>,
    in_use: AtomicBool,
}

/// Options of a [`Backend`]: the capabilities offered to clients, and limits on their cost.
///
/// ```
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, BackendOptions};
///
/// let model = "serial".parse::<Model>()?.open("serial 0")?;
/// let backend = Backend::with(model, BackendOptions::default().max_client_memory(16 << 30));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BackendOptions {
    capabilities: Capabilities,
    ioeventfds: Vec<IoeventfdWrite>,
    max_client_memory: u64,
    foreign_memory: bool,
    remote_memory: bool,
    reset_rule: Option<ResetRule>,
}

impl Default for BackendOptions {
    fn default() -> BackendOptions {
        BackendOptions {
            capabilities: Backend::capabilities(),
            ioeventfds: Vec::new(),
            max_client_memory: u64::MAX,
            foreign_memory: false,
            remote_memory: true,
            reset_rule: None,
        }
    }
}

impl BackendOptions {
    /// Sets the server's capabilities: [`Backend::capabilities`], or less.
    #[must_use]
    pub fn capabilities(self, capabilities: Capabilities) -> BackendOptions {
        BackendOptions { capabilities, ..self }
    }

    /// Sets writes that clients get eventfds for beside the doorbells that the driver names
    /// (VFIO_USER_DEVICE_GET_REGION_IO_FDS): a signal of the eventfd executes the write.
    #[must_use]
    pub fn ioeventfds(self, ioeventfds: Vec<IoeventfdWrite>) -> BackendOptions {
        BackendOptions { ioeventfds, ..self }
    }

    /// Sets the maximum bytes of files that one client may map, above which VFIO_USER_DMA_MAP is ENOSPC. Unlimited by
    /// default.
    ///
    /// A page that a client shares but has not touched is charged to the process that touches it first, which may be
    /// the server.
    #[must_use]
    pub fn max_client_memory(self, bytes: u64) -> BackendOptions {
        BackendOptions { max_client_memory: bytes, ..self }
    }

    /// Accepts files of any file system for reads and writes (VFIO_USER_F_DMA_REGION_FILE_IO), such as
    /// `/proc/PID/mem`; by default they are EINVAL.
    ///
    /// A file may never respond: accesses to it are then faults, and the process cannot exit until the file responds.
    #[must_use]
    pub fn foreign_memory(self, takes: bool) -> BackendOptions {
        BackendOptions { foreign_memory: takes, ..self }
    }

    /// Sets whether to accept memory without a descriptor, whose contents the client is asked for at each access
    /// (VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE); accepted by default. If not, mapping it is EINVAL, and no access
    /// of the device waits for a client: for a server in an event loop with others
    /// ([`Server::dispatch`](crate::Server::dispatch)).
    #[must_use]
    pub fn remote_memory(self, takes: bool) -> BackendOptions {
        BackendOptions { remote_memory: takes, ..self }
    }

    /// Sets what a client's reset does to a migration under way ([`DeviceFile::set_reset_rule`]). By default it follows
    /// the device's own rule, which is the kernel's unless it was set: the migration ends.
    ///
    /// A guest may reset its device at any time. [`ResetRule::KeepsPrecopy`] lets its VMM's migration survive that in
    /// pre-copy. A device whose driver cannot do so keeps the kernel's rule, with a warning in the log: compare with
    /// [`DeviceFile::reset_rule`]. Clients that negotiate the extension `reset_rule` are told the rule.
    #[must_use]
    pub fn reset_rule(self, rule: ResetRule) -> BackendOptions {
        BackendOptions { reset_rule: Some(rule), ..self }
    }
}

impl Backend {
    /// Creates a backend with the server's capabilities, and the doorbells that the driver names. It owns the device's
    /// worker, if any, which stops with the last handle. A [`DeviceFile`] alone has none, and its
    /// [`Driver::advance`](whimbrel_device::Driver::advance) is not called: start it with [`WorkingDevice::start`].
    pub fn new(device: impl Into<WorkingDevice>) -> Backend {
        Backend::with(device, BackendOptions::default())
    }

    /// Creates a backend with these options.
    pub fn with(device: impl Into<WorkingDevice>, options: BackendOptions) -> Backend {
        let BackendOptions { mut capabilities, ioeventfds, max_client_memory, .. } = options;
        let BackendOptions { foreign_memory, remote_memory, reset_rule, .. } = options;
        let device: WorkingDevice = device.into();
        if let Some(rule) = reset_rule
            && let Err(errno) = device.set_reset_rule(rule)
        {
            let device = device.name();
            tracing::warn!(device, %errno, "the driver cannot keep pre-copy over a reset: a reset ends a migration");
        }
        capabilities.max_msg_fds = capabilities.max_msg_fds.min(MAX_FDS as u32);
        let (data_file, in_use) = (Mutex::new(None), AtomicBool::new(false));
        Backend {
            shared: Arc::new(Shared {
                device,
                capabilities,
                ioeventfds,
                max_client_memory,
                foreign_memory,
                remote_memory,
                foreign_threads: ForeignThreads::default(),
                not_served: LogLimit::default(),
                data_file,
                hidden_precopy: Arc::default(),
                in_use,
            }),
        }
    }

    /// Returns the capabilities of this server.
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

    /// Returns the capabilities offered to clients.
    #[cfg(feature = "takeover")]
    pub(crate) fn offered(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    /// Returns whether a client is served, through any handle.
    #[cfg(feature = "takeover")]
    pub(crate) fn is_in_use(&self) -> bool {
        self.shared.in_use.load(Ordering::Acquire)
    }

    /// Returns the pre-copy of a takeover, if one is in it.
    #[cfg(feature = "takeover")]
    pub(crate) fn hidden_precopy(&self) -> &Arc<HiddenPrecopy> {
        &self.shared.hidden_precopy
    }

    /// Returns the device.
    pub fn device(&self) -> &DeviceFile {
        &self.shared.device
    }
}

impl Shared {
    /// Returns the rule for descriptors of clients.
    pub(super) fn screen(&self, foreign: &Arc<ForeignThread>) -> Screen {
        Screen::new(foreign.clone(), self.foreign_memory)
    }
}

/// The right to serve the only client, until it and its clones are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Turn(pub(super) Arc<Shared>, #[expect(dead_code, reason = "only held")] Arc<InUse>);

#[derive(Debug)]
struct InUse(Arc<Shared>);

impl Turn {
    /// Takes the right, unless another client has it.
    pub(crate) fn take(backend: &Backend) -> Option<Turn> {
        let shared = &backend.shared;
        let is_free = !shared.in_use.swap(true, Ordering::AcqRel);
        is_free.then(|| Turn(shared.clone(), Arc::new(InUse(shared.clone()))))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.in_use.store(false, Ordering::Release);
    }
}
