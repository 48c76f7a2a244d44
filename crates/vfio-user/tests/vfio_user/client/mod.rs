//! The client, against our server and against servers that are none.

mod board;
mod descriptors;
mod deviations;
mod doorbells;
mod extension;
mod guest;
mod guest_reset;
mod hostile;
mod hostile_channel;
mod hostile_requests;
mod identity;
mod likeness;
mod live;
mod messages;
mod posted;
mod reconnect;
mod regions;
mod setup;
mod stranger;
mod support;
mod time;
mod together;
mod unmap;
mod write_multiple;
