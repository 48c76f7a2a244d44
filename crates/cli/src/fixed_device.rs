//! A device for tests: it does nothing, and does not migrate either.

use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info};
use whimbrel_user::Local;

struct Fixed;

impl Driver for Fixed {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

/// Returns a new one, named `fixed`.
pub(crate) fn open() -> Local {
    Local::new(DeviceFile::new("fixed", |_| Fixed))
}
