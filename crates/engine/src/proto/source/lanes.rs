//! The further connections of a migration: opened once both sides fit, and again beside each control connection that replaces a
//! lost one; held together by marks.

use std::time::Duration;

use super::{Phase, Source};
use crate::proto::join::{Join, Purpose, Secret};
use crate::proto::negotiate::Accept;
use crate::proto::operation::{Operation, Place};

/// The longest time for all lanes to join.
const PATIENCE: Duration = Duration::from_secs(30);

/// The connections in use.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// The number of connections and the secret that the destination gave, if there is more than one.
    further: Option<(u32, Secret)>,
    /// The number of the last mark.
    marks: u32,
}

impl Source {
    /// Returns the number of connections in use, the control connection included.
    pub fn channels(&self) -> u32 {
        self.lanes.further.map_or(1, |(channels, _)| channels)
    }

    /// Takes in the number of connections that the destination allows.
    pub(super) fn accepted(&mut self, accept: Accept) {
        let channels = accept.channels.filter(|channels| *channels > 1);
        self.lanes.further = channels.zip(accept.secret);
        let wanted = self.plan.offer.channels.unwrap_or(1);
        if self.channels() < wanted {
            let allowed = self.channels();
            self.warn(format!("the destination allows {allowed} of {wanted} connections"));
        }
    }

    /// Opens the lanes beside the present control connection.
    pub(super) fn open_lanes(&mut self) {
        debug_assert_eq!(self.phase, Phase::Lanes);
        self.lanes.marks = 0;
        let Some((channels, secret)) = self.lanes.further else { return };
        let migration = self.plan.offer.id().unwrap_or_default();
        let resumption = self.attempts_to_resume();
        let join = |lane| Join::new(migration, secret, Purpose::Lane { lane, resumption });
        // A little less than this phase may take, so that the reason is known when its time is over.
        let left = self.deadline.unwrap_or(self.now).saturating_sub(self.now);
        let timeout = PATIENCE.min(left / 8 * 7);
        let open = Operation::OpenLanes { joins: (1..channels).map(join).collect(), timeout };
        self.pending.start(Place::Stream, open);
    }

    /// Marks on every other lane what precedes the next message of the control connection.
    pub(super) fn mark_lanes(&mut self) {
        if self.channels() > 1 {
            self.lanes.marks += 1;
            self.pending.start(Place::Stream, Operation::MarkLanes(self.lanes.marks));
        }
    }
}
