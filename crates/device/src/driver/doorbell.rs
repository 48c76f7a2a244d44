//! Doorbells: writes to a BAR that an eventfd can make.

/// The number of bytes that are written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// The number of bytes.
    pub const fn bytes(self) -> usize {
        match self {
            WriteWidth::One => 1,
            WriteWidth::Two => 2,
            WriteWidth::Four => 4,
            WriteWidth::Eight => 8,
        }
    }
}

/// A write to a BAR that a signal makes. Two are the same if all of it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IoeventfdWrite {
    /// Index of the BAR's region.
    pub region: u32,
    /// Offset in bytes within it. It need not be aligned.
    pub offset: u64,
    /// The number of bytes.
    pub width: WriteWidth,
    /// The value, of which the low bytes are written, the lowest first.
    pub data: u64,
}
