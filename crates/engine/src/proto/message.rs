//! The content of a frame: messages as types, and their payloads as bytes.
//!
//! Data messages are binary, because there are many of them. Messages that grow with versions or are read by people are
//! JSON. The modules `source`, `destination` and `intake` define the order of the messages.

use serde::{Deserialize, Serialize};
use whimbrel_protocol::text::printable;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::control::{Checked, Control, Mismatch, Reason, Table};
use super::frame::{CHUNK, Kind, MAX_COMPRESSED_MEMORY, MAX_SETUP};
use super::identity::DeviceIdentity;
use super::problem::Problem;

mod blob;
mod compressed;

pub use compressed::Compressed;

/// A message, which borrows its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// A control message.
    Control(Control),
    /// Source: memory at an address.
    Memory {
        /// Guest physical address of the first byte.
        address: u64,
        /// The bytes, 1 to [`CHUNK`].
        data: &'a [u8],
    },
    /// Source: memory that is all zeros.
    MemoryZero {
        /// Guest physical address of the first byte.
        address: u64,
        /// Bytes, at least 1.
        length: u64,
    },
    /// Source: memory at an address, compressed.
    CompressedMemory {
        /// Guest physical address of the first byte.
        address: u64,
        /// The bytes, 1 to [`MAX_COMPRESSED_MEMORY`].
        data: Compressed<'a>,
    },
    /// Source: the next bytes of a device's state, compressed.
    CompressedState {
        /// Number of the device, from 0.
        device: u32,
        /// As in [`Message::DeviceState`].
        ends: bool,
        /// The bytes, 1 to [`CHUNK`].
        data: Compressed<'a>,
    },
    /// Source: the next bytes of a device's state.
    DeviceState {
        /// Number of the device, from 0.
        device: u32,
        /// Set if these are the last bytes of a transaction. Ignored for a device whose state has no transactions.
        ends: bool,
        /// The bytes, 1 to [`CHUNK`].
        data: &'a [u8],
    },
    /// Source: the configuration of a device.
    Setup {
        /// Number of the device, from 0.
        device: u32,
        /// Opaque bytes, 1 to [`MAX_SETUP`].
        data: &'a [u8],
    },
    /// Source: the next bytes of a named blob of the owner's state.
    Blob {
        /// The name, 1 to 255 bytes.
        name: &'a str,
        /// Version of the contents.
        version: u32,
        /// Set if these are its last bytes.
        last: bool,
        /// The bytes, at most [`CHUNK`].
        data: &'a [u8],
    },
    /// Source: meaningless bytes, to measure the throughput.
    Padding {
        /// The bytes, 1 to [`CHUNK`].
        data: &'a [u8],
    },
}

impl From<Control> for Message<'_> {
    fn from(control: Control) -> Self {
        Message::Control(control)
    }
}

/// The longest text from one side that the other side shows to its operators, in characters.
const MAX_TEXT: usize = 1000;
/// The maximum number of differences in CHECKED, with the longest code and text of each, in characters.
pub const MAX_MISMATCHES: usize = 32;
const MAX_CODE: usize = 64;
const MAX_MISMATCH: usize = 300;
/// The longest description of a defect, which may quote the peer's data, in characters.
const MAX_DEFECT: usize = 200;

impl Table {
    fn for_people(&self) -> Table {
        let devices = self.devices.iter().map(DeviceIdentity::for_people).collect();
        Table { devices, ..self.clone() }
    }
}

impl Reason {
    fn for_people(&self) -> Reason {
        Reason { reason: printable(&self.reason, MAX_TEXT) }
    }
}

impl Checked {
    fn for_people(&self) -> Checked {
        let shown = self.mismatches.iter().take(MAX_MISMATCHES).map(|mismatch| Mismatch {
            code: printable(&mismatch.code, MAX_CODE),
            device: mismatch.device,
            text: printable(&mismatch.text, MAX_MISMATCH),
        });
        Checked { mismatches: shown.collect(), ..*self }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Span {
    address: U64,
    length: U64,
}

/// The number and flags of a device, a round or a request.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Numbered {
    number: U32,
    flags: U32,
}

impl Numbered {
    fn new(number: u32, flags: u32) -> Numbered {
        Numbered { number: U32::new(number), flags: U32::new(flags) }
    }
}

/// The flag of DEVICE_STATE for the last bytes of a transaction.
const ENDS_TRANSACTION: u32 = 1;
/// The flag of ROUND that all initial data has been sent.
const INITIAL_DONE: u32 = 1;
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DeviceTotal {
    of: Numbered,
    bytes: U64,
}

/// Size of the head of a MEMORY frame's payload, in bytes.
pub const MEMORY_HEAD: usize = size_of::<U64>();

/// Size of the head of a DEVICE_STATE frame's payload, in bytes.
pub const DEVICE_STATE_HEAD: usize = size_of::<Numbered>();

/// Returns the address and the number of bytes of a MEMORY frame, from the head of its payload and its length.
pub fn memory_head(head: &[u8; MEMORY_HEAD], payload_length: u32) -> Result<(u64, usize), Problem> {
    let malformed = |what: &str| Problem::Payload { kind: Kind::Memory, what: what.to_string() };
    match (payload_length as usize).checked_sub(MEMORY_HEAD) {
        None => Err(malformed("shorter than its address")),
        Some(0) => Err(malformed("no data")),
        Some(length) if length > CHUNK => Err(malformed("more than 1 MiB of data")),
        Some(length) => Ok((u64::from_le_bytes(*head), length)),
    }
}

impl<'a> Message<'a> {
    /// Returns the kind of the frame.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Control(control) => match control {
                Control::Hello(_) => Kind::Hello,
                Control::Accept(_) => Kind::Accept,
                Control::Table(_) => Kind::Table,
                Control::Fits(_) => Kind::Fits,
                Control::Checked(_) => Kind::Checked,
                Control::Round { .. } => Kind::Round,
                Control::RoundDone { .. } => Kind::RoundDone,
                Control::Ping { .. } => Kind::Ping,
                Control::Pong { .. } => Kind::Pong,
                Control::DeviceEnd { .. } => Kind::DeviceEnd,
                Control::End { .. } => Kind::End,
                Control::Ready(_) => Kind::Ready,
                Control::Handover => Kind::Handover,
                Control::Running(_) => Kind::Running,
                Control::Failed(_) => Kind::Failed,
                Control::Abort(_) => Kind::Abort,
                Control::Mark { .. } => Kind::Mark,
                Control::Join(_) => Kind::Join,
                Control::Joined => Kind::Joined,
                Control::Resumed(_) => Kind::Resumed,
                Control::StateTaken { .. } => Kind::StateTaken,
                Control::Stopping => Kind::Stopping,
            },
            Message::Memory { .. } => Kind::Memory,
            Message::MemoryZero { .. } => Kind::MemoryZero,
            Message::CompressedMemory { .. } => Kind::MemoryZstd,
            Message::CompressedState { .. } => Kind::DeviceStateZstd,
            Message::DeviceState { .. } => Kind::DeviceState,
            Message::Setup { .. } => Kind::Setup,
            Message::Blob { .. } => Kind::Blob,
            Message::Padding { .. } => Kind::Padding,
        }
    }

    /// Returns the payload: its first part, and the data that follows it.
    pub fn payload(&self) -> (Vec<u8>, &'a [u8]) {
        let numbered = |number: u32, flags: u32| Numbered::new(number, flags).as_bytes().to_vec();
        match self {
            Message::Control(control) => (control_payload(control), &[]),
            Message::Memory { address, data } => (U64::new(*address).as_bytes().to_vec(), data),
            Message::MemoryZero { address, length } => {
                let span = Span { address: U64::new(*address), length: U64::new(*length) };
                (span.as_bytes().to_vec(), &[])
            }
            Message::CompressedMemory { address, data } => {
                ([U64::new(*address).as_bytes(), &data.head()].concat(), data.bytes)
            }
            Message::CompressedState { device, ends, data } => {
                let of = numbered(*device, u32::from(*ends) * ENDS_TRANSACTION);
                ([of, data.head().to_vec()].concat(), data.bytes)
            }
            Message::DeviceState { device, ends, data } => {
                (numbered(*device, u32::from(*ends) * ENDS_TRANSACTION), data)
            }
            Message::Setup { device, data } => (numbered(*device, 0), data),
            Message::Blob { name, version, last, data } => (blob::head(name, *version, *last), data),
            Message::Padding { data } => (Vec::new(), data),
        }
    }

    /// Parses a payload. Invalid lengths and numbers are refused; whether an address or a device exists is not checked
    /// here.
    pub fn parse(kind: Kind, payload: &'a [u8]) -> Result<Message<'a>, Problem> {
        let malformed = |what: &str| Problem::Payload { kind, what: what.to_string() };
        let some = |rest: &'a [u8]| match rest.len() {
            0 => Err(malformed("no data")),
            1..=CHUNK => Ok(rest),
            _ => Err(malformed("more than 1 MiB of data")),
        };
        let numbered =
            || Numbered::read_from_prefix(payload).map_err(|_| malformed("shorter than its fixed fields"));
        Ok(match kind {
            Kind::Memory => {
                let (head, rest) = payload
                    .split_first_chunk::<MEMORY_HEAD>()
                    .ok_or_else(|| malformed("shorter than its address"))?;
                let (address, _) = memory_head(head, payload.len() as u32)?;
                Message::Memory { address, data: rest }
            }
            Kind::MemoryZero => {
                let span: Span = exact(kind, payload)?;
                if span.length.get() == 0 {
                    return Err(malformed("it is zero bytes long"));
                }
                Message::MemoryZero { address: span.address.get(), length: span.length.get() }
            }
            Kind::DeviceState => {
                let (of, rest) = numbered()?;
                let ends = of.flags.get() & ENDS_TRANSACTION != 0;
                Message::DeviceState { device: of.number.get(), ends, data: some(rest)? }
            }
            Kind::MemoryZstd => {
                let (address, rest) =
                    U64::read_from_prefix(payload).map_err(|_| malformed("shorter than its address"))?;
                let data = Compressed::parse(kind, rest, MAX_COMPRESSED_MEMORY)?;
                Message::CompressedMemory { address: address.get(), data }
            }
            Kind::DeviceStateZstd => {
                let (of, rest) = numbered()?;
                let ends = of.flags.get() & ENDS_TRANSACTION != 0;
                let data = Compressed::parse(kind, rest, CHUNK)?;
                Message::CompressedState { device: of.number.get(), ends, data }
            }
            Kind::Setup => {
                let (of, rest) = numbered()?;
                if rest.len() > MAX_SETUP {
                    return Err(malformed("more than 64 KiB of data"));
                }
                Message::Setup { device: of.number.get(), data: some(rest)? }
            }
            Kind::Blob => blob::parse(payload)?,
            Kind::Padding => Message::Padding { data: some(payload)? },
            _ => Message::Control(parse_control(kind, payload)?),
        })
    }
}

fn control_payload(control: &Control) -> Vec<u8> {
    let numbered = |number: u32, flags: u32| Numbered::new(number, flags).as_bytes().to_vec();
    match control {
        Control::Hello(offer) => json(offer),
        Control::Accept(accept) => json(accept),
        Control::Table(table) => json(&table.for_people()),
        Control::Fits(fits) => json(fits),
        Control::Checked(checked) => json(&checked.for_people()),
        Control::Ready(ready) => json(ready),
        Control::Running(running) => json(running),
        Control::Failed(reason) | Control::Abort(reason) => json(&reason.for_people()),
        Control::Join(join) => json(join),
        Control::Resumed(resumed) => json(resumed),
        Control::Handover | Control::Joined | Control::Stopping => Vec::new(),
        Control::Round { number, initial } => numbered(*number, u32::from(*initial) * INITIAL_DONE),
        Control::RoundDone { number } | Control::Mark { number } => numbered(*number, 0),
        Control::Ping { id } | Control::Pong { id } => numbered(*id, 0),
        Control::DeviceEnd { device, bytes } | Control::StateTaken { device, bytes } => {
            DeviceTotal { of: Numbered::new(*device, 0), bytes: U64::new(*bytes) }.as_bytes().to_vec()
        }
        Control::End { memory_bytes } => U64::new(*memory_bytes).as_bytes().to_vec(),
    }
}

fn parse_control(kind: Kind, payload: &[u8]) -> Result<Control, Problem> {
    let number = || exact::<Numbered>(kind, payload).map(|numbered| numbered.number.get());
    Ok(match kind {
        Kind::Hello => Control::Hello(from_json(kind, payload)?),
        Kind::Accept => Control::Accept(from_json(kind, payload)?),
        Kind::Table => Control::Table(from_json::<Table>(kind, payload)?.for_people()),
        Kind::Fits => Control::Fits(from_json(kind, payload)?),
        Kind::Checked => Control::Checked(from_json::<Checked>(kind, payload)?.for_people()),
        Kind::Ready => Control::Ready(from_json(kind, payload)?),
        Kind::Running => Control::Running(from_json(kind, payload)?),
        Kind::Failed => Control::Failed(from_json::<Reason>(kind, payload)?.for_people()),
        Kind::Abort => Control::Abort(from_json::<Reason>(kind, payload)?.for_people()),
        Kind::Handover => exact::<()>(kind, payload).map(|()| Control::Handover)?,
        Kind::Join => Control::Join(from_json(kind, payload)?),
        Kind::Joined => exact::<()>(kind, payload).map(|()| Control::Joined)?,
        Kind::Stopping => exact::<()>(kind, payload).map(|()| Control::Stopping)?,
        Kind::Resumed => Control::Resumed(from_json(kind, payload)?),
        Kind::StateTaken => {
            let total: DeviceTotal = exact(kind, payload)?;
            Control::StateTaken { device: total.of.number.get(), bytes: total.bytes.get() }
        }
        Kind::Round => {
            let round: Numbered = exact(kind, payload)?;
            let initial = round.flags.get() & INITIAL_DONE != 0;
            Control::Round { number: round.number.get(), initial }
        }
        Kind::RoundDone => Control::RoundDone { number: number()? },
        Kind::Mark => Control::Mark { number: number()? },
        Kind::Ping => Control::Ping { id: number()? },
        Kind::Pong => Control::Pong { id: number()? },
        Kind::DeviceEnd => {
            let total: DeviceTotal = exact(kind, payload)?;
            Control::DeviceEnd { device: total.of.number.get(), bytes: total.bytes.get() }
        }
        Kind::End => Control::End { memory_bytes: exact::<U64>(kind, payload)?.get() },
        Kind::Memory
        | Kind::MemoryZero
        | Kind::MemoryZstd
        | Kind::DeviceState
        | Kind::DeviceStateZstd
        | Kind::Setup
        | Kind::Blob
        | Kind::Padding => {
            return Err(Problem::Payload { kind, what: "not a control message".into() });
        }
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // These types have string keys and no other maps: serialising them never fails.
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_json<T: for<'de> Deserialize<'de>>(kind: Kind, payload: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(payload)
        .map_err(|error| Problem::Payload { kind, what: printable(&error.to_string(), MAX_DEFECT) })
}

fn exact<T: FromBytes>(kind: Kind, payload: &[u8]) -> Result<T, Problem> {
    T::read_from_bytes(payload).map_err(|_| Problem::Payload {
        kind,
        what: format!("{} bytes, expected {}", payload.len(), size_of::<T>()),
    })
}

#[cfg(test)]
mod tests;
