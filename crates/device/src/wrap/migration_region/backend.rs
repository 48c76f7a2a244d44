//! A driver as the back end of the region's rules.

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::region::{ArcFailure, Backend};
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::dirty::DirtyPages;
use crate::bus::Bus;
use crate::driver::{Driver, Migration};

/// The device behind a region, for one access.
pub(super) struct Behind<'a> {
    pub(super) driver: &'a mut dyn Driver,
    pub(super) bus: &'a Bus,
    /// The features of its migration half.
    pub(super) flags: MigrationFlags,
    /// The state it is in.
    pub(super) state: State,
    /// The draft's dirty pages; `None` in a v1 region.
    pub(super) dirty: Option<&'a mut DirtyPages>,
}

impl Behind<'_> {
    fn migration(&mut self) -> Result<&mut dyn Migration, Errno> {
        self.driver.migration().ok_or(Errno::ENOTTY)
    }
}

impl Backend for Behind<'_> {
    fn flags(&self) -> MigrationFlags {
        self.flags
    }

    fn arc(&mut self, from: State, to: State) -> Result<(), ArcFailure> {
        let done = self.migration().map_err(ArcFailure::Stays)?.arc(from, to);
        match done {
            Ok(()) => {
                tracing::trace!(%from, %to, "arc, through a migration region");
                self.state = to;
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%from, %to, %error, "arc failed, through a migration region");
                Err(match error {
                    ArcError::Stays(errno) => ArcFailure::Stays(errno),
                    ArcError::Broken(errno) => ArcFailure::Broken(errno),
                })
            }
        }
    }

    /// Fills a whole transaction as far as data is available: each transaction costs the user a round of accesses.
    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let migration = self.migration()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match migration.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled = (filled + count).min(buffer.len()),
                // What was read before it must not be lost; it comes again with the next read.
                Err(_) if filled > 0 => break,
                Err(errno) => return Err(errno),
            }
        }
        Ok(filled)
    }

    fn load(&mut self, transaction: &[u8]) -> Result<(), Errno> {
        let migration = self.migration()?;
        let mut rest = transaction;
        while !rest.is_empty() {
            match migration.write(rest)? {
                0 => return Err(Errno::EIO),
                count => rest = rest.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn remaining(&mut self) -> Result<u64, Errno> {
        let state = self.state;
        let migration = self.migration()?;
        if state.is_precopy() {
            let bytes = migration.precopy()?.bytes;
            return Ok(bytes.initial.saturating_add(bytes.dirty));
        }
        migration.data_size()
    }

    fn track_dirty(&mut self, on: bool) -> Result<(), Errno> {
        if let Some(dirty) = &mut self.dirty {
            if on { dirty.start(self.driver, self.bus) } else { dirty.stop(self.driver) }
        }
        Ok(())
    }

    fn report_dirty(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        match &self.dirty {
            Some(dirty) => dirty.report(self.driver, report),
            None => Err(Errno::EINVAL),
        }
    }
}
