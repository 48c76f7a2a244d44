//! Hot reset sets: PCI functions that can only be reset together, and their addresses.
//!
//! This is the kernel's `struct vfio_device_set` with its bus or slot. [`hot_reset`](crate::topology::hot_reset) has
//! the requests, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO and VFIO_DEVICE_PCI_HOT_RESET.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use whimbrel_protocol::Errno;

use crate::core::device;
use crate::core::file::DeviceFile;
use crate::iommu::iommufd::Iommufd;

/// The address of a PCI function, with Linux's text form: `0000:01:10.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    segment: u16,
    bus: u8,
    devfn: u8,
}

impl PciAddress {
    /// Returns an address. EINVAL for a device above 31 or a function above 7.
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Result<PciAddress, Errno> {
        if device > 31 || function > 7 {
            return Err(Errno::EINVAL);
        }
        Ok(PciAddress { segment, bus, devfn: device << 3 | function })
    }

    /// Returns the segment, called domain in Linux.
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// The bus.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// Returns the device in the upper five bits and the function in the lower three.
    pub fn devfn(self) -> u8 {
        self.devfn
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.devfn >> 3, self.devfn & 7)
    }
}

impl FromStr for PciAddress {
    type Err = Errno;

    /// Parses the text form of [`PciAddress`]. EINVAL for anything else.
    fn from_str(text: &str) -> Result<PciAddress, Errno> {
        let parse = || {
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let segment = u16::from_str_radix(segment, 16).ok()?;
            let [bus, device, function] = [bus, device, function].map(|part| u8::from_str_radix(part, 16));
            PciAddress::new(segment, bus.ok()?, device.ok()?, function.ok()?).ok()
        };
        // Signs, capitals and missing zeros are found by printing it again.
        parse().filter(|address| address.to_string() == text).ok_or(Errno::EINVAL)
    }
}

/// A function of a [`DeviceSet`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PciFunction {
    /// Its PCI address.
    pub address: PciAddress,
    /// The number of its IOMMU group, as in `/dev/vfio/$GROUP`.
    pub group_id: u32,
    /// The device, if it is bound to VFIO. With another driver or none, nobody can reset the set.
    pub device: Option<DeviceFile>,
}

impl PciFunction {
    /// Returns the function at `address`, in the IOMMU group of this number. `device` is `None` if it is not bound to
    /// VFIO.
    pub fn new(address: PciAddress, group_id: u32, device: impl Into<Option<DeviceFile>>) -> PciFunction {
        PciFunction { address, group_id, device: device.into() }
    }
}

/// All functions on a PCI bus, or in a hot-plug slot: a hot reset resets them together, so its user must own
/// them all.
///
/// A virtual function ([`PhysicalFunction`](crate::PhysicalFunction)) among them is a set of its own: it is reported
/// like the others, and while it exists nobody can reset them.
///
/// A device keeps its set even if this handle is dropped. A PCI device without a set behaves as on a root bus, which
/// has no hot reset. A device whose last handle was dropped counts as not bound to VFIO.
///
/// ```
/// use whimbrel_device::{
///     Context, DeviceFile, DeviceInfoFlags, DeviceSet, Driver, Errno, Group, Info, PciFunction,
///     Translation,
/// };
///
/// struct Port;
///
/// impl Driver for Port {
///     fn info(&self) -> Info {
///         let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
///         Info::new(flags)
///     }
///     fn reset(&mut self, _: &Context) -> Result<(), Errno> {
///         Ok(())
///     }
/// }
///
/// // One card with two functions, each isolated in a group of its own.
/// let names = ["0000:01:00.0", "0000:01:00.1"];
/// let ports = names.map(|name| DeviceFile::new(name, |_| Port));
/// DeviceSet::new([
///     PciFunction::new(names[0].parse()?, 7, ports[0].clone()),
///     PciFunction::new(names[1].parse()?, 8, ports[1].clone()),
/// ])?;
///
/// let info = ports[0].hot_reset_info()?;
/// assert_eq!(info.devices.iter().map(|device| device.group_id).collect::<Vec<_>>(), [7, 8]);
///
/// let [first, second] = ports.clone().map(|port| Group::new(Translation::Emulated, vec![port]).unwrap());
/// let (first, second) = (first.open()?, second.open()?);
/// assert_eq!(ports[0].hot_reset(&[first.clone()]), Err(Errno::EINVAL), "the other is not ours");
/// ports[0].hot_reset(&[first, second])?;
/// # Ok::<(), Errno>(())
/// ```
#[derive(Clone)]
pub struct DeviceSet {
    shared: Arc<Shared>,
}

struct Shared {
    functions: Vec<Function>,
    lock: Mutex<()>,
}

struct Function {
    address: PciAddress,
    group_id: u32,
    device: Weak<device::Shared>,
}

/// The relation of a function to the owner of an iommufd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owned {
    /// Bound there, with this number.
    Bound(u32),
    /// A device of its group is bound there, so nobody else can use it.
    ByGroup,
    /// Not owned.
    Not,
}

impl DeviceSet {
    /// Returns the set of all functions of a bus or slot, in the order reported to programs.
    ///
    /// EINVAL for an empty set, or if a device is not PCI. EEXIST for two functions at one address, and for a device
    /// that is in a set.
    pub fn new(functions: impl IntoIterator<Item = PciFunction>) -> Result<DeviceSet, Errno> {
        let functions: Vec<_> = functions.into_iter().collect();
        if functions.is_empty() {
            return Err(Errno::EINVAL);
        }
        let devices = || functions.iter().filter_map(|function| function.device.as_ref());
        for (index, function) in functions.iter().enumerate() {
            if functions[..index].iter().any(|other| other.address == function.address) {
                return Err(Errno::EEXIST);
            }
        }
        for (index, device) in devices().enumerate() {
            device.check_pci().map_err(|_| Errno::EINVAL)?;
            if device.set().is_some() || devices().take(index).any(|other| other.is(device)) {
                return Err(Errno::EEXIST);
            }
        }
        let kept = functions.iter().map(|function| Function {
            address: function.address,
            group_id: function.group_id,
            device: function.device.as_ref().map_or_else(Weak::new, DeviceFile::downgrade),
        });
        let set = DeviceSet { shared: Arc::new(Shared { functions: kept.collect(), lock: Mutex::new(()) }) };
        devices().try_for_each(|device| device.join_set(set.clone()))?;
        Ok(set)
    }

    /// Returns the number of functions, including those that are not bound to VFIO.
    pub fn function_count(&self) -> usize {
        self.shared.functions.len()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, ()> {
        self.shared.lock.lock()
    }

    /// Iterates over the functions: address, group number, and the device if it is in the same set as `of`.
    pub(crate) fn functions_with(
        &self,
        of: &DeviceFile,
    ) -> impl Iterator<Item = (PciAddress, u32, Option<DeviceFile>)> {
        let apart = |device: &DeviceFile| device.is_virtual_function() || of.is_virtual_function();
        self.functions().map(move |(address, group_id, device)| {
            (address, group_id, device.filter(|device| device.is(of) || !apart(device)))
        })
    }

    /// Iterates over the functions: address, group number, and the device if it is bound to VFIO.
    fn functions(&self) -> impl Iterator<Item = (PciAddress, u32, Option<DeviceFile>)> {
        self.shared.functions.iter().map(|function| {
            (function.address, function.group_id, function.device.upgrade().map(DeviceFile::from))
        })
    }

    /// Returns all devices of the set of `of`, if a reset affects nothing else (`vfio_pci_dev_set_resettable()`).
    pub(crate) fn resettable(&self, of: &DeviceFile) -> Option<Vec<DeviceFile>> {
        self.functions_with(of).map(|(_, _, device)| device).collect()
    }

    /// `vfio_iommufd_get_dev_id()`.
    pub(crate) fn owned(&self, device: &DeviceFile, iommufd: &Iommufd) -> Owned {
        if let Some(id) = device.id_in(iommufd) {
            return Owned::Bound(id);
        }
        let group_id = |wanted: &DeviceFile| {
            self.functions().find(|(_, _, other)| other.as_ref().is_some_and(|other| other.is(wanted)))
        };
        let group_id = group_id(device).map(|(_, group_id, _)| group_id);
        let mut neighbours = self.functions().filter(|(_, other, _)| Some(*other) == group_id);
        let is_bound = |device: &DeviceFile| device.id_in(iommufd).is_some();
        let by_number = neighbours.any(|(_, _, other)| other.as_ref().is_some_and(is_bound));
        if by_number || device.group().is_some_and(|group| group.devices().iter().any(is_bound)) {
            Owned::ByGroup
        } else {
            Owned::Not
        }
    }

    /// Resets the whole set after the last close of its device `of`, if one of them could not be reset on its own
    /// (`vfio_pci_dev_set_try_reset()`). The caller holds the lock.
    pub(crate) fn reset_if_unused(&self, of: &DeviceFile) {
        let Some(devices) = self.resettable(of) else { return };
        if devices.iter().any(|device| device.open_count() > 0)
            || !devices.iter().any(DeviceFile::needs_reset)
        {
            return;
        }
        if reset_all(&devices).is_ok() {
            devices.iter().for_each(DeviceFile::was_reset);
        }
    }
}

/// Resets all of them, and returns the first error.
pub(crate) fn reset_all(devices: &[DeviceFile]) -> Result<(), Errno> {
    let mut outcome = Ok(());
    for device in devices {
        let reset = device.bus_reset();
        if let Err(error) = &reset {
            tracing::warn!(device = device.name(), %error, "hot reset failed");
        }
        outcome = outcome.and(reset);
    }
    outcome
}

impl fmt::Debug for DeviceSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.shared.functions.iter().map(|function| function.address)).finish()
    }
}
