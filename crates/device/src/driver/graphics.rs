//! A device's display, as its driver provides it: pixel planes in files or in a region.
//!
//! The monitor that is connected to it is described by [`edid`](crate::pci::edid).

use std::fs::File;

use super::Context;

use whimbrel_protocol::Errno;

/// The half of a driver that has a display.
pub trait Graphics {
    /// The way its planes are given. The answer never changes.
    fn kind(&self) -> PlaneKind;

    /// The present content of a plane; `plane_type` is one of DRM's `DRM_PLANE_TYPE_*`, 1 the primary one. `None`
    /// while the guest has not set it up.
    fn plane(&mut self, context: &Context, plane_type: u32) -> Result<Option<Plane>, Errno>;

    /// Returns the memory of a plane that was given as [`PlaneKind::Dmabuf`], by its number. ENOENT for an
    /// unknown number.
    fn dmabuf(&mut self, context: &Context, id: u32) -> Result<File, Errno> {
        let _ = (context, id);
        Err(Errno::ENOENT)
    }
}

/// The way in which the user gets the pixels of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaneKind {
    /// As a file (VFIO_GFX_PLANE_TYPE_DMABUF).
    Dmabuf,
    /// As a region of the device (VFIO_GFX_PLANE_TYPE_REGION).
    Region,
}

/// The content of a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plane {
    /// Format of the pixels, a code of DRM.
    pub drm_format: u32,
    /// Layout of the pixels, a modifier of DRM.
    pub drm_format_mod: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes from one row to the next.
    pub stride: u32,
    /// Size in bytes.
    pub size: u32,
    /// Position of a cursor, in pixels from the left and from the top.
    pub position: (u32, u32),
    /// The point within a cursor that points, in pixels from its left and its top.
    pub hot: (u32, u32),
    /// Source of the pixels: the number of the file, or the index of the region.
    pub source: u32,
}
