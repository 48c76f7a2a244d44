//! The settings of an engine, and their limits.

use whimbrel_device::MigrationFlags;

/// The settings of an [`Accel`](super::Accel).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AccelConfig {
    /// Bytes of own state: [`AccelConfig::MIN_STATE`] to [`AccelConfig::MAX_STATE`], a multiple of 8.
    /// Memory is allocated only for the parts in use.
    pub state_bytes: u64,
    /// Bytes of own state changed per second in the background while the device runs.
    pub state_rate: u64,
    /// Migration features. STOP_COPY is always included.
    pub flags: MigrationFlags,
    /// DMA and messages need a set-up configuration space, as in hardware: the bus master bit, and the enable bit of
    /// MSI. Otherwise a loaded state continues whether or not its user has restored the space.
    pub needs_config: bool,
}

impl AccelConfig {
    /// Minimum own state, in bytes.
    pub const MIN_STATE: u64 = 1 << 10;
    /// Maximum own state, in bytes.
    pub const MAX_STATE: u64 = 64 << 30;

    /// Sets [`AccelConfig::state_bytes`].
    #[must_use]
    pub const fn state_bytes(self, state_bytes: u64) -> AccelConfig {
        AccelConfig { state_bytes, ..self }
    }

    /// Sets [`AccelConfig::state_rate`].
    #[must_use]
    pub const fn state_rate(self, state_rate: u64) -> AccelConfig {
        AccelConfig { state_rate, ..self }
    }

    /// Sets [`AccelConfig::flags`].
    #[must_use]
    pub const fn flags(self, flags: MigrationFlags) -> AccelConfig {
        AccelConfig { flags, ..self }
    }

    /// Sets [`AccelConfig::needs_config`].
    #[must_use]
    pub const fn needs_config(self, needs_config: bool) -> AccelConfig {
        AccelConfig { needs_config, ..self }
    }

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
    /// Returns 64 MiB of state, changed only by jobs, with all migration features, which runs without a set-up
    /// configuration space.
    fn default() -> AccelConfig {
        AccelConfig {
            state_bytes: 64 << 20,
            state_rate: 0,
            flags: MigrationFlags::all(),
            needs_config: false,
        }
    }
}

/// Invalid settings of an engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AccelConfigError {
    /// The own state is too small, too large, or not a multiple of 8.
    #[error(
        "invalid state of {0} bytes: expected {least} to {most} bytes, in steps of 8",
        least = AccelConfig::MIN_STATE,
        most = AccelConfig::MAX_STATE
    )]
    StateBytes(u64),
    /// The flags contain an unknown bit.
    #[error("invalid migration flags {0:#x}: expected STOP_COPY, P2P and PRE_COPY only")]
    Flags(u64),
    /// The address space for the own state cannot be allocated.
    #[error("cannot allocate address space for {bytes} bytes of state: {source}")]
    Memory {
        /// Requested size in bytes.
        bytes: u64,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
