//! The vfio-user protocol: a VFIO device over a socket, with the device in one process and its user in
//! another.
//!
//! [`message`] is the protocol without I/O, [`Capabilities`] what two peers agree on, [`Receiver`] and
//! [`Sender`] move messages and file descriptors over a Unix socket. [`Server`] serves any driver-side device
//! at a path, [`Backend`] over a socket that is connected already, and [`Client`] uses the device of any
//! server. [whimbrel-sandbox](https://docs.rs/whimbrel-sandbox) confines the process of a server. The text is QEMU's
//! `docs/interop/vfio-user.rst`; where it is silent, answers are those of the kernel's VFIO, and what it leaves
//! open about migration is agreed on in [`MigrationExtensions`] (`docs/vfio-user-extensions.md`).

mod capabilities;
#[cfg(feature = "client")]
mod client;
#[cfg(any(feature = "client", feature = "server"))]
mod descriptor_kind;
mod descriptors;
#[cfg(any(feature = "client", feature = "server"))]
mod eventfd;
mod extensions;
pub mod message;
#[cfg(feature = "server")]
mod server;
mod socket;
#[cfg(feature = "takeover")]
mod takeover;

pub use capabilities::{
    Capabilities, MigrationCapability, NegotiationError, TwinSocket, VERSION_MAJOR, VERSION_MINOR, negotiate,
};
#[cfg(feature = "client")]
pub use client::{Client, ClientOptions, DmaMapping, IoAccess, RegionIoFd, RegionRead};
pub use descriptors::{DescriptorError, Descriptors, MAX_FDS};
pub use extensions::MigrationExtensions;
#[cfg(feature = "server")]
pub use server::{Backend, BackendOptions, Listener, ServeError, Served, Server, Stopper};
pub use socket::{Incoming, Receiver, Sender, SocketError, connection};
#[cfg(feature = "takeover")]
pub use takeover::{LinkError, Takeover, TakeoverError};

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
