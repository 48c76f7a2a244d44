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
mod client;
mod descriptors;
mod eventfd;
mod extensions;
pub mod message;
mod server;
mod socket;

pub use capabilities::{
    Capabilities, MigrationCapability, NegotiationError, TwinSocket, VERSION_MAJOR, VERSION_MINOR, negotiate,
};
pub use client::{Client, ClientOptions, DmaMapping, IoAccess, RegionIoFd, RegionRead};
pub use descriptors::Descriptors;
pub use extensions::MigrationExtensions;
pub use server::{
    Backend, BackendOptions, LinkError, Listener, ServeError, Served, Server, Stopper, Takeover,
    TakeoverError,
};
pub use socket::{DescriptorError, Incoming, MAX_FDS, Receiver, Sender, SocketError, connection};

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
