//! Unmodified programs run on models: one in C against the kernel's headers, linked dynamically and statically, and one in
//! Python. They end by themselves, are killed and are stopped.
#![allow(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod endings;
mod faults;
mod host;
mod programs;
mod python;
mod support;
mod trace;
