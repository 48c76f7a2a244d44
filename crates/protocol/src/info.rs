//! What a device says of itself: the info structures with their capability chains, as types and as bytes.
//!
//! A chain comes from a peer: offsets may point anywhere, also back. It is read only forwards and only within the bytes
//! the peer gave.

use whimbrel_uapi::device::{
    DeviceInfo, DeviceInfoFlags, InfoCapHeader, IrqInfoFlags, RegionInfo, RegionInfoFlags,
    RegionSparseMmapArea, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_CAP_TYPE,
};
use zerocopy::{FromBytes, IntoBytes};

/// What VFIO_DEVICE_GET_INFO tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The kind of device, and whether it can be reset.
    pub flags: DeviceInfoFlags,
    /// Highest region index plus one.
    pub num_regions: u32,
    /// Highest IRQ index plus one.
    pub num_irqs: u32,
    /// Capabilities in the order of the chain.
    pub capabilities: Vec<Capability>,
}

/// What VFIO_DEVICE_GET_REGION_INFO tells of one region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What may be done with the region.
    pub flags: RegionInfoFlags,
    /// Size in bytes; 0 for a region that is not there.
    pub size: u64,
    /// Where the region begins in the device file.
    pub offset: u64,
    /// Capabilities in the order of the chain.
    pub capabilities: Vec<Capability>,
}

/// What VFIO_DEVICE_GET_IRQ_INFO tells of one IRQ index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Irq {
    /// How the interrupts of this index behave.
    pub flags: IrqInfoFlags,
    /// Number of interrupts within the index; 0 for one that is not there.
    pub count: u32,
}

/// One link of a capability chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Only these parts of the region can be mapped (VFIO_REGION_INFO_CAP_SPARSE_MMAP).
    SparseMmap(Vec<MmapArea>),
    /// What a device-specific region is (VFIO_REGION_INFO_CAP_TYPE).
    Type {
        /// The type, global per bus driver.
        region_type: u32,
        /// The subtype, specific to the type.
        subtype: u32,
    },
    /// The MSI-X table can be mapped with the rest of the BAR (VFIO_REGION_INFO_CAP_MSIX_MAPPABLE).
    MsixMappable,
    /// A capability without a form of its own here.
    Other {
        /// The header's number of the capability.
        id: u16,
        /// Its version.
        version: u16,
        /// Its bytes after the header.
        data: Vec<u8>,
    },
}

/// A part of a region that can be mapped, in bytes from the start of the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmapArea {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A chain that cannot be what a driver meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// A link starts outside the bytes given, or inside the info structure itself.
    #[error("a capability at offset {0} lies outside the info structure's bytes")]
    Outside(u32),
    /// A link points to itself or back: the chain could go round for ever.
    #[error("the capability at offset {0} points back")]
    Backwards(u32),
    /// A capability's own fields claim more than its bytes hold.
    #[error("the capability at offset {0} is shorter than it says")]
    Short(u32),
}

const HEADER: usize = size_of::<InfoCapHeader>();

/// Appends a chain to `info`, which holds the info structure so far, and returns the offset of the first link, or 0 for
/// an empty chain. Links are aligned to 8 bytes, as the kernel's are.
pub fn append_chain(info: &mut Vec<u8>, capabilities: &[Capability]) -> u32 {
    let mut first = 0;
    let mut previous: Option<usize> = None;
    for capability in capabilities {
        info.resize(info.len().next_multiple_of(8), 0);
        let at = info.len();
        let (id, version, data) = capability.to_parts();
        info.extend_from_slice(InfoCapHeader { id, version, next: 0 }.as_bytes());
        info.extend_from_slice(&data);
        match previous {
            None => first = at as u32,
            Some(before) => {
                let next = std::mem::offset_of!(InfoCapHeader, next);
                info[before + next..before + next + 4].copy_from_slice(&(at as u32).to_ne_bytes());
            }
        }
        previous = Some(at);
    }
    first
}

/// Reads the chain that starts at `cap_offset` of `info`, the bytes of an info structure whose fixed part takes `fixed`
/// bytes. An offset of 0 is an empty chain.
pub fn parse_chain(info: &[u8], fixed: usize, cap_offset: u32) -> Result<Vec<Capability>, ChainError> {
    let mut capabilities = Vec::new();
    let mut at = cap_offset;
    let mut least = fixed;
    while at != 0 {
        let start = at as usize;
        if start < least {
            return Err(if capabilities.is_empty() {
                ChainError::Outside(at)
            } else {
                ChainError::Backwards(at)
            });
        }
        let bytes = info.get(start..).ok_or(ChainError::Outside(at))?;
        let (header, rest) = InfoCapHeader::read_from_prefix(bytes).map_err(|_| ChainError::Outside(at))?;
        // A capability has no length field: it reaches to the next link or to the end.
        let end = match header.next as usize {
            0 => rest.len(),
            next => next.saturating_sub(start + HEADER).min(rest.len()),
        };
        capabilities.push(
            Capability::from_parts(header.id, header.version, &rest[..end]).ok_or(ChainError::Short(at))?,
        );
        least = start + HEADER;
        at = header.next;
    }
    Ok(capabilities)
}

impl Capability {
    fn to_parts(&self) -> (u16, u16, Vec<u8>) {
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
            _ => Capability::Other { id, version, data: data.to_vec() },
        })
    }
}

impl Region {
    /// A region that is not there, as the kernel describes one: no size, no flags.
    pub const fn absent(offset: u64) -> Region {
        Region { flags: RegionInfoFlags::empty(), size: 0, offset, capabilities: Vec::new() }
    }

    /// The kernel's answer: the fixed part with `argsz` bytes in all, and the chain behind it if there is one.
    pub fn to_bytes(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<RegionInfo>()];
        let cap_offset = append_chain(&mut bytes, &self.capabilities);
        let mut flags = self.flags;
        flags.set(RegionInfoFlags::CAPS, cap_offset != 0);
        let fixed = RegionInfo {
            argsz: bytes.len() as u32,
            flags: flags.bits(),
            index,
            cap_offset,
            size: self.size,
            offset: self.offset,
        };
        bytes[..size_of::<RegionInfo>()].copy_from_slice(fixed.as_bytes());
        bytes
    }

    /// Reads what a driver answered; `bytes` holds at least the fixed part.
    pub fn from_bytes(bytes: &[u8]) -> Result<Region, ChainError> {
        let (fixed, _) = RegionInfo::read_from_prefix(bytes).map_err(|_| ChainError::Outside(0))?;
        let flags = RegionInfoFlags::from_bits_retain(fixed.flags);
        let cap_offset = if flags.contains(RegionInfoFlags::CAPS) { fixed.cap_offset } else { 0 };
        Ok(Region {
            flags,
            size: fixed.size,
            offset: fixed.offset,
            capabilities: parse_chain(bytes, size_of::<RegionInfo>(), cap_offset)?,
        })
    }
}

impl Info {
    /// The kernel's answer: the fixed part with `argsz` bytes in all, and the chain behind it if there is one.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<DeviceInfo>()];
        let cap_offset = append_chain(&mut bytes, &self.capabilities);
        let mut flags = self.flags;
        flags.set(DeviceInfoFlags::CAPS, cap_offset != 0);
        let fixed = DeviceInfo {
            argsz: bytes.len() as u32,
            flags: flags.bits(),
            num_regions: self.num_regions,
            num_irqs: self.num_irqs,
            cap_offset,
            ..DeviceInfo::default()
        };
        bytes[..size_of::<DeviceInfo>()].copy_from_slice(fixed.as_bytes());
        bytes
    }

    /// Reads what a driver answered; `bytes` holds at least the fixed part.
    pub fn from_bytes(bytes: &[u8]) -> Result<Info, ChainError> {
        let (fixed, _) = DeviceInfo::read_from_prefix(bytes).map_err(|_| ChainError::Outside(0))?;
        let flags = DeviceInfoFlags::from_bits_retain(fixed.flags);
        let cap_offset = if flags.contains(DeviceInfoFlags::CAPS) { fixed.cap_offset } else { 0 };
        Ok(Info {
            flags,
            num_regions: fixed.num_regions,
            num_irqs: fixed.num_irqs,
            capabilities: parse_chain(bytes, size_of::<DeviceInfo>(), cap_offset)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(capabilities: Vec<Capability>) -> Region {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Region { flags, size: 0x4000, offset: 1 << 40, capabilities }
    }

    #[test]
    fn a_region_with_capabilities_reads_back_as_it_was_written() {
        let capabilities = vec![
            Capability::SparseMmap(vec![
                MmapArea { offset: 0, size: 0x1000 },
                MmapArea { offset: 0x2000, size: 0x2000 },
            ]),
            Capability::Type { region_type: 3, subtype: 1 },
            Capability::MsixMappable,
            Capability::Other { id: 77, version: 2, data: vec![1; 8] },
        ];
        let back = Region::from_bytes(&region(capabilities.clone()).to_bytes(4)).unwrap();
        assert_eq!(back.capabilities, capabilities);
        assert!(back.flags.contains(RegionInfoFlags::CAPS));
    }

    #[test]
    fn a_region_without_capabilities_is_its_fixed_part() {
        let bytes = region(Vec::new()).to_bytes(4);
        assert_eq!(bytes.len(), size_of::<RegionInfo>());
        assert_eq!(Region::from_bytes(&bytes).unwrap(), region(Vec::new()));
    }

    #[test]
    fn chains_that_go_round_or_out_are_refused() {
        let good = region(vec![Capability::MsixMappable, Capability::MsixMappable]).to_bytes(0);
        let fixed = size_of::<RegionInfo>();
        let with_next = |link: usize, next: u32| {
            let mut bytes = good.clone();
            bytes[link + 4..link + 8].copy_from_slice(&next.to_ne_bytes());
            bytes
        };
        let second = fixed + HEADER;
        let cases = [
            (with_next(second, fixed as u32), ChainError::Backwards(fixed as u32)),
            (with_next(second, second as u32), ChainError::Backwards(second as u32)),
            (with_next(second, 0x1000), ChainError::Outside(0x1000)),
            (with_next(second, second as u32 + 12), ChainError::Outside(second as u32 + 12)),
        ];
        for (bytes, error) in cases {
            assert_eq!(Region::from_bytes(&bytes), Err(error));
        }
    }

    #[test]
    fn a_sparse_capability_that_claims_too_many_areas_is_refused() {
        let mut bytes =
            region(vec![Capability::SparseMmap(vec![MmapArea { offset: 0, size: 1 }])]).to_bytes(0);
        let count = size_of::<RegionInfo>() + HEADER;
        bytes[count..count + 4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(Region::from_bytes(&bytes), Err(ChainError::Short(size_of::<RegionInfo>() as u32)));
    }

    proptest! {
        #[test]
        fn no_bytes_can_make_the_reader_fail_otherwise(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Region::from_bytes(&bytes);
            let _ = Info::from_bytes(&bytes);
        }
    }
}
