//! The server: serves any driver-side device to clients over sockets.
//!
//! [`Backend`] serves a device to one client at a time over a connected socket; [`Server`] accepts clients at a path.
//! When a client leaves and another one connects, the device's state stays, and the first client's memory, interrupts
//! and logs end. No message of a client ends a server.
//!
//! Another process can replace a [`Server`], and get its device, its client's memory and its sockets, only if the
//! server allows it and the process runs as the same user: [`Server::allow_takeover`], [`Server::takeover_socket`].
//! By default this is not allowed.
//!
//! A client's memory is a file in memory (memfd_create, tmpfs, hugetlbfs). Files of other file systems may never
//! respond, which blocks even SIGKILL: they are refused, and closed by a separate thread per client. A server may
//! accept them for reads and writes ([`BackendOptions::foreign_memory`]), which that thread then does.
//!
//! If a client truncates a file that it has mapped as memory, the device's next access ends the process by SIGBUS,
//! unless the program has called [`survive_lost_memory`] once, as `whimbrel serve` does: then such an access is a
//! fault. It installs a handler for the whole process, so the decision is the program's.
//!
//! The server reserves some descriptors for its process: a client's descriptors above the limit are EMFILE.
//!
//! Memory mapped without a descriptor is accessed by messages: VFIO_USER_DMA_READ and VFIO_USER_DMA_WRITE, over the
//! twin socket if one was agreed on, otherwise over the command socket. Commands that arrive meanwhile are executed
//! in order. If the client does not deliver all data of one device access within five seconds, its connection ends,
//! and the access is a fault.
//!
//! Answers are those of the kernel's VFIO, errno by errno. Deviations from the specification, and cases that it does
//! not cover:
//!
//! - VFIO_USER_DMA_UNMAP unmaps all mappings that lie wholly in its range, and returns their total size. A range that
//!   cuts a mapping is EINVAL. The specification wants a range to be exactly one mapping.
//! - Region reads and writes past the region's end are truncated there.
//! - Migration data without a session is EBADF; after its end ENODEV.
//! - Our migration extensions to the specification are negotiated ([`MigrationExtensions`]), or unavailable.
//! - A socket that comes with a message which has to wait is closed, and the message is EINVAL: no command carries
//!   one, and if it is the client's own end of the connection, the server would not notice that the client leaves.
//! - Unknown commands are ENOTTY. Messages longer than agreed are EMSGSIZE, after which the connection is over.

pub(crate) mod backend;
mod error;
mod foreign;
pub(crate) mod hidden_precopy;
pub(crate) mod listener;
mod log_limit;
mod refusal;
mod screen;
pub(crate) mod session;
pub(crate) mod signal;

#[cfg(doc)]
use whimbrel_device::survive_lost_memory;

pub use self::backend::{Backend, BackendOptions};
pub use self::error::ServeError;
pub use self::listener::moved::Moved;
pub use self::listener::server::{Served, Server, Stopper};
pub use self::listener::socket_file::Listener;
#[cfg(doc)]
use crate::extensions::MigrationExtensions;
