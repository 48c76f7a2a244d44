//! The vendor half's interface to the device behind a region, and to the memory of its data section.

use crate::arc::ArcError;
use crate::dirty::DirtyReport;
use crate::{Errno, State};

/// A device behind a migration region, with the states of v2.
///
/// The vendor half keeps the state; it requests only arcs that [`fsm`](crate::fsm) gives for the features that it was
/// made with.
pub trait Backend {
    /// Executes one arc completely before it returns.
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcError>;

    /// Reads the next bytes of the device's state, at most as many as `buffer` holds: one transaction, which
    /// arrives at the other side unchanged. 0 (or ENOMSG) is a temporary end in the pre-copy states; 0 in
    /// STOP_COPY is the final end. An error takes nothing out of the stream.
    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Takes one whole transaction, as the other side gave it.
    fn load(&mut self, transaction: &[u8]) -> Result<(), Errno>;

    /// Returns an estimate, in bytes, of the data still to be saved in the current state.
    fn remaining(&mut self) -> Result<u64, Errno>;

    /// Starts or stops the dirty log, which only the draft's region reports. The log is on while the SAVING
    /// bit is set.
    fn track_dirty(&mut self, on: bool) -> Result<(), Errno> {
        let _ = on;
        Ok(())
    }

    /// Reports and clears the dirty log of the requested range. A device without a log reports every page as
    /// dirty.
    fn report_dirty(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        report.set(report.range().iova(), report.range().length());
        Ok(())
    }
}

/// The memory of a region, which the user may have mapped in part. Offsets are bytes from the start of the
/// region.
///
/// A mapped part can change at any moment: the vendor half copies it once and uses the copy.
pub trait SectionMemory {
    /// Returns the size in bytes.
    fn size(&self) -> u64;

    /// Copies out of the memory. The vendor half reads only within [`SectionMemory::size`].
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno>;

    /// Copies into the memory.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno>;
}

impl SectionMemory for Vec<u8> {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(data.len()).ok_or(Errno::EFAULT)?;
        data.copy_from_slice(self.get(start..end).ok_or(Errno::EFAULT)?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let start = usize::try_from(offset).map_err(|_| Errno::EFAULT)?;
        let end = start.checked_add(data.len()).ok_or(Errno::EFAULT)?;
        self.get_mut(start..end).ok_or(Errno::EFAULT)?.copy_from_slice(data);
        Ok(())
    }
}
