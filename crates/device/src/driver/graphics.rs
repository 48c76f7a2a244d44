//! A device's display, as its driver provides it: pixel planes in files or in a region.
//!
//! The monitor that is connected to it is described by [`edid`](crate::pci::edid).

use std::fs::File;

use whimbrel_protocol::Errno;

use super::Context;

/// The display half of a driver.
pub trait Graphics {
    /// Returns how the device provides its planes. The result never changes.
    fn kind(&self) -> PlaneKind;

    /// Returns the current content of a plane; `plane_type` is one of DRM's `DRM_PLANE_TYPE_*`, 1 for the primary
    /// plane. `None` until the guest has set it up.
    fn plane(&mut self, context: &Context, plane_type: u32) -> Result<Option<Plane>, Errno>;

    /// Returns the memory of a plane of kind [`PlaneKind::Dmabuf`], by its number. ENOENT for an unknown number.
    fn dmabuf(&mut self, context: &Context, id: u32) -> Result<File, Errno> {
        let _ = (context, id);
        Err(Errno::ENOENT)
    }
}

/// The way in which the device provides the pixels of a plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlaneKind {
    /// As a file (VFIO_GFX_PLANE_TYPE_DMABUF).
    Dmabuf,
    /// As a region of the device (VFIO_GFX_PLANE_TYPE_REGION).
    Region,
}

/// The content of a plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Plane {
    /// Pixel format, a DRM code.
    pub drm_format: u32,
    /// Pixel layout, a DRM modifier.
    pub drm_format_mod: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes per row.
    pub stride: u32,
    /// Size in bytes.
    pub size: u32,
    /// Position of a cursor, in pixels from the left and from the top.
    pub position: (u32, u32),
    /// Hot spot of a cursor, in pixels from its left and top.
    pub hot: (u32, u32),
    /// Source of the pixels: the number of the file, or the index of the region.
    pub source: u32,
}

impl Plane {
    /// Returns a plane of this format and size in pixels. All else is 0.
    pub const fn new(drm_format: u32, width: u32, height: u32) -> Plane {
        Plane {
            drm_format,
            drm_format_mod: 0,
            width,
            height,
            stride: 0,
            size: 0,
            position: (0, 0),
            hot: (0, 0),
            source: 0,
        }
    }

    /// Sets [`Plane::drm_format_mod`].
    #[must_use]
    pub const fn drm_format_mod(self, drm_format_mod: u64) -> Plane {
        Plane { drm_format_mod, ..self }
    }

    /// Sets [`Plane::stride`].
    #[must_use]
    pub const fn stride(self, stride: u32) -> Plane {
        Plane { stride, ..self }
    }

    /// Sets [`Plane::size`].
    #[must_use]
    pub const fn size(self, size: u32) -> Plane {
        Plane { size, ..self }
    }

    /// Sets [`Plane::position`].
    #[must_use]
    pub const fn position(self, position: (u32, u32)) -> Plane {
        Plane { position, ..self }
    }

    /// Sets [`Plane::hot`].
    #[must_use]
    pub const fn hot(self, hot: (u32, u32)) -> Plane {
        Plane { hot, ..self }
    }

    /// Sets [`Plane::source`].
    #[must_use]
    pub const fn source(self, source: u32) -> Plane {
        Plane { source, ..self }
    }
}
