//! The real program, run as a script runs it: what it prints, as text and as JSON, its exit status, and what it does
//! with bad input; the demo; and the program on a real kernel's devices, in the lab.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, with the line where it did")]

mod abi;
mod authority;
#[path = "../../../engine/tests/certificates/mod.rs"]
#[allow(dead_code, reason = "the tests of the engine use more of it")]
mod certificates;
mod check;
mod command_line;
mod conform;
mod damage;
mod demo;
mod demo_servers;
#[allow(dead_code, reason = "shared with the tests of processes")]
mod disk;
mod files;
mod fsm;
mod gate;
mod guest_reset;
#[path = "../../../vfio-user/tests/vfio_user/server/hand.rs"]
#[allow(dead_code, reason = "the tests of vfio-user use the rest of it")]
mod hand;
mod hangs;
mod lab;
mod lanes;
mod migration;
mod nvme;
mod partial;
mod reconnect;
mod refused;
mod report;
mod resolve;
mod run;
mod run_ends;
mod run_faults;
mod run_trace;
mod sandbox;
mod sentences;
mod serve;
mod state;
mod support;
mod takeover;
mod takeover_builds;
mod targets;
mod tls;
mod trace;
mod users;
mod vfio_user;
mod vfio_user_endings;
