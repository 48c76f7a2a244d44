//! The settings of a host's containers.

/// The kernel to answer as, where versions differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelVersion {
    /// Linux 6.12: a range past 2^64 is EINVAL; VFIO_TYPE1_NESTING_IOMMU is there.
    Linux6_12,
    /// Linux 7.3: a range past 2^64 is EOVERFLOW; VFIO_TYPE1_NESTING_IOMMU is gone.
    #[default]
    Linux7_3,
}

/// The settings of a host's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContainerSettings {
    /// The kernel to answer as.
    pub kernel: KernelVersion,
    /// The most mappings a container can have (`dma_entry_limit` of the kernel's module).
    pub dma_entry_limit: u32,
}

impl Default for ContainerSettings {
    fn default() -> ContainerSettings {
        ContainerSettings { kernel: KernelVersion::default(), dma_entry_limit: 65535 }
    }
}
