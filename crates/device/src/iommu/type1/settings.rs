//! The settings of a host's containers.

/// The kernel version to behave as, where versions differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelVersion {
    /// Linux 6.12: a range past 2^64 is EINVAL; VFIO_TYPE1_NESTING_IOMMU exists.
    Linux6_12,
    /// Linux 7.3: a range past 2^64 is EOVERFLOW; VFIO_TYPE1_NESTING_IOMMU was removed.
    #[default]
    Linux7_3,
}

/// The settings of a host's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContainerSettings {
    /// The kernel version to behave as.
    pub kernel: KernelVersion,
    /// Maximum number of mappings of a container (`dma_entry_limit` of the kernel's module).
    pub dma_entry_limit: u32,
}

impl Default for ContainerSettings {
    fn default() -> ContainerSettings {
        ContainerSettings { kernel: KernelVersion::default(), dma_entry_limit: 65535 }
    }
}

impl ContainerSettings {
    /// Sets [`ContainerSettings::kernel`].
    #[must_use]
    pub const fn kernel(self, kernel: KernelVersion) -> ContainerSettings {
        ContainerSettings { kernel, ..self }
    }

    /// Sets [`ContainerSettings::dma_entry_limit`].
    #[must_use]
    pub const fn dma_entry_limit(self, dma_entry_limit: u32) -> ContainerSettings {
        ContainerSettings { dma_entry_limit, ..self }
    }
}
