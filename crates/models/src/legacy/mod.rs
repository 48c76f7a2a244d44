//! The engine of [`accel`](crate::accel) with v1 migration only: it migrates through a region, as in Linux 5.8 to 5.17.
//!
//! Its registers, jobs and own state are those of `accel`, but its migration data differs: each transaction of the
//! region is a record with a header (16 bytes, all fields little-endian), and is accepted only whole and in order.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, [`MAGIC`] |
//! | 4 | 4 | record number, from 0 |
//! | 8 | 4 | bytes of engine state that follow |
//! | 12 | 4 | 0 |
//!
//! With this the device detects a user that joins or splits transactions, which the v1 header forbids ("the data should
//! be of same transaction size at the source") and most devices do not notice.
//!
//! As in v1, dirty pages are tracked by the container; the engine keeps no log. The whole data section is trapped.
//!
//! ```
//! use whimbrel_device::{Capability, DeviceFile};
//! use whimbrel_models::{Legacy, LegacyConfig};
//!
//! let device = DeviceFile::try_new("legacy", |bus| Legacy::new(LegacyConfig::default(), bus))?;
//! assert!(device.migration_flags().is_err(), "no migration v2");
//! let region = device.region_info(9)?;
//! assert_eq!(region.capabilities, [Capability::Type { region_type: 3, subtype: 1 }]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod record;

use std::borrow::Cow;

use whimbrel_device::{
    ArcError, AsyncDma, Bus, Compatibility, Context, Driver, Errno, Info, Irq, LowPower, Migration,
    MigrationFlags, Next, Region, State,
};
use whimbrel_protocol::region::{Backend, Layout, Vendor, Version};
use whimbrel_protocol::session::{Effect, effect};
use whimbrel_uapi::pci::VFIO_PCI_NUM_REGIONS;

use self::record::Records;
pub use self::record::{HEAD_BYTES, MAGIC};
use crate::accel::{Accel, AccelConfig, AccelConfigError};

/// Index of the migration region: the first one after those of every PCI device.
pub const MIGRATION_REGION_INDEX: u32 = VFIO_PCI_NUM_REGIONS;

/// The version of the migration data: of the records, and of the engine's stream in them.
const RECORDS_VERSION: u32 = 1;

/// The settings of a [`Legacy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LegacyConfig {
    /// Bytes of own state, like [`AccelConfig::state_bytes`].
    pub state_bytes: u64,
    /// Bytes of own state changed per second in the background while the device runs.
    pub state_rate: u64,
    /// Size of the region's data section in bytes, and of the longest record: [`LegacyConfig::MIN_SECTION`] to
    /// [`LegacyConfig::MAX_SECTION`].
    pub section_bytes: u64,
}

impl LegacyConfig {
    /// Minimum size of the data section, in bytes.
    pub const MIN_SECTION: u64 = 64;
    /// Maximum size of the data section, in bytes.
    pub const MAX_SECTION: u64 = 64 << 20;

    /// Sets [`LegacyConfig::state_bytes`].
    #[must_use]
    pub const fn state_bytes(mut self, state_bytes: u64) -> LegacyConfig {
        self.state_bytes = state_bytes;
        self
    }

    /// Sets [`LegacyConfig::state_rate`].
    #[must_use]
    pub const fn state_rate(mut self, state_rate: u64) -> LegacyConfig {
        self.state_rate = state_rate;
        self
    }

    /// Sets [`LegacyConfig::section_bytes`].
    #[must_use]
    pub const fn section_bytes(mut self, section_bytes: u64) -> LegacyConfig {
        self.section_bytes = section_bytes;
        self
    }

    /// Returns whether a data section of this size is valid.
    pub(crate) fn section_fits(bytes: u64) -> bool {
        (Self::MIN_SECTION..=Self::MAX_SECTION).contains(&bytes)
            && Layout::trapped(Version::V1, bytes).is_ok()
    }
}

impl Default for LegacyConfig {
    /// Returns 4 MiB of state, changed only by jobs, and a data section of 1 MiB. The state is small because the data
    /// section is trapped: all of it is transferred by reads and writes of 8 bytes.
    fn default() -> LegacyConfig {
        LegacyConfig { state_bytes: 4 << 20, state_rate: 0, section_bytes: 1 << 20 }
    }
}

/// Invalid settings of a legacy engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LegacyConfigError {
    /// The engine's settings are invalid.
    #[error(transparent)]
    Engine(#[from] AccelConfigError),
    /// The data section is too small or too large.
    #[error(
        "invalid data section of {0} bytes: expected {least} to {most} bytes",
        least = LegacyConfig::MIN_SECTION,
        most = LegacyConfig::MAX_SECTION
    )]
    Section(u64),
}

/// A DMA engine with v1 migration only.
#[derive(Debug)]
pub struct Legacy {
    engine: Accel,
    vendor: Vendor,
    records: Records,
}

impl Legacy {
    /// Returns an engine on `bus`, in its power-on state.
    pub fn new(config: LegacyConfig, bus: Bus) -> Result<Legacy, LegacyConfigError> {
        let LegacyConfig { state_bytes, state_rate, section_bytes } = config;
        let section = || LegacyConfigError::Section(section_bytes);
        if !LegacyConfig::section_fits(section_bytes) {
            return Err(section());
        }
        let flags = MigrationFlags::all();
        let engine = Accel::new(
            AccelConfig::default().state_bytes(state_bytes).state_rate(state_rate).flags(flags),
            bus,
        )?;
        let layout = Layout::trapped(Version::V1, section_bytes).map_err(|_| section())?;
        let memory = vec![0; layout.size() as usize];
        let vendor = Vendor::new(layout, flags, memory).map_err(|_| section())?;
        Ok(Legacy { engine, vendor, records: Records::default() })
    }

    /// The context for calls of the engine, which is in a state of its own.
    fn behind<'a>(&self, context: &'a Context) -> Cow<'a, Context> {
        context.with_state(self.vendor.state_behind())
    }

    fn with<T>(&mut self, context: &Context, access: impl FnOnce(&mut Vendor, &mut Behind<'_>) -> T) -> T {
        let context = self.behind(context).into_owned();
        let mut behind = Behind { engine: &mut self.engine, records: &mut self.records, context };
        access(&mut self.vendor, &mut behind)
    }
}

impl Driver for Legacy {
    fn info(&self) -> Info {
        self.engine.info().num_regions(MIGRATION_REGION_INDEX + 1)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        if index == MIGRATION_REGION_INDEX {
            Ok(self.vendor.layout().region())
        } else {
            self.engine.region(index)
        }
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        self.engine.irq(index)
    }

    fn read_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        if index != MIGRATION_REGION_INDEX {
            let context = self.behind(context);
            return self.engine.read_region(&context, index, offset, data);
        }
        let count = data.len();
        self.with(context, |vendor, behind| vendor.read(behind, offset, data)).map(|()| count)
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        if index != MIGRATION_REGION_INDEX {
            let context = self.behind(context);
            return self.engine.write_region(&context, index, offset, data);
        }
        self.with(context, |vendor, behind| vendor.write(behind, offset, data)).map(|()| data.len())
    }

    fn reset(&mut self, context: &Context) -> Result<(), Errno> {
        let behind = self.behind(context);
        self.engine.reset(&behind)?;
        self.vendor.reset();
        Ok(())
    }

    fn compatibility(&mut self) -> Option<Compatibility> {
        Some(Compatibility::new("legacy", RECORDS_VERSION).data(self.engine.settings_to_match()))
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        self.engine.low_power()
    }

    fn close_device(&mut self, context: &Context) {
        let context = self.behind(context);
        self.engine.close_device(&context);
    }

    fn advance(&mut self, context: &Context) -> Next {
        let context = self.behind(context);
        if !context.state().is_running() {
            return Next::Idle;
        }
        let next = self.engine.advance(&context);
        // Requests wait for it meanwhile: a write to the region may stop the engine.
        let Some(mut access) = self.engine.next_access(&context) else { return next };
        let result = context.bus().dma().make(&mut access);
        self.engine.access_done(&context, access, result);
        Next::Now
    }
}

/// The migration back end of one region access: the engine, its position in the records, and its state.
struct Behind<'a> {
    engine: &'a mut Accel,
    records: &'a mut Records,
    context: Context,
}

impl Backend for Behind<'_> {
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcError> {
        self.engine.arc(&self.context, from, to)?;
        if let Effect::Opens(_) = effect(from, to) {
            *self.records = Records::default();
        }
        self.context = self.context.with_state(to).into_owned();
        Ok(())
    }

    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.records.save(buffer, |state| self.engine.read(&self.context, state))
    }

    fn load(&mut self, transaction: &[u8]) -> Result<(), Errno> {
        let mut state = self.records.load(transaction)?;
        while !state.is_empty() {
            let taken = self.engine.write(&self.context, state)?;
            state = state.get(taken..).filter(|_| taken > 0).ok_or(Errno::EIO)?;
        }
        Ok(())
    }

    fn remaining(&mut self) -> Result<u64, Errno> {
        if self.context.state().is_precopy() {
            let bytes = self.engine.precopy(&self.context)?.bytes;
            return Ok(bytes.initial.saturating_add(bytes.dirty));
        }
        self.engine.data_size(&self.context)
    }
}
