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

use self::field::{List, Part, Sink, Text, number};
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

/// The way of an argument from a process to a request: the data to be read from the memory of that process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Passing {
    /// Without an argument.
    Nothing,
    /// As a number instead of a pointer.
    Number,
    /// By a pointer to so many bytes.
    Bytes(usize),
    /// By a pointer to a C string, of which at most so many bytes are shown.
    Text(usize),
    /// By a pointer to a structure that gives its own size in its first four bytes.
    Sized,
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

    /// Returns how this kind of file takes the argument of the request `number`, if it has that request.
    pub fn passing(file: File, number: u32) -> Option<Passing> {
        requests::find(file, number).map(|(_, argument)| match argument {
            Argument::Nothing => Passing::Nothing,
            Argument::Number(_) => Passing::Number,
            Argument::Word(..) => Passing::Bytes(size_of::<u32>()),
            Argument::Name => Passing::Text(tail::MAX_TEXT),
            Argument::Structure(..) | Argument::Feature => Passing::Sized,
        })
    }

    /// Returns the request with the values that the user sets, without room for the answer.
    pub const fn question(&self) -> Question<'a> {
        Question(*self)
    }

    /// Returns the values that the driver side writes, for an answer.
    pub const fn answer(&self) -> Answer<'a> {
        Answer(*self)
    }

    /// Returns whether the argument holds a secret. `Display` does not show it, and neither should others.
    pub fn has_secret(&self) -> bool {
        matches!(requests::find(self.file, self.number), Some((_, Argument::Feature)))
            && tail::is_token(self.argument)
    }

    /// Gives the values to a list.
    fn list(&self, list: &mut List<'_>) -> fmt::Result {
        let Some((_, argument)) = requests::find(self.file, self.number) else { return Ok(()) };
        let bytes = self.argument;
        match argument {
            Argument::Nothing => {}
            Argument::Number(show) => match number(bytes, 0, 8).or_else(|| number(bytes, 0, 4)) {
                Some(value) => list.plain("value", format_args!("{}", show.of(value, 8)))?,
                None => list.cut(bytes)?,
            },
            Argument::Word(name, show) => match number(bytes, 0, 4) {
                Some(value) => list.asked(name, format_args!("{}", show.of(value, 4)))?,
                None => list.cut(bytes)?,
            },
            Argument::Name => {
                let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
                // A name that the kernel would accept is far shorter than this.
                let name = &bytes[..end.min(tail::MAX_TEXT)];
                list.plain("name", format_args!("\"{}\"", name.escape_ascii()))?;
                if end == bytes.len() || end > name.len() {
                    list.plain("cut", format_args!(".."))?;
                }
            }
            Argument::Structure(structure, after) => {
                let said = structure.said(bytes);
                structure.show(said, list)?;
                after(said, list)?;
                if bytes.len() < structure.expected(bytes) {
                    list.cut(bytes)?;
                }
            }
            Argument::Feature => tail::feature(bytes, list)?,
        }
        Ok(())
    }

    /// Writes a part of it in one line.
    fn text(&self, part: Part, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(request) = self.request() else {
            return write!(f, "unknown request {:#x}", self.number);
        };
        write!(f, "{}(", request.name())?;
        self.list(&mut List::new(part, &mut Text::new(f)))?;
        f.write_str(")")
    }
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text(Part::Whole, f)
    }
}

/// A request with the values that its user sets. [`Display`](fmt::Display) shows it in one line, like a [`Call`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question<'a>(Call<'a>);

impl Question<'_> {
    /// Gives the name and the text of each value to `take`, for output with a structure of its own.
    pub fn values(&self, take: &mut dyn FnMut(&dyn fmt::Display, &dyn fmt::Display)) {
        // A sink that cannot fail.
        let _ = self.0.list(&mut List::new(Part::Question, &mut Each(take)));
    }
}

impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.text(Part::Question, f)
    }
}

/// Gives each value to a function.
struct Each<'a>(&'a mut dyn FnMut(&dyn fmt::Display, &dyn fmt::Display));

impl Sink for Each<'_> {
    fn take(&mut self, name: &dyn fmt::Display, _: bool, value: fmt::Arguments<'_>) -> fmt::Result {
        (self.0)(name, &value);
        Ok(())
    }
}

/// The values of an argument that the driver side writes. [`Display`](fmt::Display) shows it as a list without parentheses,
/// which is empty for a request that writes nothing.
///
/// ```
/// use whimbrel_uapi::decode::{Call, File};
/// use whimbrel_uapi::group::GroupStatus;
/// use whimbrel_uapi::ioctl::VFIO_GROUP_GET_STATUS;
/// use zerocopy::IntoBytes;
///
/// let status = GroupStatus { argsz: 8, flags: 1 };
/// let call = Call::new(File::Group, VFIO_GROUP_GET_STATUS.number(), status.as_bytes());
/// assert_eq!(call.question().to_string(), "VFIO_GROUP_GET_STATUS(argsz 8)");
/// assert_eq!(call.answer().to_string(), "flags VIABLE");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer<'a>(Call<'a>);

impl Answer<'_> {
    /// Gives the name and the text of each value to `take`.
    pub fn values(&self, take: &mut dyn FnMut(&dyn fmt::Display, &dyn fmt::Display)) {
        // A sink that cannot fail.
        let _ = self.0.list(&mut List::new(Part::Answer, &mut Each(take)));
    }
}

impl fmt::Display for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.list(&mut List::new(Part::Answer, &mut Text::new(f)))
    }
}
