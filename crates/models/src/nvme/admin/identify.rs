//! Identify: the data structures that describe the controller and its namespace.

use crc_fast::{CrcAlgorithm, checksum};

use super::super::command::{Status, SubmissionEntry};
use super::super::image::BLOCK_BYTES;
use super::super::limits::{Limits, MAX_TRANSFER_PAGES_LOG2, NAMESPACE};
use super::super::outcome::Outcome;
use super::super::registers::VERSION;
use super::events::MAX_REQUESTS;
use super::log_page::{MAX_ERRORS, WARNING_TEMPERATURE};
use super::put;

/// Bytes of each data structure.
const BYTES: usize = 4096;
/// The vendor, as in the configuration space.
pub(in super::super) const VENDOR: u16 = 0x1234;
const MODEL: &str = "Whimbrel NVMe Controller";
const FIRMWARE: &str = "1.0";

/// Support for notices of changed namespace attributes, without which Linux requests no events at all.
const EVENTS_SUPPORTED: u32 = 1 << 8;
/// Dataset management, write zeroes, the select field of features, and the timestamp.
const OPTIONAL_COMMANDS: u16 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6;
/// A volatile write cache, and flushes of all namespaces at once.
const WRITE_CACHE: u8 = 0b111;
/// The log of supported commands, and log pages read in parts.
const LOG_PAGES: u8 = 0b110;
/// Deallocated blocks read as zeros, and write zeroes can deallocate.
const DEALLOCATION: u8 = 0b1001;

pub(super) fn identify(limits: &Limits, entry: &SubmissionEntry) -> Result<Outcome, Status> {
    let namespace = entry.namespace;
    let data = match entry.dword10 as u8 {
        0x00 if namespace == NAMESPACE => namespace_data(limits),
        0x01 => controller_data(limits),
        0x02 if namespace < 0xffff_fffe => active_namespaces(namespace),
        0x03 if namespace == NAMESPACE => descriptors(limits),
        0x00 | 0x02 | 0x03 => return Err(Status::INVALID_NAMESPACE),
        _ => return Err(Status::INVALID_FIELD),
    };
    Ok(Outcome::ToHost(data))
}

fn controller_data(limits: &Limits) -> Vec<u8> {
    let mut data = vec![0; BYTES];
    put(&mut data, 0, &VENDOR.to_le_bytes());
    put(&mut data, 2, &VENDOR.to_le_bytes());
    put(&mut data, 4, &limits.serial);
    put(&mut data, 24, &padded::<40>(MODEL));
    put(&mut data, 64, &padded::<8>(FIRMWARE));
    data[77] = MAX_TRANSFER_PAGES_LOG2;
    put(&mut data, 80, &VERSION.to_le_bytes());
    put(&mut data, 92, &EVENTS_SUPPORTED.to_le_bytes());
    // An I/O controller.
    data[111] = 1;
    // Aborts at a time, less one; each of them answers "not aborted".
    data[258] = 3;
    data[259] = MAX_REQUESTS as u8 - 1;
    // One firmware slot, read-only.
    data[260] = 0b011;
    data[261] = LOG_PAGES;
    data[262] = MAX_ERRORS as u8 - 1;
    put(&mut data, 266, &WARNING_TEMPERATURE.to_le_bytes());
    put(&mut data, 268, &353u16.to_le_bytes());
    // Keep-alive in units of 100 ms.
    put(&mut data, 320, &1u16.to_le_bytes());
    data[512] = 0x66;
    data[513] = 0x44;
    put(&mut data, 516, &NAMESPACE.to_le_bytes());
    put(&mut data, 520, &OPTIONAL_COMMANDS.to_le_bytes());
    data[525] = WRITE_CACHE;
    put(&mut data, 768, subsystem_name(limits).as_bytes());
    // One power state, of 25 W.
    put(&mut data, 2048, &2500u16.to_le_bytes());
    data
}

/// Returns the subsystem's name, in the form for controllers without a registered one.
fn subsystem_name(limits: &Limits) -> String {
    let serial = String::from_utf8_lossy(&limits.serial);
    format!("nqn.2014.08.org.nvmexpress:{VENDOR:04x}{VENDOR:04x}{serial}{MODEL:<40}")
}

fn namespace_data(limits: &Limits) -> Vec<u8> {
    let mut data = vec![0; BYTES];
    for at in [0, 8, 16] {
        put(&mut data, at, &limits.blocks.to_le_bytes());
    }
    data[33] = DEALLOCATION;
    data[99] = u8::from(limits.is_read_only);
    // The only format: no metadata, and the logarithm of a block's size.
    data[130] = BLOCK_BYTES.ilog2() as u8;
    data
}

fn active_namespaces(above: u32) -> Vec<u8> {
    let mut data = vec![0; BYTES];
    if above < NAMESPACE {
        put(&mut data, 0, &NAMESPACE.to_le_bytes());
    }
    data
}

/// Returns the list of the namespace's identifiers: a UUID of version 8, made from the serial number.
fn descriptors(limits: &Limits) -> Vec<u8> {
    let mut data = vec![0; BYTES];
    put(&mut data, 0, &[3, 16, 0, 0]);
    let halves = [CrcAlgorithm::Crc64Nvme, CrcAlgorithm::Crc64Xz]
        .map(|algorithm| checksum(algorithm, &limits.serial).to_be_bytes());
    let uuid = &mut data[4..20];
    uuid.copy_from_slice(halves.as_flattened());
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    data
}

/// Returns ASCII text with spaces behind it.
pub(in super::super) fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [b' '; N];
    for (byte, character) in bytes.iter_mut().zip(text.bytes()) {
        *byte = character;
    }
    bytes
}
