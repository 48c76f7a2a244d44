//! The reasons why an old server keeps its device.

use whimbrel_device::Errno;

use super::link::LinkError;
use crate::server::session::rest::NotParked;

/// The reason why a server keeps its device.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// This server refuses.
    #[error("{why} ({errno})")]
    Refused { errno: Errno, why: String },
    /// The new server refuses.
    #[error("the new server cannot take the device: {0}")]
    Declined(String),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("cannot hand the device over: {0}")]
    Device(whimbrel_user::Error),
    #[error("cannot hand the client over: {0}")]
    System(std::io::Error),
    #[error("the new server violated the takeover protocol: {0}")]
    Unexpected(String),
    /// The device belonged to the new server, and may have run there.
    #[error(
        "the new server (pid {0}) died without confirming that it ran the device; the device continues with its \
         earlier state, and its client may have seen a newer one: restart the client if it fails"
    )]
    Died(i32),
}

impl From<whimbrel_user::Error> for Refusal {
    fn from(error: whimbrel_user::Error) -> Refusal {
        Refusal::Device(error)
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Refusal {
        Refusal::System(error)
    }
}

impl From<NotParked> for Refusal {
    fn from(why: NotParked) -> Refusal {
        match why {
            NotParked::Stopped => LinkError::Stopped.into(),
            NotParked::Busy => {
                let why = "the client does not read replies, or the device is busy with its request";
                Refusal::new(Errno::ETIMEDOUT, why)
            }
        }
    }
}

impl Refusal {
    pub(crate) fn new(errno: Errno, why: impl Into<String>) -> Refusal {
        Refusal::Refused { errno, why: why.into() }
    }

    /// Returns the reason to refuse a client that has received a region's file.
    pub(super) fn region_file() -> Refusal {
        let why = "the client may have mapped a region's file; disconnect it first";
        Refusal::new(Errno::EOPNOTSUPP, why)
    }

    pub(super) fn errno(&self) -> Errno {
        match self {
            Refusal::Refused { errno, .. } => *errno,
            Refusal::Device(error) => error.errno().unwrap_or(Errno::EIO),
            Refusal::System(error) => Errno::from_io_error(error).unwrap_or(Errno::EIO),
            Refusal::Link(LinkError::Stopped) => Errno::ESHUTDOWN,
            Refusal::Link(LinkError::Silent | LinkError::Slow | LinkError::TooLong(_)) => Errno::ETIMEDOUT,
            Refusal::Declined(_) | Refusal::Link(_) | Refusal::Unexpected(_) | Refusal::Died(_) => {
                Errno::EPROTO
            }
        }
    }
}
