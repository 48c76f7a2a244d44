//! A second implementation of the stream, written by hand from `docs/stream.md`. It shares no code with the engine, so that
//! both can be held against the document: [`decode`] reads what the engine writes, [`wire`] writes what the engine reads.
#![allow(dead_code, unused_imports, reason = "each test uses a part of it")]

mod account;
mod dialogue;
mod json;
mod lanes;
pub(crate) mod setup;
pub(crate) mod wire;

use serde_json::Value;

pub(crate) use account::{Account, account};
pub(crate) use dialogue::{Streams, check};
use json::Keys;
pub(crate) use lanes::merged;

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Said {
    Hello(Value),
    Accept(Value),
    Table(Value),
    Fits(Value),
    Memory {
        address: u64,
        data: Vec<u8>,
    },
    MemoryZero {
        address: u64,
        length: u64,
    },
    DeviceState {
        device: u32,
        ends: bool,
        data: Vec<u8>,
    },
    DeviceEnd {
        device: u32,
        total: u64,
    },
    Round {
        number: u32,
        initial: bool,
    },
    RoundDone {
        number: u32,
    },
    Ping {
        id: u32,
    },
    Pong {
        id: u32,
    },
    Setup {
        device: u32,
        data: Vec<u8>,
    },
    Blob {
        name: String,
        version: u32,
        last: bool,
        data: Vec<u8>,
    },
    End {
        total: u64,
    },
    Ready(Value),
    Handover,
    Running(Value),
    Failed(String),
    Abort(String),
    Padding(usize),
    Mark {
        number: u32,
    },
    Join(Value),
    Joined,
    Resumed(Value),
    StateTaken {
        device: u32,
        bytes: u64,
    },
    Stopping,
    Checked(Value),
    /// What came compressed.
    Compressed(Box<Said>),
    /// Of an unknown kind, to be skipped.
    Skipped(u16),
}

impl Said {
    /// Without the data, of which there may be a lot.
    fn name(&self) -> String {
        match self {
            Said::Memory { address, data } => format!("Memory of {} bytes at {address:#x}", data.len()),
            Said::DeviceState { device, data, .. } => {
                format!("DeviceState of {} bytes of device {device}", data.len())
            }
            Said::Compressed(said) => format!("compressed {}", said.name()),
            Said::Setup { device, .. } => format!("Setup of device {device}"),
            Said::Blob { name, data, .. } => format!("Blob '{name}' of {} bytes", data.len()),
            other => format!("{other:?}"),
        }
    }
}

/// Reads a whole stream of one direction, or a file: its preamble, then frames up to its end.
pub(crate) fn decode(stream: &[u8]) -> Result<Vec<Said>, String> {
    let (said, rest) = decode_start(stream)?;
    if rest.is_empty() { Ok(said) } else { Err(format!("{} bytes of a frame that does not end", rest.len())) }
}

/// As [`decode`], for a stream that was cut: returns the bytes of the last frame, which is not whole.
pub(crate) fn decode_start(stream: &[u8]) -> Result<(Vec<Said>, &[u8]), String> {
    let (preamble, mut rest) = stream.split_at_checked(16).ok_or("no preamble")?;
    if &preamble[..8] != b"WHIMBREL" {
        return Err("not a Whimbrel stream".into());
    }
    if u32_at(preamble, 12) != wire::crc32c(&preamble[..12]) {
        return Err("a damaged preamble".into());
    }
    if u16_at(preamble, 8) != 2 {
        return Err(format!("major version {}", u16_at(preamble, 8)));
    }
    let mut said = Vec::new();
    while let Some((header, behind)) = rest.split_at_checked(24) {
        if u32_at(header, 20) != wire::crc32c(&header[..20]) {
            return Err("a damaged header".into());
        }
        if u64_at(header, 8) != said.len() as u64 {
            return Err(format!("frame {} stands at {}", u64_at(header, 8), said.len()));
        }
        let (kind, flags, length) = (u16_at(header, 0), u16_at(header, 2), u32_at(header, 4));
        let most =
            maximum(kind).or((flags & 1 == 1).then_some(65536)).ok_or(format!("unknown kind {kind}"))?;
        if length > most {
            return Err(format!("{length} bytes in a frame of kind {kind}, which has at most {most}"));
        }
        let Some((payload, behind)) = behind.split_at_checked(length as usize) else { break };
        if u32_at(header, 16) != wire::crc32c(payload) {
            return Err(format!("a damaged payload of kind {kind}"));
        }
        said.push(parse(kind, payload).map_err(|what| format!("kind {kind}: {what}"))?);
        rest = behind;
    }
    Ok((said, rest))
}

/// The table of kinds: the largest payload of each.
pub(crate) fn maximum(kind: u16) -> Option<u32> {
    Some(match kind {
        1 | 2 | 4 | 16 | 18 | 19 | 20 | 23 | 32 | 64 => 65536,
        3 | 21 => 1_048_576,
        5 | 7 => 1_048_584,
        6 | 8 | 24 => 16,
        9..=12 | 15 | 22 => 8,
        13 => 65544,
        26 => 524_303,
        27 => 1_048_591,
        14 => 1_048_839,
        17 | 25 | 65 => 0,
        _ => return None,
    })
}

fn parse(kind: u16, payload: &[u8]) -> Result<Said, String> {
    let exactly = |size: usize| match payload.len() {
        length if length == size => Ok(()),
        length => Err(format!("{length} bytes")),
    };
    let more_than = |size: usize| match payload.len() {
        length if length > size => Ok(payload[size..].to_vec()),
        length => Err(format!("{length} bytes")),
    };
    Ok(match kind {
        1 => Said::Hello(json::hello(payload)?),
        2 => Said::Accept(json::accept(payload)?),
        3 => Said::Table(json::table(payload)?),
        4 => Said::Fits(json::object(payload, Keys::default().may("setup_us", Value::is_u64))?),
        5 => Said::Memory { data: more_than(8)?, address: u64_at(payload, 0) },
        6 => {
            exactly(16)?;
            let (address, length) = (u64_at(payload, 0), u64_at(payload, 8));
            if length == 0 {
                return Err("no length".into());
            }
            Said::MemoryZero { address, length }
        }
        7 => Said::DeviceState {
            data: more_than(8)?,
            device: u32_at(payload, 0),
            ends: u32_at(payload, 4) & 1 == 1,
        },
        8 => {
            exactly(16)?;
            Said::DeviceEnd { device: u32_at(payload, 0), total: u64_at(payload, 8) }
        }
        9 => {
            exactly(8)?;
            Said::Round { number: u32_at(payload, 0), initial: u32_at(payload, 4) & 1 == 1 }
        }
        10..=12 => {
            exactly(8)?;
            let number = u32_at(payload, 0);
            match kind {
                10 => Said::RoundDone { number },
                11 => Said::Ping { id: number },
                _ => Said::Pong { id: number },
            }
        }
        13 => Said::Setup { data: more_than(8)?, device: u32_at(payload, 0) },
        14 => blob(payload)?,
        15 => {
            exactly(8)?;
            Said::End { total: u64_at(payload, 0) }
        }
        16 => {
            let keys = Keys::default().may("loading_us", Value::is_u64).may("inspection_us", Value::is_u64);
            Said::Ready(json::object(payload, keys)?)
        }
        17 => {
            exactly(0)?;
            Said::Handover
        }
        18 => Said::Running(json::object(payload, Keys::default().may("start_us", Value::is_u64))?),
        19 => Said::Failed(json::reason(payload)?),
        20 => Said::Abort(json::reason(payload)?),
        21 => Said::Padding(more_than(0)?.len()),
        22 => {
            exactly(8)?;
            Said::Mark { number: u32_at(payload, 0) }
        }
        23 => Said::Resumed(json::resumed(payload)?),
        24 => {
            exactly(16)?;
            Said::StateTaken { device: u32_at(payload, 0), bytes: u64_at(payload, 8) }
        }
        25 => {
            exactly(0)?;
            Said::Stopping
        }
        26 => {
            let data = decompressed(payload, 524_288)?;
            Said::Compressed(Box::new(Said::Memory { address: u64_at(payload, 0), data }))
        }
        27 => {
            let data = decompressed(payload, 1_048_576)?;
            let (device, ends) = (u32_at(payload, 0), u32_at(payload, 4) & 1 == 1);
            Said::Compressed(Box::new(Said::DeviceState { device, ends, data }))
        }
        32 => Said::Checked(json::checked(payload)?),
        64 => Said::Join(json::join(payload)?),
        65 => {
            exactly(0)?;
            Said::Joined
        }
        unknown => Said::Skipped(unknown),
    })
}

/// Returns the data of a compressed frame. The library is the engine's, but its other interface.
fn decompressed(payload: &[u8], most: u32) -> Result<Vec<u8>, String> {
    let (head, rest) = payload.split_at_checked(16).ok_or("shorter than its fields")?;
    let length = u32_at(head, 8);
    if rest.is_empty() || rest.len() >= length as usize || length > most {
        return Err(format!("{} compressed bytes of {length}", rest.len()));
    }
    let mut data = vec![0; length as usize];
    match zstd_safe::decompress(&mut data[..], rest) {
        Ok(count) if count == data.len() => Ok(data),
        other => Err(format!("{length} bytes were compressed: {other:?}")),
    }
}

fn blob(payload: &[u8]) -> Result<Said, String> {
    let (head, rest) = payload.split_at_checked(8).ok_or("shorter than its fields")?;
    let (name, data) = rest.split_at_checked(u16_at(head, 4).into()).ok_or("shorter than its name")?;
    if name.is_empty() || name.len() > 255 || data.len() > 1_048_576 {
        return Err("a name or contents of a wrong size".into());
    }
    Ok(Said::Blob {
        name: String::from_utf8(name.to_vec()).map_err(|error| error.to_string())?,
        version: u32_at(head, 0),
        last: u16_at(head, 6) & 1 == 1,
        data: data.to_vec(),
    })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
