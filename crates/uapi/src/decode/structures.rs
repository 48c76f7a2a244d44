//! The text form of each structure's fields: a number is shown as a count, an address or a set of flags. `Out` marks what
//! the driver side writes, `InOut` what both sides set.

use core::mem::offset_of;

use super::field::{Field, Show, Structure, flags, size_of_field, structure};
use crate::cdev::{
    DeviceAttachFlags, DeviceAttachIommufdPt, DeviceBindFlags, DeviceBindIommufd, DeviceDetachFlags,
    DeviceDetachIommufdPt,
};
use crate::device::{
    DeviceInfo, DeviceInfoFlags, IrqInfo, IrqInfoFlags, IrqSet, IrqSetFlags, RegionInfo, RegionInfoFlags,
};
use crate::dma_logging::{DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingReport};
use crate::feature::{
    DeviceFeatureBusMaster, DeviceFeatureDmaBuf, DeviceFeatureZpciErr, DeviceLowPowerEntryWithWakeup,
};
use crate::gfx::{DeviceGfxPlaneInfo, GfxPlaneFlags};
use crate::group::{GroupFlags, GroupStatus};
use crate::iommufd::{
    Destroy, HwCapabilities, HwInfo, HwInfoFlags, HwptAlloc, HwptAllocFlags, HwptDirtyTrackingFlags,
    HwptGetDirtyBitmap, HwptGetDirtyBitmapFlags, HwptSetDirtyTracking, IoasAlloc, IoasAllowIovas,
    IoasChangeProcess, IoasCopy, IoasIovaRanges, IoasMap, IoasMapFile, IoasMapFlags, IoasUnmap, IommuOption,
    VfioIoas,
};
use crate::migration::{
    DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration, MigrationFlags, PrecopyInfo,
    PrecopyInfoFlags,
};
use crate::pci::{DeviceIoeventfd, PciHotReset, PciHotResetFlags, PciHotResetInfo};
use crate::spapr::{
    EehPeOp, IommuSpaprRegisterMemory, IommuSpaprTceCreate, IommuSpaprTceInfo, IommuSpaprTceRemove,
    SpaprInfoFlags,
};
use crate::type1::{
    Bitmap, DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, IommuInfoFlags, IommuType1DirtyBitmap,
    IommuType1DirtyBitmapGet, IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info,
};

use Show::{Decimal, Fd, Flags, Hex, InOut, Named, Out, Reserved};

/// Defines each structure. Does not compile when a byte of one belongs to no field.
macro_rules! structures {
    ($($name:ident = $type:ident $fields:tt;)*) => {$(
        pub(super) static $name: Structure = {
            const SHOWN: Structure = structure!($type $fields);
            assert!(SHOWN.shows_every_byte(), stringify!($type));
            SHOWN
        };
    )*};
}

structures! {
    GROUP_STATUS = GroupStatus { argsz: Decimal, flags: Out(&Flags(flags::<GroupFlags>)) };

    DEVICE_INFO = DeviceInfo {
        argsz: InOut(&Decimal), flags: Out(&Flags(flags::<DeviceInfoFlags>)), num_regions: Out(&Decimal), num_irqs: Out(&Decimal),
        cap_offset: Out(&Decimal), pad: Reserved,
    };
    REGION_INFO = RegionInfo {
        argsz: InOut(&Decimal), flags: Out(&Flags(flags::<RegionInfoFlags>)), index: Decimal, cap_offset: Out(&Decimal),
        size: Out(&Hex), offset: Out(&Hex),
    };
    IRQ_INFO = IrqInfo {
        argsz: Decimal, flags: Out(&Flags(flags::<IrqInfoFlags>)), index: Decimal, count: Out(&Decimal),
    };
    IRQ_SET = IrqSet {
        argsz: Decimal, flags: Flags(flags::<IrqSetFlags>), index: Decimal, start: Decimal, count: Decimal,
    };
    HOT_RESET_INFO = PciHotResetInfo {
        argsz: InOut(&Decimal), flags: Out(&Flags(flags::<PciHotResetFlags>)), count: Out(&Decimal),
    };
    HOT_RESET = PciHotReset { argsz: Decimal, flags: Hex, count: Decimal };
    GFX_PLANE_INFO = DeviceGfxPlaneInfo {
        argsz: Decimal, flags: Flags(flags::<GfxPlaneFlags>), drm_plane_type: Decimal, drm_format: Out(&Hex),
        drm_format_mod: Out(&Hex), width: Out(&Decimal), height: Out(&Decimal), stride: Out(&Decimal), size: Out(&Decimal), x_pos: Out(&Decimal),
        y_pos: Out(&Decimal), x_hot: Out(&Decimal), y_hot: Out(&Decimal), region_index: Out(&Decimal), reserved: Reserved,
    };
    IOEVENTFD = DeviceIoeventfd {
        argsz: Decimal, flags: Hex, offset: Hex, data: Hex, fd: Fd, reserved: Reserved,
    };
    BIND_IOMMUFD = DeviceBindIommufd {
        argsz: Decimal, flags: Flags(flags::<DeviceBindFlags>), iommufd: Fd, out_devid: Out(&Decimal),
        token_uuid_ptr: Hex,
    };
    ATTACH_IOMMUFD_PT = DeviceAttachIommufdPt {
        argsz: Decimal, flags: Flags(flags::<DeviceAttachFlags>), pt_id: InOut(&Decimal), pasid: Decimal,
    };
    DETACH_IOMMUFD_PT = DeviceDetachIommufdPt {
        argsz: Decimal, flags: Flags(flags::<DeviceDetachFlags>), pasid: Decimal,
    };

    MIGRATION = DeviceFeatureMigration { flags: Out(&Flags(flags::<MigrationFlags>)) };
    MIG_STATE = DeviceFeatureMigState { device_state: InOut(&Named(state)), data_fd: Out(&Fd) };
    LOW_POWER_ENTRY_WITH_WAKEUP = DeviceLowPowerEntryWithWakeup { wakeup_eventfd: Fd, reserved: Reserved };
    DMA_LOGGING_CONTROL = DeviceFeatureDmaLoggingControl {
        page_size: InOut(&Hex), num_ranges: Decimal, __reserved: Reserved, ranges: Hex,
    };
    DMA_LOGGING_REPORT = DeviceFeatureDmaLoggingReport {
        iova: Hex, length: Hex, page_size: Hex, bitmap: Hex,
    };
    MIG_DATA_SIZE = DeviceFeatureMigDataSize { stop_copy_length: Out(&Decimal) };
    BUS_MASTER = DeviceFeatureBusMaster { op: Named(bus_master) };
    DMA_BUF = DeviceFeatureDmaBuf { region_index: Decimal, open_flags: Hex, flags: Hex, nr_ranges: Decimal };
    ZPCI_ERR = DeviceFeatureZpciErr { data: Out(&Hex) };

    PRECOPY_INFO = PrecopyInfo {
        argsz: Decimal, flags: InOut(&Flags(flags::<PrecopyInfoFlags>)), initial_bytes: Out(&Decimal), dirty_bytes: Out(&Decimal),
    };

    TYPE1_INFO = IommuType1Info {
        argsz: InOut(&Decimal), flags: Out(&Flags(flags::<IommuInfoFlags>)), iova_pgsizes: Out(&Hex), cap_offset: Out(&Decimal),
        pad: Reserved,
    };
    TYPE1_DMA_MAP = IommuType1DmaMap {
        argsz: Decimal, flags: Flags(flags::<DmaMapFlags>), vaddr: Hex, iova: Hex, size: Hex,
    };
    TYPE1_DMA_UNMAP = IommuType1DmaUnmap {
        argsz: Decimal, flags: Flags(flags::<DmaUnmapFlags>), iova: Hex, size: InOut(&Hex),
    };
    BITMAP = Bitmap { pgsize: Hex, size: Hex, data: Hex };
    TYPE1_DIRTY_BITMAP = IommuType1DirtyBitmap { argsz: Decimal, flags: Flags(flags::<DirtyPagesFlags>) };
    TYPE1_DIRTY_BITMAP_GET = IommuType1DirtyBitmapGet {
        iova: Hex, size: Hex, bitmap.pgsize: Hex, bitmap.size: Hex, bitmap.data: Hex,
    };

    SPAPR_TCE_INFO = IommuSpaprTceInfo {
        argsz: Decimal, flags: Out(&Flags(flags::<SpaprInfoFlags>)), dma32_window_start: Out(&Hex),
        dma32_window_size: Out(&Hex), ddw.pgsizes: Out(&Hex), ddw.max_dynamic_windows_supported: Out(&Decimal),
        ddw.levels: Out(&Decimal),
    };
    SPAPR_REGISTER_MEMORY = IommuSpaprRegisterMemory { argsz: Decimal, flags: Hex, vaddr: Hex, size: Hex };
    SPAPR_TCE_CREATE = IommuSpaprTceCreate {
        argsz: Decimal, flags: Hex, page_shift: Decimal, __resv1: Reserved, window_size: Hex, levels: Decimal,
        __resv2: Reserved, start_addr: Out(&Hex),
    };
    SPAPR_TCE_REMOVE = IommuSpaprTceRemove { argsz: Decimal, flags: Hex, start_addr: Hex };
    EEH_PE_OP = EehPeOp {
        argsz: Decimal, flags: Hex, op: Named(eeh_op), __pad: Reserved, err.r#type: Decimal,
        err.func: Decimal, err.addr: Hex, err.mask: Hex,
    };

    DESTROY = Destroy { size: Decimal, id: Decimal };
    IOAS_ALLOC = IoasAlloc { size: Decimal, flags: Hex, out_ioas_id: Out(&Decimal) };
    IOAS_ALLOW_IOVAS = IoasAllowIovas {
        size: Decimal, ioas_id: Decimal, num_iovas: Decimal, __reserved: Reserved, allowed_iovas: Hex,
    };
    IOAS_COPY = IoasCopy {
        size: Decimal, flags: Flags(flags::<IoasMapFlags>), dst_ioas_id: Decimal, src_ioas_id: Decimal,
        length: Hex, dst_iova: InOut(&Hex), src_iova: Hex,
    };
    IOAS_IOVA_RANGES = IoasIovaRanges {
        size: Decimal, ioas_id: Decimal, num_iovas: InOut(&Decimal), __reserved: Reserved, allowed_iovas: Hex,
        out_iova_alignment: Out(&Hex),
    };
    IOAS_MAP = IoasMap {
        size: Decimal, flags: Flags(flags::<IoasMapFlags>), ioas_id: Decimal, __reserved: Reserved,
        user_va: Hex, length: Hex, iova: InOut(&Hex),
    };
    IOAS_MAP_FILE = IoasMapFile {
        size: Decimal, flags: Flags(flags::<IoasMapFlags>), ioas_id: Decimal, fd: Fd, start: Hex, length: Hex,
        iova: InOut(&Hex),
    };
    IOAS_UNMAP = IoasUnmap { size: Decimal, ioas_id: Decimal, iova: Hex, length: InOut(&Hex) };
    IOAS_CHANGE_PROCESS = IoasChangeProcess { size: Decimal, __reserved: Reserved };
    OPTION = IommuOption {
        size: Decimal, option_id: Named(option), op: Named(option_op), __reserved: Reserved,
        object_id: Decimal, val64: InOut(&Decimal),
    };
    VFIO_IOAS = VfioIoas { size: Decimal, ioas_id: InOut(&Decimal), op: Named(vfio_ioas_op), __reserved: Reserved };
    HWPT_ALLOC = HwptAlloc {
        size: Decimal, flags: Flags(flags::<HwptAllocFlags>), dev_id: Decimal, pt_id: Decimal,
        out_hwpt_id: Out(&Decimal), __reserved: Reserved, data_type: Decimal, data_len: Decimal, data_uptr: Hex,
        fault_id: Decimal, __reserved2: Reserved,
    };
    HW_INFO = HwInfo {
        size: Decimal, flags: Flags(flags::<HwInfoFlags>), dev_id: Decimal, data_len: InOut(&Decimal), data_uptr: Hex,
        out_data_type: InOut(&Decimal), out_max_pasid_log2: Out(&Decimal), __reserved: Reserved,
        out_capabilities: Out(&Flags(flags::<HwCapabilities>)),
    };
    HWPT_SET_DIRTY_TRACKING = HwptSetDirtyTracking {
        size: Decimal, flags: Flags(flags::<HwptDirtyTrackingFlags>), hwpt_id: Decimal, __reserved: Reserved,
    };
    HWPT_GET_DIRTY_BITMAP = HwptGetDirtyBitmap {
        size: Decimal, hwpt_id: Decimal, flags: Flags(flags::<HwptGetDirtyBitmapFlags>), __reserved: Reserved,
        iova: Hex, length: Hex, page_size: Hex, data: Hex,
    };
}

/// Returns the name at `index` of `names`.
fn at(names: &[&'static str], index: u64) -> Option<&'static str> {
    names.get(usize::try_from(index).ok()?).copied()
}

fn state(state: u64) -> Option<&'static str> {
    let names =
        ["ERROR", "STOP", "RUNNING", "STOP_COPY", "RESUMING", "RUNNING_P2P", "PRE_COPY", "PRE_COPY_P2P"];
    at(&names, state)
}

fn bus_master(op: u64) -> Option<&'static str> {
    at(&["CLEAR_MASTER", "SET_MASTER"], op)
}

fn eeh_op(op: u64) -> Option<&'static str> {
    let names = [
        "DISABLE",
        "ENABLE",
        "UNFREEZE_IO",
        "UNFREEZE_DMA",
        "GET_STATE",
        "RESET_DEACTIVATE",
        "RESET_HOT",
        "RESET_FUNDAMENTAL",
        "CONFIGURE",
        "INJECT_ERR",
    ];
    at(&names, op)
}

fn option(id: u64) -> Option<&'static str> {
    at(&["RLIMIT_MODE", "HUGE_PAGES"], id)
}

fn option_op(op: u64) -> Option<&'static str> {
    at(&["SET", "GET"], op)
}

fn vfio_ioas_op(op: u64) -> Option<&'static str> {
    at(&["GET", "SET", "CLEAR"], op)
}
