//! Reading the socket, by one thread for all that wait, and handing on what it finds.

use std::io;
use std::time::Instant;

use parking_lot::MutexGuard;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_device::Errno;

use super::{Channel, State, unasked};
use crate::message::{Kind, Limits};
use crate::server::error::ServeError;
use crate::server::session::queue::Waiting;
use crate::socket::{Incoming, Receiver};

/// Data received on a socket without waiting.
pub(super) enum Came {
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

impl Channel {
    /// Reads without waiting, and dispatches one message.
    pub(super) fn take_one(&self, receiver: &mut Receiver, limits: Limits) -> Result<Came, ServeError> {
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

    /// Processes data on a twin socket that no thread reads, because the device requests nothing. It may contain the
    /// client's own end of the command socket, which stays open as long as it is unread.
    pub(in crate::server::session) fn look(&self) {
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

    /// Reads once for all waiting threads, at most until the deadline, or until there is room to send if that is
    /// awaited. The state is unlocked meanwhile.
    pub(super) fn read(&self, state: &mut MutexGuard<'_, State>, deadline: Option<Instant>, or_room: bool) {
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
}
