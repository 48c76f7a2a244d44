//! A device that another program stands for: it reads requests from its stdin and answers on its stdout. So a driver in
//! C, or another VMM's code, is put under test without a kernel, a VMM or a library. `docs/conformance-stdin.md` has the
//! protocol.
//!
//! `codec` has the requests and answers as bytes, without I/O. `process` runs the program, with a deadline for each
//! answer. `device` and `state_file` make it a [`Device`](whimbrel_user::Device),
//! and `hooks` has those of its author.

mod codec;
pub(crate) mod complaint;
mod connection;
mod device;
mod hooks;
mod process;
mod program;
mod state_file;

pub use program::Program;
