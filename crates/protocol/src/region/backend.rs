//! What the vendor half needs of the device behind a region, and of the memory of its data section.

use crate::dirty::DirtyReport;
use crate::{Errno, MigrationFlags, State};

/// A device behind a migration region: one that goes through the states of v2.
///
/// The vendor half keeps the state; it asks only for arcs that [`fsm`](crate::fsm) gives for
/// [`Backend::flags`].
pub trait Backend {
    /// What the device supports; STOP_COPY at least. The answer never changes.
    fn flags(&self) -> MigrationFlags;

    /// Executes one arc completely before it returns.
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcFailure>;

    /// The next bytes of the device's state: one transaction, which arrives at the other side as it is given
    /// here. At most as many as `buffer` holds. 0 (or ENOMSG) is the end for now in the pre-copy states; 0 in
    /// STOP_COPY is the end for good. An error takes nothing out of the stream.
    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno>;

    /// Takes one transaction whole, as it was given at the other side.
    fn load(&mut self, transaction: &[u8]) -> Result<(), Errno>;

    /// An estimate in bytes of what is still to be saved in the state the device is in, beyond what was
    /// given.
    fn remaining(&mut self) -> Result<u64, Errno>;

    /// Begins or ends the log of the pages that the device writes, of which only the draft's region tells. It
    /// is on while the SAVING bit is set.
    fn track_dirty(&mut self, on: bool) -> Result<(), Errno> {
        let _ = on;
        Ok(())
    }

    /// Tells and clears the log of the range asked about. A device that keeps none says that all is dirty.
    fn report_dirty(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        report.set(report.range().iova(), report.range().length());
        Ok(())
    }
}

/// An arc that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArcFailure {
    /// The device is still in the state the arc starts from, and works.
    #[error("{0}, and the device stays in the state it was in")]
    Stays(Errno),
    /// The device is in no valid state and needs a reset.
    #[error("{0}, and the device needs a reset")]
    Broken(Errno),
}

/// The memory of a region, which the user may have mapped in part. Offsets are bytes from the start of the
/// region.
///
/// A mapped part can change at any moment; the vendor half copies it once and looks at the copy.
pub trait SectionMemory {
    /// Bytes.
    fn size(&self) -> u64;

    /// Copies out of the memory. The vendor half asks only for what lies within [`SectionMemory::size`].
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
