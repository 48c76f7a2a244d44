//! Users under test: a program is given a device that misbehaves at chosen points, and judged by its requests and its
//! exit status.
//!
//! A [`UserCase`] is a sentence of the header that addresses the user, or a rule for what a faulty device may not cause,
//! with the faults of the device. [`run_user`] runs a program once for each, and judges the [`Record`] of the run.
//! Nothing here serves devices or starts programs: that is the part of [`UserUnderTest`], as in `whimbrel conform
//! --user`.

mod cases;
mod header_sentences;
mod met;
mod record;
mod request;
mod rules;
mod run;
#[cfg(test)]
mod tests;
mod user_case;
mod view;

pub use self::cases::cases;
pub use self::record::{Exit, Interface, Record, Socket};
pub use self::request::Request;
pub use self::run::{UserUnderTest, run_user};
pub use self::user_case::{Role, UserCase};
