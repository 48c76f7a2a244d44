//! What an engine is made of, and which of it can be had.

use whimbrel_device::MigrationFlags;

/// The settings of an [`Accel`](super::Accel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccelConfig {
    /// Bytes of own state: [`AccelConfig::MIN_STATE`] to [`AccelConfig::MAX_STATE`], a multiple of 8.
    /// Memory is taken only for the parts that are used.
    pub state_bytes: u64,
    /// Bytes per second at which the state changes by itself while the device runs.
    pub state_rate: u64,
    /// What of migration it supports. STOP_COPY is there whether it is named or not.
    pub flags: MigrationFlags,
}

impl AccelConfig {
    /// Minimum own state, in bytes.
    pub const MIN_STATE: u64 = 1 << 10;
    /// Maximum own state, in bytes.
    pub const MAX_STATE: u64 = 64 << 30;

    pub(crate) fn check(self) -> Result<AccelConfig, AccelConfigError> {
        if !(Self::MIN_STATE..=Self::MAX_STATE).contains(&self.state_bytes)
            || !self.state_bytes.is_multiple_of(8)
        {
            return Err(AccelConfigError::StateBytes(self.state_bytes));
        }
        if !MigrationFlags::all().contains(self.flags) {
            return Err(AccelConfigError::Flags(self.flags.bits()));
        }
        Ok(AccelConfig { flags: self.flags | MigrationFlags::STOP_COPY, ..self })
    }
}

impl Default for AccelConfig {
    /// 64 MiB of state that changes only when work is done, and all of migration.
    fn default() -> AccelConfig {
        AccelConfig { state_bytes: 64 << 20, state_rate: 0, flags: MigrationFlags::all() }
    }
}

/// Settings that no engine can have.
#[derive(Debug, thiserror::Error)]
pub enum AccelConfigError {
    /// The own state is too small, too large, or no multiple of 8.
    #[error(
        "{0} bytes of state cannot be had: it is {least} to {most} bytes, in steps of 8",
        least = AccelConfig::MIN_STATE,
        most = AccelConfig::MAX_STATE
    )]
    StateBytes(u64),
    /// The flags name something that does not exist.
    #[error("migration flags {0:#x} name more than STOP_COPY, P2P and PRE_COPY")]
    Flags(u64),
    /// There is no address space for the own state.
    #[error("no address space for {bytes} bytes of state: {source}")]
    Memory {
        /// Bytes wanted.
        bytes: u64,
        /// Why it failed.
        source: vm_memory::mmap::MmapRegionError,
    },
}
