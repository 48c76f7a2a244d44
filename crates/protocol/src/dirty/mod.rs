//! Logs of written memory: the ranges that are logged, the log a driver keeps, the bitmap a user gets.

mod barrier;
mod bitmap;
mod log;
mod ranges;
mod report;

pub use bitmap::{PageBitmap, Run, Runs};
pub use log::{DirtyLog, Marks};
pub use ranges::{IovaRange, LoggingRanges, MAX_LOGGING_RANGES};
pub use report::DirtyReport;
