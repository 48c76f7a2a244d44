//! What only root may do, and not every kernel can.

use std::process::Command;

use crate::support::skip;

/// Returns whether a shell can run these commands; if not, it is said that `what` is left out.
pub(crate) fn is_allowed(what: &str, commands: &str) -> bool {
    let output = Command::new("sh").args(["-ec", commands]).output().unwrap();
    if !output.status.success() {
        skip(what, &format!("`{commands}`: {}", String::from_utf8_lossy(&output.stderr).trim_end()));
    }
    output.status.success()
}
