//! Typed requests for a device's display.

use std::fs::File;

use whimbrel_protocol::Errno;

use super::file::DeviceFile;
use crate::driver::{Plane, PlaneKind};

impl DeviceFile {
    /// Returns how the device provides its planes (VFIO_DEVICE_QUERY_GFX_PLANE with PROBE). ENOTTY for a device without
    /// a display.
    pub fn gfx_plane_kind(&self) -> Result<PlaneKind, Errno> {
        self.shared().active().half(|driver| driver.graphics()).map(|(graphics, _)| graphics.kind())
    }

    /// VFIO_DEVICE_QUERY_GFX_PLANE: returns a plane's current content. ENOTTY for a device without a display, EINVAL
    /// for a kind that it does not have.
    pub fn gfx_plane(&self, kind: PlaneKind, plane_type: u32) -> Result<Option<Plane>, Errno> {
        let mut core = self.shared().active();
        let (graphics, context) = core.half(|driver| driver.graphics())?;
        if graphics.kind() != kind {
            return Err(Errno::EINVAL);
        }
        graphics.plane(context, plane_type)
    }

    /// VFIO_DEVICE_GET_GFX_DMABUF: returns the memory of a plane. ENOTTY for a device without a display, and for one
    /// with planes in regions; ENOENT for an unknown number.
    pub fn gfx_dmabuf(&self, id: u32) -> Result<File, Errno> {
        let mut core = self.shared().active();
        let (graphics, context) = core.half(|driver| driver.graphics())?;
        if graphics.kind() == PlaneKind::Dmabuf { graphics.dmabuf(context, id) } else { Err(Errno::ENOTTY) }
    }
}
