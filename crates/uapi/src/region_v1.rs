//! Migration v1 (Linux 5.8 to 5.17): the structure at the start of a migration region, and its state bits, as
//! the header keeps them. Kernels since 5.18 do not serve it; they serve [`migration`](crate::migration).
//!
//! The migration region is the one whose TYPE capability is
//! [`VFIO_REGION_TYPE_MIGRATION_DEPRECATED`](crate::device::VFIO_REGION_TYPE_MIGRATION_DEPRECATED). The names
//! of v1 are in this module only, because their numbers mean other states in v2: v1's RUNNING is 1, which is
//! STOP in v2, and v1's RUNNING with SAVING is 3, which is STOP_COPY in v2. Only RESUMING is 4 in both.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// No bit set: the device is stopped.
pub const VFIO_DEVICE_STATE_V1_STOP: u32 = 0;

/// `VFIO_DEVICE_STATE_MASK`: the bits of a v1 state; the others are reserved and must be left as they are.
pub const VFIO_DEVICE_STATE_MASK: u32 = StateV1::all().bits();

bitflags! {
    /// [`DeviceMigrationInfo::device_state`]. The header's names begin with `VFIO_DEVICE_STATE_V1_`.
    ///
    /// ```
    /// use whimbrel_uapi::region_v1::StateV1;
    ///
    /// let precopy = StateV1::RUNNING | StateV1::SAVING;
    /// assert!(precopy.is_valid());
    /// assert!(!(StateV1::RUNNING | StateV1::RESUMING).is_valid());
    /// assert!(precopy.with_error().is_error());
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct StateV1: u32 {
        /// The device runs.
        const RUNNING = 1 << 0;
        /// The device's state is read; with RUNNING, while the device runs.
        const SAVING = 1 << 1;
        /// The device's state is written. Valid only alone.
        const RESUMING = 1 << 2;
    }
}

impl StateV1 {
    /// `VFIO_DEVICE_STATE_VALID`: RESUMING is either clear or alone. Ignores reserved bits.
    pub const fn is_valid(self) -> bool {
        self.bits() & Self::RESUMING.bits() == 0 || self.is(Self::RESUMING)
    }

    /// `VFIO_DEVICE_STATE_IS_ERROR`: SAVING with RESUMING and without RUNNING.
    pub const fn is_error(self) -> bool {
        self.is(Self::SAVING.union(Self::RESUMING))
    }

    /// `VFIO_DEVICE_STATE_SET_ERROR`: the error state, with the reserved bits kept.
    #[must_use]
    pub const fn with_error(self) -> Self {
        Self::from_bits_retain(
            (self.bits() & !VFIO_DEVICE_STATE_MASK) | Self::SAVING.union(Self::RESUMING).bits(),
        )
    }

    /// Returns whether exactly these bits are set. Ignores reserved bits.
    const fn is(self, other: Self) -> bool {
        self.bits() & VFIO_DEVICE_STATE_MASK == other.bits()
    }
}

/// `struct vfio_device_migration_info`: the start of the migration region.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceMigrationInfo {
    /// [`StateV1`].
    pub device_state: u32,
    /// Not used.
    pub reserved: u32,
    /// Read only: estimate, in bytes, of the data still to be saved. Reading it again confirms that the last
    /// data were taken.
    pub pending_bytes: u64,
    /// Read only: offset of this round's data, in bytes from the start of the region.
    pub data_offset: u64,
    /// Size of that data in bytes: read while saving; while resuming, the write of this field hands the data
    /// over.
    pub data_size: u64,
}
