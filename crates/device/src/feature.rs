//! VFIO_DEVICE_FEATURE on raw bytes: the kernel's checks, in the kernel's order (`drivers/vfio/vfio_main.c`).
//!
//! What a feature then does is [`DeviceFile`]'s business.

use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::migration::{DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::device_file::DeviceFile;
use crate::user_memory::{Process, SparseMemory};

const HEAD: u64 = size_of::<DeviceFeature>() as u64;

/// Bitmap words handled at a time, so that a request's length cannot size an allocation.
const REPORT_WORDS: u64 = 8192;

impl DeviceFile {
    /// Whether VFIO_DEVICE_FEATURE with PROBE succeeds for `feature` in these directions (GET, SET, both or none).
    pub fn has_feature(&self, feature: Feature, directions: FeatureFlags) -> bool {
        let mut process = SparseMemory::new();
        let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
        let head = DeviceFeature { argsz: HEAD as u32, flags: u32::from(feature.index()) | flags.bits() };
        process.insert(0, head.as_bytes());
        ioctl(self, 0, &mut process).is_ok()
    }
}

struct Request<'a> {
    device: &'a DeviceFile,
    process: &'a mut dyn Process,
    /// Where the feature's own data lies.
    data: u64,
    /// Room for it, in bytes.
    room: usize,
    flags: FeatureFlags,
}

/// Whether to go on with a request after the common checks.
enum Checked {
    /// It was a PROBE, and is answered.
    Probed,
    /// A GET or a SET to execute.
    Go,
}

pub(crate) fn ioctl(device: &DeviceFile, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
    let mut head = DeviceFeature::new_zeroed();
    process.read(argument, head.as_mut_bytes())?;
    let known = FEATURE_MASK | FeatureFlags::all().bits();
    if u64::from(head.argsz) < HEAD || head.flags & !known != 0 {
        return Err(Errno::EINVAL);
    }
    let flags = FeatureFlags::from_bits_truncate(head.flags);
    let both = FeatureFlags::GET | FeatureFlags::SET;
    if flags.contains(both) && !flags.contains(FeatureFlags::PROBE) {
        return Err(Errno::EINVAL);
    }
    let feature = u16::try_from(head.flags & FEATURE_MASK)
        .ok()
        .and_then(|index| Feature::try_from(index).ok())
        .ok_or(Errno::ENOTTY)?;
    let request = Request {
        device,
        process,
        data: argument.wrapping_add(HEAD),
        room: head.argsz as usize - HEAD as usize,
        flags,
    };
    match feature {
        Feature::Migration => request.migration(),
        Feature::MigDeviceState => request.mig_device_state(),
        Feature::MigDataSize => request.mig_data_size(),
        Feature::MigPrecopyInfoV2 => request.mig_precopy_info_v2(),
        Feature::DmaLoggingStart => request.dma_logging_start(),
        Feature::DmaLoggingStop => request.dma_logging_stop(),
        Feature::DmaLoggingReport => request.dma_logging_report(),
        // Features of a bus driver, which no device here has.
        Feature::PciVfToken
        | Feature::LowPowerEntry
        | Feature::LowPowerEntryWithWakeup
        | Feature::LowPowerExit
        | Feature::BusMaster
        | Feature::DmaBuf
        | Feature::ZpciError => Err(Errno::ENOTTY),
    }?;
    Ok(0)
}

impl Request<'_> {
    /// The checks every feature makes with its own directions and least size (`vfio_check_feature()`).
    fn check(&self, directions: FeatureFlags, least: usize) -> Result<Checked, Errno> {
        let asked = self.flags & (FeatureFlags::GET | FeatureFlags::SET);
        if !directions.contains(asked) {
            return Err(Errno::EINVAL);
        }
        if self.flags.contains(FeatureFlags::PROBE) {
            return Ok(Checked::Probed);
        }
        if asked.is_empty() || self.room < least {
            return Err(Errno::EINVAL);
        }
        Ok(Checked::Go)
    }

    fn copy_in<T: FromBytes + FromZeros + IntoBytes>(&self) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.process.read(self.data, value.as_mut_bytes())?;
        Ok(value)
    }

    fn copy_out<T: IntoBytes + Immutable>(&mut self, value: &T) -> Result<(), Errno> {
        Ok(self.process.write(self.data, value.as_bytes())?)
    }

    fn migration(mut self) -> Result<(), Errno> {
        let flags = self.device.migration_flags()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureMigration>())? {
            return Ok(());
        }
        self.copy_out(&DeviceFeatureMigration { flags: flags.bits() })
    }

    fn mig_device_state(mut self) -> Result<(), Errno> {
        self.device.migration_flags()?;
        let directions = FeatureFlags::GET | FeatureFlags::SET;
        if let Checked::Probed = self.check(directions, size_of::<DeviceFeatureMigState>())? {
            return Ok(());
        }
        let mut state: DeviceFeatureMigState = self.copy_in()?;
        state.data_fd = -1;
        if self.flags.contains(FeatureFlags::GET) {
            state.device_state = self.device.mig_state()?.number();
            return self.copy_out(&state);
        }
        let outcome = match State::from_number(state.device_state) {
            Some(to) => self.device.set_mig_state(to),
            None => Err(Errno::EINVAL),
        };
        // A failed request is written back too, with the state that was asked for: the caller has to GET.
        match outcome {
            Err(errno) => self.copy_out(&state).and(Err(errno)),
            Ok(None) => self.copy_out(&state),
            Ok(Some(file)) => {
                state.data_fd = self.process.install(file)?;
                self.copy_out(&state).inspect_err(|_| self.process.uninstall(state.data_fd))
            }
        }
    }

    fn mig_data_size(mut self) -> Result<(), Errno> {
        self.device.migration_flags()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureMigDataSize>())? {
            return Ok(());
        }
        let stop_copy_length = self.device.mig_data_size()?;
        self.copy_out(&DeviceFeatureMigDataSize { stop_copy_length })
    }

    fn mig_precopy_info_v2(self) -> Result<(), Errno> {
        if !self.device.migration_flags()?.contains(MigrationFlags::PRE_COPY) {
            return Err(Errno::EINVAL);
        }
        match self.check(FeatureFlags::SET, 0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.enable_precopy_info_v2(),
        }
    }

    fn has_log(&self) -> Result<(), Errno> {
        if self.device.has_dma_logging() { Ok(()) } else { Err(Errno::ENOTTY) }
    }

    fn dma_logging_start(mut self) -> Result<(), Errno> {
        self.has_log()?;
        if let Checked::Probed = self.check(FeatureFlags::SET, size_of::<DeviceFeatureDmaLoggingControl>())? {
            return Ok(());
        }
        let mut control: DeviceFeatureDmaLoggingControl = self.copy_in()?;
        let mut ranges = LoggingRanges::new(control.page_size, control.num_ranges)?;
        for index in 0..u64::from(control.num_ranges) {
            let mut range = DeviceFeatureDmaLoggingRange::new_zeroed();
            let size = size_of::<DeviceFeatureDmaLoggingRange>() as u64;
            self.process.read(control.ranges.wrapping_add(index * size), range.as_mut_bytes())?;
            ranges.push(range.iova, range.length)?;
        }
        control.page_size = self.device.dma_logging_start(&ranges)?;
        self.copy_out(&control).inspect_err(|_| {
            // The user does not know that a log runs: EFAULT is the answer whether or not stopping works.
            let _ = self.device.dma_logging_stop();
        })
    }

    fn dma_logging_stop(self) -> Result<(), Errno> {
        self.has_log()?;
        match self.check(FeatureFlags::SET, 0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.dma_logging_stop(),
        }
    }

    fn dma_logging_report(mut self) -> Result<(), Errno> {
        self.has_log()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureDmaLoggingReport>())? {
            return Ok(());
        }
        let asked: DeviceFeatureDmaLoggingReport = self.copy_in()?;
        let range = DirtyReport::check(asked.iova, asked.length, asked.page_size)?;
        let step = asked.page_size.saturating_mul(REPORT_WORDS * 64);
        let mut words = Vec::new();
        let mut at = range.iova();
        let mut bitmap = asked.bitmap;
        loop {
            let length = step.min(range.end() - at);
            words.clear();
            words.resize(DirtyReport::words_needed(length, asked.page_size) as usize, 0u64);
            self.device.dma_logging_report(&mut DirtyReport::new(
                at,
                length,
                asked.page_size,
                &mut words,
            )?)?;
            self.set_bits(bitmap, &words)?;
            at += length;
            if at == range.end() {
                return Ok(());
            }
            bitmap = bitmap.wrapping_add(words.len() as u64 * 8);
        }
    }

    /// Sets bits in the user's bitmap. Words without a bit are not touched, as in the kernel.
    fn set_bits(&mut self, bitmap: u64, words: &[u64]) -> Result<(), Errno> {
        for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
            let address = bitmap.wrapping_add(index as u64 * 8);
            let mut bytes = [0; 8];
            self.process.read(address, &mut bytes)?;
            self.process.write(address, &(u64::from_le_bytes(bytes) | word).to_le_bytes())?;
        }
        Ok(())
    }
}
