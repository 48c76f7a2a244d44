//! One client of a server: its connection, its setup, and the thread that serves it.
//!
//! A takeover accesses a client through [`Export`] and [`Snapshot`] only.

mod channel;
mod client;
pub(crate) mod client_handle;
mod client_memory;
pub(in crate::server) mod current;
mod data_session;
pub(crate) mod dirty_log;
mod doorbells;
mod feature;
pub(crate) mod file_memory;
pub(in crate::server) mod inline;
pub(crate) mod interrupts;
pub(crate) mod mappings;
mod memory;
mod migration_data;
mod outbound;
mod plain;
mod process;
pub(crate) mod queue;
mod region_info;
mod registers;
pub(crate) mod rest;
pub(crate) mod serving;
#[cfg(feature = "takeover")]
pub(crate) mod snapshot;
mod state_channel;
mod step;
pub(in crate::server) mod thread;
mod twin;
