//! What stands in the table: every structure and constant of the crate.

use std::mem::{align_of, offset_of, size_of};

use whimbrel_uapi::cdev::{
    DeviceAttachFlags, DeviceAttachIommufdPt, DeviceBindFlags, DeviceBindIommufd, DeviceDetachFlags,
    DeviceDetachIommufdPt,
};
use whimbrel_uapi::device::{
    self, DeviceInfo, DeviceInfoCapPciAtomicComp, DeviceInfoFlags, InfoCapHeader, IrqInfo, IrqInfoFlags,
    IrqSet, IrqSetFlags, PciAtomicFlags, RegionInfo, RegionInfoCapNvlink2Lnkspd, RegionInfoCapNvlink2Ssatgt,
    RegionInfoCapSparseMmap, RegionInfoCapType, RegionInfoFlags, RegionSparseMmapArea,
};
use whimbrel_uapi::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use whimbrel_uapi::feature::{
    self, DeviceFeature, DeviceFeatureBusMaster, DeviceFeatureDmaBuf, DeviceFeatureZpciErr,
    DeviceLowPowerEntryWithWakeup, FEATURE_MASK, Feature, FeatureFlags, RegionDmaRange,
};
use whimbrel_uapi::gfx::{self, DeviceGfxPlaneInfo, GfxPlaneFlags, RegionGfxEdid};
use whimbrel_uapi::group::{self, GroupFlags, GroupStatus};
use whimbrel_uapi::ioctl;
use whimbrel_uapi::iommufd::{
    self, Destroy, HwCapabilities, HwInfo, HwInfoFlags, HwptAlloc, HwptAllocFlags, HwptDirtyTrackingFlags,
    HwptGetDirtyBitmap, HwptGetDirtyBitmapFlags, HwptSetDirtyTracking, IoasAlloc, IoasAllowIovas,
    IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile, IoasMapFlags, IoasUnmap, IommuOption,
    IovaRange as IommuIovaRange, VfioIoas,
};
use whimbrel_uapi::migration::{
    self, DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration, MigrationFlags,
    PrecopyInfo, PrecopyInfoFlags,
};
use whimbrel_uapi::other_buses::{
    self, CcwAsyncCommands, CcwCmdRegion, CcwCrwRegion, CcwIoRegion, CcwSchibRegion, DeviceInfoCapZpciBase,
    DeviceInfoCapZpciGroup, DeviceInfoCapZpciPfip, DeviceInfoCapZpciUtil, ZpciFlags,
};
use whimbrel_uapi::pci::{
    self, DeviceIoeventfd, PciDependentDevice, PciHotReset, PciHotResetFlags, PciHotResetInfo,
};
use whimbrel_uapi::region_v1::{self, DeviceMigrationInfo, StateV1};
use whimbrel_uapi::spapr::{
    self, EehPeErr, EehPeOp, IommuSpaprRegisterMemory, IommuSpaprTceCreate, IommuSpaprTceDdwInfo,
    IommuSpaprTceInfo, IommuSpaprTceRemove, SpaprInfoFlags,
};
use whimbrel_uapi::type1::{
    self, Bitmap, DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, IommuInfoFlags, IommuType1DirtyBitmap,
    IommuType1DirtyBitmapGet, IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info,
    IommuType1InfoCapIovaRange, IommuType1InfoCapMigration, IommuType1InfoDmaAvail, IovaRange,
};

use super::table::{
    Field, Header, Integer as _, Kind, Structure, Table, constants, size_of_field, structures,
};

impl Table {
    /// The table of the whole crate.
    pub(crate) fn new() -> Self {
        let mut table = Self::default();
        vfio_structures(&mut table);
        iommufd_structures(&mut table);
        requests(&mut table);
        device_constants(&mut table);
        pci_constants(&mut table);
        feature_constants(&mut table);
        region_v1_constants(&mut table);
        gfx_constants(&mut table);
        other_buses(&mut table);
        spapr_constants(&mut table);
        iommu_constants(&mut table);
        iommufd_constants(&mut table);
        table
    }
}

fn vfio_structures(table: &mut Table) {
    structures! { table, Vfio;
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
}

fn iommufd_structures(table: &mut Table) {
    structures! { table, Iommufd;
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
        // Before `out_max_pasid_log2` came, `__reserved` was one word at its place.
        iommu_hw_info = HwInfo {
            size, flags, dev_id, data_len, data_uptr, out_data_type, out_max_pasid_log2, out_capabilities
        } padding __reserved alias in_data_type = out_data_type;
        iommu_hwpt_set_dirty_tracking = HwptSetDirtyTracking { size, flags, hwpt_id, __reserved };
        iommu_hwpt_get_dirty_bitmap =
            HwptGetDirtyBitmap { size, hwpt_id, flags, __reserved, iova, length, page_size, data };
    }
}

fn requests(table: &mut Table) {
    for request in ioctl::ALL {
        let header = if request.name().starts_with("IOMMU_") { Header::Iommufd } else { Header::Vfio };
        table.constant(header, request.name(), request.number());
    }
    constants!(table, Vfio, ioctl; VFIO_TYPE, VFIO_BASE);
    constants!(table, Iommufd, ioctl; IOMMUFD_TYPE, IOMMUFD_CMD_BASE);
}

fn device_constants(table: &mut Table) {
    table.flags::<DeviceInfoFlags>(Header::Vfio, "VFIO_DEVICE_FLAGS_");
    table.flags::<RegionInfoFlags>(Header::Vfio, "VFIO_REGION_INFO_FLAG_");
    table.flags::<IrqInfoFlags>(Header::Vfio, "VFIO_IRQ_INFO_");
    table.flags::<IrqSetFlags>(Header::Vfio, "VFIO_IRQ_SET_");
    table.flags::<PciAtomicFlags>(Header::Vfio, "VFIO_PCI_ATOMIC_");
    constants! { table, Vfio, device;
        VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_IRQ_SET_ACTION_TYPE_MASK,
        VFIO_DEVICE_INFO_CAP_ZPCI_BASE, VFIO_DEVICE_INFO_CAP_ZPCI_GROUP, VFIO_DEVICE_INFO_CAP_ZPCI_UTIL,
        VFIO_DEVICE_INFO_CAP_ZPCI_PFIP, VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP,
        VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
        VFIO_REGION_INFO_CAP_NVLINK2_SSATGT, VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD,
        VFIO_REGION_TYPE_PCI_VENDOR_TYPE, VFIO_REGION_TYPE_PCI_VENDOR_MASK, VFIO_REGION_TYPE_GFX,
        VFIO_REGION_TYPE_CCW, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION, VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG,
        VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG, VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM,
        VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD, VFIO_REGION_SUBTYPE_GFX_EDID, VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD,
        VFIO_REGION_SUBTYPE_CCW_SCHIB, VFIO_REGION_SUBTYPE_CCW_CRW, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    }
    table.text("VFIO_DEVICE_API_PCI_STRING", device::VFIO_DEVICE_API_PCI_STRING);
    table.text("VFIO_DEVICE_API_PLATFORM_STRING", device::VFIO_DEVICE_API_PLATFORM_STRING);
    table.text("VFIO_DEVICE_API_AMBA_STRING", device::VFIO_DEVICE_API_AMBA_STRING);
    table.text("VFIO_DEVICE_API_CCW_STRING", device::VFIO_DEVICE_API_CCW_STRING);
    table.text("VFIO_DEVICE_API_AP_STRING", device::VFIO_DEVICE_API_AP_STRING);
}

fn pci_constants(table: &mut Table) {
    table.flags::<PciHotResetFlags>(Header::Vfio, "VFIO_PCI_HOT_RESET_FLAG_");
    constants! { table, Vfio, pci;
        VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX,
        VFIO_PCI_BAR3_REGION_INDEX, VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX,
        VFIO_PCI_ROM_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_VGA_REGION_INDEX,
        VFIO_PCI_NUM_REGIONS,
        VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_ERR_IRQ_INDEX,
        VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_DEVID_OWNED, VFIO_PCI_DEVID_NOT_OWNED,
        VFIO_DEVICE_IOEVENTFD_8, VFIO_DEVICE_IOEVENTFD_16, VFIO_DEVICE_IOEVENTFD_32, VFIO_DEVICE_IOEVENTFD_64,
        VFIO_DEVICE_IOEVENTFD_SIZE_MASK,
    }
}

fn feature_constants(table: &mut Table) {
    for feature in Feature::ALL {
        table.constant(Header::Vfio, feature.name(), feature.index());
    }
    table.flags::<FeatureFlags>(Header::Vfio, "VFIO_DEVICE_FEATURE_");
    table.constant(Header::Vfio, "VFIO_DEVICE_FEATURE_MASK", FEATURE_MASK);
    constants!(table, Vfio, feature; VFIO_DEVICE_FEATURE_CLEAR_MASTER, VFIO_DEVICE_FEATURE_SET_MASTER);
    table.flags::<MigrationFlags>(Header::Vfio, "VFIO_MIGRATION_");
    table.flags::<PrecopyInfoFlags>(Header::Vfio, "VFIO_PRECOPY_INFO_");

    let first_state = table.constants.len();
    constants! { table, Vfio, migration;
        VFIO_DEVICE_STATE_ERROR, VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_RUNNING,
        VFIO_DEVICE_STATE_STOP_COPY,
        VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_RUNNING_P2P, VFIO_DEVICE_STATE_PRE_COPY,
        VFIO_DEVICE_STATE_PRE_COPY_P2P, VFIO_DEVICE_STATE_NR,
    }
    // Before 5.18 the header gave some of these names to the bits of migration v1.
    for state in &mut table.constants[first_state..] {
        state.enumeration = Some("vfio_device_mig_state");
    }
}

fn region_v1_constants(table: &mut Table) {
    table.flags::<StateV1>(Header::Vfio, "VFIO_DEVICE_STATE_V1_");
    constants!(table, Vfio, region_v1; VFIO_DEVICE_STATE_V1_STOP, VFIO_DEVICE_STATE_MASK);
    // Every state, with and without a reserved bit.
    for bits in 0..16 {
        let state = StateV1::from_bits_retain(bits);
        let used = |name: &str| format!("VFIO_DEVICE_STATE_{name}({bits})");
        table.constant(Header::Vfio, used("VALID"), state.is_valid());
        table.constant(Header::Vfio, used("IS_ERROR"), state.is_error());
        table.constant(Header::Vfio, used("SET_ERROR"), state.with_error().bits());
    }
}

fn gfx_constants(table: &mut Table) {
    table.flags::<GfxPlaneFlags>(Header::Vfio, "VFIO_GFX_PLANE_TYPE_");
    constants!(table, Vfio, gfx; VFIO_DEVICE_GFX_LINK_STATE_UP, VFIO_DEVICE_GFX_LINK_STATE_DOWN);
}

fn other_buses(table: &mut Table) {
    constants! { table, Vfio, other_buses;
        VFIO_CCW_CONFIG_REGION_INDEX, VFIO_CCW_NUM_REGIONS, VFIO_CCW_IO_IRQ_INDEX, VFIO_CCW_CRW_IRQ_INDEX,
        VFIO_CCW_REQ_IRQ_INDEX, VFIO_CCW_NUM_IRQS, VFIO_AP_REQ_IRQ_INDEX, VFIO_AP_CFG_CHG_IRQ_INDEX,
        VFIO_AP_NUM_IRQS,
    }
    if let Some(count) = table.constants.last_mut() {
        count.before = Some(("VFIO_AP_CFG_CHG_IRQ_INDEX", 1_u32.value()));
    }
    structures! { table, Ccw;
        ccw_io_region = CcwIoRegion { orb_area, scsw_area, irb_area, ret_code };
        ccw_cmd_region = CcwCmdRegion { command, ret_code };
        ccw_schib_region = CcwSchibRegion { schib_area };
        ccw_crw_region = CcwCrwRegion { crw, pad };
    }
    table.flags::<CcwAsyncCommands>(Header::Ccw, "VFIO_CCW_ASYNC_CMD_");
    constants!(table, Ccw, other_buses; ORB_AREA_SIZE, SCSW_AREA_SIZE, IRB_AREA_SIZE, SCHIB_AREA_SIZE);
    structures! { table, Zdev;
        vfio_device_info_cap_zpci_base = DeviceInfoCapZpciBase {
            header, start_dma, end_dma, pchid, vfn, fmb_length, pft, gid, fh, ccdf_err_length
        };
        vfio_device_info_cap_zpci_group = DeviceInfoCapZpciGroup {
            header, dasm, msi_addr, flags, mui, noi, maxstbl, version, reserved, imaxstbl
        } padding __pad;
        vfio_device_info_cap_zpci_util = DeviceInfoCapZpciUtil { header, size } tail util_str;
        vfio_device_info_cap_zpci_pfip = DeviceInfoCapZpciPfip { header, size } tail pfip;
    }
    table.flags::<ZpciFlags>(Header::Zdev, "VFIO_DEVICE_INFO_ZPCI_FLAG_");
}

fn spapr_constants(table: &mut Table) {
    table.flags::<SpaprInfoFlags>(Header::Vfio, "VFIO_IOMMU_SPAPR_INFO_");
    constants! { table, Vfio, spapr;
        VFIO_EEH_PE_DISABLE, VFIO_EEH_PE_ENABLE, VFIO_EEH_PE_UNFREEZE_IO, VFIO_EEH_PE_UNFREEZE_DMA,
        VFIO_EEH_PE_GET_STATE, VFIO_EEH_PE_STATE_NORMAL, VFIO_EEH_PE_STATE_RESET, VFIO_EEH_PE_STATE_STOPPED,
        VFIO_EEH_PE_STATE_STOPPED_DMA, VFIO_EEH_PE_STATE_UNAVAIL, VFIO_EEH_PE_RESET_DEACTIVATE,
        VFIO_EEH_PE_RESET_HOT, VFIO_EEH_PE_RESET_FUNDAMENTAL, VFIO_EEH_PE_CONFIGURE, VFIO_EEH_PE_INJECT_ERR,
    }
}

fn iommu_constants(table: &mut Table) {
    table.flags::<GroupFlags>(Header::Vfio, "VFIO_GROUP_FLAGS_");
    table.flags::<DeviceBindFlags>(Header::Vfio, "VFIO_DEVICE_BIND_FLAG_");
    table.flags::<DeviceAttachFlags>(Header::Vfio, "VFIO_DEVICE_ATTACH_");
    table.flags::<DeviceDetachFlags>(Header::Vfio, "VFIO_DEVICE_DETACH_");
    table.flags::<IommuInfoFlags>(Header::Vfio, "VFIO_IOMMU_INFO_");
    table.flags::<DmaMapFlags>(Header::Vfio, "VFIO_DMA_MAP_FLAG_");
    table.flags::<DmaUnmapFlags>(Header::Vfio, "VFIO_DMA_UNMAP_FLAG_");
    table.flags::<DirtyPagesFlags>(Header::Vfio, "VFIO_IOMMU_DIRTY_PAGES_FLAG_");
    constants! { table, Vfio, group;
        VFIO_API_VERSION, VFIO_TYPE1_IOMMU, VFIO_SPAPR_TCE_IOMMU, VFIO_DMA_CC_IOMMU, VFIO_EEH,
        VFIO_TYPE1_NESTING_IOMMU, VFIO_NOIOMMU_IOMMU, VFIO_UNMAP_ALL, VFIO_UPDATE_VADDR,
    }
    table.constant(Header::Vfio, "VFIO_TYPE1v2_IOMMU", group::VFIO_TYPE1V2_IOMMU);
    table.constant(Header::Vfio, "VFIO_SPAPR_TCE_v2_IOMMU", group::VFIO_SPAPR_TCE_V2_IOMMU);
    table.constant(Header::Vfio, "__VFIO_RESERVED_TYPE1_NESTING_IOMMU", group::VFIO_TYPE1_NESTING_IOMMU);
    constants! { table, Vfio, type1;
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    }
}

fn iommufd_constants(table: &mut Table) {
    table.flags::<IoasMapFlags>(Header::Iommufd, "IOMMU_IOAS_MAP_");
    table.flags::<HwptAllocFlags>(Header::Iommufd, "IOMMU_HWPT_");
    table.flags::<HwInfoFlags>(Header::Iommufd, "IOMMU_HW_INFO_FLAG_");
    table.flags::<HwCapabilities>(Header::Iommufd, "IOMMU_HW_CAP_");
    table.flags::<HwptDirtyTrackingFlags>(Header::Iommufd, "IOMMU_HWPT_DIRTY_TRACKING_");
    table.flags::<HwptGetDirtyBitmapFlags>(Header::Iommufd, "IOMMU_HWPT_GET_DIRTY_BITMAP_");
    constants! { table, Iommufd, iommufd;
        IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_SET, IOMMU_OPTION_OP_GET,
        IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, IOMMU_VFIO_IOAS_CLEAR, IOMMU_HWPT_DATA_NONE,
        IOMMU_HW_INFO_TYPE_NONE, IOMMU_HW_INFO_TYPE_INTEL_VTD, IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
        IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV, IOMMU_HW_INFO_TYPE_AMD,
    }
}
