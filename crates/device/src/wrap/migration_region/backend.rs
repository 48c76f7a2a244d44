//! A driver as the back end of the region's rules.

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::region::Backend;
use whimbrel_protocol::{Errno, State};

use super::dirty::DirtyPages;
use crate::driver::{Context, Driver, Migration};

/// The device behind a region, for one access.
pub(super) struct Behind<'a> {
    pub(super) driver: &'a mut dyn Driver,
    /// The context for its calls, with the state that it is in behind the region.
    pub(super) context: Context,
    /// The draft's dirty pages; `None` in a v1 region.
    pub(super) dirty: Option<&'a mut DirtyPages>,
}

impl Behind<'_> {
    fn migration(&mut self) -> Result<(&mut dyn Migration, &mut Context), Errno> {
        Ok((self.driver.migration().ok_or(Errno::ENOTTY)?, &mut self.context))
    }
}

impl Backend for Behind<'_> {
    fn arc(&mut self, from: State, to: State) -> Result<(), ArcError> {
        let (migration, context) = self.migration().map_err(ArcError::Stays)?;
        match migration.arc(context, from, to) {
            Ok(()) => {
                let arrived = migration.arrived(to);
                if arrived != to {
                    // The region has no other word for it.
                    tracing::debug!(%from, %to, %arrived, "arc ended in another state, through a migration region");
                    return Err(ArcError::Broken(Errno::EIO));
                }
                tracing::trace!(%from, %to, "arc, through a migration region");
                context.set_state(to);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(%from, %to, %error, "arc failed, through a migration region");
                Err(error)
            }
        }
    }

    /// Fills a whole transaction as far as data is available: each transaction costs the user a round of accesses.
    fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (migration, context) = self.migration()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match migration.read(context, &mut buffer[filled..]) {
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
        let (migration, context) = self.migration()?;
        let mut rest = transaction;
        while !rest.is_empty() {
            match migration.write(context, rest)? {
                0 => return Err(Errno::EIO),
                count => rest = rest.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    fn remaining(&mut self) -> Result<u64, Errno> {
        let (migration, context) = self.migration()?;
        if context.state().is_precopy() {
            let bytes = migration.precopy(context)?.bytes;
            return Ok(bytes.initial.saturating_add(bytes.dirty));
        }
        migration.data_size(context)
    }

    fn track_dirty(&mut self, on: bool) -> Result<(), Errno> {
        if let Some(dirty) = &mut self.dirty {
            if on { dirty.start(self.driver, &self.context) } else { dirty.stop(self.driver, &self.context) }
        }
        Ok(())
    }

    fn report_dirty(&mut self, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        match &self.dirty {
            Some(dirty) => dirty.report(self.driver, &self.context, report),
            None => Err(Errno::EINVAL),
        }
    }
}
