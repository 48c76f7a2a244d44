//! The contents of a file, read without any device.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};

use serde::Serialize;

use super::reader::Reader;
use super::saved_file::{Piece, SavedFile};
use crate::error::Error;
use crate::proto::identity::DeviceIdentity;
use crate::proto::negotiate::Feature;

/// The contents of a file.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Contents {
    /// The version of its format, such as `2.0`; `unknown` for a file that is not Whimbrel's.
    pub version: String,
    /// The features that a reader must support.
    pub needs: BTreeSet<String>,
    /// The devices, in their order.
    pub devices: Vec<SavedDevice>,
    /// The state of the program that owned the devices.
    pub blobs: Vec<SavedBlob>,
    /// Number of frames.
    pub frames: u64,
    /// Bytes of the file, as far as it could be read.
    pub file_bytes: u64,
    /// Set if the file is complete. If not, `problem` has the reason.
    pub complete: bool,
    /// The first defect, and where it is.
    pub problem: Option<String>,
}

/// A device in a file.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SavedDevice {
    /// Its identity.
    #[serde(flatten)]
    pub identity: DeviceIdentity,
    /// Bytes of its state.
    pub device_bytes: u64,
    /// Number of transactions of its state; 0 for a device with migration v2, which has none.
    #[serde(rename = "transaction_count")]
    pub transactions: u64,
    /// Bytes of the longest transaction: the minimum size of a v1 device's data section.
    pub longest_transaction: u64,
    /// Bytes of its configuration; 0 if that is not in the file.
    pub setup_bytes: u64,
    /// The first bytes of its state.
    #[serde(skip)]
    pub head: Vec<u8>,
}

/// A blob in a file.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct SavedBlob {
    /// Its name.
    pub name: String,
    /// The version of its contents.
    pub version: u32,
    /// Its size in bytes.
    pub bytes: u64,
}

impl Contents {
    /// Returns the bytes of state of all devices.
    pub fn device_bytes(&self) -> u64 {
        self.devices.iter().map(|device| device.device_bytes).fold(0, u64::saturating_add)
    }
}

/// Reads a file to its end and checks that it is complete: its frames, their order, their checksums and its totals.
pub fn verify(input: impl Read) -> Result<(), Error> {
    look_through(&mut Reader::new(BufReader::new(input)), &mut Contents::default())
}

/// Reads a file to its end and returns its contents. For a damaged file, they end where it becomes unreadable.
pub fn inspect(input: impl Read) -> Contents {
    let mut reader = Reader::new(BufReader::new(input));
    let mut contents = Contents::default();
    let result = look_through(&mut reader, &mut contents);
    contents.file_bytes = reader.offset();
    contents.frames = reader.frames();
    contents.version = match reader.version() {
        Some((major, minor)) => format!("{major}.{minor}"),
        None => "unknown".to_string(),
    };
    match result {
        Ok(()) => contents.complete = true,
        Err(error) => contents.problem = Some(error.to_string()),
    }
    contents
}

fn look_through(reader: &mut Reader<impl Read>, contents: &mut Contents) -> Result<(), Error> {
    let mut file = SavedFile::open(reader, &BTreeSet::from(Feature::ALL))?;
    contents.needs.clone_from(&file.offer.needs);
    contents.devices = file.table.devices.iter().map(SavedDevice::new).collect();
    let blob = |name: &crate::guest::BlobName| SavedBlob {
        name: name.name.clone(),
        version: name.version,
        bytes: 0,
    };
    contents.blobs = file.table.blobs.iter().map(blob).collect();
    let result = read_pieces(&mut file, reader, contents);
    for (device, (bytes, transactions, longest)) in contents.devices.iter_mut().zip(file.states()) {
        (device.device_bytes, device.transactions, device.longest_transaction) =
            (bytes, transactions, longest);
    }
    result
}

fn read_pieces(
    file: &mut SavedFile,
    reader: &mut Reader<impl Read>,
    contents: &mut Contents,
) -> Result<(), Error> {
    const HEAD: usize = 64;
    loop {
        match file.next(reader)? {
            Piece::State { device, data, .. } => {
                let head = &mut contents.devices[device].head;
                head.extend_from_slice(&data[..data.len().min(HEAD - head.len())]);
            }
            Piece::Setup { device, data } => contents.devices[device].setup_bytes = data.len() as u64,
            Piece::Blob { name, data, .. } => {
                if let Some(blob) = contents.blobs.iter_mut().find(|blob| blob.name == name) {
                    blob.bytes += data.len() as u64;
                }
            }
            Piece::DeviceEnd | Piece::Round { .. } => {}
            Piece::End => return reader.expect_end(),
        }
    }
}

impl SavedDevice {
    fn new(identity: &DeviceIdentity) -> SavedDevice {
        SavedDevice {
            identity: identity.clone(),
            device_bytes: 0,
            transactions: 0,
            longest_transaction: 0,
            setup_bytes: 0,
            head: Vec::new(),
        }
    }
}
