//! The vfio-user protocol: a VFIO device over a Unix socket, with the device in one process and its user in another.
//!
//! A server for any driver-side device, and a client that uses it as any other device:
//!
//! ```
//! use whimbrel_models::Model;
//! use whimbrel_user::{Device, Migratable, State};
//! use whimbrel_vfio_user::{Backend, Client, ClientOptions, Server};
//!
//! let folder = tempfile::tempdir()?;
//! let socket = folder.path().join("accel");
//!
//! // The process that has the device, here a model of one.
//! let model = "accel?state=1MiB".parse::<Model>()?.open("accel 0")?;
//! let server = Server::bind(&socket, Backend::new(model))?;
//! let stopper = server.stopper();
//! let serving = std::thread::spawn(move || server.run());
//!
//! // The process that uses it.
//! let mut device = Client::connect(&socket, &ClientOptions::default())?;
//! device.write_region(0, 0x40, &1_u32.to_ne_bytes())?;
//! let mut value = [0; 4];
//! device.read_region(0, 0x40, &mut value)?;
//! assert_eq!(u32::from_ne_bytes(value), 1);
//! assert_eq!(device.state()?, State::Running);
//!
//! drop(device);
//! stopper.stop();
//! assert_eq!(serving.join().expect("the server does not panic")?.clients, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | feature | what it adds |
//! |---|---|
//! | none | [`message`], the codec without I/O; [`Capabilities`] and how two peers [`negotiate`] them; [`Receiver`] and [`Sender`], messages with file descriptors over a socket |
//! | `client` | [`Client`], for any server |
//! | `server` | [`Server`] at a path, in a thread or an event loop of yours; [`Backend`] over a connected socket |
//! | `takeover` | [`Takeover`]: a new server replaces an old one while its client uses the device |
//!
//! All are on by default. Only `server` compiles the driver side. [whimbrel-sandbox](https://docs.rs/whimbrel-sandbox)
//! confines the process of a server.
//!
//! The specification is QEMU's `docs/interop/vfio-user.rst`. Where it is silent, the server answers as the kernel's VFIO
//! does. Our extensions for migration are negotiated as [`MigrationExtensions`] (`docs/vfio-user-extensions.md`).

mod capabilities;
#[cfg(feature = "client")]
mod client;
mod compatibility;
#[cfg(any(feature = "client", feature = "server"))]
mod descriptor_kind;
mod descriptors;
#[cfg(any(feature = "client", feature = "takeover"))]
mod eventfd;
mod extensions;
mod json;
pub mod message;
mod reset_rule;
#[cfg(feature = "server")]
mod server;
mod socket;
#[cfg(feature = "takeover")]
mod takeover;

pub use capabilities::{
    Capabilities, MigrationCapability, NegotiationError, TwinSocket, VERSION_MAJOR, VERSION_MINOR, negotiate,
};
#[cfg(feature = "client")]
pub use client::{
    Client, ClientOptions, ConnectionStatus, DmaMapping, IoAccess, Reconnect, RegionIoFd, RegionRead,
};
pub use descriptors::{DescriptorError, Descriptors, MAX_FDS};
pub use extensions::MigrationExtensions;
#[cfg(feature = "server")]
pub use server::{Backend, BackendOptions, Listener, Moved, ServeError, Served, Server, Stopper};
pub use socket::{Incoming, Receiver, Sender, SocketError, connection};
#[cfg(feature = "takeover")]
pub use takeover::{LinkError, Takeover, TakeoverError};

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
