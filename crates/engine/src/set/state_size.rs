//! The estimated size of a device's state, which not every kernel reports.

use whimbrel_user::Migratable;

use crate::error::Error;

/// Returns the bytes of state that a device would save, as its driver estimates them; `None` if it cannot. Kernels before
/// 6.2 do not have the feature, and a migration works without it.
pub(crate) fn state_size(device: &mut (impl Migratable + ?Sized)) -> Result<Option<u64>, Error> {
    match device.data_size() {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.errno().is_some() => Ok(None),
        // Without an answer nothing is known of the device.
        Err(error) => Err(error.into()),
    }
}
