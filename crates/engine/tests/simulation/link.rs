//! One direction of the connection: frames in order, with a bandwidth, a latency and a bounded buffer.

use std::collections::VecDeque;
use std::time::Duration;

use whimbrel_engine::proto::control::Control;
use whimbrel_engine::proto::join::Join;

use super::device::Block;

/// A frame.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Control(Control),
    Memory {
        page: usize,
        value: u32,
    },
    State {
        device: usize,
        block: usize,
        value: Block,
        bytes: u64,
    },
    Setup {
        device: usize,
        value: u32,
    },
    Blob {
        value: u32,
    },
    Padding,
    /// Memory or state that came out smaller.
    Compressed(Box<Frame>),
    /// The first frame of a lane.
    Join {
        lane: u32,
        join: Join,
    },
    Mark {
        lane: u32,
        number: u32,
    },
    /// The sender has closed its side.
    Fin,
}

/// Bytes of a frame beside its data.
pub(crate) const HEADER: u64 = 32;

/// A direction.
#[derive(Debug)]
pub(crate) struct Link {
    /// Frames that have not left yet, and their bytes.
    pub(crate) queue: VecDeque<(Frame, u64)>,
    pub(crate) queued: u64,
    buffer: u64,
    /// Bytes a second. 0: nothing moves.
    pub(crate) bandwidth: f64,
    pub(crate) latency: Duration,
    /// What is in flight counts only if it left with this number: a cut raises it.
    pub(crate) generation: u64,
    /// Whether the first frame is on its way out, and the number of that departure.
    pub(crate) departing: bool,
    pub(crate) departure: u64,
    /// Nothing arrives any more, and nobody says so.
    pub(crate) is_silent: bool,
    /// The connection is closed or broken, and the sender can know.
    pub(crate) is_closed: bool,
    /// Frames that have arrived at a side that does not receive yet.
    pub(crate) inbox: Vec<Frame>,
}

impl Link {
    pub(crate) fn new(bandwidth: f64, latency: Duration, buffer: u64) -> Link {
        Link {
            queue: VecDeque::new(),
            queued: 0,
            buffer,
            bandwidth,
            latency,
            generation: 0,
            departing: false,
            departure: 0,
            is_silent: false,
            is_closed: false,
            inbox: Vec::new(),
        }
    }

    /// Whether the buffer takes a frame.
    pub(crate) fn has_room(&self) -> bool {
        self.queued < self.buffer
    }

    pub(crate) fn push(&mut self, frame: Frame, bytes: u64) {
        self.queue.push_back((frame, bytes));
        self.queued += bytes;
    }

    /// Sets another bandwidth, also for the frame that is on its way out.
    pub(crate) fn set_bandwidth(&mut self, bandwidth: f64) {
        self.bandwidth = bandwidth;
        self.departing = false;
        self.departure += 1;
    }

    /// How long the first frame takes to leave.
    pub(crate) fn leaving_takes(&self) -> Option<Duration> {
        let (_, bytes) = self.queue.front()?;
        (self.bandwidth > 0.0 && !self.is_silent)
            .then(|| Duration::from_secs_f64(*bytes as f64 / self.bandwidth) + Duration::from_nanos(1))
    }

    pub(crate) fn pop(&mut self) -> Option<Frame> {
        let (frame, bytes) = self.queue.pop_front()?;
        self.queued -= bytes;
        Some(frame)
    }

    /// Breaks, for good.
    pub(crate) fn break_off(&mut self, silent: bool) {
        self.cut();
        if silent {
            self.is_silent = true;
        } else {
            self.is_closed = true;
        }
    }

    /// Loses everything that is under way.
    fn cut(&mut self) {
        self.queue.clear();
        self.queued = 0;
        self.generation += 1;
        self.departing = false;
        self.departure += 1;
    }
}
