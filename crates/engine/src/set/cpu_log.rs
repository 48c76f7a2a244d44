//! The log of all writes except the devices': above all those of a VMM's CPUs.

use whimbrel_protocol::dirty::PageBitmap;

use crate::guest::GuestError;

/// The log of the CPUs' writes: a VMM's own, such as KVM's.
///
/// `bitmaps` are one per region of memory, in the order of [`crate::Ram::regions`], in pages of 4096 bytes.
pub trait CpuLog: Send {
    /// Starts to log, with nothing marked.
    fn start(&mut self) -> Result<(), GuestError>;

    /// Marks the pages written since the last call, and clears the log.
    fn collect(&mut self, bitmaps: &mut [PageBitmap]) -> Result<(), GuestError>;

    /// Stops logging.
    fn stop(&mut self);

    /// Returns the source of the dirty pages, for the report.
    fn choice(&self) -> CpuDirtyChoice {
        CpuDirtyChoice::Log
    }
}

/// The sources of the CPUs' dirty pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum CpuDirtyChoice {
    /// A log of the owner's own.
    Log,
    /// KVM's dirty log.
    Kvm,
    /// The bitmap of the memory itself, which each access marks.
    MemoryBitmap,
    /// No CPU writes memory.
    NoCpus,
    /// No log: all memory is resent after the stop.
    AllDirty,
}

/// A log for memory that no CPU writes during a migration.
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

/// A log for CPUs without dirty tracking: all memory is resent after the stop.
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
