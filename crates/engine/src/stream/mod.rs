//! The stream between two hosts, and the file that holds a saved device: one format, written down in `docs/stream.md`.
//!
//! `frame` is the outer layer: lengths, order, checksums. `message` is what a frame says. Both do no I/O; `reader` and
//! `writer` put them on a byte stream.
#![expect(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "what a version of the stream says is fixed, and another version is another format"
)]

mod frame;
mod message;
mod reader;
mod writer;

pub use frame::{
    CHUNK, FrameHeader, HEADER_BYTES, Kind, MAX_CONTROL, MAX_PAYLOAD, PREAMBLE_BYTES, Preamble,
    VERSION_MAJOR, VERSION_MINOR,
};
pub use message::{DeviceSummary, Hello, Message, Ready, Reason, Running};
pub use reader::{Problem, Reader, StreamError};
pub use writer::Writer;
