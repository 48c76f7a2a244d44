//! What a frame says: messages as types, and their payloads as bytes.
//!
//! Data messages are binary, as they are many; control messages are JSON, as they are few, grow with versions, and are
//! read by people. Which message may come when is the business of the source and the destination.

use serde::{Deserialize, Serialize};
use whimbrel_protocol::text::printable;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{CHUNK, Kind};
use super::reader::Problem;
use crate::memory::RamRegion;

/// The first message: what is going to be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The device.
    pub device: DeviceSummary,
    /// Its memory; empty where only the device moves.
    #[serde(default)]
    pub memory: Vec<RamRegion>,
}

/// What the destination's device has to be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSummary {
    /// Its name at the source, for people.
    pub name: String,
    /// `vfio_device_info.flags`.
    pub flags: u32,
    /// `vfio_device_info.num_regions`.
    pub num_regions: u32,
    /// `vfio_device_info.num_irqs`.
    pub num_irqs: u32,
    /// `vfio_device_feature_migration.flags`.
    pub migration_flags: u64,
    /// The text that the source's migration region follows, `v1` or `draft`; absent where the source has migration v2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Whether the device's state comes in transactions, whose ends are told ([`Message::DeviceState`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub transactions: bool,
}

impl Hello {
    fn for_people(&self) -> Hello {
        let device = DeviceSummary {
            name: for_people(&self.device.name),
            region: self.device.region.as_deref().map(for_people),
            ..self.device.clone()
        };
        Hello { device, memory: self.memory.clone() }
    }
}

/// Why a migration ends without a handover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// For people. What is not fit to be shown is taken out on the way, and so is what is past 1000 characters.
    pub reason: String,
}

impl Reason {
    fn for_people(&self) -> Reason {
        Reason { reason: for_people(&self.reason) }
    }
}

/// The destination has loaded everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// How long the destination's owner looked at what was loaded before it agreed, in microseconds. That time is no
    /// part of what the migration itself takes.
    pub inspection_us: u64,
}

/// The device runs at the destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running {}

/// The most characters of a text that one side shows to the other's people.
const MOST_TEXT: usize = 1000;

/// A text from the other side as it can be shown.
fn for_people(text: &str) -> String {
    printable(text, MOST_TEXT)
}

/// A message, borrowing its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Source: what is going to be moved.
    Hello(Hello),
    /// Destination: it can be taken.
    Accept,
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
    /// Source: the next bytes of the device's state.
    DeviceState {
        /// Which device, from 0.
        device: u32,
        /// Whether these bytes are the last ones of a transaction. It means nothing where the greeting does not say
        /// that there are transactions.
        ends: bool,
        /// The bytes, 1 to [`CHUNK`].
        data: &'a [u8],
    },
    /// Source: the device's state is complete.
    DeviceEnd {
        /// Which device, from 0.
        device: u32,
        /// All bytes of its state.
        bytes: u64,
    },
    /// Source: a round is over, answer when you have it all.
    Round {
        /// From 1.
        number: u32,
    },
    /// Destination: I have it all.
    RoundDone {
        /// The round asked about.
        number: u32,
    },
    /// Source: everything has been sent.
    End {
        /// All bytes of memory that were sent or said to be zero.
        memory_bytes: u64,
    },
    /// Destination: everything is loaded.
    Ready(Ready),
    /// Source: the device is yours.
    Handover,
    /// Destination: it runs here.
    Running(Running),
    /// Destination: it does not run here.
    Failed(Reason),
    /// Source: it is off.
    Abort(Reason),
    /// Source: to be thrown away.
    Padding {
        /// The bytes, 1 to [`CHUNK`].
        data: &'a [u8],
    },
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Span {
    address: U64,
    length: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct OfDevice {
    device: U32,
    /// Of DEVICE_STATE; reserved in all others.
    flags: U32,
}

/// These are the last bytes of a transaction.
const ENDS_TRANSACTION: u32 = 1;

impl OfDevice {
    fn new(device: u32, flags: u32) -> OfDevice {
        OfDevice { device: U32::new(device), flags: U32::new(flags) }
    }
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DeviceTotal {
    of: OfDevice,
    bytes: U64,
}

impl<'a> Message<'a> {
    /// The frame's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::Accept => Kind::Accept,
            Message::Memory { .. } => Kind::Memory,
            Message::MemoryZero { .. } => Kind::MemoryZero,
            Message::DeviceState { .. } => Kind::DeviceState,
            Message::DeviceEnd { .. } => Kind::DeviceEnd,
            Message::Round { .. } => Kind::Round,
            Message::RoundDone { .. } => Kind::RoundDone,
            Message::End { .. } => Kind::End,
            Message::Ready(_) => Kind::Ready,
            Message::Handover => Kind::Handover,
            Message::Running(_) => Kind::Running,
            Message::Failed(_) => Kind::Failed,
            Message::Abort(_) => Kind::Abort,
            Message::Padding { .. } => Kind::Padding,
        }
    }

    /// The payload, as what comes first and the data that follows it.
    pub fn payload(&self) -> (Vec<u8>, &'a [u8]) {
        let head = match self {
            Message::Hello(hello) => json(&hello.for_people()),
            Message::Ready(ready) => json(ready),
            Message::Running(running) => json(running),
            Message::Failed(reason) | Message::Abort(reason) => json(&reason.for_people()),
            Message::Accept | Message::Handover | Message::Padding { .. } => Vec::new(),
            Message::Memory { address, .. } => U64::new(*address).as_bytes().to_vec(),
            Message::MemoryZero { address, length } => {
                Span { address: U64::new(*address), length: U64::new(*length) }.as_bytes().to_vec()
            }
            Message::DeviceState { device, ends, .. } => {
                OfDevice::new(*device, u32::from(*ends) * ENDS_TRANSACTION).as_bytes().to_vec()
            }
            Message::DeviceEnd { device, bytes } => {
                DeviceTotal { of: OfDevice::new(*device, 0), bytes: U64::new(*bytes) }.as_bytes().to_vec()
            }
            Message::Round { number } | Message::RoundDone { number } => {
                U32::new(*number).as_bytes().to_vec()
            }
            Message::End { memory_bytes } => U64::new(*memory_bytes).as_bytes().to_vec(),
        };
        match self {
            Message::Memory { data, .. } | Message::DeviceState { data, .. } | Message::Padding { data } => {
                (head, data)
            }
            _ => (head, &[]),
        }
    }

    /// Reads a payload. Lengths and numbers that a field cannot have are refused; whether an address exists is not
    /// known here.
    pub fn parse(kind: Kind, payload: &'a [u8]) -> Result<Message<'a>, Problem> {
        let bad = |what: &str| Problem::Payload { kind, what: what.to_string() };
        let data = |rest: &'a [u8]| match rest.len() {
            0 => Err(bad("it carries no data")),
            1..=CHUNK => Ok(rest),
            _ => Err(bad("it carries more than a chunk")),
        };
        Ok(match kind {
            Kind::Hello => Message::Hello(from_json::<Hello>(kind, payload)?.for_people()),
            Kind::Ready => Message::Ready(from_json(kind, payload)?),
            Kind::Running => Message::Running(from_json(kind, payload)?),
            Kind::Failed => Message::Failed(from_json::<Reason>(kind, payload)?.for_people()),
            Kind::Abort => Message::Abort(from_json::<Reason>(kind, payload)?.for_people()),
            Kind::Padding => Message::Padding { data: data(payload)? },
            Kind::Accept => exact::<()>(kind, payload).map(|()| Message::Accept)?,
            Kind::Handover => exact::<()>(kind, payload).map(|()| Message::Handover)?,
            Kind::Memory => {
                let (address, rest) =
                    U64::read_from_prefix(payload).map_err(|_| bad("it is too short for its address"))?;
                Message::Memory { address: address.get(), data: data(rest)? }
            }
            Kind::MemoryZero => {
                let span: Span = exact(kind, payload)?;
                if span.length.get() == 0 {
                    return Err(bad("it is zero bytes long"));
                }
                Message::MemoryZero { address: span.address.get(), length: span.length.get() }
            }
            Kind::DeviceState => {
                let (of, rest) =
                    OfDevice::read_from_prefix(payload).map_err(|_| bad("it is too short for its device"))?;
                let ends = of.flags.get() & ENDS_TRANSACTION != 0;
                Message::DeviceState { device: of.device.get(), ends, data: data(rest)? }
            }
            Kind::DeviceEnd => {
                let total: DeviceTotal = exact(kind, payload)?;
                Message::DeviceEnd { device: total.of.device.get(), bytes: total.bytes.get() }
            }
            Kind::Round => Message::Round { number: exact::<U32>(kind, payload)?.get() },
            Kind::RoundDone => Message::RoundDone { number: exact::<U32>(kind, payload)?.get() },
            Kind::End => Message::End { memory_bytes: exact::<U64>(kind, payload)?.get() },
        })
    }
}

fn json(value: &impl Serialize) -> Vec<u8> {
    // These types have string keys and no maps of anything else: they always serialise.
    serde_json::to_vec(value).unwrap_or_default()
}

fn from_json<T: for<'de> Deserialize<'de>>(kind: Kind, payload: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(payload).map_err(|error| Problem::Payload { kind, what: error.to_string() })
}

fn exact<T: FromBytes>(kind: Kind, payload: &[u8]) -> Result<T, Problem> {
    T::read_from_bytes(payload).map_err(|_| Problem::Payload {
        kind,
        what: format!("it has {} bytes where {} belong", payload.len(), size_of::<T>()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn round_trip(message: &Message<'_>) {
        let (head, data) = message.payload();
        let payload = [head.as_slice(), data].concat();
        assert!(payload.len() as u32 <= message.kind().max_payload());
        assert_eq!(Message::parse(message.kind(), &payload).as_ref(), Ok(message));
    }

    #[test]
    fn every_message_reads_back_as_it_was_written() {
        let hello = Hello {
            device: DeviceSummary {
                name: "a \"name\"".into(),
                flags: 3,
                num_regions: 9,
                num_irqs: 5,
                migration_flags: 7,
                region: Some("v1".into()),
                transactions: true,
            },
            memory: vec![RamRegion { start: 0, size: 1 << 40 }],
        };
        let reason = Reason { reason: "the disk is full".into() };
        let full = vec![7; CHUNK];
        let messages = [
            Message::Hello(hello),
            Message::Accept,
            Message::Memory { address: 1 << 63, data: &full },
            Message::MemoryZero { address: 4096, length: u64::MAX },
            Message::DeviceState { device: 3, ends: false, data: b"x" },
            Message::DeviceState { device: 3, ends: true, data: b"x" },
            Message::DeviceEnd { device: 3, bytes: 1 << 50 },
            Message::Round { number: 1 },
            Message::RoundDone { number: u32::MAX },
            Message::End { memory_bytes: 5 },
            Message::Ready(Ready { inspection_us: 12 }),
            Message::Handover,
            Message::Running(Running {}),
            Message::Failed(reason.clone()),
            Message::Abort(reason),
            Message::Padding { data: &full },
        ];
        for message in &messages {
            round_trip(message);
        }
    }

    #[test]
    fn payloads_of_the_wrong_length_are_refused() {
        let cases: [(Kind, &[u8]); 8] = [
            (Kind::Accept, b"x"),
            (Kind::Memory, &[0; 8]),
            (Kind::Memory, &[0; 3]),
            (Kind::DeviceState, &[0; 8]),
            (Kind::MemoryZero, &[0; 15]),
            (Kind::MemoryZero, &[0; 16]),
            (Kind::Round, &[0; 5]),
            (Kind::End, &[]),
        ];
        for (kind, payload) in cases {
            assert!(Message::parse(kind, payload).is_err(), "{kind:?} {}", payload.len());
        }
    }

    #[test]
    fn fields_a_later_version_adds_are_ignored() {
        let payload = br#"{"inspection_us": 3, "colour": "blue"}"#;
        assert_eq!(Message::parse(Kind::Ready, payload), Ok(Message::Ready(Ready { inspection_us: 3 })));
    }

    #[test]
    fn texts_for_people_arrive_without_what_steers_a_terminal_and_have_an_end() {
        let reason = format!("\u{1b}[2Jbroken\r\n{}", "x".repeat(100_000));
        let (payload, _) = Message::Failed(Reason { reason: reason.clone() }).payload();
        assert!(payload.len() < Kind::Failed.max_payload() as usize);
        let hostile = serde_json::to_vec(&Reason { reason: reason[..60_000].to_string() }).unwrap();
        for payload in [payload, hostile] {
            let Ok(Message::Failed(Reason { reason })) = Message::parse(Kind::Failed, &payload) else {
                panic!("a reason is always taken")
            };
            assert!(reason.starts_with(" [2Jbroken  xxx"), "{reason}");
            assert_eq!(reason.chars().count(), MOST_TEXT);
        }
    }

    proptest! {
        #[test]
        fn what_the_parser_takes_is_what_it_would_write(kind in 0..Kind::ALL.len(), payload: Vec<u8>) {
            if let Ok(message) = Message::parse(Kind::ALL[kind], &payload) {
                round_trip(&message);
            }
        }
    }
}
