//! Mediation: a vendor driver intercepts accesses between a plain device and its user, without binding to the device.
//!
//! The interface is Yan Zhao's proposal for vfio-pci of December 2019 ("introduce mediate ops in vfio-pci"), by which
//! the driver of a physical function could add migration to virtual functions that are bound to vfio-pci. It was never
//! merged. A vendor registers [`MediateOps`] with [`Mediators`]. When a device with the driver [`Mediated`] is opened,
//! it asks each vendor, and the first one that accepts the device handles every access until the last close.
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
//! # Details that the proposal does not specify
//!
//! - **Several vendors for one device**: the one registered last is asked first, as in the proposal's code. The first
//!   one that accepts the device is its only mediator.
//! - **A vendor whose open fails**: the next one is asked. If none accepts the device, it is opened without mediation.
//!   (In the proposal's code, the open fails with the last vendor's error.)
//! - **Unregistering while a device is open**: the vendor gets no further devices, and keeps its devices until they are
//!   closed. (The proposal's code logs an error.)
//! - **Registering twice**: EEXIST.
//! - **Release**: at the last close, after the device was reset. The next open asks the vendors again.
//! - **An access that the region info does not allow** (flags, size): refused before the vendor sees it.
//! - **Pass-through on the default region**: EINVAL, because the plain device has no such region.
//! - **VFIO_DEVICE_RESET, and a device's own work**: in the proposal, vendors see them in hardware. Here they are
//!   notified ([`Mediation::reset`], [`Mediation::advance`]).

mod mediated;
mod mediators;

use bitflags::bitflags;
use whimbrel_memory::FileOffset;
use whimbrel_protocol::info::Region;
use whimbrel_protocol::{Errno, State};

use crate::driver::{Context, Driver, Next};

pub use self::mediated::Mediated;
pub use self::mediators::Mediators;

bitflags! {
    /// The features that a vendor adds to a device.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct MediateCapabilities: u64 {
        /// `VFIO_PCI_DEVICE_CAP_MIGRATION`: the device gets a default migration region, whose index is the device's own
        /// `num_regions`: of type 3 and subtype 1, readable and writable, of length 0. The vendor defines its length
        /// and its contents.
        ///
        /// Features of migration v2 that the plain device has are hidden: it migrates through the region.
        const MIGRATION = 0x01;
    }
}

/// A vendor's operations (`struct vfio_pci_mediate_ops`).
pub trait MediateOps: Send + Sync {
    /// The vendor's name, by which it is registered.
    fn name(&self) -> &str;

    /// Opens a device for mediation. An error means that the vendor does not mediate it: ENODEV for a device of another
    /// vendor.
    ///
    /// Must not register or unregister vendors.
    fn open(&self, device: PlainDevice<'_>) -> Result<Opened, Errno>;
}

/// The mediated plain device (the proposal's `pdev`).
#[non_exhaustive]
pub struct PlainDevice<'a> {
    /// The device's driver.
    pub driver: &'a mut dyn Driver,
    /// The device's bus, migration state and time, for the calls of its driver.
    pub context: &'a Context,
}

impl<'a> PlainDevice<'a> {
    /// Returns a device with this driver, for a call to its vendor.
    pub fn new(driver: &'a mut dyn Driver, context: &'a Context) -> PlainDevice<'a> {
        PlainDevice { driver, context }
    }
}

impl PlainDevice<'_> {
    /// Reborrows the device for a call.
    pub fn reborrow(&mut self) -> PlainDevice<'_> {
        PlainDevice { driver: &mut *self.driver, context: self.context }
    }
}

/// A vendor's acceptance of a device.
#[non_exhaustive]
pub struct Opened {
    /// The features it adds.
    pub capabilities: MediateCapabilities,
    /// The handler of the accesses.
    pub mediation: Box<dyn Mediation>,
}

impl Opened {
    /// Returns the acceptance of a device, with the features to add.
    pub fn new(capabilities: MediateCapabilities, mediation: impl Mediation + 'static) -> Opened {
        Opened { capabilities, mediation: Box::new(mediation) }
    }
}

/// The vendor's handler of one open device. Calls are serialized, and each gets the device.
pub trait Mediation: Send {
    /// Ends mediation after the last close, when the device was reset if possible.
    fn release(self: Box<Self>, device: PlainDevice<'_>) {
        let _ = device;
    }

    /// VFIO_DEVICE_GET_REGION_INFO: `region` is the plain device's, or the default region. Flags, size and capabilities
    /// may be overridden; the core sets the offset.
    ///
    /// Called when the device is opened and at each request; accesses are checked against the last reply.
    fn region_info(&self, index: u32, region: &mut Region) {
        let _ = (index, region);
    }

    /// Reads from a region, within its size.
    fn read(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &mut [u8]) -> Access<usize> {
        let _ = (device, index, offset, data);
        Access::PassThrough
    }

    /// Writes to a region, within its size.
    fn write(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, data: &[u8]) -> Access<usize> {
        let _ = (device, index, offset, data);
        Access::PassThrough
    }

    /// Maps a part of a region as the region info allows, with the rules of [`Driver::mmap`].
    fn mmap(&mut self, device: PlainDevice<'_>, index: u32, offset: u64, length: u64) -> Access<FileOffset> {
        let _ = (device, index, offset, length);
        Access::PassThrough
    }

    /// Handles a reset of the device.
    fn reset(&mut self, device: PlainDevice<'_>) {
        let _ = device;
    }

    /// Returns the device's migration state, which its driver finds in the context of each call that is passed through.
    /// A vendor that migrates the device returns the state that it has brought the device to; `state` is the core's.
    fn state(&self, state: State) -> State {
        state
    }

    /// Lets the device do some of its own work, or keeps it from working. The default is that it works if it runs in its
    /// [`state`](Mediation::state).
    fn advance(&mut self, device: PlainDevice<'_>) -> Next {
        let context = device.context.with_state(self.state(device.context.state()));
        if context.state().is_running() { device.driver.advance(&context) } else { Next::Idle }
    }
}

/// A vendor's answer to an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "an access reaches the device or is answered")]
pub enum Access<T> {
    /// Passes the access to the device, as without a vendor.
    PassThrough,
    /// Completes the access with this result; the device does not see it.
    Answered(Result<T, Errno>),
}

impl<T> Access<T> {
    /// Returns the vendor's result, or the device's.
    fn or_else(self, device: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        match self {
            Access::PassThrough => device(),
            Access::Answered(answer) => answer,
        }
    }
}

impl std::fmt::Debug for PlainDevice<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlainDevice").field("context", &self.context).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opened").field("capabilities", &self.capabilities).finish_non_exhaustive()
    }
}
