//! The PCI capabilities that a device can have, and their limits.

/// One entry of the capability list.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PciCapability {
    /// Power states and wake-up.
    PowerManagement(PowerManagement),
    /// Message-signalled interrupts, set up in the configuration space.
    Msi(Msi),
    /// Message-signalled interrupts, set up in a table in a BAR.
    MsiX(MsiX),
    /// The function is an endpoint of PCI Express, and its configuration space has 4096 bytes.
    Express(Express),
    /// Vendor-specific registers.
    VendorSpecific(VendorSpecific),
}

/// The power management capability. D0 and D3hot always exist.
#[allow(clippy::struct_excessive_bools)] // Each is a bit of its own in the capability.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PowerManagement {
    /// D1 can be entered.
    pub d1: bool,
    /// D2 can be entered.
    pub d2: bool,
    /// The device can signal power management events from every state.
    pub pme: bool,
    /// The device keeps its state in the transition from D3hot to D0, which otherwise is a
    /// [`PciEvent::SoftReset`](super::PciEvent::SoftReset).
    pub no_soft_reset: bool,
}

impl PowerManagement {
    /// Sets [`PowerManagement::d1`].
    #[must_use]
    pub const fn d1(self, d1: bool) -> PowerManagement {
        PowerManagement { d1, ..self }
    }

    /// Sets [`PowerManagement::d2`].
    #[must_use]
    pub const fn d2(self, d2: bool) -> PowerManagement {
        PowerManagement { d2, ..self }
    }

    /// Sets [`PowerManagement::pme`].
    #[must_use]
    pub const fn pme(self, pme: bool) -> PowerManagement {
        PowerManagement { pme, ..self }
    }

    /// Sets [`PowerManagement::no_soft_reset`].
    #[must_use]
    pub const fn no_soft_reset(self, no_soft_reset: bool) -> PowerManagement {
        PowerManagement { no_soft_reset, ..self }
    }
}

/// The MSI capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Msi {
    /// Number of vectors: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Messages can use 64-bit addresses.
    pub address64: bool,
    /// Each vector can be masked, and shows whether it is pending.
    pub maskable: bool,
}

impl Msi {
    /// Returns a capability with this number of vectors, 32-bit addresses and no mask bits.
    pub const fn new(vectors: u8) -> Msi {
        Msi { vectors, address64: false, maskable: false }
    }

    /// Sets [`Msi::address64`].
    #[must_use]
    pub const fn address64(self, address64: bool) -> Msi {
        Msi { address64, ..self }
    }

    /// Sets [`Msi::maskable`].
    #[must_use]
    pub const fn maskable(self, maskable: bool) -> Msi {
        Msi { maskable, ..self }
    }
}

/// The MSI-X capability. The device serves the table and the pending bits, which are in BARs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiX {
    /// Number of vectors in the table, 1 to 2048, of 16 bytes each.
    pub vectors: u16,
    /// The BAR of the table.
    pub table_bar: u8,
    /// Offset of the table in its BAR in bytes, a multiple of 8.
    pub table_offset: u32,
    /// The BAR of the pending bits, one bit per vector in 8-byte words.
    pub pending_bar: u8,
    /// Offset of the pending bits in their BAR in bytes, a multiple of 8.
    pub pending_offset: u32,
}

impl MsiX {
    /// Returns a capability with this number of vectors. The table is at the start of a BAR, and the pending bits
    /// follow it.
    pub const fn new(vectors: u16, bar: u8) -> MsiX {
        MsiX {
            vectors,
            table_bar: bar,
            table_offset: 0,
            pending_bar: bar,
            pending_offset: vectors as u32 * 16,
        }
    }

    /// Sets [`MsiX::table_bar`].
    #[must_use]
    pub const fn table_bar(self, table_bar: u8) -> MsiX {
        MsiX { table_bar, ..self }
    }

    /// Sets [`MsiX::table_offset`].
    #[must_use]
    pub const fn table_offset(self, table_offset: u32) -> MsiX {
        MsiX { table_offset, ..self }
    }

    /// Sets [`MsiX::pending_bar`].
    #[must_use]
    pub const fn pending_bar(self, pending_bar: u8) -> MsiX {
        MsiX { pending_bar, ..self }
    }

    /// Sets [`MsiX::pending_offset`].
    #[must_use]
    pub const fn pending_offset(self, pending_offset: u32) -> MsiX {
        MsiX { pending_offset, ..self }
    }

    /// Bytes of the table.
    pub fn table_bytes(&self) -> u64 {
        u64::from(self.vectors) * 16
    }

    /// Bytes of the pending bits.
    pub fn pending_bytes(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64) * 8
    }
}

/// The PCI Express capability, version 2, of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Express {
    /// Function-level reset, by a bit of the device control register.
    pub function_level_reset: bool,
    /// 8-bit tags are supported.
    pub extended_tag: bool,
    /// The largest payload of a packet in bytes: 128, 256, 512, 1024, 2048 or 4096.
    pub max_payload: u16,
    /// The speed of the link, also its maximum.
    pub speed: LinkSpeed,
    /// The lanes of the link: 1, 2, 4, 8, 12, 16 or 32.
    pub width: u8,
}

impl Express {
    /// Returns a capability with a link of this speed and width, a payload of 128 bytes and no optional features.
    pub const fn new(speed: LinkSpeed, width: u8) -> Express {
        Express { function_level_reset: false, extended_tag: false, max_payload: 128, speed, width }
    }

    /// Sets [`Express::function_level_reset`].
    #[must_use]
    pub const fn function_level_reset(self, function_level_reset: bool) -> Express {
        Express { function_level_reset, ..self }
    }

    /// Sets [`Express::extended_tag`].
    #[must_use]
    pub const fn extended_tag(self, extended_tag: bool) -> Express {
        Express { extended_tag, ..self }
    }

    /// Sets [`Express::max_payload`].
    #[must_use]
    pub const fn max_payload(self, max_payload: u16) -> Express {
        Express { max_payload, ..self }
    }
}

/// The speed of a link, per lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkSpeed {
    /// 2.5 GT/s.
    Gt2_5 = 1,
    /// 5 GT/s.
    Gt5 = 2,
    /// 8 GT/s.
    Gt8 = 3,
    /// 16 GT/s.
    Gt16 = 4,
    /// 32 GT/s.
    Gt32 = 5,
}

/// A vendor-specific capability.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct VendorSpecific {
    /// The bytes after the length byte, after power-on. At most 189 bytes.
    pub data: Vec<u8>,
    /// Write mask of `data`; bytes beyond its end are read-only.
    pub writable: Vec<u8>,
}

impl VendorSpecific {
    /// Returns a capability with this data, which is read-only.
    pub fn new(data: impl Into<Vec<u8>>) -> VendorSpecific {
        VendorSpecific { data: data.into(), writable: Vec::new() }
    }

    /// Sets [`VendorSpecific::writable`].
    #[must_use]
    pub fn writable(self, writable: impl Into<Vec<u8>>) -> VendorSpecific {
        VendorSpecific { writable: writable.into(), ..self }
    }
}

impl From<PowerManagement> for PciCapability {
    fn from(capability: PowerManagement) -> Self {
        PciCapability::PowerManagement(capability)
    }
}

impl From<Msi> for PciCapability {
    fn from(capability: Msi) -> Self {
        PciCapability::Msi(capability)
    }
}

impl From<MsiX> for PciCapability {
    fn from(capability: MsiX) -> Self {
        PciCapability::MsiX(capability)
    }
}

impl From<Express> for PciCapability {
    fn from(capability: Express) -> Self {
        PciCapability::Express(capability)
    }
}

impl From<VendorSpecific> for PciCapability {
    fn from(capability: VendorSpecific) -> Self {
        PciCapability::VendorSpecific(capability)
    }
}

impl PciCapability {
    /// Returns its name for errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            PciCapability::PowerManagement(_) => "power management",
            PciCapability::Msi(_) => "MSI",
            PciCapability::MsiX(_) => "MSI-X",
            PciCapability::Express(_) => "PCI Express",
            PciCapability::VendorSpecific(_) => "vendor-specific",
        }
    }

    /// Checks the contents of the capability.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let right = |right: bool, what| if right { Ok(()) } else { Err(what) };
        match self {
            PciCapability::PowerManagement(_) => Ok(()),
            PciCapability::Msi(msi) => right(
                msi.vectors.is_power_of_two() && msi.vectors <= 32,
                "expected 1, 2, 4, 8, 16 or 32 vectors",
            ),
            PciCapability::MsiX(msix) => {
                right((1..=2048).contains(&msix.vectors), "expected 1 to 2048 vectors")
            }
            PciCapability::Express(express) => {
                right(
                    express.max_payload.is_power_of_two() && (128..=4096).contains(&express.max_payload),
                    "expected a payload of 128, 256, 512, 1024, 2048 or 4096 bytes",
                )?;
                right(
                    matches!(express.width, 1 | 2 | 4 | 8 | 12 | 16 | 32),
                    "expected a width of 1, 2, 4, 8, 12, 16 or 32 lanes",
                )
            }
            PciCapability::VendorSpecific(vendor) => {
                right(vendor.data.len() <= 0xc0 - 3, "too long")?;
                right(vendor.writable.len() <= vendor.data.len(), "writable mask longer than the data")
            }
        }
    }
}
