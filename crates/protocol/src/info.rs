//! Device, region and interrupt info with their capability chains, as types and as bytes.
//!
//! ```
//! use whimbrel_protocol::info::{DeviceCapability, Info};
//! use whimbrel_uapi::device::{DeviceInfoFlags, PciAtomicFlags};
//!
//! let info = Info::new(DeviceInfoFlags::PCI)
//!     .num_regions(9)
//!     .num_irqs(5)
//!     .capabilities(vec![DeviceCapability::PciAtomicComp(PciAtomicFlags::COMP32)]);
//! let bytes = info.to_bytes();
//! assert_eq!(bytes.len(), 24 + 16, "the structure and one link");
//! assert_eq!(Info::from_bytes(&bytes)?.capabilities, info.capabilities);
//! # Ok::<(), whimbrel_protocol::info::ChainError>(())
//! ```

mod capability;
mod chain;

use whimbrel_uapi::device::{
    DeviceInfo, DeviceInfoFlags, InfoCapHeader, IrqInfoFlags, RegionInfo, RegionInfoFlags,
};
use zerocopy::{FromBytes, IntoBytes};

pub use self::capability::{Capability, DeviceCapability, MmapArea, ZpciBase, ZpciGroup};

/// The answer to VFIO_DEVICE_GET_INFO.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Info {
    /// The kind of device, and whether it can be reset.
    pub flags: DeviceInfoFlags,
    /// Highest region index plus one.
    pub num_regions: u32,
    /// Highest IRQ index plus one.
    pub num_irqs: u32,
    /// Capabilities in the order of the chain.
    pub capabilities: Vec<DeviceCapability>,
}

/// The answer to VFIO_DEVICE_GET_REGION_INFO for one region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Region {
    /// The accesses that the region allows.
    pub flags: RegionInfoFlags,
    /// Size in bytes; 0 for a missing region.
    pub size: u64,
    /// Offset of the region in the device file.
    pub offset: u64,
    /// Capabilities in the order of the chain.
    pub capabilities: Vec<Capability>,
}

/// The answer to VFIO_DEVICE_GET_IRQ_INFO for one IRQ index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Irq {
    /// Behaviour of the interrupts of this index.
    pub flags: IrqInfoFlags,
    /// Number of interrupts of the index; 0 for a missing index.
    pub count: u32,
}

/// A malformed capability chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A link starts past the end of the bytes, or inside the info structure itself.
    #[error("malformed capability chain: offset {0} is outside the info structure")]
    Outside(u32),
    /// A link points to itself or backwards: the chain could be endless.
    #[error("malformed capability chain: the capability at offset {0} points backwards")]
    Backwards(u32),
    /// A capability's fields claim more bytes than it has.
    #[error("malformed capability chain: the capability at offset {0} is too short")]
    Short(u32),
}

const HEADER: usize = size_of::<InfoCapHeader>();

impl Irq {
    /// Returns an index with this number of interrupts.
    pub const fn new(flags: IrqInfoFlags, count: u32) -> Irq {
        Irq { flags, count }
    }

    /// Sets [`Irq::flags`].
    #[must_use]
    pub const fn flags(self, flags: IrqInfoFlags) -> Irq {
        Irq { flags, ..self }
    }

    /// Sets [`Irq::count`].
    #[must_use]
    pub const fn count(self, count: u32) -> Irq {
        Irq { count, ..self }
    }
}

impl Region {
    /// Returns a region of this size, without capabilities. Its offset is 0: the core of a device has offsets of its own.
    pub const fn new(flags: RegionInfoFlags, size: u64) -> Region {
        Region { flags, size, offset: 0, capabilities: Vec::new() }
    }

    /// Returns a missing region as the kernel describes it: no size, no flags.
    pub const fn absent(offset: u64) -> Region {
        Region { flags: RegionInfoFlags::empty(), size: 0, offset, capabilities: Vec::new() }
    }

    /// Sets [`Region::flags`].
    #[must_use]
    pub fn flags(self, flags: RegionInfoFlags) -> Region {
        Region { flags, ..self }
    }

    /// Sets [`Region::size`].
    #[must_use]
    pub fn size(self, size: u64) -> Region {
        Region { size, ..self }
    }

    /// Sets [`Region::offset`].
    #[must_use]
    pub fn offset(self, offset: u64) -> Region {
        Region { offset, ..self }
    }

    /// Sets [`Region::capabilities`].
    #[must_use]
    pub fn capabilities(self, capabilities: Vec<Capability>) -> Region {
        Region { capabilities, ..self }
    }

    /// Returns the kernel's answer: the fixed part, with the total size in `argsz`, and the chain after it, if
    /// any.
    pub fn to_bytes(&self, index: u32) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<RegionInfo>()];
        let cap_offset = chain::append(&mut bytes, &self.capabilities);
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

    /// Reads a driver's answer; `bytes` holds at least the fixed part.
    pub fn from_bytes(bytes: &[u8]) -> Result<Region, ChainError> {
        let (fixed, _) = RegionInfo::read_from_prefix(bytes).map_err(|_| ChainError::Outside(0))?;
        let flags = RegionInfoFlags::from_bits_retain(fixed.flags);
        let cap_offset = if flags.contains(RegionInfoFlags::CAPS) { fixed.cap_offset } else { 0 };
        Ok(Region {
            flags,
            size: fixed.size,
            offset: fixed.offset,
            capabilities: chain::parse(bytes, size_of::<RegionInfo>(), cap_offset)?,
        })
    }
}

impl Info {
    /// Returns a device without regions, interrupts and capabilities.
    pub const fn new(flags: DeviceInfoFlags) -> Info {
        Info { flags, num_regions: 0, num_irqs: 0, capabilities: Vec::new() }
    }

    /// Sets [`Info::flags`].
    #[must_use]
    pub fn flags(self, flags: DeviceInfoFlags) -> Info {
        Info { flags, ..self }
    }

    /// Sets [`Info::num_regions`].
    #[must_use]
    pub fn num_regions(self, num_regions: u32) -> Info {
        Info { num_regions, ..self }
    }

    /// Sets [`Info::num_irqs`].
    #[must_use]
    pub fn num_irqs(self, num_irqs: u32) -> Info {
        Info { num_irqs, ..self }
    }

    /// Sets [`Info::capabilities`].
    #[must_use]
    pub fn capabilities(self, capabilities: Vec<DeviceCapability>) -> Info {
        Info { capabilities, ..self }
    }

    /// Returns the kernel's answer: the fixed part, with the total size in `argsz`, and the chain after it, if
    /// any.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; size_of::<DeviceInfo>()];
        let cap_offset = chain::append(&mut bytes, &self.capabilities);
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

    /// Reads a driver's answer; `bytes` holds at least the fixed part.
    pub fn from_bytes(bytes: &[u8]) -> Result<Info, ChainError> {
        let (fixed, _) = DeviceInfo::read_from_prefix(bytes).map_err(|_| ChainError::Outside(0))?;
        let flags = DeviceInfoFlags::from_bits_retain(fixed.flags);
        let cap_offset = if flags.contains(DeviceInfoFlags::CAPS) { fixed.cap_offset } else { 0 };
        Ok(Info {
            flags,
            num_regions: fixed.num_regions,
            num_irqs: fixed.num_irqs,
            capabilities: chain::parse(bytes, size_of::<DeviceInfo>(), cap_offset)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use whimbrel_uapi::device::PciAtomicFlags;
    use whimbrel_uapi::other_buses::ZpciFlags;

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
            Capability::Nvlink2Ssatgt { tgt: 0x20_0000_0000 },
            Capability::Nvlink2Lnkspd { link_speed: 9 },
            Capability::Other { id: 77, version: 2, data: vec![1; 8] },
        ];
        let back = Region::from_bytes(&region(capabilities.clone()).to_bytes(4)).unwrap();
        assert_eq!(back.capabilities, capabilities);
        assert!(back.flags.contains(RegionInfoFlags::CAPS));
    }

    const BASE: ZpciBase = ZpciBase {
        start_dma: 0x1_0000_0000,
        end_dma: 0x1_ffff_ffff,
        pchid: 0x1c0,
        vfn: 3,
        fmb_length: 0x80,
        pft: 5,
        gid: 7,
        fh: None,
        ccdf_err_length: None,
    };

    const GROUP: ZpciGroup = ZpciGroup {
        dasm: 0xffff_0000,
        msi_addr: 0xfee0_0000,
        flags: ZpciFlags::REFRESH,
        mui: 4000,
        noi: 2048,
        maxstbl: 128,
        version: 3,
        imaxstbl: None,
    };

    fn device(capability: DeviceCapability) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::CAPS;
        Info { flags, num_regions: 9, num_irqs: 5, capabilities: vec![capability] }
    }

    /// Each kind with its version and its length in a chain in bytes, which is that of the kernel's
    /// structure.
    fn device_capabilities() -> Vec<(DeviceCapability, u16, usize)> {
        let with_handle = ZpciBase { fh: Some(0x8000_0001), ..BASE };
        let with_errors = ZpciBase { ccdf_err_length: Some(64), ..with_handle };
        let interpreted = ZpciGroup { imaxstbl: Some(4096), ..GROUP };
        vec![
            (DeviceCapability::ZpciBase(BASE), 1, 32),
            (DeviceCapability::ZpciBase(with_handle), 2, 40),
            (DeviceCapability::ZpciBase(with_errors), 3, 40),
            (DeviceCapability::ZpciGroup(GROUP), 1, 40),
            (DeviceCapability::ZpciGroup(interpreted), 2, 48),
            (DeviceCapability::ZpciUtil(vec![0xc1; 64]), 1, 80),
            (DeviceCapability::ZpciUtil(vec![]), 1, 16),
            (DeviceCapability::ZpciPfip(vec![1, 2, 3, 4]), 1, 16),
            (DeviceCapability::PciAtomicComp(PciAtomicFlags::all()), 1, 16),
            (DeviceCapability::Other { id: 77, version: 2, data: vec![1; 8] }, 2, 16),
        ]
    }

    #[test]
    fn a_capability_of_a_device_reads_back_as_it_was_written_and_is_as_long_as_the_kernels() {
        for (capability, version, length) in device_capabilities() {
            let bytes = device(capability.clone()).to_bytes();
            let fixed = size_of::<DeviceInfo>();
            assert_eq!(bytes.len(), fixed + length, "{capability:?}");
            assert_eq!(bytes[fixed + 2..fixed + 4], version.to_ne_bytes(), "{capability:?}");
            assert_eq!(Info::from_bytes(&bytes).unwrap(), device(capability));
        }
    }

    #[test]
    fn a_chain_of_all_kinds_reads_back() {
        let mut info = device(DeviceCapability::ZpciUtil(vec![7; 3]));
        info.capabilities = device_capabilities().into_iter().map(|(capability, ..)| capability).collect();
        assert_eq!(Info::from_bytes(&info.to_bytes()).unwrap(), info);
    }

    #[test]
    fn a_capability_of_a_device_that_is_cut_short_is_refused() {
        let fixed = size_of::<DeviceInfo>();
        // What is needed of each: the kernel pads it to eight bytes.
        for (capability, needed) in
            device_capabilities().into_iter().zip([32, 36, 40, 40, 42, 76, 12, 16, 12])
        {
            let bytes = device(capability.0.clone()).to_bytes();
            assert!(Info::from_bytes(&bytes[..fixed + needed]).is_ok(), "{capability:?}");
            for length in HEADER..needed {
                let answer = Info::from_bytes(&bytes[..fixed + length]);
                assert_eq!(answer, Err(ChainError::Short(fixed as u32)), "{capability:?} {length}");
            }
        }
    }

    #[test]
    fn one_number_means_one_thing_of_a_device_and_another_of_a_region() {
        let bytes = region(vec![Capability::Type { region_type: 1, subtype: 1 }]).to_bytes(0);
        let id = size_of::<RegionInfo>();
        assert_eq!(bytes[id..id + 2], [2, 0]);
        let bytes = device(DeviceCapability::ZpciGroup(GROUP)).to_bytes();
        let id = size_of::<DeviceInfo>();
        assert_eq!(bytes[id..id + 2], [2, 0]);
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
        fn no_bytes_can_make_the_reader_fail_otherwise(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Region::from_bytes(&bytes);
            let _ = Info::from_bytes(&bytes);
        }

        #[test]
        fn what_can_be_read_of_a_capability_can_be_written(
            id in 0..7_u16,
            version in 0..5_u16,
            data in proptest::collection::vec(0..4_u8, 0..80),
        ) {
            let flags = (DeviceInfoFlags::PCI | DeviceInfoFlags::CAPS).bits();
            let offset = size_of::<DeviceInfo>() as u32;
            let fixed = DeviceInfo { flags, cap_offset: offset, ..DeviceInfo::default() };
            let header = InfoCapHeader { id, version, next: 0 };
            let bytes = [fixed.as_bytes(), header.as_bytes(), &data].concat();
            if let Ok(info) = Info::from_bytes(&bytes) {
                let again = Info::from_bytes(&info.to_bytes()).unwrap();
                match (&info.capabilities[0], &again.capabilities[0]) {
                    // Padded to eight bytes on the way.
                    (DeviceCapability::Other { data, .. }, DeviceCapability::Other { data: padded, .. }) => {
                        prop_assert_eq!(&data[..], &padded[..data.len()]);
                    }
                    (once, twice) => prop_assert_eq!(once, twice),
                }
            }
        }
    }
}
