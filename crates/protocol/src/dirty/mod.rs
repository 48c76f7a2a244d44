//! Logs of written memory as plain data: the ranges that are logged, the marks that a log gives, the bitmap a user gets.
//! The log itself, which threads share, is in `whimbrel-memory`.

mod bitmap;
mod marks;
mod ranges;
mod report;

pub use bitmap::{PageBitmap, Run, Runs};
pub use marks::Marks;
pub use ranges::{IovaRange, LoggingRanges, MAX_LOGGING_RANGES};
pub use report::DirtyReport;
