//! Readable requests: turns the kind of file, the ioctl number and the argument's bytes into one short line
//! for traces and errors. Accepts any bytes, and shows them without judging them.
//!
//! This module does not know whether a request is allowed or how it is answered. It shows an answer as well
//! as a request, because both have the same structure.

mod field;
mod requests;
mod structures;
mod tail;

use core::fmt;

use self::field::{List, number};
use self::requests::Argument;
use crate::ioctl::Request;

/// The kind of file a request is made on. The same number is a different request on another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum File {
    /// `/dev/vfio/vfio`, with a type1 IOMMU or without an IOMMU yet.
    Container,
    /// `/dev/vfio/vfio` with the IOMMU of POWER.
    SpaprContainer,
    /// `/dev/vfio/$GROUP`.
    Group,
    /// A device, from its group or its own character file.
    Device,
    /// The data file of a device that is being saved or resumed.
    Data,
    /// `/dev/iommu`. It also takes the requests of a type1 container.
    Iommufd,
}

/// One request or its answer. [`Display`](fmt::Display) shows it in one line.
///
/// ```
/// use whimbrel_uapi::decode::{Call, File};
/// use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};
/// use whimbrel_uapi::ioctl::VFIO_DEVICE_FEATURE;
/// use whimbrel_uapi::migration::{DeviceFeatureMigState, VFIO_DEVICE_STATE_STOP_COPY};
/// use zerocopy::IntoBytes;
///
/// let flags = FeatureFlags::SET.bits() | u32::from(Feature::MigDeviceState.number());
/// let head = DeviceFeature { argsz: 16, flags };
/// let data = DeviceFeatureMigState { device_state: VFIO_DEVICE_STATE_STOP_COPY, data_fd: -1 };
/// let argument = [head.as_bytes(), data.as_bytes()].concat();
///
/// let call = Call::new(File::Device, VFIO_DEVICE_FEATURE.number(), &argument);
/// assert_eq!(
///     call.to_string(),
///     "VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 3 STOP_COPY, data_fd -1)"
/// );
/// assert_eq!(Call::new(File::Device, 0x3b7f, &[]).to_string(), "unknown request 0x3b7f");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'a> {
    file: File,
    number: u32,
    argument: &'a [u8],
}

impl<'a> Call<'a> {
    /// Returns the request `number` on a `file`, with the bytes of its argument in the machine's byte order.
    ///
    /// `argument` holds the bytes that the argument points to, as many as could be read. For the two requests
    /// that take a number instead of a pointer, `VFIO_CHECK_EXTENSION` and `VFIO_SET_IOMMU`, it holds the
    /// four or eight bytes of that number.
    pub const fn new(file: File, number: u32, argument: &'a [u8]) -> Self {
        Self { file, number, argument }
    }

    /// Returns the request, if this kind of file has one with that number.
    pub fn request(&self) -> Option<Request> {
        requests::find(self.file, self.number).map(|(request, _)| *request)
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((request, argument)) = requests::find(self.file, self.number) else {
            return write!(f, "unknown request {:#x}", self.number);
        };
        write!(f, "{}(", request.name())?;
        let mut list = List::new(f);
        let bytes = self.argument;
        match argument {
            Argument::Nothing => {}
            Argument::Number(show) => match number(bytes, 0, 8).or_else(|| number(bytes, 0, 4)) {
                Some(value) => list.item(format_args!("{}", show.of(value, 8)))?,
                None => list.cut(bytes)?,
            },
            Argument::Word(name, show) => match number(bytes, 0, 4) {
                Some(value) => list.item(format_args!("{name} {}", show.of(value, 4)))?,
                None => list.cut(bytes)?,
            },
            Argument::Name => {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                // A name that the kernel would accept is far shorter than this.
                let name = &bytes[..end.min(tail::MAX_TEXT)];
                list.item(format_args!("\"{}\"", name.escape_ascii()))?;
                if end == bytes.len() || end > name.len() {
                    list.item(format_args!(".."))?;
                }
            }
            Argument::Structure(structure, after) => {
                let said = structure.said(bytes);
                structure.show(said, &mut list)?;
                after(said, &mut list)?;
                if bytes.len() < structure.expected(bytes) {
                    list.cut(bytes)?;
                }
            }
            Argument::Feature => tail::feature(bytes, &mut list)?,
        }
        f.write_str(")")
    }
}
