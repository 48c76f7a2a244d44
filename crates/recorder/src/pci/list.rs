//! What the lists are made of: requests with their arguments, and what happens between them.

use whimbrel_uapi::feature::{DeviceFeature, FeatureFlags};
use whimbrel_uapi::ioctl::Request;
use zerocopy::IntoBytes;

/// Where structures lie, and where arrays do: a page each, and nothing after it.
pub const ARGUMENT: u64 = 0x20_0000_0000;
/// See [`ARGUMENT`].
pub const DATA: u64 = 0x30_0000_0000;
/// The size of a page, in bytes.
pub const PAGE: usize = 4096;
pub(crate) const END: u64 = ARGUMENT + PAGE as u64;

/// Descriptors: of the container; of a file that VFIO does not know; of two iommufds.
pub const CONTAINER: i32 = 900;
/// See [`CONTAINER`].
pub const OTHER: i32 = 901;
/// See [`CONTAINER`].
pub const IOMMUFD: i32 = 902;
/// See [`CONTAINER`].
pub const SECOND_IOMMUFD: i32 = 903;
/// A descriptor that is not open.
pub(crate) const CLOSED: i32 = 800;
/// The first of the eventfds' descriptors, and how many there are.
pub const EVENT: i32 = 910;
/// See [`EVENT`].
pub const EVENTS: usize = 8;
/// The first of the groups' descriptors, in the order of [`GROUPS`](super::devices::GROUPS).
pub const GROUP: i32 = 920;
/// The first of the devices' descriptors, by slot.
pub const DEVICE: i32 = 930;

pub(crate) const MAX: u32 = u32::MAX;

/// A slot holds an open device. Each of the lab's devices has one of its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The container.
    Container,
    /// The first iommufd.
    Iommufd,
    /// A group, by its place among [`GROUPS`](super::devices::GROUPS).
    Group(usize),
    /// A device, by slot.
    Device(usize),
}

impl File {
    /// As it stands in a transcript.
    pub(crate) fn name(self) -> String {
        match self {
            File::Container => String::from("C"),
            File::Iommufd => String::from("I"),
            File::Group(group) => format!("G{group}"),
            File::Device(slot) => format!("D{slot}"),
        }
    }
}

/// A request.
#[derive(Clone, Debug)]
pub struct Probe {
    /// What it is made on.
    pub file: File,
    /// Its number.
    pub number: u32,
    /// A number, or where the structure is put; what lies past the page is not there.
    pub argument: u64,
    /// The structure.
    pub bytes: Vec<u8>,
    /// The slot that a descriptor that is answered goes to.
    pub into: Option<usize>,
}

impl Probe {
    /// How much of the structure is in memory.
    pub(crate) fn within(&self) -> usize {
        if (ARGUMENT..END).contains(&self.argument) {
            self.bytes.len().min((END - self.argument) as usize)
        } else {
            0
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Request(Probe),
    /// Opens a device's own file.
    Open(usize),
    /// Closes what is in a slot.
    Close(usize),
    /// Gives a device the time to go to sleep, if it may.
    Settle(usize),
}

#[derive(Default)]
pub(crate) struct List(pub(crate) Vec<Step>);

impl List {
    pub(crate) fn at(&mut self, file: File, request: Request, argument: u64, bytes: &[u8]) {
        let (number, bytes) = (request.number(), bytes.to_vec());
        self.0.push(Step::Request(Probe { file, number, argument, bytes, into: None }));
    }

    pub(crate) fn number(&mut self, file: File, request: Request, argument: u64) {
        self.at(file, request, argument, &[]);
    }

    pub(crate) fn add(&mut self, file: File, request: Request, bytes: &[u8]) {
        self.at(file, request, ARGUMENT, bytes);
    }

    /// A request whose answer is a descriptor, which goes to a slot.
    pub(crate) fn opens(&mut self, file: File, request: Request, bytes: &[u8], slot: usize) {
        let (number, bytes) = (request.number(), bytes.to_vec());
        self.0.push(Step::Request(Probe { file, number, argument: ARGUMENT, bytes, into: Some(slot) }));
    }

    /// With every size in `sizes`, and where there is no memory, or not enough.
    pub(crate) fn sizes(&mut self, file: File, request: Request, bytes: &[u8], sizes: &[u32], cuts: &[u64]) {
        for size in sizes {
            let mut bytes = bytes.to_vec();
            bytes[..4].copy_from_slice(&size.to_ne_bytes());
            self.add(file, request, &bytes);
        }
        if !cuts.is_empty() {
            for argument in [0, u64::MAX - 4095] {
                self.at(file, request, argument, bytes);
            }
        }
        for left in cuts {
            self.at(file, request, END - left, bytes);
        }
    }

    pub(crate) fn unknown(&mut self, file: File, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            let bytes = vec![0xff; 32];
            self.0.push(Step::Request(Probe { file, number, argument: ARGUMENT, bytes, into: None }));
        }
    }
}

pub(crate) const GET: u32 = FeatureFlags::GET.bits();
pub(crate) const SET: u32 = FeatureFlags::SET.bits();

pub(crate) fn feature(flags: u32, argsz: u32, data: &[u8]) -> Vec<u8> {
    [DeviceFeature { argsz, flags }.as_bytes(), data].concat()
}

/// The descriptor at a place behind the first of its kind.
pub fn nth(first: i32, place: usize) -> i32 {
    first + i32::try_from(place).unwrap()
}

/// Words as they lie in memory.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.as_bytes().to_vec()
}
