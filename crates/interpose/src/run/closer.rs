//! The thread that closes what the program closes.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::files::Files;
use super::slow::Slow;

/// The pauses after which the files of drivers are looked at again: a moment after a report, and then ever more rarely.
const MIN_PAUSE: Duration = Duration::from_millis(1);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// Closes what the program closes, until `stop` is readable.
pub(super) fn close(files: &Files, stop: &OwnedFd, slow: &Slow) {
    let mut pause = MIN_PAUSE;
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(files.closes(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        let timeout = files.has_marked_files().then(|| timespec(pause));
        let waited = poll(&mut ready, timeout.as_ref());
        if !ready[1].revents().is_empty() || !matches!(waited, Ok(_) | Err(rustix::io::Errno::INTR)) {
            return;
        }
        pause = if waited == Ok(0) { (pause * 2).min(MAX_PAUSE) } else { MIN_PAUSE };
        slow.begin();
        let _ends = slow.ends();
        // A driver that panics as it closes a device is not to keep the others open.
        let _ = catch_unwind(AssertUnwindSafe(|| files.read_closes()));
    }
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}
