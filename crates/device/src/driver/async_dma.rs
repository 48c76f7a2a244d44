//! A driver's accesses to memory that the core makes for it.

use super::Context;
use crate::bus::dma::{DmaAccess, DmaFault};

/// A driver's accesses to memory that the core makes for it, one at a time.
///
/// An access to memory that is mapped without a descriptor waits for its owner, the client of a vfio-user server. A
/// driver that makes it by itself ([`DmaSpace::read`](crate::dma::DmaSpace::read)) keeps every request waiting
/// meanwhile. A client such as QEMU answers nothing while its own request waits, and both time out. The core makes the
/// access while requests are served.
///
/// ```
/// use std::time::Duration;
/// use whimbrel_device::dma::{DmaAccess, DmaFault};
/// use whimbrel_device::{AsyncDma, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Next, Region};
/// use whimbrel_device::{FileOffset, RegionInfoFlags};
/// use whimbrel_uapi::type1::DmaMapFlags;
///
/// /// A card that writes a byte of its register to the address in the byte.
/// #[derive(Default)]
/// struct Stamp {
///     byte: u8,
///     is_due: bool,
/// }
///
/// impl Driver for Stamp {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::RESET).num_regions(1)
///     }
///     fn region(&self, _: u32) -> Result<Region, Errno> {
///         Ok(Region::new(RegionInfoFlags::WRITE, 1))
///     }
///     fn write_region(&mut self, _: &Context, _: u32, _: u64, data: &[u8]) -> Result<usize, Errno> {
///         (self.byte, self.is_due) = (data[0], true);
///         Ok(data.len())
///     }
///     fn async_dma(&mut self) -> Option<&mut dyn AsyncDma> {
///         Some(self)
///     }
/// }
///
/// impl AsyncDma for Stamp {
///     fn next_access(&mut self, _: &Context) -> Option<DmaAccess> {
///         let access = DmaAccess::write(self.byte.into(), vec![self.byte]);
///         self.is_due.then_some(access.tag(self.byte.into()))
///     }
///     fn access_done(&mut self, _: &Context, access: DmaAccess, _: Result<(), DmaFault>) {
///         // The register may have changed meanwhile.
///         self.is_due &= access.tag != u64::from(self.byte);
///     }
/// }
///
/// let device = DeviceFile::new("stamp", |_| Stamp::default());
/// # let memory = std::fs::File::from(rustix::fs::memfd_create(c"doc", rustix::fs::MemfdFlags::empty())?);
/// # memory.set_len(0x1000)?;
/// device.bus().dma().map(0, 0x1000, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0))?;
/// device.write_region(0, 0, &[7])?;
/// while device.advance(Duration::ZERO) == Next::Now {}
/// let mut byte = [0];
/// device.bus().dma().read(7, &mut byte)?;
/// assert_eq!(byte, [7]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait AsyncDma {
    /// Returns the next access, in the address space without a PASID; `None` if the device needs none now.
    ///
    /// Called after [`Driver::advance`](crate::Driver::advance), and so only in a state where the device runs, and only
    /// while no access is in flight. A driver that starts no DMA in RUNNING_P2P and PRE_COPY_P2P returns `None` there.
    fn next_access(&mut self, context: &Context) -> Option<DmaAccess>;

    /// Takes the access back, with its result. [`Driver::advance`](crate::Driver::advance) is called next.
    ///
    /// Meanwhile the device may have served requests that make the access pointless: tell it by
    /// [`DmaAccess::tag`]. Before a reset, and before an arc on the way to any state but RUNNING and PRE_COPY, the core
    /// waits for the access. It is not taken back if it does not end in time: a driver that is reset, or arrives in
    /// such a state, forgets it, and returns it from [`AsyncDma::next_access`] again if the device still needs it when
    /// it runs.
    fn access_done(&mut self, context: &Context, access: DmaAccess, result: Result<(), DmaFault>);
}
