//! An open device of a TARGET.

use std::ops::{Deref, DerefMut};

use whimbrel_user::{Device, Migratable, State};

use crate::failure::Failure;
use crate::output::note;

/// An open device. It is closed when dropped.
pub(crate) struct Opened {
    pub(super) device: Box<dyn Device>,
    /// Served by another process. Such a device keeps its state when its user disconnects; a kernel device is reset.
    pub(super) is_served: bool,
}

impl Opened {
    /// Returns the device if it supports migration.
    pub(crate) fn migratable(mut self) -> Result<Opened, Failure> {
        if self.device.migration_flags()?.is_some() {
            return Ok(self);
        }
        let error = whimbrel_engine::Error::NotMigratable { device: self.device.name().to_string() };
        Err(Failure::from(error).hint(if self.is_served {
            "the program that serves the device must offer migration: VFIO_DEVICE_FEATURE_MIGRATION, or a migration \
             region; `whimbrel probe` shows its features"
        } else {
            "the device must be bound to a driver that supports migration (a variant driver such as mlx5_vfio_pci); \
             `whimbrel devices` shows which devices are"
        }))
    }

    /// Ends a migration that an earlier sender left unfinished: the served device is then in PRE_COPY, from which no
    /// migration can begin. A stopped device remains stopped: it may run somewhere else.
    pub(crate) fn end_abandoned_sending(&mut self) -> Result<(), Failure> {
        if self.is_served
            && let state @ (State::PreCopy | State::PreCopyP2p) = self.device.state()?
        {
            self.device.go_to(State::Running)?;
            note(format_args!(
                "{}: an earlier sender left it in {state}: its migration is ended",
                self.device.name()
            ));
        }
        Ok(())
    }

    /// Resets a served device if an earlier receiver left a partial state in it.
    pub(crate) fn end_abandoned_receiving(&mut self) -> Result<(), Failure> {
        if self.is_served
            && let state @ State::Resuming = self.device.state()?
        {
            self.device.reset()?;
            note(format_args!("{}: an earlier receiver left it in {state}: it is reset", self.device.name()));
        }
        Ok(())
    }

    /// Gives the device away, for the engine.
    pub(crate) fn into_migratable(self) -> Box<dyn Migratable> {
        self.device
    }
}

impl Deref for Opened {
    type Target = dyn Device;

    fn deref(&self) -> &(dyn Device + 'static) {
        &*self.device
    }
}

impl DerefMut for Opened {
    fn deref_mut(&mut self) -> &mut (dyn Device + 'static) {
        &mut *self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixed_device;

    #[test]
    fn a_device_that_does_not_migrate_is_refused_with_what_would_help() {
        for (is_served, helps) in [(false, "a variant driver"), (true, "the program that serves the device")]
        {
            let device = Box::new(fixed_device::open());
            let opened = Opened { device, is_served };
            let Err(failure) = opened.migratable() else { panic!("it was taken") };
            let text = failure.to_string();
            assert!(
                text.starts_with("error: fixed: its driver does not support migration\nhint: "),
                "{text}"
            );
            assert!(text.contains(helps), "{text}");
        }
    }
}
