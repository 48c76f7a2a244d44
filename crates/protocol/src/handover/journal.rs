//! The records that a side syncs before it acts, and their byte form.

use crc_fast::CrcAlgorithm;
use zerocopy::byteorder::little_endian::{U16, U32, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::arbiter::Side;

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
        /// Destination: the received state is being discarded, for good. A device may still run here.
        Discarding = 7 => "discarding",
    }
}

/// An error in a journal's records.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The text does not fit into a record.
    #[error(
        "a name of {len} bytes does not fit into a journal record: it holds at most {}",
        Record::MAX_TEXT
    )]
    TextTooLong {
        /// The length of the text.
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
    /// A migration has entries of both sides, or a further device is named without the first one.
    #[error("contradictory journal: the records of migration {migration:032x} are not those of one side")]
    Contradictory {
        /// The migration's id.
        migration: u128,
    },
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "a reader must know every fact: a new one raises the version")]
pub enum Fact {
    /// An entry, and the name of the peer for operators. The name may come from the peer: see
    /// [`printable`](crate::text::printable).
    Entry(Entry, String),
    /// A migration begins on this side, with this device. Its id may not be known yet: the next entry of another migration
    /// has it.
    Begin(Side, DeviceRecord),
    /// A further device of the migration that begins, in the order of the devices.
    Device(DeviceRecord),
}

/// A device of a migration, as its journal names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct DeviceRecord {
    /// The device's name on this side.
    pub name: String,
    /// The process, or other holder, that had the device's state, if it can be told apart from another one. A device
    /// that another process holds now may have lost its state.
    pub holder: Option<String>,
}

impl DeviceRecord {
    /// Returns a record of a device.
    pub fn new(name: impl Into<String>, holder: Option<String>) -> DeviceRecord {
        DeviceRecord { name: name.into(), holder }
    }
}

/// A record of a journal: a fact about one migration.
///
/// All records have the same size and are appended, so that a crash can only cut the last one. Numbers are little-endian.
///
/// | offset | size | field | value |
/// |---|---|---|---|
/// | 0 | 4 | magic | `WHJR` |
/// | 4 | 2 | version | 1 |
/// | 6 | 1 | kind | [`Entry::number`]; 128 for the first device at the source, 129 at the destination, 130 for a further one |
/// | 7 | 1 | length of the text | at most 228 |
/// | 8 | 16 | id of the migration | 0 for a device |
/// | 24 | 228 | text | UTF-8, then zeros. The peer's name; or the device's name, and if its holder is known a zero and the holder |
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
    fact: Fact,
}

/// The byte form, little-endian.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 4],
    version: U16,
    kind: u8,
    text_len: u8,
    migration: U128,
    text: [u8; Record::MAX_TEXT],
    /// CRC-32C of all bytes before it.
    checksum: U32,
}

/// The kinds of a device's record: the first one of each side, and the others.
const BEGIN_SOURCE: u8 = 128;
const BEGIN_DESTINATION: u8 = 129;
const DEVICE: u8 = 130;

const CHECKED: usize = Record::SIZE - size_of::<U32>();

fn checksum(bytes: &[u8; Record::SIZE]) -> u32 {
    crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, &bytes[..CHECKED]) as u32
}

impl Record {
    /// The size of a record in bytes. It divides a sector, so that no record is in two.
    pub const SIZE: usize = 256;

    /// The maximum length of a record's text in bytes.
    pub const MAX_TEXT: usize = 228;

    /// Returns a record of an entry. The peer's name is for operators.
    pub fn new(migration: u128, peer: impl Into<String>, entry: Entry) -> Result<Record, RecordError> {
        Record::of(migration, Fact::Entry(entry, peer.into()))
    }

    /// Returns the records of a migration that begins, one for each device.
    pub fn begin(side: Side, devices: &[DeviceRecord]) -> Result<Vec<Record>, RecordError> {
        let record = |(index, device): (usize, &DeviceRecord)| {
            if device.name.contains('\0') {
                return Err(RecordError::Invalid { field: "name" });
            }
            let device = device.clone();
            Record::of(0, if index == 0 { Fact::Begin(side, device) } else { Fact::Device(device) })
        };
        devices.iter().enumerate().map(record).collect()
    }

    fn of(migration: u128, fact: Fact) -> Result<Record, RecordError> {
        let record = Record { migration, fact };
        let len = record.text().len();
        if len > Record::MAX_TEXT {
            return Err(RecordError::TextTooLong { len });
        }
        Ok(record)
    }

    /// Returns the id of the migration.
    pub const fn migration(&self) -> u128 {
        self.migration
    }

    /// Returns the fact.
    pub const fn fact(&self) -> &Fact {
        &self.fact
    }

    /// Returns the entry, if it is the record of one.
    pub const fn entry(&self) -> Option<Entry> {
        match &self.fact {
            Fact::Entry(entry, _) => Some(*entry),
            Fact::Begin(..) | Fact::Device(_) => None,
        }
    }

    const fn kind(&self) -> u8 {
        match &self.fact {
            Fact::Entry(entry, _) => entry.number(),
            Fact::Begin(Side::Source, _) => BEGIN_SOURCE,
            Fact::Begin(Side::Destination, _) => BEGIN_DESTINATION,
            Fact::Device(_) => DEVICE,
        }
    }

    fn text(&self) -> String {
        match &self.fact {
            Fact::Entry(_, peer) => peer.clone(),
            Fact::Begin(_, device) | Fact::Device(device) => match &device.holder {
                None => device.name.clone(),
                Some(holder) => format!("{}\0{holder}", device.name),
            },
        }
    }

    /// Returns the byte form.
    pub fn to_bytes(&self) -> [u8; Record::SIZE] {
        let mut text = [0; Record::MAX_TEXT];
        let filled = self.text();
        text[..filled.len()].copy_from_slice(filled.as_bytes());
        let layout = Layout {
            magic: MAGIC,
            version: VERSION.into(),
            kind: self.kind(),
            text_len: filled.len() as u8,
            migration: self.migration.into(),
            text,
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
        let invalid_text = RecordError::Invalid { field: "text" };
        let Some((text, padding)) = layout.text.split_at_checked(layout.text_len.into()) else {
            return Err(invalid_text);
        };
        if padding.iter().any(|byte| *byte != 0) {
            return Err(invalid_text);
        }
        let text = str::from_utf8(text).map_err(|_| invalid_text)?.to_owned();
        let device = |text: String| match text.split_once('\0') {
            Some((name, holder)) => DeviceRecord::new(name, Some(holder.to_owned())),
            None => DeviceRecord::new(text, None),
        };
        let fact = match layout.kind {
            BEGIN_SOURCE => Fact::Begin(Side::Source, device(text)),
            BEGIN_DESTINATION => Fact::Begin(Side::Destination, device(text)),
            DEVICE => Fact::Device(device(text)),
            kind => {
                let entry = Entry::from_number(kind).ok_or(RecordError::Invalid { field: "kind" })?;
                Fact::Entry(entry, text)
            }
        };
        Ok(Record { migration: layout.migration.get(), fact })
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
