//! Base address registers: the mapping of each, and its register bits.

/// The resource of a base address register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the kinds of the PCI specification")]
pub enum Bar {
    /// Memory below 4 GiB.
    Memory32 {
        /// Bytes: a power of two, from 16.
        size: u32,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory at any address; it uses the next register too.
    Memory64 {
        /// Bytes: a power of two, from 16.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io {
        /// Ports: a power of two, 4 to 256.
        size: u32,
    },
}

impl Bar {
    /// Returns the size in bytes, or in ports.
    pub fn size(self) -> u64 {
        match self {
            Bar::Memory32 { size, .. } | Bar::Io { size } => size.into(),
            Bar::Memory64 { size, .. } => size,
        }
    }

    /// Returns whether it maps memory rather than I/O ports.
    pub fn is_memory(self) -> bool {
        !matches!(self, Bar::Io { .. })
    }

    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Bar::Memory64 { .. })
    }

    /// Returns the low bits, which encode the type.
    pub(super) fn kind(self) -> u32 {
        match self {
            Bar::Memory32 { prefetchable, .. } => u32::from(prefetchable) << 3,
            Bar::Memory64 { prefetchable, .. } => 0x4 | u32::from(prefetchable) << 3,
            Bar::Io { .. } => 0x1,
        }
    }

    /// Returns whether its size is valid.
    pub(super) fn has_valid_size(self) -> bool {
        let size = self.size();
        size.is_power_of_two() && if self.is_memory() { size >= 16 } else { (4..=256).contains(&size) }
    }
}
