//! The client, against our server and against servers that are none.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod descriptors;
mod hostile;
mod likeness;
mod live;
mod support;
