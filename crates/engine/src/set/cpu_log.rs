//! The log of what everyone but the devices writes: a VMM's CPUs above all.

use whimbrel_protocol::dirty::PageBitmap;

use crate::guest::GuestError;

/// The log of what the CPUs write: a VMM's own, such as KVM's.
///
/// `bitmaps` are one per region of memory, in the order of [`crate::Ram::regions`], in pages of 4096 bytes.
pub trait CpuLog: Send {
    /// Starts to log, with nothing marked.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Marks the pages written since the last call, and forgets them.
    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError>;

    /// Stops logging.
    fn stop(&mut self);

    /// Returns how the writes are found, for the report.
    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::Log
    }
}

/// How the writes of the CPUs to memory are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CpuDirtyChoice {
    /// The owner has a log of them.
    Log,
    /// KVM's dirty log.
    Kvm,
    /// The bitmap of the memory itself, which each access marks.
    MemoryBitmap,
    /// No CPU writes memory.
    NoCpus,
    /// Nobody logs them: all memory is sent again once they have stopped.
    AllDirty,
}

/// For memory that no CPU writes during a migration.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct NoCpuLog;

impl CpuLog for NoCpuLog {
    fn start(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&mut self, _: &mut [PageBitmap]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::NoCpus
    }
}

/// For CPUs that write memory without a log: all memory is sent again once they have stopped.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct AllDirty;

impl CpuLog for AllDirty {
    fn start(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect(&mut self, _: &mut [PageBitmap]) -> Result<(), GuestError> {
        Ok(())
    }

    fn stop(&mut self) {}

    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::AllDirty
    }
}
