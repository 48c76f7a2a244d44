//! A migration as a protocol: the messages of both sides, their order, and the actions that they cause. No I/O, no
//! clock, no thread.
//!
//! `frame` and `message` define the byte form, `greeting`, `negotiate` and `identity` the comparison of the two sides
//! before any data moves, `check` the question whether they could migrate, `join` further connections, `source` and `destination`
//! the two machines, and `operation` the machines' commands and events.
#![expect(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "what a version of the stream says is fixed, and another version is another format"
)]

pub mod backlog;
pub mod check;
pub mod compression;
pub mod control;
mod convergence;
pub mod destination;
pub mod frame;
pub mod greeting;
pub mod identity;
pub mod intake;
pub mod join;
pub mod judgement;
pub mod lane_intake;
pub mod lanes;
pub mod message;
pub mod negotiate;
pub mod operation;
pub(crate) mod pace;
mod pending;
pub mod problem;
pub mod rounds;
pub mod source;
mod spans;
pub mod table;
mod time_left;

/// The longest timeout: 100 years. A longer one is taken for it, so that no clock overflows.
pub(crate) const LONGEST: std::time::Duration = std::time::Duration::from_hours(100 * 365 * 24);

pub(crate) const SOURCE: &str = "source";
pub(crate) const DESTINATION: &str = "destination";
