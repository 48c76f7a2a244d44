//! Migration through a region: v1 and the draft, each half by itself and the two against each other.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod draft;
mod halves;
mod hostile;
mod qemu;
mod sentences;
mod support;
