//! The migration features: a device's flags, its state, and the size of its data.

use whimbrel_protocol::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::FeatureFlags;
use whimbrel_uapi::migration::{DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration};

use super::{Checked, Request};

impl Request<'_> {
    pub(super) fn migration(mut self) -> Result<(), Errno> {
        let flags = self.device.migration_flags()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureMigration>())? {
            return Ok(());
        }
        self.copy_out(&DeviceFeatureMigration { flags: flags.bits() })
    }

    pub(super) fn mig_device_state(mut self) -> Result<(), Errno> {
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

    pub(super) fn mig_data_size(mut self) -> Result<(), Errno> {
        self.device.migration_flags()?;
        if let Checked::Probed = self.check(FeatureFlags::GET, size_of::<DeviceFeatureMigDataSize>())? {
            return Ok(());
        }
        let stop_copy_length = self.device.mig_data_size()?;
        self.copy_out(&DeviceFeatureMigDataSize { stop_copy_length })
    }

    pub(super) fn mig_precopy_info_v2(self) -> Result<(), Errno> {
        if !self.device.migration_flags()?.contains(MigrationFlags::PRE_COPY) {
            return Err(Errno::EINVAL);
        }
        match self.check(FeatureFlags::SET, 0)? {
            Checked::Probed => Ok(()),
            Checked::Go => self.device.enable_precopy_info_v2(),
        }
    }
}
