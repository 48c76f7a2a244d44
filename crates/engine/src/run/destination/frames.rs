//! The frames of the source on its first connection, and on those that replace it.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::channel::Receiver;
use crate::run::line::Line;
use crate::run::receiver::{Inbound, Shared};

/// The reception of the source's frames, on the first connection and on those that replace it.
#[derive(Clone, Default)]
pub(super) struct Frames {
    pub(super) line: Line,
    /// The parts that the receivers of all connections need, while the migration is in progress.
    pub(super) shared: Arc<Mutex<Option<Shared>>>,
}

impl Frames {
    pub(super) fn receive(&self, receiver: Receiver) -> io::Result<()> {
        let shared = self.shared.lock().clone();
        self.line.start("receiver", move |stop| match shared {
            Some(shared) => Inbound { lane: 0, receiver, stop: stop.clone(), shared }.receive(),
            None => receiver,
        })
    }

    pub(super) fn listen(&self) -> Box<dyn FnMut(Receiver) -> io::Result<()> + Send> {
        let frames = self.clone();
        Box::new(move |receiver| frames.receive(receiver))
    }

    /// Receives nothing more. The threads of the devices end once nobody can give them state any more.
    pub(super) fn stop(&self) {
        drop(self.shared.lock().take());
        self.line.stop();
    }
}
