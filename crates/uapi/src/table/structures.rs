//! The structures, each beside its C name. A pattern lists every field, so a forgotten field does not
//! compile.

use core::mem::{align_of, offset_of, size_of};

use crate::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd, DeviceDetachIommufdPt};
use crate::device::{
    DeviceInfo, DeviceInfoCapPciAtomicComp, InfoCapHeader, IrqInfo, IrqSet, RegionInfo,
    RegionInfoCapNvlink2Lnkspd, RegionInfoCapNvlink2Ssatgt, RegionInfoCapSparseMmap, RegionInfoCapType,
    RegionSparseMmapArea,
};
use crate::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use crate::feature::{
    DeviceFeature, DeviceFeatureBusMaster, DeviceFeatureDmaBuf, DeviceFeatureZpciErr,
    DeviceLowPowerEntryWithWakeup, RegionDmaRange,
};
use crate::gfx::{DeviceGfxPlaneInfo, RegionGfxEdid};
use crate::group::GroupStatus;
use crate::iommufd::{
    Destroy, HwInfo, HwptAlloc, HwptGetDirtyBitmap, HwptSetDirtyTracking, IoasAlloc, IoasAllowIovas,
    IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile, IoasUnmap, IommuOption,
    IovaRange as IommuIovaRange, VfioIoas,
};
use crate::migration::{
    DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration, PrecopyInfo,
};
use crate::other_buses::{
    CcwCmdRegion, CcwCrwRegion, CcwIoRegion, CcwSchibRegion, DeviceInfoCapZpciBase, DeviceInfoCapZpciGroup,
    DeviceInfoCapZpciPfip, DeviceInfoCapZpciUtil,
};
use crate::pci::{DeviceIoeventfd, PciDependentDevice, PciHotReset, PciHotResetInfo};
use crate::region_draft::DeviceMigrationInfo as DraftMigrationInfo;
use crate::region_v1::DeviceMigrationInfo;
use crate::spapr::{
    EehPeErr, EehPeOp, IommuSpaprRegisterMemory, IommuSpaprTceCreate, IommuSpaprTceDdwInfo,
    IommuSpaprTceInfo, IommuSpaprTceRemove,
};
use crate::type1::{
    Bitmap, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet, IommuType1DmaMap, IommuType1DmaUnmap,
    IommuType1Info, IommuType1InfoCapIovaRange, IommuType1InfoCapMigration, IommuType1InfoDmaAvail,
    IovaRange,
};

use super::{Field, Header, Kind, Structure};

/// The size of the field that `get` picks, without a value of the structure.
const fn size_of_field<S, F>(_get: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

const fn field(kind: Kind, name: &'static str, offset: usize, size: usize) -> Field {
    // `r#type` is `type` in C.
    let name = match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    };
    Field { kind, name, offset, size }
}

/// A list of structures: `Header: c_name = Type { fields }`, then what the C structure has besides.
macro_rules! structures {
    ($($header:ident { $(
        $c:ident = $rust:ident { $($field:ident),* $(,)? }
        $(padding $padding:ident)? $(alias $alias:ident = $of:ident)? $(tail $tail:ident)?;
    )* })*) => {
        &[$($({
            const _: fn($rust) = |$rust { $($field: _,)* $($padding: _)? }| ();
            Structure {
                header: Header::$header,
                name: stringify!($c),
                size: size_of::<$rust>(),
                alignment: align_of::<$rust>(),
                fields: &[
                    $(field(
                        Kind::Own,
                        stringify!($field),
                        offset_of!($rust, $field),
                        size_of_field(|s: &$rust| &s.$field)
                    ),)*
                    $(field(
                        Kind::Padding,
                        stringify!($padding),
                        offset_of!($rust, $padding),
                        size_of_field(|s: &$rust| &s.$padding)
                    ),)?
                    $(field(
                        Kind::Alias,
                        stringify!($alias),
                        offset_of!($rust, $of),
                        size_of_field(|s: &$rust| &s.$of)
                    ),)?
                    $(field(Kind::Tail, stringify!($tail), size_of::<$rust>(), 0),)?
                ],
            }
        },)*)*]
    };
}

/// The structures that are in no released header. The draft packs its structure, which moves none of the
/// fields.
pub(super) const DRAFT: &[Structure] = &[Structure { alignment: 1, ..OF_DRAFT[0] }];

#[rustfmt::skip]
const OF_DRAFT: &[Structure] = structures! {
    Vfio {
        vfio_device_migration_info = DraftMigrationInfo {
            device_state, reserved, pending_bytes, data_offset, data_size, start_pfn, page_size, total_pfns,
            copied_pfns
        };
    }
};

#[rustfmt::skip]
pub(super) const ALL: &[Structure] = structures! {
    Vfio {
        vfio_info_cap_header = InfoCapHeader { id, version, next };
        vfio_group_status = GroupStatus { argsz, flags };
        vfio_device_info = DeviceInfo { argsz, flags, num_regions, num_irqs, cap_offset, pad };
        vfio_device_info_cap_pci_atomic_comp = DeviceInfoCapPciAtomicComp { header, flags, reserved };
        vfio_region_info = RegionInfo { argsz, flags, index, cap_offset, size, offset };
        vfio_region_sparse_mmap_area = RegionSparseMmapArea { offset, size };
        vfio_region_info_cap_sparse_mmap = RegionInfoCapSparseMmap { header, nr_areas, reserved } tail areas;
        vfio_region_info_cap_type = RegionInfoCapType { header, r#type, subtype };
        vfio_region_info_cap_nvlink2_ssatgt = RegionInfoCapNvlink2Ssatgt { header, tgt };
        vfio_region_info_cap_nvlink2_lnkspd = RegionInfoCapNvlink2Lnkspd { header, link_speed, __pad };
        vfio_irq_info = IrqInfo { argsz, flags, index, count };
        vfio_irq_set = IrqSet { argsz, flags, index, start, count } tail data;
        vfio_pci_dependent_device = PciDependentDevice { group_id, segment, bus, devfn }
            alias devid = group_id;
        vfio_pci_hot_reset_info = PciHotResetInfo { argsz, flags, count } tail devices;
        vfio_pci_hot_reset = PciHotReset { argsz, flags, count } tail group_fds;
        vfio_device_ioeventfd = DeviceIoeventfd { argsz, flags, offset, data, fd, reserved };
        vfio_device_feature = DeviceFeature { argsz, flags } tail data;
        vfio_device_bind_iommufd = DeviceBindIommufd { argsz, flags, iommufd, out_devid, token_uuid_ptr };
        vfio_device_attach_iommufd_pt = DeviceAttachIommufdPt { argsz, flags, pt_id, pasid };
        vfio_device_detach_iommufd_pt = DeviceDetachIommufdPt { argsz, flags, pasid };
        vfio_device_feature_migration = DeviceFeatureMigration { flags };
        vfio_device_feature_mig_state = DeviceFeatureMigState { device_state, data_fd };
        vfio_precopy_info = PrecopyInfo { argsz, flags, initial_bytes, dirty_bytes };
        vfio_device_low_power_entry_with_wakeup = DeviceLowPowerEntryWithWakeup { wakeup_eventfd, reserved };
        vfio_device_feature_dma_logging_control =
            DeviceFeatureDmaLoggingControl { page_size, num_ranges, __reserved, ranges };
        vfio_device_feature_dma_logging_range = DeviceFeatureDmaLoggingRange { iova, length };
        vfio_device_feature_dma_logging_report =
            DeviceFeatureDmaLoggingReport { iova, length, page_size, bitmap };
        vfio_device_feature_mig_data_size = DeviceFeatureMigDataSize { stop_copy_length };
        vfio_device_feature_bus_master = DeviceFeatureBusMaster { op };
        vfio_region_dma_range = RegionDmaRange { offset, length };
        vfio_device_feature_dma_buf = DeviceFeatureDmaBuf { region_index, open_flags, flags, nr_ranges }
            tail dma_ranges;
        vfio_device_feature_zpci_err = DeviceFeatureZpciErr { data };
        vfio_iommu_type1_info = IommuType1Info { argsz, flags, iova_pgsizes, cap_offset, pad };
        vfio_iova_range = IovaRange { start, end };
        vfio_iommu_type1_info_cap_iova_range = IommuType1InfoCapIovaRange { header, nr_iovas, reserved }
            tail iova_ranges;
        vfio_iommu_type1_info_cap_migration =
            IommuType1InfoCapMigration { header, flags, pgsize_bitmap, max_dirty_bitmap_size } padding __pad;
        vfio_iommu_type1_info_dma_avail = IommuType1InfoDmaAvail { header, avail };
        vfio_iommu_type1_dma_map = IommuType1DmaMap { argsz, flags, vaddr, iova, size };
        vfio_bitmap = Bitmap { pgsize, size, data };
        vfio_iommu_type1_dma_unmap = IommuType1DmaUnmap { argsz, flags, iova, size } tail data;
        vfio_iommu_type1_dirty_bitmap = IommuType1DirtyBitmap { argsz, flags } tail data;
        vfio_iommu_type1_dirty_bitmap_get = IommuType1DirtyBitmapGet { iova, size, bitmap };
        vfio_device_migration_info =
            DeviceMigrationInfo { device_state, reserved, pending_bytes, data_offset, data_size };
        vfio_device_gfx_plane_info = DeviceGfxPlaneInfo {
            argsz, flags, drm_plane_type, drm_format, drm_format_mod, width, height, stride, size, x_pos,
            y_pos, x_hot, y_hot, region_index, reserved
        } alias dmabuf_id = region_index;
        vfio_region_gfx_edid =
            RegionGfxEdid { edid_offset, edid_max_size, edid_size, max_xres, max_yres, link_state };
        vfio_iommu_spapr_tce_ddw_info =
            IommuSpaprTceDdwInfo { pgsizes, max_dynamic_windows_supported, levels };
        vfio_iommu_spapr_tce_info =
            IommuSpaprTceInfo { argsz, flags, dma32_window_start, dma32_window_size, ddw };
        vfio_eeh_pe_err = EehPeErr { r#type, func, addr, mask };
        vfio_eeh_pe_op = EehPeOp { argsz, flags, op, err } padding __pad;
        vfio_iommu_spapr_register_memory = IommuSpaprRegisterMemory { argsz, flags, vaddr, size };
        vfio_iommu_spapr_tce_create = IommuSpaprTceCreate {
            argsz, flags, page_shift, __resv1, window_size, levels, __resv2, start_addr
        };
        vfio_iommu_spapr_tce_remove = IommuSpaprTceRemove { argsz, flags, start_addr };
    }
    Iommufd {
        iommu_destroy = Destroy { size, id };
        iommu_ioas_alloc = IoasAlloc { size, flags, out_ioas_id };
        iommu_iova_range = IommuIovaRange { start, last };
        iommu_ioas_iova_ranges =
            IoasIovaRanges { size, ioas_id, num_iovas, __reserved, allowed_iovas, out_iova_alignment };
        iommu_ioas_allow_iovas = IoasAllowIovas { size, ioas_id, num_iovas, __reserved, allowed_iovas };
        iommu_ioas_map = IoasMap { size, flags, ioas_id, __reserved, user_va, length, iova };
        iommu_ioas_map_file = IoasMapFile { size, flags, ioas_id, fd, start, length, iova };
        iommu_ioas_copy = IoasCopy { size, flags, dst_ioas_id, src_ioas_id, length, dst_iova, src_iova };
        iommu_ioas_unmap = IoasUnmap { size, ioas_id, iova, length };
        iommu_ioas_change_process = IoasChangeProcess { size, __reserved };
        iommu_option = IommuOption { size, option_id, op, __reserved, object_id, val64 };
        iommu_vfio_ioas = VfioIoas { size, ioas_id, op, __reserved };
        iommu_hwpt_alloc = HwptAlloc {
            size, flags, dev_id, pt_id, out_hwpt_id, __reserved, data_type, data_len, data_uptr, fault_id,
            __reserved2
        };
        // Before `out_max_pasid_log2` was added, `__reserved` was one word in its place.
        iommu_hw_info = HwInfo {
            size, flags, dev_id, data_len, data_uptr, out_data_type, out_max_pasid_log2, out_capabilities
        } padding __reserved alias in_data_type = out_data_type;
        iommu_hwpt_set_dirty_tracking = HwptSetDirtyTracking { size, flags, hwpt_id, __reserved };
        iommu_hwpt_get_dirty_bitmap =
            HwptGetDirtyBitmap { size, hwpt_id, flags, __reserved, iova, length, page_size, data };
    }
    Ccw {
        ccw_io_region = CcwIoRegion { orb_area, scsw_area, irb_area, ret_code };
        ccw_cmd_region = CcwCmdRegion { command, ret_code };
        ccw_schib_region = CcwSchibRegion { schib_area };
        ccw_crw_region = CcwCrwRegion { crw, pad };
    }
    Zdev {
        vfio_device_info_cap_zpci_base = DeviceInfoCapZpciBase {
            header, start_dma, end_dma, pchid, vfn, fmb_length, pft, gid, fh, ccdf_err_length
        };
        vfio_device_info_cap_zpci_group = DeviceInfoCapZpciGroup {
            header, dasm, msi_addr, flags, mui, noi, maxstbl, version, reserved, imaxstbl
        } padding __pad;
        vfio_device_info_cap_zpci_util = DeviceInfoCapZpciUtil { header, size } tail util_str;
        vfio_device_info_cap_zpci_pfip = DeviceInfoCapZpciPfip { header, size } tail pfip;
    }
};
