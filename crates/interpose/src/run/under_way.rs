//! The traced calls without an answer yet: one that never gets it is in the trace all the same.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use libc::seccomp_data;
use parking_lot::{Condvar, Mutex};

use super::open_file::OpenFile;
use super::traced::User;

/// The calls that have been received and not answered, by their numbers.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    calls: Mutex<HashMap<u64, Begun>>,
    /// The last one has ended.
    emptied: Condvar,
}

/// A call, as far as it is known without a look at its task.
#[derive(Clone)]
pub(super) struct Begun {
    pub(super) data: seccomp_data,
    pub(super) user: User,
    pub(super) received: Instant,
    /// The file that the call is made on, once that is known. Its close does not wait for the call.
    pub(super) file: Weak<OpenFile>,
}

impl UnderWay {
    /// Adds a call that was received.
    pub(super) fn begin(&self, id: u64, call: Begun) {
        self.calls.lock().insert(id, call);
    }

    /// Returns a call. `None` for one that was taken.
    pub(super) fn get(&self, id: u64) -> Option<Begun> {
        self.calls.lock().get(&id).cloned()
    }

    /// Notes the file that a call is made on.
    pub(super) fn found(&self, id: u64, file: &Arc<OpenFile>) {
        if let Some(call) = self.calls.lock().get_mut(&id) {
            call.file = Arc::downgrade(file);
        }
    }

    /// Ends a call. Returns false for one that was taken, whose record somebody else makes.
    pub(super) fn end(&self, id: u64) -> bool {
        self.take(id).is_some()
    }

    /// Takes a call, which ends here.
    pub(super) fn take(&self, id: u64) -> Option<Begun> {
        let mut calls = self.calls.lock();
        let call = calls.remove(&id);
        if calls.is_empty() {
            self.emptied.notify_all();
        }
        call
    }

    /// Takes the calls that have not ended by the deadline.
    pub(super) fn take_at(&self, deadline: Instant) -> Vec<Begun> {
        let mut calls = self.calls.lock();
        while !calls.is_empty() && !self.emptied.wait_until(&mut calls, deadline).timed_out() {}
        let mut taken: Vec<Begun> = calls.drain().map(|(_, call)| call).collect();
        taken.sort_by_key(|call| call.received);
        taken
    }
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("call", &self.data.nr).field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn call(thread: u32) -> Begun {
        let data = seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] };
        let user = User { process: 1, thread };
        Begun { data, user, received: Instant::now(), file: Weak::new() }
    }

    #[test]
    fn a_call_is_recorded_by_whoever_ends_it_or_takes_it() {
        let calls = UnderWay::default();
        (0..3).for_each(|id| calls.begin(id, call(id as u32)));
        assert!(calls.end(1) && !calls.end(1));
        let taken = calls.take_at(Instant::now());
        assert_eq!(taken.iter().map(|call| call.user.thread).collect::<Vec<_>>(), [0, 2]);
        assert!(!calls.end(0) && calls.get(2).is_none());
    }

    #[test]
    fn nobody_waits_once_all_calls_have_ended() {
        let calls = Arc::new(UnderWay::default());
        calls.begin(7, call(1));
        let ending = calls.clone();
        let end = thread::spawn(move || ending.end(7));
        assert_eq!(calls.take_at(Instant::now() + Duration::from_hours(1)).len(), 0);
        assert!(end.join().unwrap());
    }
}
