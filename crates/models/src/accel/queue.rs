//! The entries of the two rings in memory: work descriptors and completion records.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A descriptor in the submission ring: 64 bytes, little-endian.
///
/// Fields that the operation does not use must be 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(clippy::exhaustive_structs, reason = "the layout in memory")]
pub struct Descriptor {
    /// One of the `OPERATION_` numbers.
    pub operation: u32,
    /// Must be 0.
    pub flags: u32,
    /// Returned in the completion; the device also mixes it into its state.
    pub tag: u64,
    /// IOVA of the data to read.
    pub source: u64,
    /// IOVA of the data to write; for [`OPERATION_SCRAMBLE`] the offset in the device's own state.
    pub destination: u64,
    /// Bytes of data, 1 to [`MAX_LENGTH`].
    pub length: u64,
    /// Fill: the 8 bytes to repeat. Scramble: the seed of the bytes.
    pub pattern: u64,
    /// Must be 0.
    pub reserved: [u64; 2],
}

/// Copies `length` bytes from `source` to `destination`. The two must not overlap.
pub const OPERATION_COPY: u32 = 1;
/// Fills `length` bytes from `destination` on with repetitions of `pattern`. The last repetition may be cut.
pub const OPERATION_FILL: u32 = 2;
/// Computes the CRC-32 (ISO-HDLC, as in zlib and Ethernet) of `length` bytes from `source` as the result.
pub const OPERATION_CHECKSUM: u32 = 3;
/// Writes bytes derived from `pattern` to the device's own state: `length` bytes at offset `destination`, both
/// multiples of 8. No memory is accessed.
pub const OPERATION_SCRAMBLE: u32 = 4;

/// Maximum length of one descriptor, in bytes.
pub const MAX_LENGTH: u64 = 1 << 30;

/// A record in the completion ring: 32 bytes, little-endian.
///
/// [`Completion::sequence`] is written last.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[expect(clippy::exhaustive_structs, reason = "the layout in memory")]
pub struct Completion {
    /// The descriptor's tag; 0 if the descriptor could not be read.
    pub tag: u64,
    /// The checksum; otherwise the bytes done.
    pub result: u64,
    /// One of the `STATUS_` numbers.
    pub status: u32,
    /// The descriptor's index, not reduced to the ring's size.
    pub index: u32,
    /// Number of jobs that the device has completed since its reset, including this one.
    pub sequence: u64,
}

/// The job is done.
pub const STATUS_DONE: u32 = 0;
/// The descriptor is invalid; nothing was done.
pub const STATUS_INVALID: u32 = 1;
/// The descriptor itself could not be read.
pub const STATUS_FETCH_FAULT: u32 = 2;
/// Part of the data is not mapped; the slices of [`SLICE_BYTES`] before it are done.
pub const STATUS_DATA_FAULT: u32 = 3;

/// Size in bytes of the slices of a job; it can be stopped between two slices.
pub const SLICE_BYTES: u64 = 256 << 10;

/// Valid work, if its memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Copy {
        source: u64,
        destination: u64,
    },
    Fill {
        destination: u64,
        pattern: u64,
    },
    Checksum {
        source: u64,
    },
    /// `offset` and the length lie in the own state and are multiples of 8.
    Scramble {
        offset: u64,
        seed: u64,
    },
}

impl Descriptor {
    /// Returns the operation of a valid descriptor: known values only, unused fields 0, no range past an end.
    pub(super) fn operation(&self, state_bytes: u64) -> Option<Operation> {
        let Descriptor { source, destination, length, pattern, .. } = *self;
        let known = self.flags == 0 && self.reserved == [0; 2] && (1..=MAX_LENGTH).contains(&length);
        let in_space = |iova: u64| iova.checked_add(length - 1).is_some();
        if !known {
            return None;
        }
        match self.operation {
            OPERATION_COPY => (pattern == 0
                && in_space(source)
                && in_space(destination)
                && source.abs_diff(destination) >= length)
                .then_some(Operation::Copy { source, destination }),
            OPERATION_FILL => {
                (source == 0 && in_space(destination)).then_some(Operation::Fill { destination, pattern })
            }
            OPERATION_CHECKSUM => (destination == 0 && pattern == 0 && in_space(source))
                .then_some(Operation::Checksum { source }),
            OPERATION_SCRAMBLE => (source == 0
                && destination % 8 == 0
                && length % 8 == 0
                && destination.checked_add(length).is_some_and(|end| end <= state_bytes))
            .then_some(Operation::Scramble { offset: destination, seed: pattern }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: u64 = 1 << 20;

    fn good(operation: u32) -> Descriptor {
        let (source, destination) = match operation {
            OPERATION_COPY => (0x1000, 0x8000),
            OPERATION_CHECKSUM => (0x1000, 0),
            _ => (0, 0x8000),
        };
        Descriptor { operation, source, destination, length: 0x100, tag: 7, ..Descriptor::default() }
    }

    #[test]
    fn layouts_have_no_holes() {
        assert_eq!((size_of::<Descriptor>(), size_of::<Completion>()), (64, 32));
    }

    #[test]
    fn operations_with_all_fields_right_are_taken() {
        for operation in [OPERATION_COPY, OPERATION_FILL, OPERATION_CHECKSUM, OPERATION_SCRAMBLE] {
            assert!(good(operation).operation(STATE).is_some(), "{operation}");
        }
        let last_byte = Descriptor { destination: u64::MAX - 0xff, ..good(OPERATION_FILL) };
        assert!(last_byte.operation(STATE).is_some());
        let end_of_state = Descriptor { destination: STATE - 0x100, ..good(OPERATION_SCRAMBLE) };
        assert!(end_of_state.operation(STATE).is_some());
        let adjacent = Descriptor { destination: 0x1100, ..good(OPERATION_COPY) };
        assert!(adjacent.operation(STATE).is_some());
    }

    #[test]
    fn each_field_that_is_wrong_makes_a_descriptor_invalid() {
        let copy = good(OPERATION_COPY);
        let scramble = good(OPERATION_SCRAMBLE);
        let cases = [
            Descriptor::default(),
            Descriptor { operation: 5, ..copy },
            Descriptor { flags: 1, ..copy },
            Descriptor { reserved: [0, 1], ..copy },
            Descriptor { length: 0, ..copy },
            Descriptor { length: MAX_LENGTH + 1, destination: 1 << 40, ..copy },
            Descriptor { pattern: 1, ..copy },
            Descriptor { source: u64::MAX - 0xfe, ..copy },
            Descriptor { destination: u64::MAX - 0xfe, ..copy },
            Descriptor { destination: 0x10ff, ..copy },
            Descriptor { destination: 0xf01, ..copy },
            Descriptor { source: 8, ..good(OPERATION_FILL) },
            Descriptor { destination: u64::MAX - 0xfe, ..good(OPERATION_FILL) },
            Descriptor { destination: 8, ..good(OPERATION_CHECKSUM) },
            Descriptor { pattern: 8, ..good(OPERATION_CHECKSUM) },
            Descriptor { source: 8, ..scramble },
            Descriptor { destination: 4, ..scramble },
            Descriptor { length: 12, ..scramble },
            Descriptor { destination: STATE - 0xf8, ..scramble },
            Descriptor { destination: u64::MAX - 7, ..scramble },
        ];
        for descriptor in cases {
            assert_eq!(descriptor.operation(STATE), None, "{descriptor:?}");
        }
    }
}
