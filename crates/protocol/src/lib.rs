//! The rules of VFIO device migration, without I/O.
//!
//! The crate is plain data and functions: no file descriptor, socket, clock or thread. A caller passes in events
//! (bytes, results, durations) and gets their meaning or the next action. Both sides of the contract in
//! `include/uapi/linux/vfio.h` are built on it: a driver asks for the next arc to execute, and a user asks whether
//! an empty read was the end.
//!
//! ```
//! use whimbrel_protocol::{MigrationFlags, State, fsm};
//!
//! let flags = MigrationFlags::STOP_COPY | MigrationFlags::P2P;
//! assert_eq!(fsm::next(flags, State::Running, State::StopCopy), Some(State::RunningP2p));
//! let path: Vec<State> = fsm::path(flags, State::Running, State::StopCopy).unwrap().collect();
//! assert_eq!(path, [State::RunningP2p, State::Stop, State::StopCopy]);
//! ```
#![forbid(unsafe_code)]

pub mod arc;
pub mod compatibility;
pub mod dirty;
pub mod estimate;
pub mod fsm;
pub mod handover;
pub mod info;
pub mod irq;
pub mod precopy;
pub mod region;
pub mod reset;
pub mod session;
mod state;
pub mod text;

pub use state::{State, UnknownState};
pub use whimbrel_uapi::Errno;
pub use whimbrel_uapi::migration::MigrationFlags;

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
