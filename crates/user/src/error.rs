//! What can go wrong between a user and its device, with the device, the request and the errno by name.

use std::path::PathBuf;

use whimbrel_protocol::Errno;
use whimbrel_protocol::region::UserError;
use whimbrel_uapi::feature::Feature;

/// The outcome of a request to a device.
pub type Result<T> = std::result::Result<T, Error>;

/// A request that failed, or a device that could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver side refused a request.
    #[error("{device}: {request}: {errno}")]
    Request {
        /// The device's name.
        device: String,
        /// The header's name of the request, with the feature or state where there is one.
        request: String,
        /// The answer.
        errno: Errno,
    },
    /// The driver side answered something that cannot be.
    #[error("{device}: {request}: the driver's answer makes no sense: {what}")]
    Answer {
        /// The device's name.
        device: String,
        /// The header's name of the request.
        request: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// A device with a migration region did not do as it was asked.
    #[error("{device}: {error}")]
    Region {
        /// The device's name.
        device: String,
        /// What it answered.
        #[source]
        error: UserError,
    },
    /// A file that leads to the device could not be opened or read.
    #[error("{device}: cannot open {}: {errno}", path.display())]
    Open {
        /// The device's name.
        device: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        errno: Errno,
    },
    /// The device is there but cannot be used in this way.
    #[error("{device}: {why}")]
    Unusable {
        /// The device's name.
        device: String,
        /// Why, and what would help.
        why: String,
    },
}

impl Error {
    /// A request that `errno` answered.
    pub fn request(device: &str, request: impl ToString, errno: Errno) -> Error {
        Error::Request { device: device.to_string(), request: request.to_string(), errno }
    }

    /// Makes an error of the errno of one request.
    pub(crate) fn at(device: &str, request: impl ToString) -> impl FnOnce(Errno) -> Error {
        move |errno| Error::request(device, request, errno)
    }

    /// The errno, where there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Request { errno, .. } | Error::Open { errno, .. } => Some(*errno),
            Error::Region { error, .. } => region_errno(error),
            Error::Answer { .. } | Error::Unusable { .. } => None,
        }
    }

    /// What the person who reads the error can do, where something general can be said.
    pub fn advice(&self) -> Option<&'static str> {
        match (self, self.errno()?) {
            (Error::Open { .. }, Errno::EACCES | Errno::EPERM) => {
                Some("run as root, or give your user access to the files under /dev/vfio")
            }
            (Error::Open { .. }, Errno::EBUSY) => {
                Some("another process holds the device or its group: find it with fuser -v on that file")
            }
            (Error::Open { path, .. }, Errno::ENOENT) if path.ends_with("dev/vfio/vfio") => {
                Some("load the module vfio")
            }
            (Error::Open { path, .. }, Errno::ENOENT) if path.ends_with("dev/iommu") => {
                Some("this kernel has no iommufd: load the module iommufd, or use the device's group")
            }
            (Error::Open { .. }, Errno::ENOENT) => {
                Some("is the device bound to a vfio driver? `whimbrel devices` lists what this host has")
            }
            (Error::Open { .. }, Errno::ENODEV) => Some("the module that serves this file is not loaded"),
            (Error::Request { .. }, Errno::ENODEV) => {
                Some("the device was reset, closed or taken away while it was used")
            }
            (Error::Request { .. }, Errno::ECONNRESET) => {
                Some("the server of the device has hung up: look at what it said, and start it again")
            }
            (Error::Request { .. }, Errno::ETIMEDOUT) => {
                Some("the server of the device does not answer: is its process stopped, or the device stuck?")
            }
            (Error::Request { .. }, Errno::EBUSY) => Some(
                "the device is in use: `whimbrel devices` shows by whom, through its group or its own file",
            ),
            // `iova_bitmap_for_each()` is built only with iommufd, and PROBE does not tell.
            (Error::Request { request, .. }, Errno::EOPNOTSUPP)
                if request == Feature::DmaLoggingReport.name() =>
            {
                Some("this kernel is built without CONFIG_IOMMUFD_DRIVER and cannot report a device's log")
            }
            (Error::Region { error: UserError::NoRoom { .. }, .. }, _) => Some(
                "give the destination's device a data section as large as the source's: v1 does not allow to divide \
                 its transactions",
            ),
            (Error::Region { error: UserError::NeedsReset { .. } | UserError::Unknown { .. }, .. }, _) => {
                Some("reset the device, or close and open it again")
            }
            (Error::Request { .. }, Errno::ENOTTY) => Some("this device's driver does not offer the request"),
            (Error::Request { .. } | Error::Region { .. }, Errno::EIO) => {
                Some("the device failed: look at the host's kernel log")
            }
            _ => None,
        }
    }
}

/// The errno of an access, where one failed; what else can be wrong is like a bad request.
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
