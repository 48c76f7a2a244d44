//! The answer to a call of the program.

use whimbrel_device::Errno;

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Value(i64),
    Error(Errno),
    /// The kernel executes the call.
    Continue,
}

impl From<Result<i64, Errno>> for Answer {
    fn from(result: Result<i64, Errno>) -> Answer {
        match result {
            Ok(value) => Answer::Value(value),
            Err(errno) => Answer::Error(errno),
        }
    }
}
