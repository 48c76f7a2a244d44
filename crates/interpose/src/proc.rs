//! `/proc`, on which both [`run`](crate::run) and [`trace`](crate::trace) rely.

use std::fs;

/// Returns whether `/proc` shows this process, and so the processes that it starts, by the numbers that they have here.
pub(crate) fn is_own() -> bool {
    fs::read_link("/proc/self").is_ok_and(|link| link == std::process::id().to_string())
}
