//! Hints for the operator who reads an error.

use super::Error;

impl Error {
    /// Returns a general hint for the operator, if there is one.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Device(error) => error.advice(),
            Error::Overdue { .. } => Some(whimbrel_user::Error::HANG_ADVICE),
            Error::NotBack { back: error, .. } | Error::NotReset { reset: error, .. }
                if error.is_of_a_lost_device() =>
            {
                Some(whimbrel_user::Error::HANG_ADVICE)
            }
            Error::NeedsReset { .. } => Some("reset the device, or close and open it again"),
            Error::ResetMeanwhile { .. } => Some(
                "try again once the guest has set the device up again; a vfio-user server can keep pre-copy over a reset \
                 (whimbrel serve --reset-rule keeps-precopy)",
            ),
            Error::NotReset { .. } => Some("close the device: the next one to open it gets it reset"),
            Error::Silent { .. } => Some(
                "check that the other side still runs and that the network works; its own log may say more",
            ),
            Error::Lost { .. } | Error::NotResumed { .. } => Some(
                "check whether the other side still runs, and read its log: it has failed or was killed, or the network ended \
                 the connection",
            ),
            Error::LostTooOften { .. } => Some(
                "the link is too slow, or too unreliable, for what has to be sent at once: a longer timeout of both sides \
                 (--timeout) helps a slow one",
            ),
            Error::Panicked { .. } => Some(
                "this is a bug of the named part: report it with what it printed (RUST_BACKTRACE=1 shows where)",
            ),
            Error::Lane { .. } => Some(
                "check that the destination's address still accepts connections, or migrate over one (--channels 1)",
            ),
            Error::Thread(_) => Some(
                "raise the limit of threads (ulimit -u, or pids.max of the control group) or of open files (ulimit -n)",
            ),
            _ => None,
        }
    }
}
