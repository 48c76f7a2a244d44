//! The peer's control messages on their way to the machine: a peer that sends more of them than the machine has taken waits.

use std::sync::mpsc::Sender;

use parking_lot::{Condvar, Mutex};

use super::hands::tell;
use crate::proto::control::Control;
use crate::proto::operation::Event;

/// The maximum number of messages that wait for the machine; a peer in good order has few at a time.
const MAX: usize = 64;

/// The messages on their way. One connection more may add a few to the maximum.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
    taken: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: usize,
    is_closed: bool,
}

impl Inbox {
    /// Passes a message on. Returns whether the machine is still there.
    pub(super) fn tell(&self, events: &Sender<Event>, control: Control) -> bool {
        self.state.lock().waiting += 1;
        tell(events, Event::Received(control))
    }

    /// Takes in that the machine has taken a message.
    pub(super) fn note_taken(&self) {
        let mut state = self.state.lock();
        state.waiting = state.waiting.saturating_sub(1);
        self.taken.notify_all();
    }

    /// Waits until there is room for another message, or none is taken any more.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        while state.waiting >= MAX && !state.is_closed {
            self.taken.wait(&mut state);
        }
    }

    /// Ends all waits permanently: the machine takes no messages any more.
    pub(super) fn close(&self) {
        self.state.lock().is_closed = true;
        self.taken.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    /// Sends so many messages on a thread, and returns the number of those that have been sent after that thread has come to
    /// a wait, and the thread.
    fn flood(inbox: &'static Inbox, events: Sender<Event>, count: u32) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            for id in 0..count {
                inbox.wait();
                inbox.tell(&events, Control::Ping { id });
            }
        })
    }

    #[test]
    fn a_peer_gets_no_further_ahead_of_the_machine_than_the_maximum_and_loses_nothing() {
        let inbox: &'static Inbox = Box::leak(Box::default());
        let (events, inbox_of_machine) = channel();
        let sender = flood(inbox, events, 1000);
        for expected in 0..1000 {
            assert!(inbox.state.lock().waiting <= MAX);
            let event = inbox_of_machine.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(matches!(event, Event::Received(Control::Ping { id }) if id == expected), "{event:?}");
            inbox.note_taken();
        }
        sender.join().unwrap();
        assert_eq!(inbox.state.lock().waiting, 0);
    }

    #[test]
    fn a_peer_that_waits_goes_on_once_the_machine_has_ended() {
        let inbox: &'static Inbox = Box::leak(Box::default());
        let (events, _unread) = channel();
        let sender = flood(inbox, events, 1000);
        let deadline = Instant::now() + Duration::from_secs(20);
        while inbox.state.lock().waiting < MAX && Instant::now() < deadline {
            thread::yield_now();
        }
        assert!(!sender.is_finished(), "nothing is taken");
        inbox.close();
        sender.join().unwrap();
    }
}
