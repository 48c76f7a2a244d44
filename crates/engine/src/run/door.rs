//! The lanes at the destination: each connection that joins gets a thread that receives from it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::hands::tell;
use super::line::{Lanes, Line};
use super::receiver::{Inbound, Shared};
use super::replace::Back;
use crate::channel::{Further, Joins, Until};
use crate::error::Error;
use crate::proto::control::Control;
use crate::proto::join::{Expected, Purpose};
use crate::proto::operation::Event;

/// The way of the lanes into a migration.
pub(super) struct Door {
    pub(super) joins: Joins,
    /// The identity of the source on the control connection.
    pub(super) identity: Option<Vec<u8>>,
    pub(super) shared: Shared,
    pub(super) lanes: Lanes,
    /// The connection on which the source has come back last.
    pub(super) back: Arc<Mutex<Option<Back>>>,
}

impl Door {
    /// Lets the expected lanes in, and a source that comes back on another connection.
    pub(super) fn open(&self, expected: Expected) {
        let (shared, lanes, back) = (self.shared.clone(), self.lanes.clone(), self.back.clone());
        self.joins.open(expected, self.identity.clone(), move |further| match further.purpose {
            Purpose::Lane { lane, .. } => {
                if let Err(error) = begin(further, lane, &shared, &lanes) {
                    tell(&shared.events, Event::Lost(error));
                }
            }
            Purpose::Resumption(number) => {
                let Further { sender, receiver, .. } = further;
                *back.lock() = Some(Back { number, sender, receiver });
                tell(&shared.events, Event::Resumption(number));
            }
        });
    }

    /// Refuses all from here on, and returns the lanes that have joined.
    pub(super) fn close(self) -> Lanes {
        self.joins.close();
        drop(self.back.lock().take());
        self.lanes
    }
}

/// Answers a lane, and receives from it.
fn begin(further: Further, lane: u32, shared: &Shared, lanes: &Lanes) -> Result<(), Error> {
    let Further { mut sender, receiver, .. } = further;
    // It is new, and has room for that.
    sender
        .send_now(&Control::Joined.into(), Until::now())
        .map_err(|error| Error::of_channel(shared.peer, shared.timeout, error))?;
    let reception = Line::default();
    let shared = shared.clone();
    reception
        .start(&format!("lane {lane}"), move |stop| {
            Inbound { lane, receiver, stop: stop.clone(), shared }.receive()
        })
        .map_err(Error::Thread)?;
    lanes.add(reception, sender);
    Ok(())
}
