//! The configuration space is one that a guest can probe, and that tells its driver what the guest did; the function
//! around it serves a driver whole.

mod events;
mod function;
mod lspci;
mod masks;
mod probe;
mod refusals;
mod sample;
