//! The server at a path: accepts connections and decides how to handle each.

pub(crate) mod moved;
mod poller;
pub(super) mod server;
pub(crate) mod socket_file;
mod spare;
#[cfg(feature = "takeover")]
mod takeovers;
#[cfg(feature = "takeover")]
mod taking_over;
mod unidentified;
mod watching;
