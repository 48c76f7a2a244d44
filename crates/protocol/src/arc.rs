//! One step of the state machine that failed.

use crate::Errno;

/// An arc that failed. It says where the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArcError {
    /// The device is still in the state the arc starts from, and works.
    #[error("{0}, and the device stays in the state it was in")]
    Stays(Errno),
    /// The device is in no valid state: it goes to ERROR and needs a reset.
    #[error("{0}, and the device needs a reset")]
    Broken(Errno),
}

impl ArcError {
    /// What the request returns.
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
