//! VFIO_DEVICE_FEATURE on raw bytes: the kernel's checks, in the kernel's order (`drivers/vfio/vfio_main.c`).
//!
//! The module has the checks that all features share, and dispatches each feature. [`DeviceFile`] executes it.

mod bus_master;
mod dma_buf;
mod dma_logging;
mod low_power;
mod migration;
mod vf_token;
mod zpci_error;

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::core::file::DeviceFile;
use crate::raw::process::Process;
use crate::raw::sparse::SparseMemory;

const HEAD: u64 = size_of::<DeviceFeature>() as u64;

impl DeviceFile {
    /// Returns whether VFIO_DEVICE_FEATURE with PROBE succeeds for `feature` in these directions (GET, SET,
    /// both or none).
    pub fn has_feature(&self, feature: Feature, directions: FeatureFlags) -> bool {
        let _awake = self.awake();
        let mut process = SparseMemory::new();
        let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
        let head = DeviceFeature { argsz: HEAD as u32, flags: u32::from(feature.number()) | flags.bits() };
        process.insert(0, head.as_bytes());
        ioctl(self, 0, &mut process).is_ok()
    }
}

struct Request<'a> {
    device: &'a DeviceFile,
    process: &'a mut dyn Process,
    /// Address of the feature's data.
    data: u64,
    /// Size of its buffer, in bytes.
    room: usize,
    flags: FeatureFlags,
}

/// The outcome of the common checks of a request.
enum Checked {
    /// A PROBE, which is complete.
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
        Feature::PciVfToken => request.pci_vf_token(),
        Feature::Migration => request.migration(),
        Feature::MigDeviceState => request.mig_device_state(),
        Feature::MigDataSize => request.mig_data_size(),
        Feature::MigPrecopyInfoV2 => request.mig_precopy_info_v2(),
        Feature::DmaLoggingStart => request.dma_logging_start(),
        Feature::DmaLoggingStop => request.dma_logging_stop(),
        Feature::DmaLoggingReport => request.dma_logging_report(),
        Feature::LowPowerEntry => request.low_power_entry(),
        Feature::LowPowerEntryWithWakeup => request.low_power_entry_with_wakeup(),
        Feature::LowPowerExit => request.low_power_exit(),
        Feature::BusMaster => request.bus_master(),
        Feature::ZpciError => request.zpci_error(),
        // The one whose answer is a descriptor.
        Feature::DmaBuf => return request.dma_buf(),
        _ => Err(Errno::ENOTTY),
    }?;
    Ok(0)
}

impl Request<'_> {
    /// Makes the checks of every feature, with its directions and minimum size (`vfio_check_feature()`).
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
}
