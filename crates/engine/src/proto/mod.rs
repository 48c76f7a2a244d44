//! A migration as a protocol: what both sides say, when, and what they do. No I/O, no clock, no thread.
//!
//! `frame` and `message` are the byte form, `negotiate` and `identity` what the two sides compare before anything moves,
//! `source` and `destination` the two machines, and `operation` what goes into and comes out of them.
#![expect(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "what a version of the stream says is fixed, and another version is another format"
)]

pub mod control;
pub mod destination;
pub mod frame;
pub mod identity;
pub mod intake;
pub mod message;
pub mod negotiate;
pub mod operation;
mod pending;
pub mod problem;
pub mod rounds;
pub mod source;
pub mod table;

pub(crate) const SOURCE: &str = "source";
pub(crate) const DESTINATION: &str = "destination";
