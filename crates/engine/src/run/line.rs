//! The threads that receive from the connections of a side: that of the control connection, and at the destination those of its
//! lanes.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::channel::{Interrupt, Receiver, Sender};

/// The receiver of a side, on a thread of its own, which is replaced with the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Mutex<Option<Reception>>>);

#[derive(Debug)]
struct Reception {
    stop: Interrupt,
    /// Gives the receiver back once its thread has ended.
    back: mpsc::Receiver<Receiver>,
}

impl Line {
    /// Receives on a new thread until it is stopped. `work` returns the receiver then.
    pub(super) fn start(
        &self,
        name: &str,
        work: impl FnOnce(&Interrupt) -> Receiver + Send + 'static,
    ) -> io::Result<()> {
        let stop = Interrupt::new()?;
        let (back, returned) = mpsc::sync_channel(1);
        let stopped = stop.clone();
        std::thread::Builder::new().name(name.into()).spawn(move || {
            // After a successful migration it has no receiver.
            let _ = back.send(work(&stopped));
        })?;
        *self.0.lock() = Some(Reception { stop, back: returned });
        Ok(())
    }

    /// Stops the thread, without a wait.
    pub(super) fn stop(&self) {
        if let Some(reception) = &*self.0.lock() {
            reception.stop.set();
        }
    }

    /// Stops the thread, and waits until it has ended: what it has received are events by then.
    pub(super) fn end(&self) {
        self.stop();
        let reception = self.0.lock().take();
        if let Some(reception) = reception {
            // A thread that has ended otherwise gives nothing back.
            let _ = reception.back.recv();
        }
    }

    /// Returns the receiver once its thread has ended; `None` without a thread, or if it has not ended within `timeout`.
    pub(super) fn receiver(&self, timeout: Duration) -> Option<Receiver> {
        let reception = self.0.lock().take()?;
        reception.back.recv_timeout(timeout).ok()
    }
}

/// The lanes that have joined at the destination. Their connections stay open until they are ended or dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Lanes(Arc<Mutex<Vec<(Line, Sender)>>>);

impl Lanes {
    /// Adds a lane, from which a thread receives.
    pub(super) fn add(&self, line: Line, sender: Sender) {
        self.0.lock().push((line, sender));
    }

    /// Stops the threads, without a wait.
    pub(super) fn stop(&self) {
        self.0.lock().iter().for_each(|(line, _)| line.stop());
    }

    /// Stops the threads, waits until they have ended, and closes the connections. Returns whether all have ended by the deadline.
    pub(super) fn end_by(&self, deadline: Instant) -> bool {
        self.stop();
        let lanes = std::mem::take(&mut *self.0.lock());
        let ended = |line: &Line| line.receiver(deadline.saturating_duration_since(Instant::now())).is_some();
        lanes.iter().filter(|(line, _)| !ended(line)).count() == 0
    }

    /// Stops the threads, waits until they have ended, and closes the connections: what they have received are events by then.
    pub(super) fn end(&self) {
        self.stop();
        let lanes = std::mem::take(&mut *self.0.lock());
        for (line, _) in &lanes {
            line.end();
        }
    }
}
