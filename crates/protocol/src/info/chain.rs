//! Capability chains after an info structure: writing and parsing.
//!
//! A chain comes from a peer: its offsets may point anywhere, even backwards. Parsing goes forwards only, and
//! only within the peer's bytes.

use whimbrel_uapi::device::InfoCapHeader;
use zerocopy::{FromBytes, IntoBytes};

use super::{ChainError, HEADER};

/// Links are aligned to this many bytes, and so is the end of the chain (`vfio_info_cap_add()`).
const ALIGNMENT: usize = 8;

/// Id, version, and the bytes after the header.
pub(super) type Parts = (u16, u16, Vec<u8>);

/// One capability of a chain.
pub(super) trait Link: Sized {
    fn to_parts(&self) -> Parts;

    /// Reads a capability. `data` extends to the next link or to the end. `None` if the capability claims
    /// more than that.
    fn from_parts(id: u16, version: u16, data: &[u8]) -> Option<Self>;
}

/// Appends a chain to `info`, which holds the info structure so far, and returns the offset of the first
/// link, or 0 for an empty chain.
pub(super) fn append<L: Link>(info: &mut Vec<u8>, capabilities: &[L]) -> u32 {
    let mut first = 0;
    let mut previous: Option<usize> = None;
    for capability in capabilities {
        let at = info.len();
        let (id, version, data) = capability.to_parts();
        info.extend_from_slice(InfoCapHeader { id, version, next: 0 }.as_bytes());
        info.extend_from_slice(&data);
        info.resize(info.len().next_multiple_of(ALIGNMENT), 0);
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

/// Parses the chain that starts at `cap_offset` of `info`, an info structure whose fixed part takes `fixed`
/// bytes. An offset of 0 is an empty chain.
pub(super) fn parse<L: Link>(info: &[u8], fixed: usize, cap_offset: u32) -> Result<Vec<L>, ChainError> {
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
        // A capability has no length field: it extends to the next link or to the end.
        let end = match header.next as usize {
            0 => rest.len(),
            next => next.saturating_sub(start + HEADER).min(rest.len()),
        };
        capabilities
            .push(L::from_parts(header.id, header.version, &rest[..end]).ok_or(ChainError::Short(at))?);
        least = start + HEADER;
        at = header.next;
    }
    Ok(capabilities)
}
