//! `/proc`, on which both [`run`](crate::run) and [`trace`](crate::trace) rely.

use std::fs;
use std::str::FromStr;

/// Returns a number in the `/proc/PID/status` of a thread: `name` is the start of its line, up to the colon.
pub(crate) fn number_in<T: FromStr>(status: &str, name: &str) -> Option<T> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// Returns the number of a thread's process in its `/proc/PID/status`.
pub(crate) fn process_in<T: FromStr>(status: &str) -> Option<T> {
    number_in(status, "Tgid:")
}

/// Returns whether `/proc` shows this process, and so the processes that it starts, by the numbers that they have here.
pub(crate) fn is_own() -> bool {
    fs::read_link("/proc/self").is_ok_and(|link| link == std::process::id().to_string())
}
