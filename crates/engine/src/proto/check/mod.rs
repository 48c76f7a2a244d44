//! The check before a migration: whether the devices can migrate and why not, and how long they would be stopped at most.
//!
//! Plain rules and figures. [`Source::check`](crate::Source::check) asks the devices and measures the link. A [`Code`]
//! never changes its name, because scripts compare it.

mod answering;
mod asking;
mod code;
mod downtime;
mod facts;
mod finding;
mod history;
mod link;
mod mismatch;
mod report;

pub use answering::{Answering, CHECK_TIMEOUT, End, Heard, MAX_BYTES, MAX_QUESTIONS};
pub use asking::{Ask, Asked, Asking};
pub use code::{Code, Severity};
pub(crate) use downtime::{Stop, bound};
pub use facts::Facts;
pub(crate) use facts::{Refused, findings_of};
pub use finding::Finding;
pub use history::{History, HistoryError};
pub use link::Link;
pub(crate) use link::TIME;
pub(crate) use mismatch::of_failed;
pub use report::{CheckReport, DeviceCheck, DirtyLog, Downtime};
