//! Requests as bytes, without the user side's own checks: for programs that test a driver side.
//!
//! A VMM has no use for them: [`Migratable`](crate::Migratable) makes the same requests with checked arguments.

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::migration::{DeviceFeatureMigState, PrecopyInfo};
use zerocopy::FromBytes;

use crate::data_file::StateFile;

/// Maximum `argsz` of a raw request, in bytes.
pub const MAX_RAW_ARGSZ: u32 = 64 * 1024;

/// Size of the head of VFIO_DEVICE_FEATURE: `argsz` and `flags`.
pub(crate) const HEAD: usize = size_of::<DeviceFeature>();

/// The requests of a device as bytes.
pub trait RawDevice {
    /// VFIO_DEVICE_FEATURE with this head, and `data` after it. `argsz` may contradict the length of `data`; then the
    /// driver side finds zeros after them. On return, `data` is what the driver side has left there, also after an error.
    ///
    /// A new data file is closed at once, which ends no session.
    ///
    /// E2BIG, without a request, for an `argsz` above [`MAX_RAW_ARGSZ`]; EFAULT, without a request, for data that may
    /// hold an address: only zeros are sent to features other than those of migration.
    fn device_feature(&mut self, argsz: u32, flags: u32, data: &mut [u8]) -> Result<(), Errno>;
}

/// The requests of a data file as bytes.
pub trait RawData {
    /// VFIO_MIG_GET_PRECOPY_INFO with `argsz` and `flags` as they are in `info`.
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> Result<(), Errno>;

    /// Returns another handle to the same file, as by `dup`.
    fn duplicate(&self) -> Result<Box<dyn StateFile>, Errno>;
}

/// Checks a raw request as [`RawDevice::device_feature`] promises: E2BIG or EFAULT if it must not be sent.
pub fn check_raw_feature(argsz: u32, flags: u32, data: &[u8]) -> Result<(), Errno> {
    if argsz > MAX_RAW_ARGSZ {
        return Err(Errno::E2BIG);
    }
    let holds_none = matches!(
        feature_of(flags),
        Some(
            Feature::Migration
                | Feature::MigDeviceState
                | Feature::MigDataSize
                | Feature::MigPrecopyInfoV2
                | Feature::DmaLoggingStop
        )
    );
    if !holds_none && data.iter().any(|byte| *byte != 0) {
        return Err(Errno::EFAULT);
    }
    Ok(())
}

/// Returns the number of the data file that a raw request has opened, if any: `data` is the answer of one that succeeded.
pub fn opened_by_raw_feature(flags: u32, data: &[u8]) -> Option<i32> {
    let directions = FeatureFlags::from_bits_truncate(flags);
    let is_set = directions.contains(FeatureFlags::SET) && !directions.contains(FeatureFlags::PROBE);
    let (state, _) = DeviceFeatureMigState::read_from_prefix(data).ok()?;
    (is_set && feature_of(flags) == Some(Feature::MigDeviceState) && state.data_fd >= 0)
        .then_some(state.data_fd)
}

fn feature_of(flags: u32) -> Option<Feature> {
    Feature::from_number((flags & FEATURE_MASK) as u16)
}

/// Returns the request's bytes, long enough for `argsz`.
pub(crate) fn request(argsz: u32, flags: u32, data: &[u8]) -> Result<Vec<u8>, Errno> {
    check_raw_feature(argsz, flags, data)?;
    let mut bytes = vec![0; (argsz as usize).max(HEAD + data.len())];
    bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
    bytes[4..HEAD].copy_from_slice(&flags.to_ne_bytes());
    bytes[HEAD..HEAD + data.len()].copy_from_slice(data);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_set_of_the_state_opens_a_file() {
        let state = u32::from(Feature::MigDeviceState.number());
        let answer = |fd: i32| [3u32.to_ne_bytes(), fd.to_ne_bytes()].concat();
        let (set, probe) = (FeatureFlags::SET.bits(), FeatureFlags::PROBE.bits());
        assert_eq!(opened_by_raw_feature(state | set, &answer(5)), Some(5));
        assert_eq!(opened_by_raw_feature(state | set, &answer(-1)), None);
        assert_eq!(opened_by_raw_feature(state | set | probe, &answer(5)), None);
        assert_eq!(opened_by_raw_feature(state | FeatureFlags::GET.bits(), &answer(5)), None);
        assert_eq!(opened_by_raw_feature(state | set, &[0; 4]), None);
    }

    #[test]
    fn no_address_is_sent() {
        let start = u32::from(Feature::DmaLoggingStart.number()) | FeatureFlags::SET.bits();
        assert_eq!(request(32, start, &[1; 24]), Err(Errno::EFAULT));
        assert!(request(32, start, &[0; 24]).is_ok());
        let state = u32::from(Feature::MigDeviceState.number()) | FeatureFlags::SET.bits();
        assert!(request(16, state, &[1; 8]).is_ok());
        assert_eq!(request(16, FEATURE_MASK, &[1; 8]), Err(Errno::EFAULT), "a feature of a later kernel");
    }

    #[test]
    fn a_request_has_as_many_bytes_as_it_claims() {
        let flags = u32::from(Feature::Migration.number());
        assert_eq!(request(100, flags, &[7]).unwrap().len(), 100);
        assert_eq!(request(0, flags, &[7]).unwrap().len(), 9);
        assert_eq!(request(MAX_RAW_ARGSZ + 1, flags, &[]), Err(Errno::E2BIG));
    }
}
