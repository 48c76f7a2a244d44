//! Migrations between processes in which something goes wrong: killed and stopped processes, slow and broken links, signals,
//! clocks that jump, and resources that run out. The devices belong to servers, which outlive `send` and `receive`.
//!
//! The time that something takes never decides a test. A moment is drawn from a seed, which a failure names:
//! `WHIMBREL_SEED=N` repeats that trial alone. With `WHIMBREL_LONG=1` the trials are many; run the ignored tests, too.
//!
//! The tests change system calls through x86-64's registers.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, with the line where it did")]

#[path = "../cli/authority.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod authority;
#[path = "../../../engine/tests/certificates/mod.rs"]
#[allow(dead_code, reason = "the tests of the engine use more of it")]
mod certificates;
mod clocks;
mod descriptors;
#[path = "../cli/disk.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod disk;
mod disks;
mod full_disk;
mod host;
mod interrupted;
mod journals;
mod journeys;
mod killed;
mod links;
mod migration;
mod moment;
mod network;
mod operator;
#[path = "../../../engine/tests/phases/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the engine")]
mod phases;
mod proxy;
mod reconnecting;
mod returning;
mod root;
mod seed;
mod servers;
mod signals;
mod started;
mod stopped;
#[path = "../cli/support.rs"]
#[allow(dead_code, reason = "shared with the other tests of the program")]
mod support;
mod tracer;
