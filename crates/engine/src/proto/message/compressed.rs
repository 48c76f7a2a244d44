//! Data of a frame in compressed form: its length before the compression, and the bytes.
//!
//! The module `compression` compresses and decompresses it.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::proto::frame::Kind;
use crate::proto::problem::Problem;

/// Compressed data: a part of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed<'a> {
    /// The number of bytes before the compression, at least 2.
    pub length: u32,
    /// The compressed bytes: at least 1, and fewer than `length`. Nothing else is known of them.
    pub bytes: &'a [u8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    length: U32,
    reserved: U32,
}

impl<'a> Compressed<'a> {
    /// Returns the bytes that precede the compressed ones.
    pub(super) fn head(&self) -> [u8; size_of::<Head>()] {
        zerocopy::transmute!(Head { length: U32::new(self.length), reserved: U32::ZERO })
    }

    /// Parses the rest of a payload, whose data has at most `most` bytes before the compression.
    pub(super) fn parse(kind: Kind, rest: &'a [u8], most: usize) -> Result<Compressed<'a>, Problem> {
        let malformed = |what: String| Problem::Payload { kind, what };
        let (head, bytes) = Head::read_from_prefix(rest)
            .map_err(|_| malformed("shorter than its fixed fields".to_string()))?;
        let length = head.length.get();
        if length as usize > most {
            return Err(malformed(format!("{length} bytes of data, which may have at most {most}")));
        }
        if bytes.is_empty() || bytes.len() >= length as usize {
            return Err(malformed(format!("{} compressed bytes of {length}", bytes.len())));
        }
        Ok(Compressed { length, bytes })
    }
}
