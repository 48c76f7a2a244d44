//! The payload of BLOB.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Message;
use crate::proto::frame::{CHUNK, Kind};
use crate::proto::problem::Problem;
use crate::proto::table::MAX_BLOB_NAME;

/// The flag for the last bytes.
const LAST: u16 = 1;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Head {
    version: U32,
    name_length: U16,
    flags: U16,
}

/// Returns the bytes that precede the contents.
pub(super) fn head(name: &str, version: u32, last: bool) -> Vec<u8> {
    let head = Head {
        version: U32::new(version),
        name_length: U16::new(name.len() as u16),
        flags: U16::new(u16::from(last) * LAST),
    };
    [head.as_bytes(), name.as_bytes()].concat()
}

pub(super) fn parse(payload: &[u8]) -> Result<Message<'_>, Problem> {
    let malformed = |what: &str| Problem::Payload { kind: Kind::Blob, what: what.to_string() };
    let (head, rest) =
        Head::read_from_prefix(payload).map_err(|_| malformed("shorter than its fixed fields"))?;
    let (name, data) = rest
        .split_at_checked(head.name_length.get().into())
        .ok_or_else(|| malformed("shorter than its name"))?;
    if name.is_empty() || name.len() > MAX_BLOB_NAME {
        return Err(malformed("a name of 0 or more than 255 bytes"));
    }
    let name = str::from_utf8(name).map_err(|_| malformed("a name that is not UTF-8"))?;
    if data.len() > CHUNK {
        return Err(malformed("more than 1 MiB of data"));
    }
    Ok(Message::Blob { name, version: head.version.get(), last: head.flags.get() & LAST != 0, data })
}
