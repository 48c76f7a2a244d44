//! The events of a trace on their way to whoever takes them: in order, from a thread of its own, so that a request waits for
//! that only when very many wait already.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::trace::{Event, Outcome, Record};

/// Events that wait before requests do.
const MAX_WAITING: usize = 1024;

/// The function that takes the events of a trace.
pub(super) type Take = Box<dyn FnMut(Event) + Send>;

/// The events of a program.
pub(super) struct Events {
    /// When the trace began.
    begun: Instant,
    state: Mutex<State>,
    /// Events have come, or come no more.
    arrived: Condvar,
    /// Events have gone, or requests wait no more.
    left: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Event>,
    /// Requests wait for room no more: the program is at its end.
    is_hurried: bool,
    /// No further event is taken.
    is_over: bool,
}

impl Events {
    pub(super) fn new() -> Events {
        Events {
            begun: Instant::now(),
            state: Mutex::default(),
            arrived: Condvar::new(),
            left: Condvar::new(),
        }
    }

    /// Returns the time since the start of the trace.
    pub(super) fn since_start(&self, moment: Instant) -> Duration {
        moment.saturating_duration_since(self.begun)
    }

    /// Ends a call: `respond` gives the program its answer, and returns whether the program took it, or `None` if somebody else
    /// has recorded the call. The call's record comes before those of all calls that end later.
    pub(super) fn end(&self, mut record: Record, respond: impl FnOnce() -> Option<bool>) {
        let mut state = self.state.lock();
        let now = self.since_start(Instant::now());
        record.took = now.saturating_sub(record.at);
        let Some(is_taken) = respond() else { return };
        if !is_taken {
            record.outcome = Outcome::Unfinished;
        }
        self.add(&mut state, record);
    }

    /// Adds a record of something that ends now. Waits for nothing.
    pub(super) fn push(&self, mut record: Record) {
        let mut state = self.state.lock();
        record.at = self.since_start(Instant::now());
        self.add(&mut state, record);
    }

    fn add(&self, state: &mut State, record: Record) {
        if !state.is_over {
            state.waiting.push_back(Event::Record(record));
            self.arrived.notify_one();
        }
    }

    /// Waits while very many events wait.
    pub(super) fn wait_for_room(&self) {
        let mut state = self.state.lock();
        while state.waiting.len() >= MAX_WAITING && !state.is_hurried && !state.is_over {
            self.left.wait(&mut state);
        }
    }

    /// Lets requests wait for room no more.
    pub(super) fn hurry(&self) {
        self.state.lock().is_hurried = true;
        self.left.notify_all();
    }

    /// Takes no further event. Those that wait are given out.
    pub(super) fn finish(&self) {
        self.state.lock().is_over = true;
        self.arrived.notify_all();
        self.left.notify_all();
    }

    /// Gives out events, until the end. If `take` panics, the remaining events are dropped.
    pub(super) fn give_out(&self, mut take: Take) {
        while let Some(event) = self.next() {
            if catch_unwind(AssertUnwindSafe(|| take(event))).is_err() {
                self.finish();
                self.state.lock().waiting.clear();
                return;
            }
        }
    }

    /// Waits for an event. `None` at the end.
    fn next(&self) -> Option<Event> {
        let mut state = self.state.lock();
        loop {
            if let Some(event) = state.waiting.pop_front() {
                if state.waiting.len() + 1 == MAX_WAITING {
                    self.left.notify_all();
                }
                return Some(event);
            }
            if state.is_over {
                return None;
            }
            self.arrived.wait(&mut state);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("begun", &self.begun).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;

    use super::*;
    use crate::trace::{Action, On};

    fn record(call: &'static str) -> Record {
        let on = On::new(3, "other", "file");
        Record::new(Duration::ZERO, on, Action::Other { call }, Outcome::Returned(0))
    }

    fn name(event: Event) -> String {
        match event {
            Event::Record(record) => record.name(),
            other => panic!("{other:?}"),
        }
    }

    /// Events that are sent to the test, each after it has allowed it.
    fn allowed(events: &Arc<Events>) -> (Sender<()>, Receiver<String>, thread::JoinHandle<()>) {
        let (allow, is_allowed) = mpsc::channel::<()>();
        let (given, received) = mpsc::channel();
        let events = events.clone();
        let giving = thread::spawn(move || {
            events.give_out(Box::new(move |event| {
                is_allowed.recv().unwrap();
                given.send(name(event)).unwrap();
            }));
        });
        (allow, received, giving)
    }

    #[test]
    fn events_come_in_the_order_of_their_ends_and_all_of_them() {
        let events = Arc::new(Events::new());
        events.push(record("open"));
        events.end(record("ioctl"), || Some(true));
        events.end(record("read"), || None);
        events.push(record("close"));
        events.finish();
        events.push(record("late"));
        let (allow, received, giving) = allowed(&events);
        (0..3).for_each(|_| allow.send(()).unwrap());
        giving.join().unwrap();
        assert_eq!(received.iter().collect::<Vec<_>>(), ["open", "ioctl", "close"]);
    }

    #[test]
    fn an_answer_that_nobody_takes_is_of_a_call_that_did_not_finish() {
        let events = Events::new();
        events.push(record("open"));
        events.end(record("ioctl"), || Some(false));
        events.finish();
        let outcomes: Vec<Outcome> = std::iter::from_fn(|| events.next())
            .map(|event| match event {
                Event::Record(record) => record.outcome,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(outcomes, [Outcome::Returned(0), Outcome::Unfinished]);
    }

    #[test]
    fn requests_wait_while_very_many_events_wait_and_go_on_at_the_end() {
        let events = Arc::new(Events::new());
        for _ in 0..MAX_WAITING {
            events.wait_for_room();
            events.push(record("read"));
        }
        let (gone_on, goes_on) = mpsc::channel();
        let waiting = events.clone();
        let waiter = thread::spawn(move || {
            for _ in 0..2 {
                waiting.wait_for_room();
                gone_on.send(()).unwrap();
                waiting.push(record("read"));
            }
        });
        let waits = || {
            // Only a thread that waits is woken.
            while !events.left.notify_one() {
                assert!(goes_on.try_recv().is_err(), "it does not wait");
                thread::yield_now();
            }
        };
        waits();
        // One leaves: one goes on.
        assert!(events.next().is_some());
        goes_on.recv().unwrap();
        waits();
        events.hurry();
        goes_on.recv().unwrap();
        waiter.join().unwrap();
    }

    #[test]
    fn a_taker_that_panics_holds_up_nobody() {
        let events = Arc::new(Events::new());
        (0..MAX_WAITING).for_each(|_| events.push(record("read")));
        events.give_out(Box::new(|_| std::panic::resume_unwind(Box::new(()))));
        events.wait_for_room();
        assert!(events.next().is_none());
    }
}
