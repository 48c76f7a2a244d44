//! A destination whose source sends whatever it likes over several connections: the input of `destination`, in pieces of which
//! each is of one connection.

use std::sync::Arc;
use std::time::Duration;

use whimbrel_engine::channel::{Received, Receiver, Until};
use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::destination::{Destination, Taken};
use whimbrel_engine::proto::join::{Expected, Purpose, Secret};
use whimbrel_engine::proto::lanes::STRIPE;
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::proto::operation::{Command, Event};
use whimbrel_engine::{Error, RamRegion};

use super::destination::{Memory, Side};
use super::stream::{Bytes, sealed};

/// The connections of an input.
pub(crate) const CHANNELS: usize = 3;
/// The secret that the destination gives.
pub(crate) const SECRET: Secret = Secret::new([0x5e; 32]);
/// The memory of both sides: a little of it for each lane.
pub(crate) const MEMORY: [RamRegion; 3] =
    [RamRegion::new(0, 64), RamRegion::new(STRIPE, 100), RamRegion::new(2 * STRIPE + 0x1000, 64)];

/// Lets a source send these streams, and those with the same frames whose checksums are right.
pub(crate) fn run(input: &[u8]) {
    let (streams, order) = streams(input);
    let right = streams.each_ref().map(|stream| sealed(stream));
    let _ = receive(streams, &order);
    let _ = receive(right, &order);
}

/// Takes an input apart: pieces with a number of a connection, a length of two bytes, and the bytes. Returns the bytes of each
/// connection, and the numbers in the order of the pieces, in which they are read. If the first is a lane, lanes are read as far
/// as they may be before the control connection.
pub(crate) fn streams(input: &[u8]) -> ([Vec<u8>; CHANNELS], Vec<usize>) {
    let (mut streams, mut order) = (<[Vec<u8>; CHANNELS]>::default(), Vec::new());
    let mut rest = input;
    while let [channel, low, high, behind @ ..] = rest {
        let channel = usize::from(*channel) % CHANNELS;
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(behind.len());
        streams[channel].extend_from_slice(&behind[..length]);
        order.push(channel);
        rest = &behind[length..];
    }
    (streams, order)
}

/// Returns the input of these streams, piece by piece in turn. Lanes come first, so that all have reached their marks when a
/// message of the control connection needs that: a source waits for the answer then.
pub(crate) fn input(streams: &[Vec<u8>; CHANNELS]) -> Vec<u8> {
    let mut input = Vec::new();
    for round in 0..streams.iter().map(|stream| stream.len().div_ceil(PIECE)).max().unwrap_or_default() {
        for (channel, stream) in streams.iter().enumerate().rev() {
            if let Some(piece) = stream.chunks(PIECE).nth(round) {
                input.push(channel as u8);
                input.extend_from_slice(&(piece.len() as u16).to_le_bytes());
                input.extend_from_slice(piece);
            }
        }
    }
    input
}

/// As [`input`], after empty pieces in this order.
pub(crate) fn input_in(streams: &[Vec<u8>; CHANNELS], order: &[usize]) -> Vec<u8> {
    let empty = order.iter().flat_map(|channel| [*channel as u8, 0, 0]);
    empty.chain(input(streams)).collect()
}

const PIECE: usize = 200;

/// A connection.
struct Lane {
    receiver: Receiver,
    /// Its number, once it has joined.
    number: Option<u32>,
    is_over: bool,
}

/// Receives from a source that sends these streams and then closes its connections. Checks what holds whatever it sends.
pub(crate) fn receive(streams: [Vec<u8>; CHANNELS], order: &[usize]) -> Result<Taken, Error> {
    let memory = Memory::new(&MEMORY);
    let mut side = Side::new(&memory);
    let mut lanes = streams.map(|stream| Lane {
        receiver: Receiver::new(Arc::new(Bytes::new(stream))),
        number: None,
        is_over: false,
    });
    lanes[0].number = Some(0);
    let mut expected: Option<Expected> = None;
    let mut machine = Destination::new(Side::site(&MEMORY, Some(SECRET)), Duration::ZERO);
    let mut now = Duration::ZERO;
    let (mut left, mut turn) = (20_000, 0);
    let result = loop {
        left -= 1;
        assert!(left > 0, "it does not end: {machine:?}");
        now += Duration::from_millis(1);
        match machine.poll() {
            Some(Command::Start { id, place, operation }) => {
                if matches!(operation, whimbrel_engine::proto::operation::Operation::Send(Control::Fits(_))) {
                    expected = machine.joins();
                }
                let result = side.execute(place, operation, &machine);
                machine.input(Event::Done { id, result }, now);
            }
            Some(Command::Interrupt) => {}
            Some(Command::Finish) => break machine.result().expect("a result at the end"),
            None => {
                // The lanes that may be read, from the next one in the input's order on.
                turn += 1;
                let first = match order.first() {
                    Some(1..) => 1,
                    _ => order.get(turn % order.len().max(1)).copied().unwrap_or_default(),
                };
                let may_read = |channel: &usize| {
                    let lane = &lanes[*channel];
                    let is_held = lane.number.is_some_and(|number| side.intake.is_held(number));
                    !side.is_lost && !lane.is_over && !is_held && (*channel == 0 || expected.is_some())
                };
                let next = (0..CHANNELS).map(|at| (first + at) % CHANNELS).find(may_read);
                let Some(channel) = next else {
                    // Nothing comes any more: the source is silent, or gone.
                    side.is_lost = true;
                    let silent = Error::Silent { side: "source", waited: Duration::ZERO };
                    match machine.deadline() {
                        Some(deadline) => {
                            now = now.max(deadline);
                            machine.input(Event::Tick, now);
                        }
                        None => machine.input(Event::Lost(silent), now),
                    }
                    continue;
                };
                match read(&mut lanes[channel], &mut side, expected.as_mut()) {
                    Ok(controls) => {
                        for control in controls {
                            machine.input(Event::Received(control), now);
                        }
                    }
                    Err(error) => {
                        // A lost lane is a lost connection.
                        side.is_lost |= channel == 0 || matches!(error, Error::Lost { .. });
                        lanes[channel].is_over = true;
                        machine.input(Event::Lost(error), now);
                    }
                }
            }
        }
    };
    side.assert_sane(&result);
    result
}

/// Reads a frame of a connection.
fn read(
    lane: &mut Lane,
    side: &mut Side<'_>,
    expected: Option<&mut Expected>,
) -> Result<Vec<Control>, Error> {
    if let Some(number) = lane.number {
        let read = side.next(number, &mut lane.receiver);
        // A lane may end after its last mark.
        if matches!(read, Err(Error::Lost { .. })) && number > 0 && side.intake.is_over() {
            lane.is_over = true;
            return Ok(Vec::new());
        }
        return read;
    }
    // Whoever is refused is no part of the migration.
    lane.is_over = true;
    if let Ok(Received::Message(Message::Control(Control::Join(join)))) =
        lane.receiver.next(Until::timeout(Duration::from_mins(1)))
        && expected.is_some_and(|expected| expected.admit(&join).is_ok())
        && let Purpose::Lane { lane: number, .. } = join.purpose
    {
        (lane.number, lane.is_over) = (Some(number), false);
    }
    Ok(Vec::new())
}
