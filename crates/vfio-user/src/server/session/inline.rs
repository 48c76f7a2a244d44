//! A client served by an event loop: by the caller, without waiting.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};

use rustix::event::epoll::EventFlags;

use super::client_handle::{ClientHandle, Parked};
use super::serving::{Ended, Serving};
use super::step::Step;
use crate::server::backend::Shared;
use crate::server::signal::signal;
use crate::socket::Sender as Socket;

/// A client without a thread.
#[derive(Debug)]
pub(in crate::server) struct Inline {
    shared: Arc<Shared>,
    place: Place,
    pub(super) handle: ClientHandle,
    twin: Option<Socket>,
    rested: Sender<Parked>,
    /// Signalled when there is more to do than the client's sockets show.
    wake: Arc<OwnedFd>,
}

/// The place of the client.
#[derive(Debug)]
enum Place {
    Here(Box<Serving>),
    /// Resting, with the thread that requested it. It may come back.
    Away(Receiver<Serving>),
    Gone,
}

impl Inline {
    pub(in crate::server) fn new(serving: Serving, wake: &Arc<OwnedFd>) -> Inline {
        let shared = serving.turn.0.clone();
        tracing::info!(device = shared.device.name(), "client connected");
        serving.client.channel.never_wait(wake.clone());
        let (rested, parked) = mpsc::channel();
        let handle = ClientHandle::new(&serving, parked, Some(wake.clone()));
        let twin = serving.client.twin.as_ref().map(|twin| twin.socket().clone());
        Inline { shared, place: Place::Here(Box::new(serving)), handle, twin, rested, wake: wake.clone() }
    }

    /// Serves the data that has arrived. Returns `true` once the client is gone.
    pub(in crate::server) fn dispatch(&mut self) -> bool {
        if let Place::Away(returned) = &self.place {
            self.place = match returned.try_recv() {
                Ok(serving) => Place::Here(Box::new(serving)),
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return self.end(&Ended::Elsewhere),
            };
        }
        let Place::Here(serving) = &mut self.place else { return true };
        serving.client.twin.iter().for_each(|twin| twin.look());
        let step = serving.client.step();
        if self.twin.is_none() {
            self.twin = serving.client.twin.as_ref().map(|twin| twin.socket().clone());
        }
        match step {
            Ok(Step::Idle) => false,
            Ok(Step::More) => {
                self.wake();
                false
            }
            Ok(Step::Rests) => {
                let (back, returned) = mpsc::channel();
                if let Place::Here(serving) = std::mem::replace(&mut self.place, Place::Away(returned)) {
                    // If nobody takes it, it comes back at once.
                    drop(self.rested.send(Parked::new(*serving, back)));
                    self.wake();
                }
                false
            }
            Ok(Step::Left) => self.end(&Ended::Left),
            Err(error) => self.end(&Ended::Failed(error)),
        }
    }

    fn end(&mut self, ended: &Ended) -> bool {
        self.place = Place::Gone;
        ended.log(&self.shared);
        true
    }

    fn wake(&self) {
        signal(&self.wake);
    }

    /// Returns its sockets, and the readiness awaited on each, which may be empty.
    pub(in crate::server) fn sockets(&self) -> [Option<(BorrowedFd<'_>, EventFlags)>; 2] {
        let none = EventFlags::empty();
        let (commands, twin) = match &self.place {
            Place::Here(serving) => {
                let Serving { client, .. } = &**serving;
                let is_twin_over = client.twin.as_ref().is_none_or(|twin| twin.is_over());
                let channel = &client.channel;
                let commands = match channel.has_unsent() {
                    true => EventFlags::OUT,
                    // Another thread takes what arrives, and wakes this one. The socket stays watched meanwhile: to add
                    // it again could exceed the limit on watched descriptors.
                    false if channel.is_read() => EventFlags::ET,
                    // And none is executed before the next one, which waits.
                    false if client.waits_for_takeover => EventFlags::ET,
                    false => EventFlags::IN,
                };
                (
                    commands,
                    // Once for all that comes: another thread may have it for a while, and its end stays.
                    if is_twin_over { none } else { EventFlags::IN | EventFlags::ET },
                )
            }
            Place::Away(_) | Place::Gone => (none, none),
        };
        let twin = self.twin.as_ref().map(|socket| (socket.as_fd(), twin));
        [Some((self.handle.socket().as_fd(), commands)), twin]
    }
}
