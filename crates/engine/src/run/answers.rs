//! The reception of the destination's answers, at the source.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use parking_lot::Mutex;

use super::hands::tell;
use super::inbox::Inbox;
use super::line::Line;
use super::replace::{Redial, Replace};
use super::transfer::Transfer;
use crate::channel::{ChannelError, Interrupt, Received, Receiver, Until};
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::control::Control;
use crate::proto::message::Message;
use crate::proto::operation::Event;

/// The reception of the destination's answers, on the first connection and on those that replace it.
#[derive(Clone)]
pub(super) struct Answers {
    pub(super) transfer: Arc<Transfer>,
    pub(super) line: Line,
    pub(super) inbox: Arc<Inbox>,
    /// The recipient of the answers, once it exists.
    pub(super) events: Arc<Mutex<Option<Sender<Event>>>>,
}

impl Answers {
    pub(super) fn receive(&self, mut receiver: Receiver) -> io::Result<()> {
        let (transfer, inbox, events) =
            (self.transfer.clone(), self.inbox.clone(), self.events.lock().clone());
        self.line.start("answers", move |stop| {
            if let Some(events) = events {
                receive_answers(&mut receiver, stop, &events, &inbox, &transfer);
            }
            receiver
        })
    }

    /// Returns the replacement of a lost connection.
    pub(super) fn replacing(&self) -> Box<dyn Replace> {
        let answers = self.clone();
        let listen = Box::new(move |receiver| answers.receive(receiver));
        Box::new(Redial { line: self.line.clone(), listen, next: None })
    }
}

/// Receives the destination's answers until it is stopped or the connection ends.
fn receive_answers(
    receiver: &mut Receiver,
    stop: &Interrupt,
    events: &Sender<Event>,
    inbox: &Inbox,
    transfer: &Transfer,
) {
    let (peer, timeout) = (DESTINATION, transfer.timeout());
    loop {
        inbox.wait();
        let error = match receiver.next(Until::interrupted(stop)) {
            Ok(Received::Message(Message::Control(Control::StateTaken { device, bytes })))
                if transfer.copies().are_kept() =>
            {
                match transfer.copies().taken(device, bytes) {
                    Ok(()) => continue,
                    Err(misplaced) => Error::Protocol(misplaced.to_string()),
                }
            }
            Ok(Received::Message(Message::Control(control))) => {
                if inbox.tell(events, control) {
                    continue;
                }
                return;
            }
            Ok(Received::Message(other)) => {
                Error::Protocol(format!("unexpected {} from the {peer}", other.kind()))
            }
            Ok(Received::Memory(_)) => Error::Protocol(format!("unexpected MEMORY from the {peer}")),
            // It is stopped: the connection is over for this side.
            Err(ChannelError::Interrupted) => return,
            Err(error) => Error::of_channel(peer, timeout, error),
        };
        tell(events, Event::Lost(error));
        return;
    }
}
