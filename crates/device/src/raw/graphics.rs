//! The requests of a display as raw ioctls: VFIO_DEVICE_QUERY_GFX_PLANE and VFIO_DEVICE_GET_GFX_DMABUF, as in the
//! sample drivers mbochs and mdpy (`samples/vfio-mdev`) and in i915's GVT.

use whimbrel_protocol::Errno;
use whimbrel_uapi::gfx::{DeviceGfxPlaneInfo, GfxPlaneFlags};
use zerocopy::{FromZeros, IntoBytes};

use super::process::{Process, copy_to_user};
use crate::core::file::DeviceFile;
use crate::driver::{Plane, PlaneKind};

/// Minimum size of `vfio_device_gfx_plane_info`: up to `region_index`.
const MIN_PLANE_INFO: usize = std::mem::offset_of!(DeviceGfxPlaneInfo, reserved);

impl DeviceFile {
    pub(super) fn raw_query_gfx_plane(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        let kind = self.gfx_plane_kind()?;
        let mut info = DeviceGfxPlaneInfo::new_zeroed();
        process.read(argument, &mut info.as_mut_bytes()[..MIN_PLANE_INFO])?;
        if (info.argsz as usize) < MIN_PLANE_INFO {
            return Err(Errno::EINVAL);
        }
        let flags = GfxPlaneFlags::from_bits_retain(info.flags);
        let probes = flags.contains(GfxPlaneFlags::PROBE);
        if flags.difference(GfxPlaneFlags::PROBE) != flag_of(kind) {
            return Err(Errno::EINVAL);
        }
        if !probes {
            put(self.gfx_plane(kind, info.drm_plane_type)?.unwrap_or_default(), &mut info);
        }
        copy_to_user(process, argument, &info.as_bytes()[..MIN_PLANE_INFO])?;
        Ok(0)
    }

    pub(super) fn raw_get_gfx_dmabuf(&self, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
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

const fn flag_of(kind: PlaneKind) -> GfxPlaneFlags {
    match kind {
        PlaneKind::Dmabuf => GfxPlaneFlags::DMABUF,
        PlaneKind::Region => GfxPlaneFlags::REGION,
    }
}

fn put(plane: Plane, info: &mut DeviceGfxPlaneInfo) {
    *info = DeviceGfxPlaneInfo {
        argsz: info.argsz,
        flags: info.flags,
        drm_plane_type: info.drm_plane_type,
        drm_format: plane.drm_format,
        drm_format_mod: plane.drm_format_mod,
        width: plane.width,
        height: plane.height,
        stride: plane.stride,
        size: plane.size,
        x_pos: plane.position.0,
        y_pos: plane.position.1,
        x_hot: plane.hot.0,
        y_hot: plane.hot.1,
        region_index: plane.source,
        reserved: info.reserved,
    };
}
