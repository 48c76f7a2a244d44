//! The constants, each beside its C name.

#![allow(clippy::cast_lossless, reason = "one macro widens numbers of every width, and `From` is not const")]

use bitflags::Flags as _;

use super::{Constant, Form, Header, Value};
use crate::cdev::{DeviceAttachFlags, DeviceBindFlags, DeviceDetachFlags};
use crate::device::{self, DeviceInfoFlags, IrqInfoFlags, IrqSetFlags, PciAtomicFlags, RegionInfoFlags};
use crate::feature::{self, FEATURE_MASK, Feature, FeatureFlags};
use crate::gfx::{self, GfxPlaneFlags};
use crate::group::{self, GroupFlags};
use crate::ioctl::{self, Request};
use crate::iommufd::{
    self, HwCapabilities, HwInfoFlags, HwptAllocFlags, HwptDirtyTrackingFlags, HwptGetDirtyBitmapFlags,
    IoasMapFlags,
};
use crate::migration::{self, MigrationFlags, PrecopyInfoFlags};
use crate::other_buses::{self, CcwAsyncCommands, ZpciFlags};
use crate::pci::{self, PciHotResetFlags};
use crate::region_draft;
use crate::region_v1::{self, StateV1};
use crate::spapr::{self, SpaprInfoFlags};
use crate::type1::{self, DirtyPagesFlags, DmaMapFlags, DmaUnmapFlags, IommuInfoFlags};

/// The enumeration whose enumerators the states of migration v2 are.
const STATES: &str = "vfio_device_mig_state";

/// Returns the constant named `prefix` followed by `stem`, `size` bytes wide.
const fn number(
    header: Header,
    prefix: &'static str,
    stem: &'static str,
    value: u64,
    size: usize,
) -> Constant {
    // No number here is wider than eight bytes.
    let value = Value::Number { value, bits: 8 * size as u32 };
    Constant { header, value, form: Form::Any, before: None, prefix, stem, argument: None }
}

const fn text(name: &'static str, text: &'static str) -> Constant {
    Constant { value: Value::Text(text), ..number(Header::Vfio, "", name, 0, 0) }
}

const fn of_form(form: Form, constant: Constant) -> Constant {
    Constant { form, ..constant }
}

/// A constant whose name differs from the header's.
macro_rules! renamed {
    ($header:ident, $name:literal = $value:expr) => {
        number(Header::$header, "", $name, $value as u64, size_of_val(&$value))
    };
}

/// Constants of a module that have the header's name.
macro_rules! named {
    ($header:ident, $module:ident; $($name:ident),* $(,)?) => {
        &[$(number(
            Header::$header, "", stringify!($name), $module::$name as u64, size_of_val(&$module::$name)
        )),*]
    };
}

/// The flags of flag types: the header's name is the prefix and the flag's own.
macro_rules! flags {
    ($($header:ident, $flags:ident = $prefix:literal;)*) => {
        &[$(&{
            let mut list = [number(Header::$header, "", "", 0, 0); $flags::FLAGS.len()];
            let mut at = 0;
            while at < list.len() {
                let flag = &$flags::FLAGS[at];
                let value = flag.value().bits();
                list[at] = number(Header::$header, $prefix, flag.name(), value as u64, size_of_val(&value));
                at += 1;
            }
            list
        }),*]
    };
}

pub(super) const ALL: &[&[Constant]] = &[
    &REQUESTS,
    named! { Vfio, ioctl; VFIO_TYPE, VFIO_BASE },
    named! { Iommufd, ioctl; IOMMUFD_TYPE, IOMMUFD_CMD_BASE },
    named! { Vfio, device;
        VFIO_IRQ_SET_DATA_TYPE_MASK, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_DEVICE_INFO_CAP_ZPCI_BASE,
        VFIO_DEVICE_INFO_CAP_ZPCI_GROUP, VFIO_DEVICE_INFO_CAP_ZPCI_UTIL, VFIO_DEVICE_INFO_CAP_ZPCI_PFIP,
        VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE,
        VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_NVLINK2_SSATGT,
        VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD, VFIO_REGION_TYPE_PCI_VENDOR_TYPE,
        VFIO_REGION_TYPE_PCI_VENDOR_MASK, VFIO_REGION_TYPE_GFX, VFIO_REGION_TYPE_CCW,
        VFIO_REGION_TYPE_MIGRATION_DEPRECATED, VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION,
        VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG, VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG,
        VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM, VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD,
        VFIO_REGION_SUBTYPE_GFX_EDID, VFIO_REGION_SUBTYPE_CCW_ASYNC_CMD, VFIO_REGION_SUBTYPE_CCW_SCHIB,
        VFIO_REGION_SUBTYPE_CCW_CRW, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    },
    STRINGS,
    named! { Vfio, pci;
        VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR1_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX,
        VFIO_PCI_BAR3_REGION_INDEX, VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_BAR5_REGION_INDEX,
        VFIO_PCI_ROM_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_VGA_REGION_INDEX,
        VFIO_PCI_NUM_REGIONS, VFIO_PCI_INTX_IRQ_INDEX, VFIO_PCI_MSI_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
        VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_DEVID_OWNED,
        VFIO_PCI_DEVID_NOT_OWNED, VFIO_DEVICE_IOEVENTFD_8, VFIO_DEVICE_IOEVENTFD_16,
        VFIO_DEVICE_IOEVENTFD_32, VFIO_DEVICE_IOEVENTFD_64, VFIO_DEVICE_IOEVENTFD_SIZE_MASK,
    },
    &FEATURES,
    named! { Vfio, feature; VFIO_DEVICE_FEATURE_CLEAR_MASTER, VFIO_DEVICE_FEATURE_SET_MASTER },
    &[renamed!(Vfio, "VFIO_DEVICE_FEATURE_MASK" = FEATURE_MASK)],
    &STATES_OF_V2,
    STATES_OF_V1,
    &USES_OF_V1,
    named! { Vfio, region_v1; VFIO_DEVICE_STATE_V1_STOP, VFIO_DEVICE_STATE_MASK },
    named! { Vfio, gfx; VFIO_DEVICE_GFX_LINK_STATE_UP, VFIO_DEVICE_GFX_LINK_STATE_DOWN },
    named! { Vfio, other_buses;
        VFIO_CCW_CONFIG_REGION_INDEX, VFIO_CCW_NUM_REGIONS, VFIO_CCW_IO_IRQ_INDEX, VFIO_CCW_CRW_IRQ_INDEX,
        VFIO_CCW_REQ_IRQ_INDEX, VFIO_CCW_NUM_IRQS, VFIO_AP_REQ_IRQ_INDEX, VFIO_AP_CFG_CHG_IRQ_INDEX,
    },
    &[COUNT_OF_AP_INTERRUPTS],
    named! { Ccw, other_buses; ORB_AREA_SIZE, SCSW_AREA_SIZE, IRB_AREA_SIZE, SCHIB_AREA_SIZE },
    named! { Vfio, spapr;
        VFIO_EEH_PE_DISABLE, VFIO_EEH_PE_ENABLE, VFIO_EEH_PE_UNFREEZE_IO, VFIO_EEH_PE_UNFREEZE_DMA,
        VFIO_EEH_PE_GET_STATE, VFIO_EEH_PE_STATE_NORMAL, VFIO_EEH_PE_STATE_RESET,
        VFIO_EEH_PE_STATE_STOPPED, VFIO_EEH_PE_STATE_STOPPED_DMA, VFIO_EEH_PE_STATE_UNAVAIL,
        VFIO_EEH_PE_RESET_DEACTIVATE, VFIO_EEH_PE_RESET_HOT, VFIO_EEH_PE_RESET_FUNDAMENTAL,
        VFIO_EEH_PE_CONFIGURE, VFIO_EEH_PE_INJECT_ERR,
    },
    named! { Vfio, group;
        VFIO_API_VERSION, VFIO_TYPE1_IOMMU, VFIO_SPAPR_TCE_IOMMU, VFIO_DMA_CC_IOMMU, VFIO_EEH,
        VFIO_TYPE1_NESTING_IOMMU, VFIO_NOIOMMU_IOMMU, VFIO_UNMAP_ALL, VFIO_UPDATE_VADDR,
    },
    &[
        renamed!(Vfio, "VFIO_TYPE1v2_IOMMU" = group::VFIO_TYPE1V2_IOMMU),
        renamed!(Vfio, "VFIO_SPAPR_TCE_v2_IOMMU" = group::VFIO_SPAPR_TCE_V2_IOMMU),
        renamed!(Vfio, "__VFIO_RESERVED_TYPE1_NESTING_IOMMU" = group::VFIO_TYPE1_NESTING_IOMMU),
    ],
    named! { Vfio, type1;
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION,
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
    },
    named! { Iommufd, iommufd;
        IOMMU_OPTION_RLIMIT_MODE, IOMMU_OPTION_HUGE_PAGES, IOMMU_OPTION_OP_SET, IOMMU_OPTION_OP_GET,
        IOMMU_VFIO_IOAS_GET, IOMMU_VFIO_IOAS_SET, IOMMU_VFIO_IOAS_CLEAR, IOMMU_HWPT_DATA_NONE,
        IOMMU_HW_INFO_TYPE_NONE, IOMMU_HW_INFO_TYPE_INTEL_VTD, IOMMU_HW_INFO_TYPE_ARM_SMMUV3,
        IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV, IOMMU_HW_INFO_TYPE_AMD,
    },
];

/// The constants that are in no released header. The state bits have the names and numbers of
/// [`STATES_OF_V1`].
pub(super) const DRAFT: &[Constant] = named! { Vfio, region_draft;
    VFIO_DEVICE_STATE_INVALID, VFIO_DEVICE_DIRTY_PFNS_NONE, VFIO_DEVICE_DIRTY_PFNS_ALL,
};

/// Flags by their types.
pub(super) const FLAGS: &[&[Constant]] = flags! {
    Vfio, DeviceInfoFlags = "VFIO_DEVICE_FLAGS_";
    Vfio, RegionInfoFlags = "VFIO_REGION_INFO_FLAG_";
    Vfio, IrqInfoFlags = "VFIO_IRQ_INFO_";
    Vfio, IrqSetFlags = "VFIO_IRQ_SET_";
    Vfio, PciAtomicFlags = "VFIO_PCI_ATOMIC_";
    Vfio, PciHotResetFlags = "VFIO_PCI_HOT_RESET_FLAG_";
    Vfio, FeatureFlags = "VFIO_DEVICE_FEATURE_";
    Vfio, MigrationFlags = "VFIO_MIGRATION_";
    Vfio, PrecopyInfoFlags = "VFIO_PRECOPY_INFO_";
    Vfio, StateV1 = "VFIO_DEVICE_STATE_V1_";
    Vfio, GfxPlaneFlags = "VFIO_GFX_PLANE_TYPE_";
    Ccw, CcwAsyncCommands = "VFIO_CCW_ASYNC_CMD_";
    Zdev, ZpciFlags = "VFIO_DEVICE_INFO_ZPCI_FLAG_";
    Vfio, SpaprInfoFlags = "VFIO_IOMMU_SPAPR_INFO_";
    Vfio, GroupFlags = "VFIO_GROUP_FLAGS_";
    Vfio, DeviceBindFlags = "VFIO_DEVICE_BIND_FLAG_";
    Vfio, DeviceAttachFlags = "VFIO_DEVICE_ATTACH_";
    Vfio, DeviceDetachFlags = "VFIO_DEVICE_DETACH_";
    Vfio, IommuInfoFlags = "VFIO_IOMMU_INFO_";
    Vfio, DmaMapFlags = "VFIO_DMA_MAP_FLAG_";
    Vfio, DmaUnmapFlags = "VFIO_DMA_UNMAP_FLAG_";
    Vfio, DirtyPagesFlags = "VFIO_IOMMU_DIRTY_PAGES_FLAG_";
    Iommufd, IoasMapFlags = "IOMMU_IOAS_MAP_";
    Iommufd, HwptAllocFlags = "IOMMU_HWPT_";
    Iommufd, HwInfoFlags = "IOMMU_HW_INFO_FLAG_";
    Iommufd, HwCapabilities = "IOMMU_HW_CAP_";
    Iommufd, HwptDirtyTrackingFlags = "IOMMU_HWPT_DIRTY_TRACKING_";
    Iommufd, HwptGetDirtyBitmapFlags = "IOMMU_HWPT_GET_DIRTY_BITMAP_";
};

const REQUESTS: [Constant; ioctl::ALL.len()] = {
    let mut list = [number(Header::Vfio, "", "", 0, 0); ioctl::ALL.len()];
    let mut at = 0;
    while at < list.len() {
        let request: Request = ioctl::ALL[at];
        // All of iommufd's requests, and none of VFIO's, begin so.
        let header = match request.name().as_bytes() {
            [b'I', b'O', b'M', b'M', b'U', b'_', ..] => Header::Iommufd,
            _ => Header::Vfio,
        };
        list[at] = number(header, "", request.name(), request.number() as u64, 4);
        at += 1;
    }
    list
};

const STRINGS: &[Constant] = &[
    text("VFIO_DEVICE_API_PCI_STRING", device::VFIO_DEVICE_API_PCI_STRING),
    text("VFIO_DEVICE_API_PLATFORM_STRING", device::VFIO_DEVICE_API_PLATFORM_STRING),
    text("VFIO_DEVICE_API_AMBA_STRING", device::VFIO_DEVICE_API_AMBA_STRING),
    text("VFIO_DEVICE_API_CCW_STRING", device::VFIO_DEVICE_API_CCW_STRING),
    text("VFIO_DEVICE_API_AP_STRING", device::VFIO_DEVICE_API_AP_STRING),
];

const FEATURES: [Constant; Feature::ALL.len()] = {
    let mut list = [number(Header::Vfio, "", "", 0, 0); Feature::ALL.len()];
    let mut at = 0;
    while at < list.len() {
        let feature = Feature::ALL[at];
        list[at] = number(Header::Vfio, "", feature.name(), feature.number() as u64, 2);
        at += 1;
    }
    list
};

/// Before 5.18 the header gave some of these names to the bits of migration v1: those are
/// [`STATES_OF_V1`].
const STATES_OF_V2: [Constant; 9] = {
    let names: &[Constant; 9] = named! { Vfio, migration;
        VFIO_DEVICE_STATE_ERROR, VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_RUNNING,
        VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_RUNNING_P2P,
        VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_PRE_COPY_P2P, VFIO_DEVICE_STATE_NR,
    };
    let mut list = *names;
    let mut at = 0;
    while at < list.len() {
        list[at] = of_form(Form::EnumeratorOf(STATES), list[at]);
        at += 1;
    }
    list
};

/// The constants that Linux 5.18 renamed, under their former names.
const STATES_OF_V1: &[Constant] = &[
    before_518("VFIO_DEVICE_STATE_STOP", region_v1::VFIO_DEVICE_STATE_V1_STOP),
    before_518("VFIO_DEVICE_STATE_RUNNING", StateV1::RUNNING.bits()),
    before_518("VFIO_DEVICE_STATE_SAVING", StateV1::SAVING.bits()),
    before_518("VFIO_DEVICE_STATE_RESUMING", StateV1::RESUMING.bits()),
    before_518("VFIO_REGION_TYPE_MIGRATION", device::VFIO_REGION_TYPE_MIGRATION_DEPRECATED),
    before_518("VFIO_REGION_SUBTYPE_MIGRATION", device::VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED),
];

const fn before_518(name: &'static str, value: u32) -> Constant {
    of_form(Form::MacroBefore518, number(Header::Vfio, "", name, value as u64, 4))
}

/// Number of state values each macro of v1 is tried with: every state, with and without a reserved bit.
const USED: usize = 16;

const USES_OF_V1: [Constant; 3 * USED] = {
    let mut list = [number(Header::Vfio, "VFIO_DEVICE_STATE_", "", 0, 0); 3 * USED];
    let mut bits = 0;
    while bits < USED {
        // At most 15.
        let argument = bits as u32;
        let state = StateV1::from_bits_retain(argument);
        let uses = [
            ("VALID", state.is_valid() as u64),
            ("IS_ERROR", state.is_error() as u64),
            ("SET_ERROR", state.with_error().bits() as u64),
        ];
        let mut at = 0;
        while at < uses.len() {
            let (stem, value) = uses[at];
            let used = number(Header::Vfio, "VFIO_DEVICE_STATE_", stem, value, 4);
            list[3 * bits + at] = Constant { argument: Some(argument), ..used };
            at += 1;
        }
        bits += 1;
    }
    list
};

/// It was 1 before there was a second interrupt.
const COUNT_OF_AP_INTERRUPTS: Constant = Constant {
    before: Some(("VFIO_AP_CFG_CHG_IRQ_INDEX", Value::Number { value: 1, bits: 32 })),
    ..renamed!(Vfio, "VFIO_AP_NUM_IRQS" = other_buses::VFIO_AP_NUM_IRQS)
};
