//! The lanes at the source: how further connections are opened, and work that is spread over all of them.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::joining;
use super::transfer::Transfer;
use super::worker::Turn;
use crate::channel::{Connect, Received, Sender, Until, WaitError};
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::control::Control;
use crate::proto::join::Join;
use crate::proto::message::Message;
use crate::proto::operation::Sent;

/// The pause between two attempts to open a lane.
const PAUSE: Duration = Duration::from_millis(250);
/// The longest attempt: see [`Operation::Reconnect`](crate::proto::operation::Operation::Reconnect).
const ATTEMPT: Duration = Duration::from_secs(5);

/// Opens the lanes from 1 on with these first frames, all within `limit`. One that is refused for now, or not at all, is tried
/// again.
pub(super) fn open_lanes(
    connector: &mut dyn Connect,
    transfer: &Transfer,
    joins: &[Join],
    limit: Duration,
    turn: &Turn<'_>,
) -> Result<(), Error> {
    let senders = transfer.with_interrupt(turn, |interrupt, _| {
        let until = Until::new(Instant::now() + limit, interrupt);
        let lanes = (1..).zip(joins).map(|(lane, join)| {
            open(connector, join, until).map_err(|error| match error {
                Error::Interrupted => Error::Interrupted,
                error => Error::Lane { lane, error: Box::new(error) },
            })
        });
        lanes.collect()
    })?;
    transfer.set_lanes(senders, turn)
}

/// Opens a connection, which belongs to the migration once this returns.
fn open(connector: &mut dyn Connect, join: &Join, until: Until<'_>) -> Result<Sender, Error> {
    let mut last = None;
    loop {
        let timeout = ATTEMPT.min(until.left().unwrap_or(ATTEMPT));
        let attempt = until.at_most(Instant::now() + timeout);
        let error = match try_to_open(connector, join, timeout, attempt) {
            Err(error) if error.is_passing() => error,
            ended => return ended,
        };
        tracing::debug!(purpose = ?join.purpose, %error, "a connection could not be opened yet");
        if until.check().is_err() {
            // The last attempt had less time than the others: they tell why.
            return Err(last.unwrap_or(error));
        }
        if let WaitError::Interrupted = until.at_most(Instant::now() + PAUSE).sleep() {
            return Err(Error::Interrupted);
        }
        last = Some(error);
    }
}

fn try_to_open(
    connector: &mut dyn Connect,
    join: &Join,
    timeout: Duration,
    until: Until<'_>,
) -> Result<Sender, Error> {
    let (sender, mut receiver) = joining::join(connector, join.clone(), timeout, until)?;
    let answer = receiver.next(until);
    match answer.map_err(|error| Error::of_channel(DESTINATION, timeout, error))? {
        Received::Message(Message::Control(Control::Joined)) => Ok(sender),
        Received::Message(Message::Control(Control::Failed(reason))) => {
            Err(Error::Peer { side: DESTINATION, reason: reason.reason })
        }
        Received::Message(other) => {
            Err(Error::Protocol(format!("unexpected {} in answer to JOIN", other.kind())))
        }
        Received::Memory(_) => Err(Error::Protocol("unexpected MEMORY in answer to JOIN".into())),
    }
}

/// Runs the work of each lane on a thread of its own, and adds up what they have sent. A lane that fails ends the others.
pub(super) fn each_lane(lanes: u32, work: impl Fn(u32) -> Result<Sent, Error> + Sync) -> Result<Sent, Error> {
    let (ended, results) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut here = vec![0];
        for lane in 1..lanes {
            let (work, ended) = (&work, ended.clone());
            let spawned =
                std::thread::Builder::new().name(format!("lane {lane}")).spawn_scoped(scope, move || {
                    // The receiver outlives the threads.
                    let _ = ended.send(work(lane));
                });
            // Without a thread the migration is slower, but still correct.
            if spawned.is_err() {
                here.push(lane);
            }
        }
        for lane in here {
            let _ = ended.send(work(lane));
        }
    });
    drop(ended);
    let mut sum = Sent::default();
    let mut failed = None;
    for result in results {
        match result {
            Ok(sent) => {
                sum.bytes += sent.bytes;
                sum.zero += sent.zero;
                sum.wire += sent.wire;
                // The lanes look for zeros at the same time.
                sum.scanning += sent.scanning / lanes;
            }
            // The first one is the reason of the others.
            Err(error) => {
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(sum), Err)
}
