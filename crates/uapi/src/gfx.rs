//! The display of a device: its planes, and the region that holds the description of the monitor (EDID).
//!
//! The EDID region is the one whose TYPE capability is
//! [`VFIO_REGION_TYPE_GFX`](crate::device::VFIO_REGION_TYPE_GFX) and
//! [`VFIO_REGION_SUBTYPE_GFX_EDID`](crate::device::VFIO_REGION_SUBTYPE_GFX_EDID).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

bitflags! {
    /// [`DeviceGfxPlaneInfo::flags`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct GfxPlaneFlags: u32 {
        /// Only check whether the plane type in the other flag is supported.
        const PROBE = 1 << 0;
        /// The plane is a DMA buffer.
        const DMABUF = 1 << 1;
        /// The plane lies in a region of the device.
        const REGION = 1 << 2;
    }
}

/// [`RegionGfxEdid::link_state`]: the monitor is on.
pub const VFIO_DEVICE_GFX_LINK_STATE_UP: u32 = 1;
/// [`RegionGfxEdid::link_state`]: the monitor is off. The EDID is changed in this state.
pub const VFIO_DEVICE_GFX_LINK_STATE_DOWN: u32 = 2;

/// `struct vfio_device_gfx_plane_info`, for `VFIO_DEVICE_QUERY_GFX_PLANE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct DeviceGfxPlaneInfo {
    /// Size of this structure in bytes, set by the user.
    pub argsz: u32,
    /// [`GfxPlaneFlags`].
    pub flags: u32,
    /// Set by the user: type of the plane, one of DRM's `DRM_PLANE_TYPE_*`.
    pub drm_plane_type: u32,
    /// Format of the pixels, a DRM fourcc code. The driver side sets this and every later field.
    pub drm_format: u32,
    /// Layout of the pixels, a DRM format modifier.
    pub drm_format_mod: u64,
    /// Width in pixels. 0 when the guest has not set up the plane yet.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes from one row to the next.
    pub stride: u32,
    /// Size in bytes, a multiple of a page.
    pub size: u32,
    /// Horizontal position of a cursor, in pixels from the left.
    pub x_pos: u32,
    /// Vertical position of a cursor, in pixels from the top.
    pub y_pos: u32,
    /// Horizontal hot spot of a cursor, in pixels from its left.
    pub x_hot: u32,
    /// Vertical hot spot of a cursor, in pixels from its top.
    pub y_hot: u32,
    /// The region that holds the plane, with [`GfxPlaneFlags::REGION`]; or its
    /// [`dmabuf_id`](Self::dmabuf_id), which the header puts in the same place.
    pub region_index: u32,
    /// Not used. Linux 6.1 has a hole here.
    pub reserved: u32,
}

impl DeviceGfxPlaneInfo {
    /// The same word as `region_index`, with [`GfxPlaneFlags::DMABUF`]: the argument of
    /// `VFIO_DEVICE_GET_GFX_DMABUF`, which returns a file descriptor for it.
    pub const fn dmabuf_id(&self) -> u32 {
        self.region_index
    }
}

/// `struct vfio_region_gfx_edid`: the start of the EDID region. To change the EDID, set the link down, write
/// the EDID and its size, set the link up.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
pub struct RegionGfxEdid {
    /// Read only: offset of the EDID, in bytes from the start of the region.
    pub edid_offset: u32,
    /// Read only: largest size of the EDID in bytes.
    pub edid_max_size: u32,
    /// Size of the EDID in bytes.
    pub edid_size: u32,
    /// Read only: the greatest width in pixels, 0 for any.
    pub max_xres: u32,
    /// Read only: the greatest height in pixels, 0 for any.
    pub max_yres: u32,
    /// One of `VFIO_DEVICE_GFX_LINK_STATE_*`.
    pub link_state: u32,
}
