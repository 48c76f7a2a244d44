//! The migration region as drafted in 2019, before v1: the structure at its start, and its state bits.
//!
//! No released kernel has it. It differs from [`region_v1`](crate::region_v1) in three ways: the region also
//! reports dirty pages, SAVING with RESUMING is invalid where v1 calls it the error state, and RUNNING with
//! RESUMING is not mentioned. The region has the type and subtype of v1's
//! ([`VFIO_REGION_TYPE_MIGRATION_DEPRECATED`](crate::device::VFIO_REGION_TYPE_MIGRATION_DEPRECATED)), so a
//! user cannot tell the two apart by a query.

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_DEVICE_STATE_MASK`: the bits of a state; the others are reserved and must be left as they are.
pub const VFIO_DEVICE_STATE_MASK: u32 = StateDraft::all().bits();

/// `VFIO_DEVICE_STATE_INVALID`: the two bits that may not be set at the same time.
pub const VFIO_DEVICE_STATE_INVALID: u32 = StateDraft::SAVING.union(StateDraft::RESUMING).bits();

/// `VFIO_DEVICE_DIRTY_PFNS_NONE`: no page of the range asked about, or of its rest, is dirty.
pub const VFIO_DEVICE_DIRTY_PFNS_NONE: u64 = 0;

/// `VFIO_DEVICE_DIRTY_PFNS_ALL`: every page of the range asked about, or of its rest, is dirty.
pub const VFIO_DEVICE_DIRTY_PFNS_ALL: u64 = u64::MAX;

bitflags! {
    /// [`DeviceMigrationInfo::device_state`].
    ///
    /// ```
    /// use whimbrel_uapi::region_draft::StateDraft;
    ///
    /// assert!((StateDraft::RUNNING | StateDraft::SAVING).is_valid());
    /// assert!(!(StateDraft::SAVING | StateDraft::RESUMING).is_valid());
    /// // The draft does not forbid this one, and no sequence of its text leads there.
    /// assert!((StateDraft::RUNNING | StateDraft::RESUMING).is_valid());
    /// ```
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct StateDraft: u32 {
        /// The device runs.
        const RUNNING = 1 << 0;
        /// The device's state is read; with RUNNING, while it runs.
        const SAVING = 1 << 1;
        /// The device's state is written.
        const RESUMING = 1 << 2;
    }
}

impl StateDraft {
    /// Returns whether SAVING and RESUMING are not both set. Ignores reserved bits.
    pub const fn is_valid(self) -> bool {
        self.bits() & VFIO_DEVICE_STATE_INVALID != VFIO_DEVICE_STATE_INVALID
    }
}

/// `struct vfio_device_migration_info` of the draft: the start of the migration region.
///
/// The header packs it; every field lies at its natural alignment all the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceMigrationInfo {
    /// [`StateDraft`].
    pub device_state: u32,
    /// Not used.
    pub reserved: u32,
    /// Read only: bytes still to be saved.
    pub pending_bytes: u64,
    /// Read only: offset of this round's data or bitmap, in bytes from the start of the region.
    pub data_offset: u64,
    /// Size of that data in bytes: read while saving; while resuming, the write of this field hands the data
    /// over.
    pub data_size: u64,
    /// Write only: the first page asked about, as an IOVA divided by the page size.
    pub start_pfn: u64,
    /// Write only: the page size in bytes.
    pub page_size: u64,
    /// Write only: number of pages asked about.
    pub total_pfns: u64,
    /// Read only: number of those pages that the bitmap in the region covers, or
    /// [`VFIO_DEVICE_DIRTY_PFNS_NONE`] or [`VFIO_DEVICE_DIRTY_PFNS_ALL`].
    pub copied_pfns: u64,
}
