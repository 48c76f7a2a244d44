//! The client, against our server and against servers that are none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod board;
mod descriptors;
mod doorbells;
mod extension;
mod guest;
mod hostile;
mod hostile_channel;
mod hostile_requests;
mod likeness;
mod live;
mod messages;
mod posted;
mod regions;
mod slips;
#[path = "../devices/source.rs"]
mod source_device;
mod stranger;
mod support;
mod time;
mod together;
mod unmap;
mod write_multiple;
