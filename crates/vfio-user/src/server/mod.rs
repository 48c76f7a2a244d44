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

pub(crate) mod backend;
mod error;
mod foreign;
pub(crate) mod listener;
mod log_limit;
mod refusal;
mod screen;
pub(crate) mod session;

#[cfg(doc)]
use whimbrel_device::survive_lost_memory;

pub use self::backend::{Backend, BackendOptions};
pub use self::error::ServeError;
pub use self::listener::server::{Served, Server, Stopper};
pub use self::listener::socket_file::Listener;
#[cfg(doc)]
use crate::extensions::MigrationExtensions;
