//! Errors between a user and its device, with the device, the request and the errno by name.

use std::path::PathBuf;
use std::time::Duration;

use whimbrel_protocol::region::UserError;
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::feature::Feature;

use crate::operation::Operation;

/// The outcome of a request to a device.
pub type Result<T> = std::result::Result<T, Error>;

/// A request that failed, or a device that could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver side refused a request.
    #[error("{device}: {request}: {errno}")]
    Request {
        /// The device's name.
        device: String,
        /// The request.
        request: Operation,
        /// The answer.
        errno: Errno,
    },
    /// The driver side gave an invalid answer.
    #[error("{device}: {request}: invalid reply from the device: {what}")]
    Answer {
        /// The device's name.
        device: String,
        /// The request.
        request: Operation,
        /// The defect of the answer.
        what: String,
    },
    /// The driver side answered a request for a migration state without an error, and the device is in another state.
    #[error(
        "{device}: {}: invalid reply from the device: success, with the device in {found}{}",
        Operation::SetState(*state),
        if *found == State::Running { ", as after a reset" } else { "" }
    )]
    NotReached {
        /// The device's name.
        device: String,
        /// The requested state.
        state: State,
        /// The state that the device is in.
        found: State,
    },
    /// A request to a device with a migration region failed.
    #[error("{device}: {error}")]
    Region {
        /// The device's name.
        device: String,
        /// The error of the region.
        error: UserError,
    },
    /// A file of the device could not be opened or read.
    #[error("{device}: cannot open {}: {errno}", path.display())]
    Open {
        /// The device's name.
        device: String,
        /// The file.
        path: PathBuf,
        /// The cause.
        errno: Errno,
    },
    /// The device exists but cannot be used in this way.
    #[error("{device}: {why}")]
    Unusable {
        /// The device's name.
        device: String,
        /// The reason, and a remedy.
        why: String,
    },
    /// A request to a [`Timed`](crate::Timed) device has not returned within its timeout. The state of the device is unknown.
    #[error("{device}: {request} has not returned for {} ms", waited.as_millis())]
    Overdue {
        /// The device's name.
        device: String,
        /// The request.
        request: Operation,
        /// The time waited: the timeout.
        waited: Duration,
    },
    /// A request to a [`Timed`](crate::Timed) device was not made, because an earlier one has not returned yet. The state of
    /// the device is unknown.
    #[error("{device}: {request} was not made: {pending} has not returned for {} ms", waited.as_millis())]
    Lost {
        /// The device's name.
        device: String,
        /// The request that was not made.
        request: Operation,
        /// The request that has not returned.
        pending: Box<Operation>,
        /// The time since it was made.
        waited: Duration,
    },
    /// A request to a [`Timed`](crate::Timed) device was not made, because an earlier one had returned too late: data of the
    /// session, or pages of the dirty log, may have been lost with its result.
    #[error(
        "{device}: {request} was not made: {late} had not returned within {} ms, and data may have been lost",
        timeout.as_millis()
    )]
    Torn {
        /// The device's name.
        device: String,
        /// The request that was not made.
        request: Operation,
        /// The request that returned too late.
        late: Box<Operation>,
        /// Its timeout.
        timeout: Duration,
    },
}

impl Error {
    /// The advice on a driver that does not return from a call.
    pub const HANG_ADVICE: &str = "the driver hangs, or the process that serves the device: check the host's kernel log \
                                   (dmesg), and whether that process is stopped; once it answers, query the device's state \
                                   or reset it";

    /// Returns the error of a request that the driver side refused with `errno`.
    pub fn request(device: &str, request: impl Into<Operation>, errno: Errno) -> Error {
        Error::Request { device: device.to_string(), request: request.into(), errno }
    }

    /// Returns the error of a request with an invalid reply; `what` is its defect.
    pub fn answer(device: &str, request: impl Into<Operation>, what: impl ToString) -> Error {
        Error::Answer { device: device.to_string(), request: request.into(), what: what.to_string() }
    }

    /// Returns the error of a device that cannot be used in this way; `why` includes a remedy.
    pub fn unusable(device: &str, why: impl Into<String>) -> Error {
        Error::Unusable { device: device.to_string(), why: why.into() }
    }

    /// Converts the errno of a request into an error. Nothing is allocated without an error.
    pub(crate) fn at(device: &str, request: impl Into<Operation>) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::request(device, request, errno)
    }

    /// Returns the errno, if any.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Request { errno, .. } | Error::Open { errno, .. } => Some(*errno),
            Error::Region { error, .. } => region_errno(error),
            Error::Answer { .. }
            | Error::NotReached { .. }
            | Error::Unusable { .. }
            | Error::Overdue { .. }
            | Error::Lost { .. }
            | Error::Torn { .. } => None,
        }
    }

    /// Returns general advice for the reader of the error, if any.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Error::Overdue { .. } | Error::Lost { .. } => return Some(Error::HANG_ADVICE),
            Error::Torn { .. } => return Some("start the session or the dirty log again"),
            _ => {}
        }
        match (self, self.errno()?) {
            (Error::Open { .. }, Errno::EACCES | Errno::EPERM) => {
                Some("run as root, or give your user access to the files in /dev/vfio")
            }
            (Error::Open { .. }, Errno::EBUSY) => Some(
                "the device or its group is in use by another process; find it with fuser -v on that file",
            ),
            (Error::Open { path, .. }, Errno::ENOENT) if path.ends_with("dev/vfio/vfio") => {
                Some("run modprobe vfio")
            }
            (Error::Open { path, .. }, Errno::ENOENT) if path.ends_with("dev/iommu") => {
                Some("this kernel has no iommufd; run modprobe iommufd, or use the device's group")
            }
            (Error::Open { .. }, Errno::ENOENT) => Some(
                "check that the device is bound to a vfio driver; `whimbrel devices` lists this host's devices",
            ),
            (Error::Open { .. }, Errno::ENODEV) => {
                Some("the file has no driver: load its kernel module (vfio, vfio-pci or iommufd)")
            }
            (Error::Request { .. }, Errno::ENODEV) => {
                Some("the device was reset, closed or removed while in use")
            }
            (Error::Request { .. }, Errno::ECONNRESET) => {
                Some("the device's server closed the connection; check its log and restart it")
            }
            (Error::Request { .. }, Errno::ENOTCONN) => {
                Some("the device's server has ended, and its client waits for the next one; start it again")
            }
            (Error::Request { .. }, Errno::ETIMEDOUT) => Some(
                "the device's server does not respond; check whether its process is stopped or the device hangs",
            ),
            (Error::Request { request: Operation::SetState(_), .. }, Errno::EBUSY) => Some(
                "the device has work that does not end, such as a write to its guest's memory; check that the guest's VMM is not stopped, and try again",
            ),
            (Error::Request { .. }, Errno::EBUSY) => {
                Some("the device is in use; `whimbrel devices` shows by which process")
            }
            // `iova_bitmap_for_each()` is built only with iommufd, and PROBE does not tell.
            (
                Error::Request { request: Operation::Feature(Feature::DmaLoggingReport), .. },
                Errno::EOPNOTSUPP,
            ) => Some(
                "this kernel is built without CONFIG_IOMMUFD_DRIVER and cannot report a device's dirty log",
            ),
            (Error::Region { error: UserError::NoRoom { .. }, .. }, _) => Some(
                "give the destination's device a data section as large as the source's: v1 transactions cannot be split",
            ),
            (Error::Region { error: UserError::NeedsReset { .. } | UserError::Unknown { .. }, .. }, _) => {
                Some("reset the device, or close and reopen it")
            }
            (Error::Request { .. }, Errno::ENOTTY) => {
                Some("this device's driver does not support the request")
            }
            (Error::Request { .. } | Error::Region { .. }, Errno::EIO) => {
                Some("the device failed; check the host's kernel log (dmesg)")
            }
            _ => None,
        }
    }
}

/// Returns the errno of a failed access; other errors count as an invalid request.
fn region_errno(error: &UserError) -> Option<Errno> {
    match error {
        UserError::Access { errno, .. }
        | UserError::Refused { errno, .. }
        | UserError::Unknown { errno, .. } => Some(*errno),
        UserError::NeedsReset { errno } => errno.or(Some(Errno::EIO)),
        UserError::NoRoom { .. } | UserError::TooLarge { .. } => Some(Errno::E2BIG),
        _ => Some(Errno::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_cannot_stop_yet_is_not_said_to_be_in_use() {
        let advice = |request| {
            let error = Error::Request { device: "card".into(), request, errno: Errno::EBUSY };
            error.advice().unwrap()
        };
        assert!(advice(Operation::SetState(State::Stop)).contains("try again"));
        assert!(advice(Operation::IrqInfo(0)).contains("in use"));
    }
}
