//! The lanes at the destination: each connection that joins gets a thread that receives from it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::hands::{spawn, tell};
use super::line::Back;
use super::receiver::{Inbound, Shared};
use crate::channel::{Further, Joins, Until};
use crate::error::Error;
use crate::proto::control::Control;
use crate::proto::join::{Expected, Purpose};
use crate::proto::operation::Event;

/// The senders and receivers of lanes, whose connections stay open until the migration has ended.
pub(super) type Connections = Arc<Mutex<Vec<Box<dyn Send>>>>;

/// The way of the lanes into a migration.
pub(super) struct Door {
    joins: Joins,
    /// The identity of the source on the control connection.
    identity: Option<Vec<u8>>,
    shared: Shared,
    connections: Connections,
    /// The connection on which the source has come back last.
    back: Arc<Mutex<Option<Back>>>,
}

impl Door {
    pub(super) fn new(
        joins: Joins,
        identity: Option<Vec<u8>>,
        shared: Shared,
        back: Arc<Mutex<Option<Back>>>,
    ) -> Door {
        Door { joins, identity, shared, connections: Connections::default(), back }
    }

    /// Lets the expected lanes in, and a source that comes back on another connection.
    pub(super) fn open(&self, expected: Expected) {
        let (shared, connections, back) = (self.shared.clone(), self.connections.clone(), self.back.clone());
        self.joins.open(expected, self.identity.clone(), move |further| match further.purpose {
            Purpose::Lane(lane) => {
                if let Err(error) = begin(further, lane, &shared, &connections) {
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

    /// Refuses all from here on, and returns the connections that have joined.
    pub(super) fn close(self) -> Connections {
        self.joins.close();
        drop(self.back.lock().take());
        self.connections
    }
}

/// Answers a lane, and receives from it.
fn begin(further: Further, lane: u32, shared: &Shared, connections: &Connections) -> Result<(), Error> {
    let Further { mut sender, receiver, .. } = further;
    // It is new, and has room for that.
    sender
        .send_now(&Control::Joined.into(), Until::now())
        .map_err(|error| Error::of_channel(shared.peer, shared.timeout, error))?;
    connections.lock().push(Box::new(sender));
    let inbound = Inbound { lane, receiver, stop: shared.stop.clone(), shared: shared.clone() };
    let connections = connections.clone();
    spawn(&format!("lane {lane}"), move || {
        let receiver = inbound.receive();
        connections.lock().push(Box::new(receiver));
    })
    .map_err(Error::Thread)
}
