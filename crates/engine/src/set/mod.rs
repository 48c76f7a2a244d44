//! The contents of a migration: devices, memory, and the logs of dirty pages.
//!
//! At the source, [`MemoryLogs`] and a [`DeviceDirty`] for each device fill a [`Ledger`] of dirty pages, which [`Scan`]
//! reads; the lanes of a migration share a [`Walk`]. At the destination, [`Arrival`] puts memory into its place and [`Population`] populates it ahead of the data.

mod arrival;
mod cpu_log;
mod dirtiest;
mod dirty;
#[cfg(feature = "vm-memory")]
mod guest_memory;
mod identity;
#[cfg(feature = "kvm")]
mod kvm;
mod ledger;
mod mapped_ram;
mod mapping;
mod memory;
mod pagemap;
mod populate;
mod reset_meanwhile;
mod scan;
mod state_size;
#[cfg(test)]
mod test_memory;
mod walk;

pub use arrival::Arrival;
pub use cpu_log::{AllDirty, CpuDirtyChoice, CpuLog, NoCpuLog};
pub use dirty::{DeviceDirty, DirtyChoice, MemoryLogs};
pub(crate) use identity::identity_of;
#[cfg(feature = "kvm")]
pub use kvm::{KvmLog, KvmSlot};
pub use ledger::{LayoutChanged, Ledger, SharedLedger};
pub use mapped_ram::{InvalidRegion, MappedRam};
pub(crate) use memory::PAGE;
pub use memory::{Ram, RamError, RamRegion, Receive};
pub use pagemap::Pagemap;
pub use populate::Population;
pub(crate) use reset_meanwhile::{check_still_in, explain, has_session, reset_meanwhile};
pub use scan::{Batch, Scan, Stretch};
pub(crate) use state_size::state_size;
pub use walk::Walk;
