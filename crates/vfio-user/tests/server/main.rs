//! The server, as a client sees it over a real socket.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod answers;
mod clients;
mod hostile;
mod memory;
mod messages;
mod migration;
mod support;
