//! The links a migration goes over: TCP and Unix streams, by address.

mod address;
mod link;
mod listener;

pub use address::{Address, AddressError};
pub use link::Link;
pub use listener::Listener;
