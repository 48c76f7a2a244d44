//! A socket over which a server sends requests to its client, from any thread. This module does not interpret them.
//!
//! The threads that wait for something read the socket, one at a time, and dispatch what is for others: answers to
//! the threads that wait for them, commands of the client to a queue of the serving thread. So a memory access
//! completes whatever the serving thread does meanwhile, even if it waits for the device, or executes the command
//! that makes the device access memory.
//!
//! No wait here is unlimited, except the serving thread's for a command: a client that does not answer in time loses
//! its connection, and so does one that sends more than the queue holds.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_device::Errno;

use super::outbound::Outbound;
use super::queue::{Queue, Waiting};
use super::rest::Rest;
use crate::message::{Command, Header, Kind, Limits, Request};
use crate::server::error::ServeError;
use crate::server::signal::signal;
use crate::socket::{Incoming, Receiver, Sender};

/// Time that a sending thread lets another one read before it checks whether that one still does.
const LOOK: Duration = Duration::from_millis(5);

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

/// The requests to the client.
#[derive(Debug, Default)]
struct Requests {
    /// True while the connection may become another process's, which then reads the answers.
    are_suspended: bool,
    /// Those without an answer, or whose answer was not taken yet.
    asked: BTreeMap<u16, Asked>,
    next_id: u16,
}

#[derive(Debug)]
struct Asked {
    command: u16,
    answer: Option<Result<Vec<u8>, Errno>>,
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

    /// Sends no more requests to the client. Returns `false`, and changes nothing, if one has no answer yet.
    #[cfg(feature = "takeover")]
    pub(super) fn suspend_requests(&self) -> bool {
        let requests = &mut self.state.lock().requests;
        // An access that is between two of its requests sends the next one at any moment.
        requests.are_suspended = requests.asked.is_empty();
        requests.are_suspended
    }

    /// Undoes [`Channel::suspend_requests`].
    #[cfg(feature = "takeover")]
    pub(super) fn resume_requests(&self) {
        self.state.lock().requests.are_suspended = false;
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

    /// Reads without waiting, and dispatches one message.
    fn take_one(&self, receiver: &mut Receiver, limits: Limits) -> Result<Came, ServeError> {
        receiver.set_limits(limits);
        if !receiver.is_ready() {
            match receiver.read_now() {
                Ok(true) => {}
                Ok(false) => {
                    receiver.ended()?;
                    return Ok(Came::End);
                }
                Err(error) if error.is_timeout() => return Ok(Came::Nothing),
                Err(error) => return Err(error.into()),
            }
        }
        match receiver.take_ready()? {
            Some(message) => self.hand_on(message).map(|()| Came::Something),
            // A part of one.
            None => Ok(Came::Nothing),
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

    /// Processes data on a twin socket that no thread reads, because the device requests nothing. It may contain the
    /// client's own end of the command socket, which stays open as long as it is unread.
    pub(super) fn look(&self) {
        let Some(mut receiver) = self.receiver.try_lock() else { return };
        let end = self.take_in(&mut receiver, Some(Instant::now()), false);
        drop(receiver);
        let mut state = self.state.lock();
        // One that the client has closed is missed when the device wants something.
        if let Err(error) = end {
            self.finish(&mut state, Some(error));
        }
        self.changed.notify_all();
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

    /// Sends a request to the client, and waits for its answer: the payload, or the errno in it. ETIMEDOUT without an
    /// answer at the deadline, and ENOTCONN if the connection is over, as it is after both. EFAULT while requests
    /// are suspended, and if this one is not valid when its turn to be sent comes: nothing sent here later goes before it.
    pub(super) fn ask(
        &self,
        request: &Request<'_>,
        deadline: Instant,
        is_valid: impl FnOnce() -> bool,
    ) -> Result<Vec<u8>, Errno> {
        let command = request.command();
        let id = self.note(command)?;
        let answer = match self.send_request(id, request, deadline, is_valid) {
            Ok(()) => self.answer(id, deadline),
            Err(error) => Err(error),
        };
        let mut state = self.state.lock();
        state.requests.asked.remove(&id);
        if let Err(Unanswered::Late) = &answer {
            self.end(&mut state, Some(ServeError::NoAnswer(command)));
        } else if let Err(Unanswered::Over) = &answer
            && !state.is_over
        {
            self.end(&mut state, None);
        }
        answer?
    }

    /// Registers a request for its answer.
    fn note(&self, command: Command) -> Result<u16, Errno> {
        let mut state = self.state.lock();
        if state.is_over {
            return Err(Errno::ENOTCONN);
        }
        // The client went after the access had found its mapping.
        let requests = &mut state.requests;
        if requests.are_suspended {
            return Err(Errno::EFAULT);
        }
        // One for each thread that waits.
        let first = requests.next_id;
        let mut ids = (first..=u16::MAX).chain(0..first);
        let id = ids.find(|id| !requests.asked.contains_key(id)).ok_or(Errno::EBUSY)?;
        requests.next_id = id.wrapping_add(1);
        requests.asked.insert(id, Asked { command: command.number(), answer: None });
        Ok(id)
    }

    fn send_request(
        &self,
        id: u16,
        request: &Request<'_>,
        deadline: Instant,
        is_valid: impl FnOnce() -> bool,
    ) -> Result<(), Unanswered> {
        // Who has it may be sending to a client that reads nothing.
        let mut outbound = self.outbound.try_lock_until(deadline).ok_or(Unanswered::Late)?;
        while !outbound.send_unsent().map_err(|_| Unanswered::Over)? {
            self.wait_for_room(deadline)?;
        }
        if !is_valid() {
            return Err(Unanswered::Invalid);
        }
        let (sender, mut bytes) = outbound.request(id, request);
        while !bytes.is_empty() {
            match sender.send_some(bytes, &[]).map_err(|_| Unanswered::Over)? {
                0 => self.wait_for_room(deadline)?,
                sent => bytes = &bytes[sent..],
            }
        }
        Ok(())
    }

    /// The client may read nothing until it has sent its own data: so that is read meanwhile.
    fn wait_for_room(&self, deadline: Instant) -> Result<(), Unanswered> {
        let mut state = self.state.lock();
        let now = Instant::now();
        if state.is_over {
            return Err(Unanswered::Over);
        }
        if now >= deadline {
            return Err(Unanswered::Late);
        }
        if state.is_read {
            // That one may find what it waits for before there is room.
            drop(state);
            let mut asked = [PollFd::new(&self.socket, PollFlags::OUT)];
            let timeout = Timespec::try_from(LOOK.min(deadline - now)).ok();
            let _ = poll(&mut asked, timeout.as_ref());
        } else {
            self.read(&mut state, Some(deadline), true);
        }
        Ok(())
    }

    fn answer(&self, id: u16, deadline: Instant) -> Result<Result<Vec<u8>, Errno>, Unanswered> {
        let mut state = self.state.lock();
        loop {
            if let Some(answer) = state.requests.asked.get_mut(&id).and_then(|asked| asked.answer.take()) {
                return Ok(answer);
            }
            if state.is_over {
                return Err(Unanswered::Over);
            }
            if Instant::now() >= deadline {
                return Err(Unanswered::Late);
            }
            if state.is_read {
                self.changed.wait_until(&mut state, deadline);
            } else {
                self.read(&mut state, Some(deadline), false);
            }
        }
    }

    /// Reads once for all waiting threads, at most until the deadline, or until there is room to send if that is
    /// awaited. The state is unlocked meanwhile.
    fn read(&self, state: &mut MutexGuard<'_, State>, deadline: Option<Instant>, or_room: bool) {
        state.is_read = true;
        let end = MutexGuard::unlocked(state, || {
            let receiver = match deadline {
                // Right after the first mapping the serving thread may still have it, for the last time.
                Some(deadline) => self.receiver.try_lock_until(deadline),
                None => Some(self.receiver.lock()),
            };
            match receiver {
                Some(mut receiver) => self.take_in(&mut receiver, deadline, or_room),
                None => Ok(true),
            }
        });
        state.is_read = false;
        match end {
            Ok(true) => {}
            Ok(false) => self.finish(state, None),
            Err(error) => self.finish(state, Some(error)),
        }
        self.changed.notify_all();
        self.wake();
    }

    /// Reads once and dispatches the messages. Returns `false` if the client has left.
    fn take_in(
        &self,
        receiver: &mut Receiver,
        deadline: Option<Instant>,
        or_room: bool,
    ) -> Result<bool, ServeError> {
        if !receiver.is_ready() {
            match self.wait(receiver, deadline, or_room)? {
                Ready::ToRead => {}
                Ready::NotToRead => return Ok(true),
                Ready::Over => return Ok(false),
            }
            match receiver.read_once() {
                Ok(true) => {}
                Ok(false) => {
                    receiver.ended()?;
                    return Ok(false);
                }
                // Who waits looks whether it still has to.
                Err(error) if error.is_timeout() => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
        while receiver.is_ready() {
            if let Some(message) = receiver.take_ready()? {
                self.hand_on(message)?;
            }
        }
        Ok(true)
    }

    /// Waits until there is data to read. A serving thread that only waits for commands waits in the read itself.
    fn wait(
        &self,
        receiver: &Receiver,
        deadline: Option<Instant>,
        or_room: bool,
    ) -> Result<Ready, ServeError> {
        let Some(deadline) = deadline else { return Ok(Ready::ToRead) };
        let room = if or_room { PollFlags::OUT } else { PollFlags::empty() };
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout =
                Timespec::try_from(left).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            let commands = self.commands.as_ref();
            let mut asked = [
                PollFd::new(receiver, PollFlags::IN | room),
                PollFd::new(commands.unwrap_or(&self.socket), PollFlags::RDHUP),
            ];
            match poll(&mut asked[..if commands.is_some() { 2 } else { 1 }], Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(io::Error::from(error).into()),
                Ok(_) => {}
            }
            let commands_end = asked[1].revents().intersects(gone);
            let found = asked[0].revents();
            return Ok(match () {
                () if commands_end => Ready::Over,
                () if found.intersects(PollFlags::IN | gone) => Ready::ToRead,
                // There is room to send, or the deadline has come.
                () => Ready::NotToRead,
            });
        }
    }

    fn hand_on(&self, message: Incoming<'_>) -> Result<(), ServeError> {
        let Incoming { header, payload, descriptors } = message;
        let answer = match header.kind {
            Kind::Command { .. } if self.commands.is_some() => {
                return Err(ServeError::CommandOverTwin(header.command));
            }
            Kind::Command { .. } => {
                let waiting = Waiting { header, payload: payload.to_vec(), descriptors };
                return self.state.lock().waiting.push(waiting);
            }
            Kind::Reply => Ok(payload.to_vec()),
            Kind::Error(errno) => {
                // An error says that it is one, not always which.
                Err(Errno::try_from(errno).unwrap_or(Errno::EIO))
            }
        };
        match self.state.lock().requests.asked.get_mut(&header.id) {
            Some(asked) if asked.command == header.command && asked.answer.is_none() => {
                asked.answer = Some(answer);
            }
            _ => unasked(&header),
        }
        Ok(())
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

/// Data received on a socket without waiting.
enum Came {
    Something,
    Nothing,
    End,
}

/// The readiness of a socket.
enum Ready {
    ToRead,
    NotToRead,
    Over,
}

/// The reason why there is no answer.
enum Unanswered {
    Late,
    Over,
    /// It was not asked.
    Invalid,
}

impl From<Unanswered> for Errno {
    fn from(unanswered: Unanswered) -> Errno {
        match unanswered {
            Unanswered::Late => Errno::ETIMEDOUT,
            Unanswered::Over => Errno::ENOTCONN,
            Unanswered::Invalid => Errno::EFAULT,
        }
    }
}

/// Logs a reply that matches no request: it may be late, or the client confused.
pub(super) fn unasked(header: &Header) {
    tracing::debug!(id = header.id, command = header.command_name(), "ignored an unexpected reply");
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::message::DmaAccess;
    use crate::socket::connection;

    #[test]
    fn a_request_that_waits_for_its_turn_is_checked_when_it_comes() {
        let (server, _client) = UnixStream::pair().unwrap();
        let (receiver, sender) = connection(server, Limits::default());
        let channel = Channel::new(receiver, sender);
        let is_valid = AtomicBool::new(true);
        let asks = || {
            let request = Request::DmaRead(DmaAccess { iova: 0, count: 8 });
            let deadline = Instant::now() + Duration::from_secs(20);
            channel.ask(&request, deadline, || is_valid.load(Ordering::Acquire))
        };
        std::thread::scope(|scope| {
            let turn = channel.outbound.lock();
            let request = scope.spawn(asks);
            while !channel.is_shared() {
                std::thread::yield_now();
            }
            is_valid.store(false, Ordering::Release);
            drop(turn);
            assert_eq!(request.join().unwrap(), Err(Errno::EFAULT));
        });
        assert!(!channel.is_over(), "the connection goes on");
    }
}
