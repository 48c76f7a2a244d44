//! Doorbells: writes to a BAR that an eventfd can make.

/// The width of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::exhaustive_enums, reason = "the widths of the header")]
pub enum WriteWidth {
    /// One.
    One,
    /// Two.
    Two,
    /// Four.
    Four,
    /// Eight.
    Eight,
}

impl WriteWidth {
    /// Returns the number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            WriteWidth::One => 1,
            WriteWidth::Two => 2,
            WriteWidth::Four => 4,
            WriteWidth::Eight => 8,
        }
    }
}

/// A write to a BAR, made when an eventfd is signalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct IoeventfdWrite {
    /// Index of the BAR's region.
    pub region: u32,
    /// Offset in bytes within the region. It need not be aligned.
    pub offset: u64,
    /// The number of bytes.
    pub width: WriteWidth,
    /// The value; its low bytes are written in little-endian order.
    pub data: u64,
}

impl IoeventfdWrite {
    /// Returns a write of the low bytes of `data`.
    pub const fn new(region: u32, offset: u64, width: WriteWidth, data: u64) -> IoeventfdWrite {
        IoeventfdWrite { region, offset, width, data }
    }
}
