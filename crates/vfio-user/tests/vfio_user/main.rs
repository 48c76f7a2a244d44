//! Server, client and what they agree on over real sockets; the examples; and strangers to both.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod client;
mod examples;
mod nvme;
mod rust_vmm;
mod server;
mod socket;
mod source_device;
mod without_device;
