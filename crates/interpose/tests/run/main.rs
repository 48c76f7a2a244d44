//! Unmodified programs run on models: one in C against the kernel's headers, linked dynamically and statically, one in C that
//! maps regions, and one in Python. They end by themselves, are killed, stopped and frozen.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod board;
#[path = "../support/cgroup.rs"]
mod cgroup;
mod endings;
mod endurance;
mod faults;
mod host;
mod limits;
mod programs;
mod python;
mod support;
mod trace;
