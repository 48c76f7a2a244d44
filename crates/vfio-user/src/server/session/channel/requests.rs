//! Requests to the client, and the threads that wait for their answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_device::Errno;

use super::Channel;
use crate::message::{Command, Request};
use crate::server::error::ServeError;

/// Time that a sending thread lets another one read before it checks whether that one still does.
const LOOK: Duration = Duration::from_millis(5);

/// The requests to the client.
#[derive(Debug, Default)]
pub(super) struct Requests {
    /// True while the connection may become another process's, which then reads the answers.
    are_suspended: bool,
    /// Those without an answer, or whose answer was not taken yet.
    pub(super) asked: BTreeMap<u16, Asked>,
    pub(super) next_id: u16,
}

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) command: u16,
    pub(super) answer: Option<Result<Vec<u8>, Errno>>,
}

impl Channel {
    /// Sends no more requests to the client. Returns `false`, and changes nothing, if one has no answer yet.
    #[cfg(feature = "takeover")]
    pub(in crate::server::session) fn suspend_requests(&self) -> bool {
        let requests = &mut self.state.lock().requests;
        // An access that is between two of its requests sends the next one at any moment.
        requests.are_suspended = requests.asked.is_empty();
        requests.are_suspended
    }

    /// Undoes [`Channel::suspend_requests`].
    #[cfg(feature = "takeover")]
    pub(in crate::server::session) fn resume_requests(&self) {
        self.state.lock().requests.are_suspended = false;
    }

    /// Sends a request to the client, and waits for its answer: the payload, or the errno in it. ETIMEDOUT without an
    /// answer at the deadline, and ENOTCONN if the connection is over, as it is after both. EFAULT while requests
    /// are suspended, and if this one is not valid when its turn to be sent comes: nothing sent here later goes before it.
    pub(in crate::server::session) fn ask(
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

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::message::{DmaAccess, Limits};
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
