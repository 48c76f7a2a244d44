//! The requests of each kind of file, and the argument of each request.

use core::fmt;

use super::File;
use super::field::{List, Show, Structure};
use super::structures as s;
use super::tail::{self, nothing};
use crate::ioctl::{self, Request};

/// The kind of argument of a request.
pub(super) enum Argument {
    Nothing,
    /// A number instead of a pointer.
    Number(Show),
    /// Points to one 32-bit number with this name.
    Word(&'static str, Show),
    /// Points to a C string.
    Name,
    /// Points to a structure; the function shows the data after it.
    Structure(&'static Structure, fn(&[u8], &mut List<'_>) -> fmt::Result),
    /// Points to the head of a feature and its data.
    Feature,
}

use Argument::{Feature, Name, Nothing, Number, Structure as Points, Word};

/// Returns the request `number` of a `file` and its argument.
pub(super) fn find(file: File, number: u32) -> Option<&'static (Request, Argument)> {
    let tables: &[&'static [(Request, Argument)]] = match file {
        File::Container => &[EVERY_CONTAINER, TYPE1],
        File::SpaprContainer => &[EVERY_CONTAINER, SPAPR],
        File::Group => &[GROUP],
        File::Device => &[DEVICE],
        File::Data => &[DATA],
        File::Iommufd => &[IOMMUFD, EVERY_CONTAINER, TYPE1],
    };
    tables.iter().flat_map(|table| table.iter()).find(|(request, _)| request.number() == number)
}

static EVERY_CONTAINER: &[(Request, Argument)] = &[
    (ioctl::VFIO_GET_API_VERSION, Nothing),
    (ioctl::VFIO_CHECK_EXTENSION, Number(Show::Named(extension))),
    (ioctl::VFIO_SET_IOMMU, Number(Show::Named(extension))),
    (ioctl::VFIO_IOMMU_MAP_DMA, Points(&s::TYPE1_DMA_MAP, nothing)),
    (ioctl::VFIO_IOMMU_UNMAP_DMA, Points(&s::TYPE1_DMA_UNMAP, tail::unmap)),
    (ioctl::VFIO_IOMMU_ENABLE, Nothing),
    (ioctl::VFIO_IOMMU_DISABLE, Nothing),
];

static TYPE1: &[(Request, Argument)] = &[
    (ioctl::VFIO_IOMMU_GET_INFO, Points(&s::TYPE1_INFO, tail::container_capabilities)),
    (ioctl::VFIO_IOMMU_DIRTY_PAGES, Points(&s::TYPE1_DIRTY_BITMAP, tail::dirty_pages)),
];

static SPAPR: &[(Request, Argument)] = &[
    (ioctl::VFIO_IOMMU_SPAPR_TCE_GET_INFO, Points(&s::SPAPR_TCE_INFO, nothing)),
    (ioctl::VFIO_EEH_PE_OP, Points(&s::EEH_PE_OP, nothing)),
    (ioctl::VFIO_IOMMU_SPAPR_REGISTER_MEMORY, Points(&s::SPAPR_REGISTER_MEMORY, nothing)),
    (ioctl::VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY, Points(&s::SPAPR_REGISTER_MEMORY, nothing)),
    (ioctl::VFIO_IOMMU_SPAPR_TCE_CREATE, Points(&s::SPAPR_TCE_CREATE, nothing)),
    (ioctl::VFIO_IOMMU_SPAPR_TCE_REMOVE, Points(&s::SPAPR_TCE_REMOVE, nothing)),
];

static GROUP: &[(Request, Argument)] = &[
    (ioctl::VFIO_GROUP_GET_STATUS, Points(&s::GROUP_STATUS, nothing)),
    (ioctl::VFIO_GROUP_SET_CONTAINER, Word("container", Show::Fd)),
    (ioctl::VFIO_GROUP_UNSET_CONTAINER, Nothing),
    (ioctl::VFIO_GROUP_GET_DEVICE_FD, Name),
];

static DEVICE: &[(Request, Argument)] = &[
    (ioctl::VFIO_DEVICE_GET_INFO, Points(&s::DEVICE_INFO, tail::device_capabilities)),
    (ioctl::VFIO_DEVICE_GET_REGION_INFO, Points(&s::REGION_INFO, tail::region_capabilities)),
    (ioctl::VFIO_DEVICE_GET_IRQ_INFO, Points(&s::IRQ_INFO, nothing)),
    (ioctl::VFIO_DEVICE_SET_IRQS, Points(&s::IRQ_SET, tail::irqs)),
    (ioctl::VFIO_DEVICE_RESET, Nothing),
    (ioctl::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, Points(&s::HOT_RESET_INFO, tail::hot_reset_devices)),
    (ioctl::VFIO_DEVICE_PCI_HOT_RESET, Points(&s::HOT_RESET, tail::group_fds)),
    (ioctl::VFIO_DEVICE_QUERY_GFX_PLANE, Points(&s::GFX_PLANE_INFO, nothing)),
    (ioctl::VFIO_DEVICE_GET_GFX_DMABUF, Word("dmabuf_id", Show::Decimal)),
    (ioctl::VFIO_DEVICE_IOEVENTFD, Points(&s::IOEVENTFD, nothing)),
    (ioctl::VFIO_DEVICE_FEATURE, Feature),
    (ioctl::VFIO_DEVICE_BIND_IOMMUFD, Points(&s::BIND_IOMMUFD, nothing)),
    (ioctl::VFIO_DEVICE_ATTACH_IOMMUFD_PT, Points(&s::ATTACH_IOMMUFD_PT, nothing)),
    (ioctl::VFIO_DEVICE_DETACH_IOMMUFD_PT, Points(&s::DETACH_IOMMUFD_PT, nothing)),
];

static DATA: &[(Request, Argument)] =
    &[(ioctl::VFIO_MIG_GET_PRECOPY_INFO, Points(&s::PRECOPY_INFO, nothing))];

static IOMMUFD: &[(Request, Argument)] = &[
    (ioctl::IOMMU_DESTROY, Points(&s::DESTROY, nothing)),
    (ioctl::IOMMU_IOAS_ALLOC, Points(&s::IOAS_ALLOC, nothing)),
    (ioctl::IOMMU_IOAS_ALLOW_IOVAS, Points(&s::IOAS_ALLOW_IOVAS, nothing)),
    (ioctl::IOMMU_IOAS_COPY, Points(&s::IOAS_COPY, nothing)),
    (ioctl::IOMMU_IOAS_IOVA_RANGES, Points(&s::IOAS_IOVA_RANGES, nothing)),
    (ioctl::IOMMU_IOAS_MAP, Points(&s::IOAS_MAP, nothing)),
    (ioctl::IOMMU_IOAS_UNMAP, Points(&s::IOAS_UNMAP, nothing)),
    (ioctl::IOMMU_OPTION, Points(&s::OPTION, nothing)),
    (ioctl::IOMMU_VFIO_IOAS, Points(&s::VFIO_IOAS, nothing)),
    (ioctl::IOMMU_HWPT_ALLOC, Points(&s::HWPT_ALLOC, nothing)),
    (ioctl::IOMMU_GET_HW_INFO, Points(&s::HW_INFO, nothing)),
    (ioctl::IOMMU_HWPT_SET_DIRTY_TRACKING, Points(&s::HWPT_SET_DIRTY_TRACKING, nothing)),
    (ioctl::IOMMU_HWPT_GET_DIRTY_BITMAP, Points(&s::HWPT_GET_DIRTY_BITMAP, nothing)),
    (ioctl::IOMMU_IOAS_MAP_FILE, Points(&s::IOAS_MAP_FILE, nothing)),
    (ioctl::IOMMU_IOAS_CHANGE_PROCESS, Points(&s::IOAS_CHANGE_PROCESS, nothing)),
];

/// Returns the header's name of an extension.
fn extension(number: u64) -> Option<&'static str> {
    let names = [
        "VFIO_TYPE1_IOMMU",
        "VFIO_SPAPR_TCE_IOMMU",
        "VFIO_TYPE1v2_IOMMU",
        "VFIO_DMA_CC_IOMMU",
        "VFIO_EEH",
        "VFIO_TYPE1_NESTING_IOMMU",
        "VFIO_SPAPR_TCE_v2_IOMMU",
        "VFIO_NOIOMMU_IOMMU",
        "VFIO_UNMAP_ALL",
        "VFIO_UPDATE_VADDR",
    ];
    names.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
}
