//! Migration v2: the numbers of the device states, the features of a device, the state request, the size of
//! the saved state and the pre-copy accounting. The transition rules (which state may follow which) are in
//! `whimbrel-protocol`.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device failed a state change and must be reset before anything else.
pub const VFIO_DEVICE_STATE_ERROR: u32 = 0;
/// The device is stopped: no DMA, no interrupts, no change of its internal state.
pub const VFIO_DEVICE_STATE_STOP: u32 = 1;
/// The device runs. The state of a device that is not being migrated.
pub const VFIO_DEVICE_STATE_RUNNING: u32 = 2;
/// The device is stopped and its state is read from the data file.
pub const VFIO_DEVICE_STATE_STOP_COPY: u32 = 3;
/// The device is stopped and its state is written to the data file.
pub const VFIO_DEVICE_STATE_RESUMING: u32 = 4;
/// The device runs but starts no DMA to other devices.
pub const VFIO_DEVICE_STATE_RUNNING_P2P: u32 = 5;
/// The device runs and its state is read from the data file.
pub const VFIO_DEVICE_STATE_PRE_COPY: u32 = 6;
/// As PRE_COPY, but the device starts no DMA to other devices.
pub const VFIO_DEVICE_STATE_PRE_COPY_P2P: u32 = 7;
/// Number of states; not itself a state.
pub const VFIO_DEVICE_STATE_NR: u32 = 8;

bitflags! {
    /// [`DeviceFeatureMigration::flags`]: the states a device has beyond ERROR, RUNNING and STOP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct MigrationFlags: u64 {
        /// STOP_COPY and RESUMING.
        const STOP_COPY = 1 << 0;
        /// RUNNING_P2P.
        const P2P = 1 << 1;
        /// PRE_COPY, and together with P2P also PRE_COPY_P2P.
        const PRE_COPY = 1 << 2;
    }
}

bitflags! {
    /// [`PrecopyInfo::flags`] as an answer, once the user has opted in with
    /// [`Feature::MigPrecopyInfoV2`](crate::feature::Feature::MigPrecopyInfoV2). Before that the field has no
    /// meaning.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct PrecopyInfoFlags: u32 {
        /// New initial data is in the stream: `initial_bytes` may be any new value and `dirty_bytes` starts
        /// at 0.
        const REINIT = 1 << 0;
    }
}

/// `struct vfio_device_feature_migration`: the data of a GET of
/// [`Feature::Migration`](crate::feature::Feature::Migration).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureMigration {
    /// [`MigrationFlags`].
    pub flags: u64,
}

/// `struct vfio_device_feature_mig_state`: the data of a GET or SET of
/// [`Feature::MigDeviceState`](crate::feature::Feature::MigDeviceState).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureMigState {
    /// One of `VFIO_DEVICE_STATE_*`: the requested state on SET, the current one on GET.
    pub device_state: u32,
    /// Set by the driver side: a new file descriptor in the calling process when the change opened a data
    /// session, else -1. The caller owns it.
    pub data_fd: i32,
}

/// `struct vfio_device_feature_mig_data_size`: the data of a GET of
/// [`Feature::MigDataSize`](crate::feature::Feature::MigDataSize).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceFeatureMigDataSize {
    /// Estimate, in bytes, of the data a reader gets in STOP_COPY if the device is stopped now.
    pub stop_copy_length: u64,
}

/// `struct vfio_precopy_info`, for `VFIO_MIG_GET_PRECOPY_INFO` on the data file.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct PrecopyInfo {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// Set to 0 by the user; the answer is [`PrecopyInfoFlags`].
    pub flags: u32,
    /// Bytes of initial data that have not been read yet. Best transferred before the device stops.
    pub initial_bytes: u64,
    /// Bytes beyond the initial data that have changed since and can be read now.
    pub dirty_bytes: u64,
}
