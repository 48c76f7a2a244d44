//! Dirty tracking as plain data: the logged ranges, the marks a log reports, and the user's bitmap. The log itself,
//! which threads share, is in `whimbrel-memory`.

mod bitmap;
mod marks;
mod ranges;
mod report;

pub use bitmap::{PageBitmap, Run, Runs};
pub use marks::Marks;
pub use ranges::{IovaRange, LoggingRanges, MAX_LOGGING_RANGES};
pub use report::DirtyReport;
