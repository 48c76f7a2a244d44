//! A socket over which a server sends requests to its client, from any thread. This module does not interpret them.
//!
//! The threads that wait for something read the socket, one at a time, and dispatch what is for others: answers to
//! the threads that wait for them, commands of the client to a queue of the serving thread. So a memory access
//! completes whatever the serving thread does meanwhile, even if it waits for the device, or executes the command
//! that makes the device access memory.
//!
//! No wait here is unlimited, except the serving thread's for a command: a client that does not answer in time loses
//! its connection, and so does one that sends more than the queue holds.
//!
//! Here is the serving thread's part, and the end of the connection; `requests` has that of the threads that ask, and `reading`
//! what all of them do while they wait.

mod reading;
mod requests;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use parking_lot::{Condvar, Mutex, MutexGuard};

use self::reading::Came;
use self::requests::Requests;
use super::outbound::Outbound;
use super::queue::{Queue, Waiting};
use super::rest::Rest;
use crate::message::{Header, Limits};
use crate::server::error::ServeError;
use crate::server::signal::signal;
use crate::socket::{Receiver, Sender};

/// A connected socket, shared by all threads of a server.
#[derive(Debug)]
pub(super) struct Channel {
    outbound: Mutex<Outbound>,
    /// Held by the thread that reads.
    receiver: Mutex<Receiver>,
    state: Mutex<State>,
    changed: Condvar,
    socket: Sender,
    /// The command socket, if this one is only for the server's requests.
    commands: Option<Sender>,
    /// Signalled when another thread has read something for the serving one.
    wake: OnceLock<Arc<OwnedFd>>,
}

#[derive(Debug, Default)]
struct State {
    /// True while a thread reads and dispatches.
    is_read: bool,
    requests: Requests,
    waiting: Queue,
    /// True once nothing more can be read.
    is_over: bool,
    why: Option<ServeError>,
}

/// Data that was received on a socket and is continued elsewhere.
#[cfg(feature = "takeover")]
pub(super) struct Pending<'a>(MutexGuard<'a, State>);

#[cfg(feature = "takeover")]
impl Pending<'_> {
    /// In the order received.
    pub(super) fn commands(&self) -> impl Iterator<Item = &Waiting> {
        self.0.waiting.iter()
    }

    pub(super) fn next_id(&self) -> u16 {
        self.0.requests.next_id
    }

    /// Returns whether the connection is over.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over
    }
}

/// The next action of the serving thread.
pub(super) enum Next {
    Command(Waiting),
    /// It must rest.
    Rest,
    /// The connection is over: because the client has left, if there is no error.
    Over(Option<ServeError>),
}

impl Channel {
    /// Creates the channel of the command socket.
    pub(super) fn new(receiver: Receiver, sender: Sender) -> Channel {
        let socket = sender.clone();
        Channel {
            outbound: Mutex::new(Outbound::new(sender)),
            wake: OnceLock::new(),
            receiver: Mutex::new(receiver),
            state: Mutex::default(),
            changed: Condvar::new(),
            socket,
            commands: None,
        }
    }

    /// Creates the channel of a second socket, which ends with that of the `commands`.
    pub(super) fn twin(mut receiver: Receiver, sender: Sender, commands: &Channel) -> Channel {
        receiver.take_no_descriptors();
        Channel { commands: Some(commands.socket.clone()), ..Channel::new(receiver, sender) }
    }

    /// Returns the socket.
    pub(super) fn socket(&self) -> &Sender {
        &self.socket
    }

    /// Returns the commands that were read and not taken, and the id of the next request, so that another process can
    /// continue.
    #[cfg(feature = "takeover")]
    pub(super) fn pending(&self) -> Pending<'_> {
        Pending(self.state.lock())
    }

    /// Continues where another process has stopped.
    #[cfg(feature = "takeover")]
    pub(super) fn resume(&mut self, waiting: Queue, next_id: u16) {
        let state = self.state.get_mut();
        (state.waiting, state.requests.next_id) = (waiting, next_id);
    }

    /// Returns the receiver, for a serving thread that shares the socket with no other.
    pub(super) fn receiver(&self) -> MutexGuard<'_, Receiver> {
        self.receiver.lock()
    }

    /// Stops waiting from now on: data without room in the socket is kept, and `wake` is signalled when another
    /// thread has read a command.
    pub(super) fn never_wait(&self, wake: Arc<OwnedFd>) {
        self.outbound.lock().never_wait();
        // There is one loop for all of its life.
        let _ = self.wake.set(wake);
    }

    /// Sends whole messages, and waits for room, unless this never waits.
    pub(super) fn send(&self, bytes: &[u8], descriptors: Vec<OwnedFd>) -> io::Result<()> {
        self.outbound.lock().send(bytes, descriptors)
    }

    /// Sends the kept data, as far as there is room. Returns whether everything is sent.
    pub(super) fn send_unsent(&self) -> io::Result<bool> {
        self.outbound.lock().send_unsent()
    }

    /// Returns whether any data is kept to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        self.outbound.lock().has_unsent()
    }

    /// Returns whether nothing more can be read.
    pub(super) fn is_over(&self) -> bool {
        self.state.lock().is_over
    }

    /// Returns the next command, for a serving thread that does not wait; `None` if there is no command now.
    pub(super) fn next_now(&self, limits: Limits) -> Option<Next> {
        let mut state = self.state.lock();
        loop {
            if let Some(command) = state.waiting.pop() {
                return Some(Next::Command(command));
            }
            if state.is_over {
                return Some(Next::Over(state.why.take()));
            }
            // Another thread reads, and wakes this one.
            if state.is_read {
                return None;
            }
            state.is_read = true;
            let came = MutexGuard::unlocked(&mut state, || match self.receiver.try_lock() {
                Some(mut receiver) => self.take_one(&mut receiver, limits),
                None => Ok(Came::Nothing),
            });
            state.is_read = false;
            let has_come = matches!(came, Ok(Came::Something));
            match came {
                Ok(Came::Something | Came::Nothing) => {}
                Ok(Came::End) => self.finish(&mut state, None),
                Err(error) => self.finish(&mut state, Some(error)),
            }
            self.changed.notify_all();
            if !has_come && !state.is_over {
                return None;
            }
        }
    }

    /// Puts back a command that was taken, as the next one.
    pub(super) fn put_back(&self, command: Waiting) {
        self.state.lock().waiting.put_back(command);
    }

    /// Returns whether another thread reads the socket at the moment. It wakes the serving thread afterwards.
    pub(super) fn is_read(&self) -> bool {
        self.state.lock().is_read
    }

    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            signal(wake);
        }
    }

    /// Returns whether other threads still have to do with the socket: commands were read that were not taken, or a
    /// request has no answer yet.
    pub(super) fn is_shared(&self) -> bool {
        let state = self.state.lock();
        !state.waiting.is_empty() || !state.requests.asked.is_empty()
    }

    /// Returns the next command, for a serving thread that shares the socket.
    pub(super) fn next(&self, rest: Option<&Rest>) -> Next {
        let mut state = self.state.lock();
        loop {
            if rest.is_some_and(Rest::is_wanted) {
                return Next::Rest;
            }
            if let Some(command) = state.waiting.pop() {
                return Next::Command(command);
            }
            if state.is_over {
                return Next::Over(state.why.take());
            }
            if state.is_read {
                self.changed.wait(&mut state);
            } else {
                self.read(&mut state, None, false);
            }
        }
    }

    /// Returns the reason why the connection ended before the client left.
    pub(super) fn take_reason(&self) -> Option<ServeError> {
        self.state.lock().why.take()
    }

    /// Ends the connection. Threads that wait for an answer fail at once.
    pub(super) fn close(&self, why: Option<ServeError>) {
        self.end(&mut self.state.lock(), why);
    }

    /// Marks the end of the stream. Commands read before are still executed, unless there were too many.
    fn finish(&self, state: &mut State, why: Option<ServeError>) {
        match why {
            None | Some(ServeError::Socket(_)) if self.commands.is_none() => {
                state.is_over = true;
                state.why = state.why.take().or(why);
            }
            why => self.end(state, why),
        }
    }

    fn end(&self, state: &mut State, why: Option<ServeError>) {
        if !state.is_over && why.is_some() {
            state.why = why;
        }
        state.is_over = true;
        state.waiting.clear();
        self.socket.shutdown();
        if let Some(commands) = &self.commands {
            commands.shutdown();
        }
        self.changed.notify_all();
    }
}

/// Logs a reply that matches no request: it may be late, or the client confused.
pub(super) fn unasked(header: &Header) {
    tracing::debug!(id = header.id, command = header.command_name(), "ignored an unexpected reply");
}
