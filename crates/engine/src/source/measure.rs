//! How long the device would stand still if it were stopped now. The decision is the caller's.

use std::time::Duration;

use whimbrel_protocol::estimate::{self, Remaining};

use super::Sending;
use crate::dirty::Dirty;
use crate::error::Error;
use crate::stream::{CHUNK, Message};

/// Less than this says nothing about how fast a link is: the time is that of the round trip.
const LEAST_TO_MEASURE: u64 = 1 << 20;
/// As much is sent as padding where nothing else can show how fast the link is.
const MOST_PADDING: u64 = 4 << 20;
/// So little is there in no time over any link: no measure is needed for it.
const NEEDS_NO_MEASURE: u64 = 64 << 10;

/// A pass over all memory.
#[derive(Clone, Copy)]
pub(super) struct FullPass {
    /// Bytes of memory.
    pub(super) memory: u64,
    /// Bytes that crossed the wire for them: fewer where much of it is zero.
    pub(super) wire: u64,
    pub(super) scanning: Duration,
}

impl Sending<'_> {
    /// A device that gives much once it has stopped but little before leaves nothing to measure the link by: then
    /// padding is sent, once. Without it the estimate would be that of the round trip, and far too long.
    pub(super) fn measure_link(&mut self, carried: u64) -> Result<(), Error> {
        if std::mem::replace(&mut self.measured, true) || carried >= LEAST_TO_MEASURE {
            return Ok(());
        }
        let mut left = match self.source.device.data_size() {
            Ok(size) if size > NEEDS_NO_MEASURE => size.min(MOST_PADDING),
            _ => return Ok(()),
        };
        let padding = vec![0; CHUNK];
        while left > 0 {
            let count = left.min(CHUNK as u64);
            self.send(&Message::Padding { data: &padding[..count as usize] })?;
            left -= count;
        }
        Ok(())
    }

    pub(super) fn expected_downtime(&self, mut remaining: Remaining) -> Option<Duration> {
        // Three round trips are fixed: the last data with READY, and HANDOVER with RUNNING, and the arcs' own cost.
        let mut fixed = self.quickest_answer.saturating_mul(3);
        let unlogged = self.dirty.as_ref().is_some_and(Dirty::is_unlogged);
        if let Some(pass) = self.full_pass.filter(|_| unlogged) {
            let wire = u128::from(remaining.memory) * u128::from(pass.wire) / u128::from(pass.memory);
            remaining.memory = u64::try_from(wire).unwrap_or(u64::MAX);
            fixed = fixed.saturating_add(pass.scanning);
        }
        estimate::downtime(remaining, self.bandwidth, fixed)
    }

    /// What stopping now would leave to carry.
    pub(super) fn remaining(&mut self) -> Result<Remaining, Error> {
        if let Some(dirty) = &mut self.dirty {
            dirty.collect(self.source.device, &mut *self.source.cpu_log, false)?;
        }
        let precopy_left = match self.data {
            Some(_) => Some(self.refresh_precopy()?),
            None => None,
        };
        // Kernels before 6.2 do not have the feature; what pre-copy still holds is the next best figure.
        let device = match (self.source.device.data_size(), precopy_left) {
            (Ok(size), _) => size,
            (Err(_), Some(left)) => left,
            (Err(error), None) => return Err(error.into()),
        };
        Ok(Remaining::new(self.dirty.as_ref().map_or(0, Dirty::bytes_left), device))
    }

    pub(super) fn refresh_precopy(&mut self) -> Result<u64, Error> {
        if let Some(data) = &mut self.data {
            let report = data.precopy_info()?;
            self.precopy.report(report.bytes, report.reinit);
        }
        Ok(self.precopy.remaining().total())
    }
}
