//! The data after a structure: lists, capabilities, the data of a feature. Each function takes the
//! argument, up to the length it gives for itself, and shows at most [`MAX_ELEMENTS`] elements.

use core::fmt;
use core::mem::offset_of;

use zerocopy::FromBytes;

use super::field::{List, Structure, number};
use super::structures as s;
use crate::device::{self, DeviceInfo, DeviceInfoFlags, InfoCapHeader, IrqSet, IrqSetFlags};
use crate::device::{RegionInfo, RegionInfoFlags, VFIO_IRQ_SET_DATA_TYPE_MASK};
use crate::feature::{
    DeviceFeature, DeviceFeatureDmaBuf, FEATURE_MASK, Feature, FeatureFlags, RegionDmaRange,
};
use crate::pci::{PciDependentDevice, PciHotReset, PciHotResetFlags, PciHotResetInfo};
use crate::type1::{self, DirtyPagesFlags, DmaUnmapFlags, IommuInfoFlags, IommuType1DirtyBitmap};
use crate::type1::{IommuType1DmaUnmap, IommuType1Info};

/// Maximum number of list elements shown.
const MAX_ELEMENTS: usize = 8;

/// Maximum number of bytes shown of a name.
pub(super) const MAX_TEXT: usize = 64;

/// No data follows this structure.
#[expect(clippy::unnecessary_wraps, reason = "one of the functions of a table")]
pub(super) fn nothing(_: &[u8], _: &mut List<'_>) -> fmt::Result {
    Ok(())
}

/// Returns the start of `bytes` as a structure.
fn head<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(head, _)| head)
}

/// Returns the bytes after a `T`.
fn after<T>(bytes: &[u8]) -> &[u8] {
    bytes.get(size_of::<T>()..).unwrap_or(&[])
}

/// Up to `count` elements of `bytes`, each shown by `show`.
struct Elements<'b, T> {
    bytes: &'b [u8],
    count: u32,
    show: fn(T, &mut fmt::Formatter<'_>) -> fmt::Result,
}

impl<T: FromBytes> fmt::Display for Elements<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.bytes;
        f.write_str("[")?;
        for shown in 0..self.count {
            let separator = if shown == 0 { "" } else { ", " };
            f.write_str(separator)?;
            match T::read_from_prefix(rest) {
                Ok((element, others)) if (shown as usize) < MAX_ELEMENTS => {
                    (self.show)(element, f)?;
                    rest = others;
                }
                _ => {
                    f.write_str("..")?;
                    break;
                }
            }
        }
        f.write_str("]")
    }
}

/// `VFIO_DEVICE_SET_IRQS`: one switch or one eventfd for each interrupt.
pub(super) fn irqs(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    let Some(set) = head::<IrqSet>(bytes) else { return Ok(()) };
    let (bytes, count) = (after::<IrqSet>(bytes), set.count);
    let kind = IrqSetFlags::from_bits_retain(set.flags & VFIO_IRQ_SET_DATA_TYPE_MASK);
    if kind == IrqSetFlags::DATA_BOOL {
        let show = |switch: u8, f: &mut fmt::Formatter<'_>| write!(f, "{switch}");
        list.asked("data", format_args!("{}", Elements { bytes, count, show }))
    } else if kind == IrqSetFlags::DATA_EVENTFD {
        list.asked("eventfds", format_args!("{}", Elements { bytes, count, show: fd }))
    } else {
        Ok(())
    }
}

fn fd(fd: i32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "{fd}")
}

/// `VFIO_DEVICE_PCI_HOT_RESET`: the groups.
pub(super) fn group_fds(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    match head::<PciHotReset>(bytes) {
        Some(PciHotReset { count, .. }) if count != 0 => {
            let bytes = after::<PciHotReset>(bytes);
            list.asked("group_fds", format_args!("{}", Elements { bytes, count, show: fd }))
        }
        _ => Ok(()),
    }
}

/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`: the devices that a hot reset touches.
pub(super) fn hot_reset_devices(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    fn address(device: PciDependentDevice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciDependentDevice { segment, bus, devfn, .. } = device;
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{}", devfn >> 3, devfn & 7)
    }
    fn by_group(device: PciDependentDevice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        address(device, f)?;
        write!(f, " group {}", device.group_id)
    }
    fn by_devid(device: PciDependentDevice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        address(device, f)?;
        write!(f, " devid {}", device.devid().cast_signed())
    }
    match head::<PciHotResetInfo>(bytes) {
        Some(PciHotResetInfo { count, flags, .. }) if count != 0 => {
            let bytes = after::<PciHotResetInfo>(bytes);
            let named = PciHotResetFlags::from_bits_retain(flags).contains(PciHotResetFlags::DEV_ID);
            let show = if named { by_devid } else { by_group };
            list.written("devices", format_args!("{}", Elements { bytes, count, show }))
        }
        _ => Ok(()),
    }
}

/// `VFIO_IOMMU_UNMAP_DMA`: the bitmap that receives the dirty pages.
pub(super) fn unmap(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    match head::<IommuType1DmaUnmap>(bytes).map(|head| DmaUnmapFlags::from_bits_retain(head.flags)) {
        Some(flags) if flags.contains(DmaUnmapFlags::GET_DIRTY_BITMAP) => {
            data(&s::BITMAP, after::<IommuType1DmaUnmap>(bytes), list)
        }
        _ => Ok(()),
    }
}

/// `VFIO_IOMMU_DIRTY_PAGES`: the range to report.
pub(super) fn dirty_pages(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    match head::<IommuType1DirtyBitmap>(bytes).map(|head| DirtyPagesFlags::from_bits_retain(head.flags)) {
        Some(flags) if flags.contains(DirtyPagesFlags::GET_BITMAP) => {
            data(&s::TYPE1_DIRTY_BITMAP_GET, after::<IommuType1DirtyBitmap>(bytes), list)
        }
        _ => Ok(()),
    }
}

/// A structure after the first one. It does not carry a size of its own.
fn data(structure: &Structure, bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    structure.show(bytes, list)?;
    if bytes.len() < structure.size { list.plain("cut", format_args!("cut in its data")) } else { Ok(()) }
}

/// A chain of capabilities, by their names.
struct Capabilities<'b> {
    bytes: &'b [u8],
    first: usize,
    /// The names of the ids from 1 on.
    names: &'static [&'static str],
}

impl fmt::Display for Capabilities<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut offset = self.first;
        f.write_str("[")?;
        for shown in 0.. {
            f.write_str(if shown == 0 { "" } else { ", " })?;
            let Some(header) =
                self.bytes.get(offset..).and_then(head::<InfoCapHeader>).filter(|_| shown < MAX_ELEMENTS)
            else {
                f.write_str("..")?;
                break;
            };
            let name = usize::from(header.id).checked_sub(1).and_then(|index| self.names.get(index));
            match name {
                Some(name) => f.write_str(name)?,
                None => write!(f, "capability {}", header.id)?,
            }
            if header.next == 0 {
                break;
            }
            offset = usize::try_from(header.next).unwrap_or(usize::MAX);
        }
        f.write_str("]")
    }
}

/// Shows the chain that starts at the offset stored at `cap_offset`, if `there` is set.
fn capabilities(
    bytes: &[u8],
    there: bool,
    cap_offset: usize,
    names: &'static [&'static str],
    list: &mut List<'_>,
) -> fmt::Result {
    match number(bytes, cap_offset, size_of::<u32>()) {
        Some(first) if there && first != 0 => {
            let first = usize::try_from(first).unwrap_or(usize::MAX);
            list.written("capabilities", format_args!("{}", Capabilities { bytes, first, names }))
        }
        _ => Ok(()),
    }
}

/// The second word of an info structure, its flags.
fn info_flags(bytes: &[u8]) -> u32 {
    number(bytes, size_of::<u32>(), size_of::<u32>()).map_or(0, |flags| flags as u32)
}

/// `VFIO_DEVICE_GET_INFO`: capabilities.
pub(super) fn device_capabilities(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    const { assert!(device::VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP == 5) };
    let names = &["ZPCI_BASE", "ZPCI_GROUP", "ZPCI_UTIL", "ZPCI_PFIP", "PCI_ATOMIC_COMP"];
    let there = DeviceInfoFlags::from_bits_retain(info_flags(bytes)).contains(DeviceInfoFlags::CAPS);
    capabilities(bytes, there, offset_of!(DeviceInfo, cap_offset), names, list)
}

/// `VFIO_DEVICE_GET_REGION_INFO`: capabilities.
pub(super) fn region_capabilities(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    const { assert!(device::VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD == 5) };
    let names = &["SPARSE_MMAP", "TYPE", "MSIX_MAPPABLE", "NVLINK2_SSATGT", "NVLINK2_LNKSPD"];
    let there = RegionInfoFlags::from_bits_retain(info_flags(bytes)).contains(RegionInfoFlags::CAPS);
    capabilities(bytes, there, offset_of!(RegionInfo, cap_offset), names, list)
}

/// `VFIO_IOMMU_GET_INFO`: capabilities.
pub(super) fn container_capabilities(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    const { assert!(type1::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL == 3) };
    let names = &["IOVA_RANGE", "MIGRATION", "DMA_AVAIL"];
    let there = IommuInfoFlags::from_bits_retain(info_flags(bytes)).contains(IommuInfoFlags::CAPS);
    capabilities(bytes, there, offset_of!(IommuType1Info, cap_offset), names, list)
}

/// `VFIO_DEVICE_FEATURE`, whole: the operation, the feature and the data.
pub(super) fn feature(bytes: &[u8], list: &mut List<'_>) -> fmt::Result {
    let Some(DeviceFeature { argsz, flags }) = head(bytes) else { return list.cut(bytes) };
    let index = (flags & FEATURE_MASK) as u16;
    let verbs = FeatureFlags::from_bits_retain(flags & !FEATURE_MASK);
    list.plain("feature", format_args!("{}", Asked { verbs, index }))?;
    list.asked("argsz", format_args!("{argsz}"))?;

    if verbs.contains(FeatureFlags::GET) {
        list.gets();
    }
    let length = usize::try_from(argsz).unwrap_or(usize::MAX).saturating_sub(size_of::<DeviceFeature>());
    let here = after::<DeviceFeature>(bytes);
    let here = here.get(..length).unwrap_or(here);
    if verbs.contains(FeatureFlags::PROBE) || length == 0 {
        return Ok(());
    }
    let structure = match Feature::try_from(index) {
        // The token is a secret: it gives access to the device's virtual functions.
        Ok(Feature::PciVfToken) => return list.plain("token", format_args!("token not shown")),
        Ok(Feature::Migration) => &s::MIGRATION,
        Ok(Feature::MigDeviceState) => &s::MIG_STATE,
        Ok(Feature::LowPowerEntryWithWakeup) => &s::LOW_POWER_ENTRY_WITH_WAKEUP,
        Ok(Feature::DmaLoggingStart) => &s::DMA_LOGGING_CONTROL,
        Ok(Feature::DmaLoggingReport) => &s::DMA_LOGGING_REPORT,
        Ok(Feature::MigDataSize) => &s::MIG_DATA_SIZE,
        Ok(Feature::BusMaster) => &s::BUS_MASTER,
        Ok(Feature::DmaBuf) => &s::DMA_BUF,
        Ok(Feature::ZpciError) => &s::ZPCI_ERR,
        // These features have no data, or unknown data.
        Ok(
            Feature::LowPowerEntry
            | Feature::LowPowerExit
            | Feature::DmaLoggingStop
            | Feature::MigPrecopyInfoV2,
        )
        | Err(_) => return list.plain("data", format_args!("{length} bytes of data")),
    };
    structure.show(here, list)?;
    if let (Ok(Feature::DmaBuf), Some(buffer)) = (Feature::try_from(index), head::<DeviceFeatureDmaBuf>(here))
    {
        let (bytes, count) = (after::<DeviceFeatureDmaBuf>(here), buffer.nr_ranges);
        let show = |range: RegionDmaRange, f: &mut fmt::Formatter<'_>| {
            write!(f, "{:#x}+{:#x}", range.offset, range.length)
        };
        list.asked("dma_ranges", format_args!("{}", Elements { bytes, count, show }))?;
    }
    if here.len() < structure.size.min(length) { list.cut(bytes) } else { Ok(()) }
}

/// Returns whether the data of a feature is the token that gives access to virtual functions.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    head::<DeviceFeature>(bytes).is_some_and(|DeviceFeature { flags, .. }| {
        (flags & FEATURE_MASK) as u16 == Feature::PciVfToken.number()
    })
}

/// `SET MIG_DEVICE_STATE`.
struct Asked {
    verbs: FeatureFlags,
    index: u16,
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verb, name) in
            [(FeatureFlags::PROBE, "PROBE "), (FeatureFlags::GET, "GET "), (FeatureFlags::SET, "SET ")]
        {
            if self.verbs.contains(verb) {
                f.write_str(name)?;
            }
        }
        match Feature::try_from(self.index) {
            Ok(feature) => {
                f.write_str(feature.name().strip_prefix("VFIO_DEVICE_FEATURE_").unwrap_or(feature.name()))?;
            }
            Err(_) => write!(f, "unknown feature {}", self.index)?,
        }
        match self.verbs.difference(FeatureFlags::all()).bits() {
            0 => Ok(()),
            unknown => write!(f, " with flags {unknown:#x}"),
        }
    }
}
