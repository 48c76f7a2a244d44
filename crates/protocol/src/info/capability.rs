//! The capabilities of devices and regions, as types and as bytes.
//!
//! The capability ids of devices and regions are separate name spaces: 1 is ZPCI_BASE for a device and
//! SPARSE_MMAP for a region. So they are two types.

use whimbrel_uapi::device::{
    DeviceInfoCapPciAtomicComp, InfoCapHeader, PciAtomicFlags, RegionInfoCapNvlink2Lnkspd,
    RegionSparseMmapArea, VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, VFIO_DEVICE_INFO_CAP_ZPCI_BASE,
    VFIO_DEVICE_INFO_CAP_ZPCI_GROUP, VFIO_DEVICE_INFO_CAP_ZPCI_PFIP, VFIO_DEVICE_INFO_CAP_ZPCI_UTIL,
    VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD,
    VFIO_REGION_INFO_CAP_NVLINK2_SSATGT, VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_CAP_TYPE,
};
use whimbrel_uapi::other_buses::{DeviceInfoCapZpciBase, DeviceInfoCapZpciGroup, ZpciFlags};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::HEADER;
use super::chain::{Link, Parts};

/// One link of a region's capability chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Capability {
    /// Only these parts of the region can be mapped (VFIO_REGION_INFO_CAP_SPARSE_MMAP).
    SparseMmap(Vec<MmapArea>),
    /// The type of a device-specific region (VFIO_REGION_INFO_CAP_TYPE).
    Type {
        /// The type, global per bus driver.
        region_type: u32,
        /// The subtype, specific to the type.
        subtype: u32,
    },
    /// The MSI-X table can be mapped with the rest of the BAR (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE).
    MsixMappable,
    /// The bus address of an NVLink device's memory (VFIO_REGION_INFO_CAP_NVLINK2_SSATGT). Deprecated: not
    /// given by kernels since 5.13.
    Nvlink2Ssatgt {
        /// The address.
        tgt: u64,
    },
    /// The speed of an NVLink (VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD). Deprecated like the one above.
    Nvlink2Lnkspd {
        /// The link speed as given by the firmware.
        link_speed: u32,
    },
    /// Any other capability.
    Other {
        /// The capability's id.
        id: u16,
        /// Its version.
        version: u16,
        /// Its bytes after the header.
        data: Vec<u8>,
    },
}

/// A part of a region that can be mapped, in bytes from the start of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MmapArea {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl MmapArea {
    /// Returns the part of `size` bytes from `offset` on.
    pub const fn new(offset: u64, size: u64) -> MmapArea {
        MmapArea { offset, size }
    }
}

/// One link of a device's capability chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceCapability {
    /// The function, as s390 sees it (VFIO_DEVICE_INFO_CAP_ZPCI_BASE).
    ZpciBase(ZpciBase),
    /// The group the function is in (VFIO_DEVICE_INFO_CAP_ZPCI_GROUP).
    ZpciGroup(ZpciGroup),
    /// The utility string, in EBCDIC (VFIO_DEVICE_INFO_CAP_ZPCI_UTIL).
    ZpciUtil(Vec<u8>),
    /// The path to the function (VFIO_DEVICE_INFO_CAP_ZPCI_PFIP).
    ZpciPfip(Vec<u8>),
    /// The atomic operations of PCI that are completed for the device (VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP).
    PciAtomicComp(PciAtomicFlags),
    /// Any other capability.
    Other {
        /// The capability's id.
        id: u16,
        /// Its version.
        version: u16,
        /// Its bytes after the header.
        data: Vec<u8>,
    },
}

/// [`DeviceCapability::ZpciBase`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZpciBase {
    /// First address for DMA.
    pub start_dma: u64,
    /// Last address for DMA.
    pub end_dma: u64,
    /// Physical channel.
    pub pchid: u16,
    /// Number of the virtual function.
    pub vfn: u16,
    /// Length of the measurement block in bytes.
    pub fmb_length: u16,
    /// Type of the function.
    pub pft: u8,
    /// Group of the function.
    pub gid: u8,
    /// Handle of the function; from version 2 on.
    pub fh: Option<u32>,
    /// Length of an error record in bytes; from version 3 on, which has a handle too.
    pub ccdf_err_length: Option<u32>,
}

/// [`DeviceCapability::ZpciGroup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ZpciGroup {
    /// Mask of the address space for DMA.
    pub dasm: u64,
    /// Address of MSI.
    pub msi_addr: u64,
    /// The capabilities of the group.
    pub flags: ZpciFlags,
    /// Update interval of the measurement block.
    pub mui: u16,
    /// The most MSIs.
    pub noi: u16,
    /// The longest block store in bytes.
    pub maxstbl: u16,
    /// Version of PCI.
    pub version: u8,
    /// The longest interpreted block store in bytes; from version 2 on.
    pub imaxstbl: Option<u16>,
}

impl Link for Capability {
    fn to_parts(&self) -> Parts {
        match self {
            Capability::SparseMmap(areas) => {
                let mut data = Vec::with_capacity(8 + areas.len() * 16);
                data.extend_from_slice(&(areas.len() as u32).to_ne_bytes());
                data.extend_from_slice(&[0; 4]);
                for area in areas {
                    data.extend_from_slice(
                        RegionSparseMmapArea { offset: area.offset, size: area.size }.as_bytes(),
                    );
                }
                (VFIO_REGION_INFO_CAP_SPARSE_MMAP, 1, data)
            }
            Capability::Type { region_type, subtype } => {
                let mut data = region_type.to_ne_bytes().to_vec();
                data.extend_from_slice(&subtype.to_ne_bytes());
                (VFIO_REGION_INFO_CAP_TYPE, 1, data)
            }
            Capability::MsixMappable => (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, 1, Vec::new()),
            Capability::Nvlink2Ssatgt { tgt } => {
                (VFIO_REGION_INFO_CAP_NVLINK2_SSATGT, 1, tgt.to_ne_bytes().to_vec())
            }
            Capability::Nvlink2Lnkspd { link_speed } => {
                let link = RegionInfoCapNvlink2Lnkspd { link_speed: *link_speed, ..FromZeros::new_zeroed() };
                (VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD, 1, after_header(&link))
            }
            Capability::Other { id, version, data } => (*id, *version, data.clone()),
        }
    }

    fn from_parts(id: u16, version: u16, data: &[u8]) -> Option<Capability> {
        Some(match id {
            VFIO_REGION_INFO_CAP_SPARSE_MMAP => {
                let (count, rest) = u32::read_from_prefix(data).ok()?;
                let areas = rest.get(4..)?;
                let size = (count as usize).checked_mul(size_of::<RegionSparseMmapArea>())?;
                let areas = areas.get(..size)?;
                Capability::SparseMmap(
                    areas
                        .chunks_exact(size_of::<RegionSparseMmapArea>())
                        .filter_map(|bytes| RegionSparseMmapArea::read_from_bytes(bytes).ok())
                        .map(|area| MmapArea { offset: area.offset, size: area.size })
                        .collect(),
                )
            }
            VFIO_REGION_INFO_CAP_TYPE => {
                let (region_type, rest) = u32::read_from_prefix(data).ok()?;
                let (subtype, _) = u32::read_from_prefix(rest).ok()?;
                Capability::Type { region_type, subtype }
            }
            VFIO_REGION_INFO_CAP_MSIX_MAPPABLE => Capability::MsixMappable,
            VFIO_REGION_INFO_CAP_NVLINK2_SSATGT => {
                Capability::Nvlink2Ssatgt { tgt: u64::read_from_prefix(data).ok()?.0 }
            }
            VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD => {
                Capability::Nvlink2Lnkspd { link_speed: u32::read_from_prefix(data).ok()?.0 }
            }
            _ => Capability::Other { id, version, data: data.to_vec() },
        })
    }
}

impl Link for DeviceCapability {
    fn to_parts(&self) -> Parts {
        match self {
            DeviceCapability::ZpciBase(base) => base.to_parts(),
            DeviceCapability::ZpciGroup(group) => group.to_parts(),
            DeviceCapability::ZpciUtil(text) => (VFIO_DEVICE_INFO_CAP_ZPCI_UTIL, 1, counted(text)),
            DeviceCapability::ZpciPfip(path) => (VFIO_DEVICE_INFO_CAP_ZPCI_PFIP, 1, counted(path)),
            DeviceCapability::PciAtomicComp(flags) => {
                let atomic = DeviceInfoCapPciAtomicComp { flags: flags.bits(), ..FromZeros::new_zeroed() };
                (VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP, 1, after_header(&atomic))
            }
            DeviceCapability::Other { id, version, data } => (*id, *version, data.clone()),
        }
    }

    fn from_parts(id: u16, version: u16, data: &[u8]) -> Option<DeviceCapability> {
        Some(match id {
            VFIO_DEVICE_INFO_CAP_ZPCI_BASE => DeviceCapability::ZpciBase(ZpciBase::read(version, data)?),
            VFIO_DEVICE_INFO_CAP_ZPCI_GROUP => DeviceCapability::ZpciGroup(ZpciGroup::read(version, data)?),
            VFIO_DEVICE_INFO_CAP_ZPCI_UTIL => DeviceCapability::ZpciUtil(read_counted(data)?),
            VFIO_DEVICE_INFO_CAP_ZPCI_PFIP => DeviceCapability::ZpciPfip(read_counted(data)?),
            VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP => {
                let (flags, _) = u32::read_from_prefix(data).ok()?;
                DeviceCapability::PciAtomicComp(PciAtomicFlags::from_bits_retain(flags))
            }
            _ => DeviceCapability::Other { id, version, data: data.to_vec() },
        })
    }
}

impl ZpciBase {
    fn to_parts(self) -> Parts {
        let (version, end) = match (self.fh, self.ccdf_err_length) {
            (_, Some(_)) => (3, size_of::<DeviceInfoCapZpciBase>()),
            (Some(_), None) => (2, std::mem::offset_of!(DeviceInfoCapZpciBase, ccdf_err_length)),
            (None, None) => (1, std::mem::offset_of!(DeviceInfoCapZpciBase, fh)),
        };
        let mut data = after_header(&DeviceInfoCapZpciBase {
            header: InfoCapHeader::default(),
            start_dma: self.start_dma,
            end_dma: self.end_dma,
            pchid: self.pchid,
            vfn: self.vfn,
            fmb_length: self.fmb_length,
            pft: self.pft,
            gid: self.gid,
            fh: self.fh.unwrap_or_default(),
            ccdf_err_length: self.ccdf_err_length.unwrap_or_default(),
        });
        data.truncate(end - HEADER);
        (VFIO_DEVICE_INFO_CAP_ZPCI_BASE, version, data)
    }

    fn read(version: u16, data: &[u8]) -> Option<ZpciBase> {
        let least = match version {
            0 | 1 => std::mem::offset_of!(DeviceInfoCapZpciBase, fh),
            2 => std::mem::offset_of!(DeviceInfoCapZpciBase, ccdf_err_length),
            _ => size_of::<DeviceInfoCapZpciBase>(),
        };
        let read: DeviceInfoCapZpciBase = read_behind_header(data, least)?;
        Some(ZpciBase {
            start_dma: read.start_dma,
            end_dma: read.end_dma,
            pchid: read.pchid,
            vfn: read.vfn,
            fmb_length: read.fmb_length,
            pft: read.pft,
            gid: read.gid,
            fh: (version >= 2).then_some(read.fh),
            ccdf_err_length: (version >= 3).then_some(read.ccdf_err_length),
        })
    }
}

impl ZpciGroup {
    fn to_parts(self) -> Parts {
        let (version, end) = match self.imaxstbl {
            Some(_) => (2, size_of::<DeviceInfoCapZpciGroup>()),
            None => (1, std::mem::offset_of!(DeviceInfoCapZpciGroup, imaxstbl)),
        };
        let mut data = after_header(&DeviceInfoCapZpciGroup {
            dasm: self.dasm,
            msi_addr: self.msi_addr,
            flags: self.flags.bits(),
            mui: self.mui,
            noi: self.noi,
            maxstbl: self.maxstbl,
            version: self.version,
            imaxstbl: self.imaxstbl.unwrap_or_default(),
            ..DeviceInfoCapZpciGroup::default()
        });
        data.truncate(end - HEADER);
        (VFIO_DEVICE_INFO_CAP_ZPCI_GROUP, version, data)
    }

    fn read(version: u16, data: &[u8]) -> Option<ZpciGroup> {
        let imaxstbl = std::mem::offset_of!(DeviceInfoCapZpciGroup, imaxstbl);
        let least = if version >= 2 { imaxstbl + size_of::<u16>() } else { imaxstbl };
        let read: DeviceInfoCapZpciGroup = read_behind_header(data, least)?;
        Some(ZpciGroup {
            dasm: read.dasm,
            msi_addr: read.msi_addr,
            flags: ZpciFlags::from_bits_retain(read.flags),
            mui: read.mui,
            noi: read.noi,
            maxstbl: read.maxstbl,
            version: read.version,
            imaxstbl: (version >= 2).then_some(read.imaxstbl),
        })
    }
}

/// Returns the bytes after the header of a capability's structure.
fn after_header<T: IntoBytes + Immutable>(capability: &T) -> Vec<u8> {
    capability.as_bytes()[HEADER..].to_vec()
}

/// Reads a structure whose header has been read already. At least `least` bytes, header included, must be
/// present; missing later fields are 0.
fn read_behind_header<T: FromBytes + FromZeros + IntoBytes>(data: &[u8], least: usize) -> Option<T> {
    let mut value = T::new_zeroed();
    let room = &mut value.as_mut_bytes()[HEADER..];
    let count = room.len().min(data.len());
    if count + HEADER < least {
        return None;
    }
    room[..count].copy_from_slice(&data[..count]);
    Some(value)
}

/// Returns the bytes after their 32-bit count.
fn counted(bytes: &[u8]) -> Vec<u8> {
    let mut data = (bytes.len() as u32).to_ne_bytes().to_vec();
    data.extend_from_slice(bytes);
    data
}

fn read_counted(data: &[u8]) -> Option<Vec<u8>> {
    let (count, rest) = u32::read_from_prefix(data).ok()?;
    Some(rest.get(..count as usize)?.to_vec())
}
