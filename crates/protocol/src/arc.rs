//! Failure of one step of the state machine.

use crate::Errno;

/// A failed arc, with the resulting state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(clippy::exhaustive_enums, reason = "the device either keeps its state or has none")]
pub enum ArcError {
    /// The device is still in the state the arc starts from, and is working.
    #[error("{0}; the device state is unchanged")]
    Stays(Errno),
    /// The device is in no valid state: it enters ERROR and needs a reset.
    #[error("{0}; the device needs a reset")]
    Broken(Errno),
}

impl ArcError {
    /// Returns the errno that the request returns.
    pub const fn errno(self) -> Errno {
        match self {
            ArcError::Stays(errno) | ArcError::Broken(errno) => errno,
        }
    }
}

impl From<Errno> for ArcError {
    fn from(errno: Errno) -> ArcError {
        ArcError::Stays(errno)
    }
}
