//! The choice of a model's migration interface: v2, or a migration region.

use std::fmt;

use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion, Version};
use whimbrel_device::{Driver, Errno, MmapArea};

/// The migration interface that a model offers to its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// VFIO_DEVICE_FEATURE, since Linux 5.18.
    #[default]
    V2,
    /// The migration region of Linux 5.8 to 5.17.
    V1,
    /// The migration region as drafted in 2019.
    Draft,
}

/// Size of the region's data section in bytes, all of it mappable.
const SECTION: u64 = 1 << 20;
/// Offset of the draft's data section. The bitmap before it covers nearly 2 GiB of pages.
const BITMAP: u64 = 64 << 10;

impl Protocol {
    pub(crate) const ALL: [Protocol; 3] = [Protocol::V2, Protocol::V1, Protocol::Draft];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Protocol::V2 => "v2",
            Protocol::V1 => "v1",
            Protocol::Draft => "draft",
        }
    }

    /// Returns the driver with this interface: unchanged for v2, else wrapped in a migration region, which programs under
    /// `whimbrel run` can map if it is for them.
    pub(crate) fn offer(
        self,
        driver: impl Driver + 'static,
        for_programs: bool,
    ) -> Result<Box<dyn Driver>, Errno> {
        let layout = match self {
            Protocol::V2 => return Ok(driver.into()),
            Protocol::V1 => Layout::mapped(Version::V1, SECTION),
            Protocol::Draft => {
                let section = MmapArea::new(BITMAP, SECTION);
                Layout::new(Version::Draft, section.offset, section.size, vec![section])
            }
        };
        let layout = layout.map_err(|_| Errno::EINVAL)?;
        let wrapped = if for_programs {
            MigrationRegion::for_programs(driver, layout)
        } else {
            MigrationRegion::new(driver, layout)
        };
        Ok(wrapped?.into())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
