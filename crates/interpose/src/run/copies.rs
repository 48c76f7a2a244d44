//! The bytes that the answer to a request copies from and to the program's memory, as far as they are of its argument: so
//! that a record shows those that the answer used.

use whimbrel_uapi::decode::{Call, File, Passing};

use super::task::Task;
use crate::trace::argument::{self, MAX_ARGUMENT};

/// The copies of one answer.
#[derive(Debug)]
pub(super) struct Copies {
    /// Address of the argument.
    argument: u64,
    read: Image,
    written: Image,
}

/// Bytes from the address of an argument on.
#[derive(Debug, Default)]
struct Image {
    bytes: Vec<u8>,
    known: Vec<bool>,
}

impl Image {
    /// Notes the part of `data` that lies in the first bytes from `start`.
    fn put(&mut self, start: u64, address: u64, data: &[u8]) {
        let Some(offset) = address.checked_sub(start).and_then(|offset| usize::try_from(offset).ok()) else {
            return;
        };
        let end = offset.saturating_add(data.len()).min(MAX_ARGUMENT);
        if offset >= end {
            return;
        }
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
            self.known.resize(end, false);
        }
        self.bytes[offset..end].copy_from_slice(&data[..end - offset]);
        self.known[offset..end].fill(true);
    }

    fn get(&self, at: usize) -> Option<u8> {
        self.known.get(at).filter(|known| **known)?;
        self.bytes.get(at).copied()
    }

    /// Returns the bytes up to the first that is not known.
    fn start(&self) -> &[u8] {
        &self.bytes[..self.known.iter().position(|known| !known).unwrap_or(self.bytes.len())]
    }
}

impl Copies {
    /// Returns the copies of a request with its argument at this address.
    pub(super) fn new(argument: u64) -> Copies {
        Copies { argument, read: Image::default(), written: Image::default() }
    }

    /// Notes bytes that were read.
    pub(super) fn read(&mut self, address: u64, data: &[u8]) {
        self.read.put(self.argument, address, data);
    }

    /// Notes bytes that were written.
    pub(super) fn wrote(&mut self, address: u64, data: &[u8]) {
        self.written.put(self.argument, address, data);
    }

    /// Returns a request's argument before and after it. Parts that the answer neither read nor wrote are read now, once;
    /// parts that it only wrote were 0 before.
    pub(super) fn argument(&self, file: File, number: u32, task: &Task<'_>) -> (Vec<u8>, Vec<u8>) {
        let mut from_task = |address: u64, bytes: &mut [u8]| task.read_some(address, bytes);
        let size = match Call::passing(file, number) {
            Some(Passing::Bytes(count)) => Some(count),
            Some(Passing::Text(limit)) => Some(self.read.start().len().min(limit + 1)),
            Some(Passing::Sized) => argument::size(self.read.start()),
            _ => None,
        };
        let Some(size) = size.filter(|_| !self.read.start().is_empty()) else {
            let bytes = argument::read(file, number, self.argument, &mut from_task);
            return (bytes.clone(), bytes);
        };
        let mut before = Vec::with_capacity(size);
        while before.len() < size {
            let at = before.len();
            match (self.read.get(at), self.written.get(at)) {
                (Some(byte), _) => before.push(byte),
                (None, Some(_)) => before.push(0),
                (None, None) => {
                    let is_known = |at: &usize| self.read.get(*at).or(self.written.get(*at)).is_some();
                    let end = (at..size).find(is_known).unwrap_or(size);
                    let missing =
                        argument::bytes(self.argument.wrapping_add(at as u64), end - at, &mut from_task);
                    let is_whole = missing.len() == end - at;
                    before.extend(missing);
                    if !is_whole {
                        break;
                    }
                }
            }
        }
        let after = before.iter().enumerate().map(|(at, byte)| self.written.get(at).unwrap_or(*byte));
        let after = after.collect();
        (before, after)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use whimbrel_uapi::ioctl::{
        VFIO_DEVICE_GET_INFO, VFIO_DEVICE_RESET, VFIO_GROUP_GET_DEVICE_FD, VFIO_SET_IOMMU,
    };

    use super::*;

    /// The argument of a request, without a program whose memory could be read.
    fn argument(copies: &Copies, file: File, number: u32) -> (Vec<u8>, Vec<u8>) {
        let nothing = std::fs::File::open("/dev/null").unwrap();
        copies.argument(file, number, &Task::new(nothing.as_fd(), 0, 0))
    }

    #[test]
    fn an_argument_is_what_the_answer_read_and_wrote() {
        let mut copies = Copies::new(0x1000);
        copies.read(0x1000, &[24, 0, 0, 0, 1, 1, 1, 1]);
        copies.read(0x5000, &[9; 8]);
        copies.wrote(0x1004, &[7; 4]);
        copies.wrote(0x1008, &[8; 16]);
        copies.wrote(0xfff, &[5]);
        let (before, after) = argument(&copies, File::Device, VFIO_DEVICE_GET_INFO.number());
        assert_eq!(before, [&[24, 0, 0, 0, 1, 1, 1, 1][..], &[0; 16]].concat());
        assert_eq!(after, [&[24, 0, 0, 0, 7, 7, 7, 7][..], &[8; 16]].concat());
    }

    #[test]
    fn an_argument_ends_where_memory_ends() {
        let mut copies = Copies::new(0x1000);
        copies.read(0x1000, &[24, 0, 0, 0]);
        let (before, _) = argument(&copies, File::Device, VFIO_DEVICE_GET_INFO.number());
        assert_eq!(before, [24, 0, 0, 0]);
        let unread = Copies::new(0x1000);
        assert_eq!(argument(&unread, File::Device, VFIO_DEVICE_GET_INFO.number()).0, [0; 0]);
        assert_eq!(argument(&unread, File::Device, VFIO_DEVICE_RESET.number()).0, [0; 0]);
    }

    #[test]
    fn a_number_and_a_name_are_arguments_too() {
        let copies = Copies::new(3);
        assert_eq!(argument(&copies, File::Container, VFIO_SET_IOMMU.number()).0, 3u64.to_ne_bytes());
        let mut named = Copies::new(0x1000);
        for (offset, byte) in b"card\0".iter().enumerate() {
            named.read(0x1000 + offset as u64, &[*byte]);
        }
        assert_eq!(argument(&named, File::Group, VFIO_GROUP_GET_DEVICE_FD.number()).0, b"card\0");
    }

    #[test]
    fn an_argument_is_kept_up_to_a_limit() {
        let mut copies = Copies::new(0x1000);
        copies.read(0x1000, &u32::MAX.to_ne_bytes());
        copies.read(0x1004, &vec![1; 2 * MAX_ARGUMENT]);
        copies.read(u64::MAX, &[1]);
        let (before, _) = argument(&copies, File::Device, VFIO_DEVICE_GET_INFO.number());
        assert_eq!(before.len(), MAX_ARGUMENT);
    }
}
