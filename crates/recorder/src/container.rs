//! The requests of `vfio` on an iommufd in place of a container, and on a group.
//!
//! The device's own requests are left out, and the one in which kernels differ: nearly 2^64 bytes at an address above 0.

use whimbrel_uapi::ioctl::VFIO_IOMMU_MAP_DMA;
use whimbrel_uapi::type1::IommuType1DmaMap;
use zerocopy::FromBytes;

use crate::vfio::probes::{File, Step, steps};
use crate::vfio::{Side, answers_to};

/// Makes all requests, and tells each with its answer in a line.
pub fn answers(side: &mut impl Side, told: impl FnMut(String)) {
    answers_to(side, requests(), told);
}

fn requests() -> Vec<Step> {
    let enormous = |bytes: &[u8]| {
        IommuType1DmaMap::read_from_bytes(bytes).is_ok_and(|map| map.vaddr.checked_add(map.size).is_none())
    };
    let asked = |step: &Step| match step {
        Step::Request(probe) if probe.file == File::Device => false,
        Step::Request(probe) => probe.number != VFIO_IOMMU_MAP_DMA.number() || !enormous(&probe.bytes),
        Step::CloseDevice => true,
    };
    steps().into_iter().filter(asked).collect()
}
