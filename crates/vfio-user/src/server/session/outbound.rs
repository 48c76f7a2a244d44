//! The sending half of a channel: messages that wait for room in the socket. This module does not interpret them.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::message::{MessageBuffer, Request};
use crate::socket::Sender;

/// The sending half of a channel.
#[derive(Debug)]
pub(super) struct Outbound {
    sender: Sender,
    /// The last request, kept for its memory.
    request: MessageBuffer,
    /// Messages to send before any other.
    unsent: VecDeque<Unsent>,
    /// True to send messages only as far as there is room, and keep the rest.
    never_waits: bool,
}

/// One or more messages, possibly sent in part.
#[derive(Debug)]
struct Unsent {
    bytes: Vec<u8>,
    sent: usize,
    /// Sent with the first byte.
    descriptors: Vec<OwnedFd>,
}

impl Outbound {
    pub(super) fn new(sender: Sender) -> Outbound {
        Outbound { sender, request: MessageBuffer::new(), unsent: VecDeque::new(), never_waits: false }
    }

    /// Stops waiting for room from now on.
    pub(super) fn never_wait(&mut self) {
        self.never_waits = true;
    }

    /// Returns whether any data is kept to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Sends whole messages, and waits for room, unless this never waits.
    pub(super) fn send(&mut self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        if self.never_waits {
            self.unsent.push_back(Unsent { bytes: bytes.to_vec(), sent: 0, descriptors });
            return self.send_unsent().map(drop);
        }
        let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.sender.send(bytes, &descriptors)
    }

    /// Sends the rest as far as there is room. Returns whether everything is sent.
    pub(super) fn send_unsent(&mut self) -> io::Result<bool> {
        while let Some(first) = self.unsent.front_mut() {
            while first.sent < first.bytes.len() {
                let descriptors: Vec<_> = first.descriptors.iter().map(AsFd::as_fd).collect();
                let sent = self.sender.send_some(&first.bytes[first.sent..], &descriptors)?;
                if sent == 0 {
                    return Ok(false);
                }
                first.sent += sent;
                first.descriptors.clear();
            }
            self.unsent.pop_front();
        }
        Ok(true)
    }

    /// Returns the bytes of a request, and the socket to send them on.
    pub(super) fn request(&mut self, id: u16, request: &Request<'_>) -> (&mut Sender, &[u8]) {
        self.request.clear();
        self.request.request(id, false, request);
        (&mut self.sender, self.request.as_bytes())
    }
}
