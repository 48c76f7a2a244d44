//! The mappings that the kernel makes for an open file. A descriptor has one driver's file at a time, so a call that needs
//! another file waits until those under way have found theirs.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::task::{FileId, Task};

/// The longest wait.
const PATIENCE: Duration = Duration::from_secs(1);

/// The time between two looks at a call under way.
const PAUSE: Duration = Duration::from_millis(1);

/// Time that a thread has worked once it has surely found its file, the first thing that the kernel does in mmap(2).
const MAX_WORK: Duration = Duration::from_millis(2);

/// Calls that are kept before those are forgotten that are over.
const MAX_CALLS: usize = 64;

/// The calls of mmap(2) that may be under way.
#[derive(Debug, Default)]
pub(super) struct MappingCalls {
    calls: Mutex<Vec<Call>>,
    /// Held by a call that waits: those behind it wait too.
    turn: Mutex<()>,
}

/// A call of mmap(2).
#[derive(Clone, Copy, Debug)]
struct Call {
    id: u64,
    pid: i32,
    file: FileId,
    /// Time that the thread had worked before.
    worked: Duration,
}

impl MappingCalls {
    /// Begins a call, once no call with another file is under way.
    pub(super) fn begin(&self, task: &Task<'_>, file: FileId) {
        let (id, pid) = task.call();
        let call = Call { id, pid, file, worked: task.worked().unwrap_or_default() };
        // A thread makes one call at a time.
        self.calls.lock().retain(|other| other.pid != pid);
        let _turn = self.turn.lock();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut calls = self.calls.lock();
            if calls.iter().any(|other| other.file != file) || calls.len() >= MAX_CALLS {
                calls.retain(|other| !other.is_over(task));
            }
            if calls.iter().all(|other| other.file == file) {
                calls.push(call);
                return;
            }
            if Instant::now() > deadline {
                tracing::debug!(pid, "the program maps two files of a device by one descriptor at a time");
                calls.clear();
                continue;
            }
            drop(calls);
            sleep(PAUSE);
        }
    }
}

impl Call {
    /// Returns whether the call has found its file, as far as the kernel tells: no sign of it is false.
    fn is_over(&self, task: &Task<'_>) -> bool {
        let its = task.of_call(self.id, self.pid);
        if its.is_waiting() {
            return false;
        }
        let Ok(text) = fs::read_to_string(its.proc_path("syscall")) else { return true };
        // "running", or the number of the call that it waits in.
        let number = text.split_ascii_whitespace().next().and_then(|number| number.parse::<i64>().ok());
        number.is_some_and(|number| number != libc::SYS_mmap)
            || its.worked().is_some_and(|worked| worked > self.worked + MAX_WORK)
    }
}
