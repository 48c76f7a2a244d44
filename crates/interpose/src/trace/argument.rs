//! The bytes of a request's argument, as its kind of file takes them. This module reads no memory: it is given a reader.

use whimbrel_uapi::decode::{Call, File, Passing};

/// The most bytes of an argument that are read, whatever size it gives for itself.
pub(crate) const MAX_ARGUMENT: usize = 4096;

/// Bytes of a page, within which a read fails as a whole or not at all. Larger pages are multiples of it.
const PAGE: u64 = 4096;

/// Reads the argument of a request. `read` reads memory of the program at an address and returns how many bytes it has read.
pub(crate) fn read(
    file: File,
    number: u32,
    value: u64,
    read: &mut dyn FnMut(u64, &mut [u8]) -> usize,
) -> Vec<u8> {
    match Call::passing(file, number) {
        Some(Passing::Number) => value.to_ne_bytes().to_vec(),
        Some(Passing::Bytes(count)) => bytes(value, count, read),
        // One byte more shows whether the text goes on.
        Some(Passing::Text(limit)) => text(value, limit + 1, read),
        Some(Passing::Sized) => {
            let head = bytes(value, size_of::<u32>(), read);
            match size(&head) {
                Some(size) => bytes(value, size, read),
                None => head,
            }
        }
        _ => Vec::new(),
    }
}

/// Returns how many bytes are read of a structure that gives its own size in its first four bytes.
pub(crate) fn size(head: &[u8]) -> Option<usize> {
    let size = u32::from_ne_bytes(*head.first_chunk()?);
    Some(usize::try_from(size).unwrap_or(MAX_ARGUMENT).clamp(size_of::<u32>(), MAX_ARGUMENT))
}

/// Reads at most `limit` bytes from an address.
pub(crate) fn bytes(address: u64, limit: usize, read: &mut dyn FnMut(u64, &mut [u8]) -> usize) -> Vec<u8> {
    let mut bytes = vec![0; limit];
    let count = read(address, &mut bytes);
    bytes.truncate(count);
    bytes
}

/// Reads a C string of at most `limit` bytes, with the zero byte at its end.
fn text(address: u64, limit: usize, read: &mut dyn FnMut(u64, &mut [u8]) -> usize) -> Vec<u8> {
    // What follows the string in the next page may not be readable.
    let to_next_page = usize::try_from(PAGE - address % PAGE).unwrap_or(limit);
    let mut text = bytes(address, limit.min(to_next_page), read);
    if !text.contains(&0) && text.len() == to_next_page && text.len() < limit {
        let next = address.saturating_add(to_next_page as u64);
        text.extend(bytes(next, limit - to_next_page, read));
    }
    if let Some(end) = text.iter().position(|byte| *byte == 0) {
        text.truncate(end + 1);
    }
    text
}
