//! The records that a side syncs before it acts, and their byte form.

use crc_fast::CrcAlgorithm;
use zerocopy::byteorder::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"WHJR";

const VERSION: u16 = 1;

whimbrel_uapi::numbered_enum! {
    /// The facts that a journal records, in order: a possible outcome first, the outcome itself after it.
    #[repr(u8)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
    #[expect(clippy::exhaustive_enums, reason = "a reader must know every entry: a new one raises the version")]
    pub enum Entry: u8 {
        /// Source: the devices may be handed over to the peer from here on.
        MayBeHandedOver = 1 => "may be handed over",
        /// Source: the devices are the source's again, for good.
        Returned = 2 => "returned",
        /// Source: the devices are the destination's.
        Gone = 3 => "gone",
        /// Destination: the devices may be started here from here on.
        MayStart = 4 => "may start",
        /// Destination: every device runs here.
        Started = 5 => "started",
        /// Destination: no device runs here with the received state, and none ever will.
        Discarded = 6 => "discarded",
    }
}

/// An error in a journal's records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The name of the peer does not fit into a record.
    #[error("the peer's name has {len} bytes, more than {} fit into a journal record", Record::MAX_PEER)]
    PeerTooLong {
        /// The length of the name.
        len: usize,
    },
    /// The bytes are not a record.
    #[error("not a journal record: invalid magic")]
    NotARecord,
    /// The bytes were changed after they were written.
    #[error("damaged journal record: checksum mismatch")]
    Damaged,
    /// The record was written by a newer release.
    #[error("unsupported journal record: version {version}, expected {VERSION}")]
    Version {
        /// The version of the record.
        version: u16,
    },
    /// A field has an invalid value although the checksum is correct.
    #[error("invalid {field} in a journal record")]
    Invalid {
        /// The field.
        field: &'static str,
    },
}

/// A record of a journal: a fact about one migration, and the peer's name for operators.
///
/// All records have the same size and are appended, so that a crash can only cut the last one. Numbers are little-endian.
///
/// | offset | size | field | value |
/// |---|---|---|---|
/// | 0 | 4 | magic | `WHJR` |
/// | 4 | 2 | version | 1 |
/// | 6 | 1 | entry | [`Entry::number`] |
/// | 7 | 1 | length of the peer's name | at most 228 |
/// | 8 | 16 | id of the migration | |
/// | 24 | 228 | the peer's name | UTF-8, then zeros |
/// | 252 | 4 | checksum | CRC-32C of bytes 0 to 251 |
///
/// ```
/// use whimbrel_protocol::handover::{Entry, Record, read_journal};
///
/// let record = Record::new(7, "host-b:7000", Entry::MayBeHandedOver)?;
/// let mut journal = record.to_bytes().to_vec();
/// journal.extend_from_slice(&Record::new(7, "host-b:7000", Entry::Gone)?.to_bytes()[..100]);
/// assert_eq!(read_journal(&journal)?, [record]);
/// # Ok::<(), whimbrel_protocol::handover::RecordError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    migration: u128,
    peer: String,
    entry: Entry,
}

/// The byte form, little-endian.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 4],
    version: U16,
    entry: u8,
    peer_len: u8,
    migration: U128,
    peer: [u8; Record::MAX_PEER],
    /// CRC-32C of all bytes before it.
    checksum: U32,
}

const CHECKED: usize = Record::SIZE - size_of::<U32>();

fn checksum(bytes: &[u8; Record::SIZE]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..CHECKED]) as u32
}

impl Record {
    /// The size of a record in bytes. It divides a sector, so that no record is in two.
    pub const SIZE: usize = 256;

    /// The maximum length of the peer's name in bytes.
    pub const MAX_PEER: usize = 228;

    /// Returns a record of a migration. The peer's name is for operators.
    pub fn new(migration: u128, peer: impl Into<String>, entry: Entry) -> Result<Record, RecordError> {
        let peer = peer.into();
        if peer.len() > Record::MAX_PEER {
            return Err(RecordError::PeerTooLong { len: peer.len() });
        }
        Ok(Record { migration, peer, entry })
    }

    /// Returns the id of the migration.
    pub const fn migration(&self) -> u128 {
        self.migration
    }

    /// Returns the name of the peer. It may come from the peer: see [`printable`](crate::text::printable).
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Returns the fact.
    pub const fn entry(&self) -> Entry {
        self.entry
    }

    /// Returns the byte form.
    pub fn to_bytes(&self) -> [u8; Record::SIZE] {
        let mut peer = [0; Record::MAX_PEER];
        peer[..self.peer.len()].copy_from_slice(self.peer.as_bytes());
        let layout = Layout {
            magic: MAGIC,
            version: VERSION.into(),
            entry: self.entry.number(),
            peer_len: self.peer.len() as u8,
            migration: self.migration.into(),
            peer,
            checksum: U32::ZERO,
        };
        let mut bytes: [u8; Record::SIZE] = zerocopy::transmute!(layout);
        let checksum = checksum(&bytes);
        bytes[CHECKED..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads the byte form. The version is checked before all fields but the magic and the checksum, which stay where
    /// they are in every version.
    pub fn from_bytes(bytes: &[u8; Record::SIZE]) -> Result<Record, RecordError> {
        let layout: Layout = zerocopy::transmute!(*bytes);
        if layout.magic != MAGIC {
            return Err(RecordError::NotARecord);
        }
        if layout.checksum.get() != checksum(bytes) {
            return Err(RecordError::Damaged);
        }
        if layout.version.get() != VERSION {
            return Err(RecordError::Version { version: layout.version.get() });
        }
        let entry = Entry::from_number(layout.entry).ok_or(RecordError::Invalid { field: "entry" })?;
        let invalid_peer = RecordError::Invalid { field: "peer" };
        let Some((peer, padding)) = layout.peer.split_at_checked(layout.peer_len.into()) else {
            return Err(invalid_peer);
        };
        if padding.iter().any(|byte| *byte != 0) {
            return Err(invalid_peer);
        }
        let peer = str::from_utf8(peer).map_err(|_| invalid_peer)?.to_owned();
        Ok(Record { migration: layout.migration.get(), peer, entry })
    }
}

/// Reads the records of a journal.
///
/// A last record that is incomplete, or all zeros, is one whose write a crash cut short. It was not synced, so that
/// nothing that needs it has happened, and it is left out. Anything else that is not a record is an error: what a
/// damaged journal permits is unknown.
pub fn read_journal(bytes: &[u8]) -> Result<Vec<Record>, RecordError> {
    let (mut records, _) = bytes.as_chunks::<{ Record::SIZE }>();
    while let [before @ .., last] = records
        && last.iter().all(|byte| *byte == 0)
    {
        records = before;
    }
    records.iter().map(Record::from_bytes).collect()
}
