//! Hooks for a device's author: make the device write to memory, and name the registers that are its state.

use whimbrel_user::{Device, DmaRegion, Error};

/// Makes a device write to memory, so that its log can be judged.
pub trait DmaWriter: Send + Sync {
    /// Maps `memory` for the device at `iova` and makes the device ready to write there. Called once a case, in RUNNING.
    fn prepare(&self, device: &mut dyn Device, iova: u64, memory: &DmaRegion) -> Result<(), Error>;

    /// Makes the device write to one byte at least of each page of 4 KiB that begins at an address in `pages`, and
    /// to no other page but those of [`DmaWriter::own_pages`]. Returns once it has.
    fn write(&self, device: &mut dyn Device, pages: &[u64]) -> Result<(), Error>;

    /// Returns the number of pages from the beginning of the memory that the writer uses for itself, such as a device's
    /// rings: the device may write to them at any time.
    fn own_pages(&self) -> u64 {
        0
    }
}

/// Tells what of a device's state a user can see, so that two devices can be compared by it.
///
/// Both calls are made in RUNNING or PRE_COPY, where a user may access the registers.
pub trait RegisterProbe: Send + Sync {
    /// Puts the device into a state that is unlike the one after a reset: registers, queues, memory of its own. `seed`
    /// selects one of many such states. On return the device has nothing to do: it changes nothing by itself.
    fn change(&self, device: &mut dyn Device, seed: u64) -> Result<(), Error>;

    /// Returns all of the state that a user can see and that a migration carries, the same bytes for the same state,
    /// and leaves the state as it is. Bytes that the device changes by itself, such as a clock, are left out.
    fn look(&self, device: &mut dyn Device) -> Result<Vec<u8>, Error>;
}
