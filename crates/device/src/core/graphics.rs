//! The display of a device: VFIO_DEVICE_QUERY_GFX_PLANE and VFIO_DEVICE_GET_GFX_DMABUF, answered as the
//! sample drivers mbochs and mdpy (`samples/vfio-mdev`) and i915's GVT do.
//!
//! The monitor that is connected to it is [`edid`](crate::pci::edid)'s business.

use std::fs::File;

use whimbrel_protocol::Errno;
use whimbrel_uapi::gfx::{DeviceGfxPlaneInfo, GfxPlaneFlags};
use zerocopy::{FromZeros, IntoBytes};

use crate::core::file::{Active, DeviceFile};
use crate::raw::process::{Process, copy_to_user};

/// Bytes of `vfio_device_gfx_plane_info` that every user gives: up to `region_index`.
const LEAST_PLANE_INFO: usize = std::mem::offset_of!(DeviceGfxPlaneInfo, reserved);

/// The half of a driver that has a display.
pub trait Graphics {
    /// How its planes are given. The answer never changes.
    fn kind(&self) -> PlaneKind;

    /// What a plane shows now; `plane_type` is one of DRM's `DRM_PLANE_TYPE_*`, 1 the primary one. `None`
    /// while the guest has not set it up.
    fn plane(&mut self, plane_type: u32) -> Result<Option<Plane>, Errno>;

    /// The memory of a plane that was given as [`PlaneKind::Dmabuf`], by its number. ENOENT for a number that
    /// is none.
    fn dmabuf(&mut self, id: u32) -> Result<File, Errno> {
        let _ = id;
        Err(Errno::ENOENT)
    }
}

/// How the pixels of a plane are given to the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaneKind {
    /// As a file (VFIO_GFX_PLANE_TYPE_DMABUF).
    Dmabuf,
    /// As a region of the device (VFIO_GFX_PLANE_TYPE_REGION).
    Region,
}

impl PlaneKind {
    const fn flag(self) -> GfxPlaneFlags {
        match self {
            PlaneKind::Dmabuf => GfxPlaneFlags::DMABUF,
            PlaneKind::Region => GfxPlaneFlags::REGION,
        }
    }
}

/// What a plane shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plane {
    /// Format of the pixels, a code of DRM.
    pub drm_format: u32,
    /// How the pixels are laid out, a modifier of DRM.
    pub drm_format_mod: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Bytes from one row to the next.
    pub stride: u32,
    /// Size in bytes.
    pub size: u32,
    /// Where a cursor stands, in pixels from the left and from the top.
    pub position: (u32, u32),
    /// The point within a cursor that points, in pixels from its left and its top.
    pub hot: (u32, u32),
    /// Where the pixels are: the number of the file, or the index of the region.
    pub source: u32,
}

impl Plane {
    fn put(&self, info: &mut DeviceGfxPlaneInfo) {
        *info = DeviceGfxPlaneInfo {
            argsz: info.argsz,
            flags: info.flags,
            drm_plane_type: info.drm_plane_type,
            drm_format: self.drm_format,
            drm_format_mod: self.drm_format_mod,
            width: self.width,
            height: self.height,
            stride: self.stride,
            size: self.size,
            x_pos: self.position.0,
            y_pos: self.position.1,
            x_hot: self.hot.0,
            y_hot: self.hot.1,
            region_index: self.source,
            reserved: info.reserved,
        };
    }
}

impl DeviceFile {
    /// How the device gives its planes, which VFIO_DEVICE_QUERY_GFX_PLANE tells with PROBE. ENOTTY for a
    /// device without a display.
    pub fn gfx_plane_kind(&self) -> Result<PlaneKind, Errno> {
        graphics(&mut self.shared().active()).map(|graphics| graphics.kind())
    }

    /// VFIO_DEVICE_QUERY_GFX_PLANE: what a plane shows now. ENOTTY for a device without a display, EINVAL for
    /// a kind that it does not have.
    pub fn gfx_plane(&self, kind: PlaneKind, plane_type: u32) -> Result<Option<Plane>, Errno> {
        let mut core = self.shared().active();
        let graphics = graphics(&mut core)?;
        if graphics.kind() != kind {
            return Err(Errno::EINVAL);
        }
        graphics.plane(plane_type)
    }

    /// VFIO_DEVICE_GET_GFX_DMABUF: the memory of a plane. ENOTTY for a device without a display, and for one
    /// that gives its planes as regions; ENOENT for a number that is none.
    pub fn gfx_dmabuf(&self, id: u32) -> Result<File, Errno> {
        let mut core = self.shared().active();
        match graphics(&mut core)? {
            graphics if graphics.kind() == PlaneKind::Dmabuf => graphics.dmabuf(id),
            _ => Err(Errno::ENOTTY),
        }
    }

    pub(crate) fn raw_query_gfx_plane(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let kind = self.gfx_plane_kind()?;
        let mut info = DeviceGfxPlaneInfo::new_zeroed();
        process.read(argument, &mut info.as_mut_bytes()[..LEAST_PLANE_INFO])?;
        if (info.argsz as usize) < LEAST_PLANE_INFO {
            return Err(Errno::EINVAL);
        }
        let flags = GfxPlaneFlags::from_bits_retain(info.flags);
        let probes = flags.contains(GfxPlaneFlags::PROBE);
        if flags.difference(GfxPlaneFlags::PROBE) != kind.flag() {
            return Err(Errno::EINVAL);
        }
        if !probes {
            self.gfx_plane(kind, info.drm_plane_type)?.unwrap_or_default().put(&mut info);
        }
        copy_to_user(process, argument, &info.as_bytes()[..LEAST_PLANE_INFO])?;
        Ok(0)
    }

    pub(crate) fn raw_get_gfx_dmabuf(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        if self.gfx_plane_kind()? != PlaneKind::Dmabuf {
            return Err(Errno::ENOTTY);
        }
        let mut id = [0; 4];
        process.read(argument, &mut id)?;
        let file = self.gfx_dmabuf(u32::from_ne_bytes(id))?;
        // As mbochs: the descriptor stays open over exec.
        process.install_buffer(file, false)
    }
}

fn graphics<'a>(core: &'a mut Active<'_>) -> Result<&'a mut dyn Graphics, Errno> {
    core.driver.graphics().ok_or(Errno::ENOTTY)
}
