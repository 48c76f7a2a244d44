//! The target of a trace: a pipe that nobody reads holds up the program for a while only.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use whimbrel_engine::channel::{Interrupt, Readiness, Until, WaitError};

/// The longest wait for a reader, who may have stopped a pager or a terminal. The program waits too.
const PATIENCE: Duration = Duration::from_mins(1);

/// The most that is written at a time: a pipe that is ready takes so many bytes without a wait.
const PIECE: usize = 4096;

/// A file whose writes fail with [`TimedOut`](io::ErrorKind::TimedOut) once nobody has read for a minute, or if they would
/// have to wait after a signal.
pub(super) struct Target<F> {
    file: F,
    signal: Interrupt,
}

impl<F: AsFd + Write> Target<F> {
    /// Returns a file with the interrupt that a signal sets.
    pub(super) fn new(file: F, signal: Interrupt) -> Target<F> {
        Target { file, signal }
    }

    fn wait(&self) -> io::Result<()> {
        let mut file = [PollFd::new(&self.file, PollFlags::OUT)];
        if retry_on_intr(|| poll(&mut file, Some(&Timespec::default())))? > 0 {
            return Ok(());
        }
        let until = Until::new(Instant::now() + PATIENCE, &self.signal);
        until.wait(self.file.as_fd(), Readiness::Writable).map_err(|error| match error {
            WaitError::Failed(error) => error,
            WaitError::Interrupted => unread("nobody read it when a signal came"),
            _ => unread("nobody has read it for a minute"),
        })
    }
}

fn unread(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<F: AsFd + Write> Write for Target<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.wait()?;
        self.file.write(&data[..data.len().min(PIECE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pipe_is_waited_for_until_a_signal_and_one_with_room_is_written() {
        let (_reader, writer) = io::pipe().unwrap();
        let signal = Interrupt::new().unwrap();
        let mut target = Target::new(writer, signal.clone());
        signal.set();
        let mut written = 0;
        let error = loop {
            match target.write(&[0; 2 * PIECE]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert!(written >= PIECE, "{written}");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "nobody read it when a signal came");
    }
}
