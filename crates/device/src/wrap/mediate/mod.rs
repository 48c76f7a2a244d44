//! Mediation: a vendor's driver comes between a plain device and its user, without binding to the device.
//!
//! This is the shape that Yan Zhao proposed for vfio-pci in December 2019 ("introduce mediate ops in
//! vfio-pci"), with which the driver of a physical function was to add migration to the virtual functions
//! that vfio-pci drives. It never became part of the kernel. A vendor registers [`MediateOps`] with
//! [`Mediators`]; a device driven by [`Mediated`] asks each of them when it is opened, and the first that
//! takes it sees every access until the last close.
//!
//! | in the proposal | here |
//! |---|---|
//! | `vfio_pci_register_mediate_ops()`, `vfio_pci_unregister_mediate_ops()` | [`Mediators::register`], [`Mediators::unregister`] |
//! | `open(pdev, &caps, &handle)` | [`MediateOps::open`], given the [`PlainDevice`], returns [`Opened`] |
//! | the handle, an integer | a [`Mediation`] that [`Mediated`] owns |
//! | `release(handle)` | [`Mediation::release`] |
//! | `get_region_info(handle, info, caps, cap_type)` | [`Mediation::region_info`] |
//! | `rw(handle, buf, count, ppos, iswrite, &pt)` | [`Mediation::read`], [`Mediation::write`] |
//! | `mmap(handle, vma, &pt)` | [`Mediation::mmap`] |
//! | `pt` (pass through) | [`Access::PassThrough`] |
//!
//! # What the proposal leaves open
//!
//! - **Two vendors for one device**: the one that was registered last is asked first, as in the proposal's
//!   code. The first that takes the device has it alone.
//! - **A vendor whose open fails**: the next one is asked. If none takes the device it is opened without
//!   mediation. (In the proposal's code the error of the vendor asked last became that of the device's open.)
//! - **Unregistering while a device is open**: the vendor is not asked again, and keeps the devices it has
//!   until they are closed. (The proposal's code logged an error.)
//! - **Registering twice**: EEXIST.
//! - **Release**: at the last close, after the device was reset. A vendor is asked again by the next open.
//! - **An access that region info does not allow** (flags, size) is refused before the vendor sees it.
//! - **The default region, passed through**: EINVAL. There is nothing behind it.
//! - **VFIO_DEVICE_RESET, and what a device does by itself**: a vendor there sees them in hardware. Here it
//!   is told ([`Mediation::reset`], [`Mediation::advance`]).

mod mediated;
mod mediators;

use std::time::Duration;

use bitflags::bitflags;
use whimbrel_memory::FileOffset;
use whimbrel_protocol::Errno;
use whimbrel_protocol::info::Region;

use crate::bus::Bus;
use crate::driver::{Driver, Next};

pub use self::mediated::Mediated;
pub use self::mediators::Mediators;

bitflags! {
    /// The features that a vendor adds to a device.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct MediateCapabilities: u64 {
        /// `VFIO_PCI_DEVICE_CAP_MIGRATION`: the device gets a default migration region, whose index is the
        /// device's own `num_regions`: of type 3 and subtype 1, readable and writable, of length 0. The
        /// vendor gives it a length, and all that happens in it.
        ///
        /// Features of migration v2 that the plain device has are hidden: it migrates through the region.
        const MIGRATION = 0x01;
    }
}

/// A vendor's operations (`struct vfio_pci_mediate_ops`).
pub trait MediateOps: Send + Sync {
    /// The vendor's name, by which it is registered.
    fn name(&self) -> &str;

    /// A device is being opened. An error means that the vendor does not mediate it: ENODEV for a device that
    /// is not the vendor's.
    ///
    /// Nothing may be registered or unregistered in here.
    fn open(&self, device: PlainDevice<'_>) -> Result<Opened, Errno>;
}

/// The device underneath, which has no notion of being mediated (the proposal's `pdev`).
pub struct PlainDevice<'a> {
    /// The device's driver.
    pub driver: &'a mut dyn Driver,
    /// The device's bus: DMA and interrupts.
    pub bus: &'a Bus,
}

impl PlainDevice<'_> {
    /// The same device, for a call that is made with it.
    pub fn reborrow(&mut self) -> PlainDevice<'_> {
        PlainDevice { driver: &mut *self.driver, bus: self.bus }
    }
}

/// A vendor has taken a device.
#[non_exhaustive]
pub struct Opened {
    /// The features it adds.
    pub capabilities: MediateCapabilities,
    /// The handler of the accesses.
    pub mediation: Box<dyn Mediation>,
}

impl Opened {
    /// Returns the answer of a vendor that takes the device and adds these features.
    pub fn new(capabilities: MediateCapabilities, mediation: impl Mediation + 'static) -> Opened {
        Opened { capabilities, mediation: Box::new(mediation) }
    }
}

/// One device, open, as the vendor that mediates it sees it. All calls come one at a time, each with the
/// device.
pub trait Mediation: Send {
    /// The last user has closed the device, which was then reset if it can be.
    fn release(self: Box<Self>, device: PlainDevice<'_>) {
        let _ = device;
    }

    /// VFIO_DEVICE_GET_REGION_INFO: `region` is what the plain device says, or the default region. Flags,
    /// size and capabilities may be overridden; the offset is the core's.
    ///
    /// It is asked when the device is opened and at each request; accesses are judged by the last answer.
    fn region_info(&self, index: u32, region: &mut Region) {
        let _ = (index, region);
    }

    /// A read of a region, within its size.
    fn read(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &mut [u8]) -> Access<usize> {
        let _ = (device, index, offset, data);
        Access::PassThrough
    }

    /// A write to a region, within its size.
    fn write(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &[u8]) -> Access<usize> {
        let _ = (device, index, offset, data);
        Access::PassThrough
    }

    /// A part of a region is to be mapped, which region info allows. The rules of [`Driver::mmap`] hold.
    fn mmap(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, length: u64) -> Access<FileOffset> {
        let _ = (device, index, offset, length);
        Access::PassThrough
    }

    /// The device has been reset.
    fn reset(&mut self, device: PlainDevice<'_>) {
        let _ = device;
    }

    /// The device may do some of its own work: the vendor lets it, or holds it still.
    fn advance(&mut self, device: PlainDevice<'_>, now: Duration) -> Next {
        device.driver.advance(now)
    }
}

/// A vendor's answer to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access<T> {
    /// It goes to the device, as if there were no vendor.
    PassThrough,
    /// This is the answer, and the device sees nothing.
    Answered(Result<T, Errno>),
}

impl<T> Access<T> {
    /// The vendor's answer, or that of the device.
    fn or_else(self, device: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        match self {
            Access::PassThrough => device(),
            Access::Answered(answer) => answer,
        }
    }
}

impl std::fmt::Debug for PlainDevice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainDevice").field("bus", &self.bus).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}
