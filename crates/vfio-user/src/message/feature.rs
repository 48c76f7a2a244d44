//! VFIO_USER_DEVICE_FEATURE, and the data of the features whose format differs from the kernel's: the message carries
//! the data where the kernel has an address.

use whimbrel_protocol::dirty::MAX_LOGGING_RANGES;
use whimbrel_uapi::feature::{FEATURE_MASK, FeatureFlags};

use super::fields::Fields;
use super::{Malformed, MessageBuffer};

const FIXED: u32 = 8;
/// Bytes of one range of [`LoggingStart`].
const RANGE: usize = 16;

/// A request about a feature, or the reply to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceFeature<'a> {
    /// In a request, bytes of reply payload that the client accepts; in a reply, bytes that the whole reply needs.
    pub argsz: u32,
    /// Index of the feature ([`Feature`](whimbrel_uapi::feature::Feature), or an unknown one).
    pub feature: u16,
    /// The operation on it.
    pub flags: FeatureFlags,
    /// The feature's own data.
    pub data: &'a [u8],
}

/// The data of VFIO_DEVICE_FEATURE_DMA_LOGGING_START, in request and reply.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LoggingStart<'a> {
    /// Page size in bytes: in a request the preferred one, in a reply the actual one.
    pub page_size: u64,
    ranges: &'a [[u8; RANGE]],
}

/// The data of VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT in a request. A reply has the bitmap after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggingReport {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes of IOVA per bit.
    pub page_size: u64,
}

impl<'a> DeviceFeature<'a> {
    /// Bytes before the feature's own data.
    pub const FIXED: u32 = FIXED;

    pub(super) fn parse(payload: &'a [u8]) -> Result<DeviceFeature<'a>, Malformed> {
        let mut fields = Fields::of(payload, FIXED as usize)?;
        let argsz = fields.argsz(u64::from(FIXED))?;
        let bits = fields.u32()?;
        let flags = FeatureFlags::from_bits(bits & !FEATURE_MASK).ok_or(Malformed::Flags(bits))?;
        let feature = (bits & FEATURE_MASK) as u16;
        Ok(DeviceFeature { argsz, feature, flags, data: fields.rest() })
    }

    /// Writes the fixed part and the data so far; more data may follow.
    pub fn put(&self, out: &mut MessageBuffer) {
        out.put_u32(self.argsz);
        out.put_u32(u32::from(self.feature) | self.flags.bits());
        out.put(self.data);
    }
}

impl<'a> LoggingStart<'a> {
    /// Creates the data with these ranges, each as IOVA and length, in `room`: as many as fit, all of them if `room`
    /// is as long.
    pub fn new(page_size: u64, ranges: &[(u64, u64)], room: &'a mut [[u8; RANGE]]) -> LoggingStart<'a> {
        let count = ranges.len().min(room.len());
        let room = &mut room[..count];
        for ((iova, length), bytes) in ranges.iter().zip(room.iter_mut()) {
            bytes[..8].copy_from_slice(&iova.to_ne_bytes());
            bytes[8..].copy_from_slice(&length.to_ne_bytes());
        }
        LoggingStart { page_size, ranges: room }
    }

    /// Parses the data of the feature. At most [`MAX_LOGGING_RANGES`] are accepted, as in the kernel.
    pub fn parse(data: &'a [u8]) -> Result<LoggingStart<'a>, Malformed> {
        let mut fields = Fields::of(data, 16)?;
        let (page_size, count) = (fields.u64()?, fields.u32()?);
        fields.u32()?;
        if count > MAX_LOGGING_RANGES {
            return Err(Malformed::TooManyRanges(count));
        }
        let (ranges, _) = fields.rest().as_chunks::<RANGE>();
        let needed = 16 + u64::from(count) * RANGE as u64;
        let ranges = ranges.get(..count as usize).ok_or(Malformed::Short { needed, found: data.len() })?;
        Ok(LoggingStart { page_size, ranges })
    }

    /// Returns IOVA and length of each range. No range at all means all memory.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = (u64, u64)> + use<'a> {
        self.ranges.iter().map(|range| {
            let [iova, length] = [0, 8].map(|at| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(&range[at..at + 8]);
                u64::from_ne_bytes(bytes)
            });
            (iova, length)
        })
    }

    /// Returns the bytes of the feature's data.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.page_size.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&(self.ranges.len() as u32).to_ne_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(self.ranges.as_flattened());
        bytes
    }
}

impl std::fmt::Debug for LoggingStart<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggingStart").field("page_size", &self.page_size).finish_non_exhaustive()
    }
}

impl LoggingReport {
    /// Bytes before the bitmap.
    pub const SIZE: usize = 24;

    /// Parses the data of the feature and returns the bytes after it: in a reply the bitmap.
    pub fn parse(data: &[u8]) -> Result<(LoggingReport, &[u8]), Malformed> {
        let mut fields = Fields::of(data, Self::SIZE)?;
        let report = LoggingReport { iova: fields.u64()?, length: fields.u64()?, page_size: fields.u64()? };
        Ok((report, fields.rest()))
    }

    /// Returns the bytes of the feature's data.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        bytes[..8].copy_from_slice(&self.iova.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_ne_bytes());
        bytes[16..].copy_from_slice(&self.page_size.to_ne_bytes());
        bytes
    }
}
