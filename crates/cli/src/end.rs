//! Holding a device open after the result: until stdin ends, or SIGINT or SIGTERM arrives.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::failure::Failure;
use crate::output::note;
use crate::target::Closing;

/// A wait for the end of stdin, SIGINT or SIGTERM. Once created, these signals no longer end the process.
pub(crate) struct End {
    /// Becomes readable with a signal.
    signalled: UnixStream,
}

impl End {
    /// Catches the signals from now on.
    pub(crate) fn new() -> io::Result<End> {
        let (signalled, signal) = UnixStream::pair()?;
        for number in [SIGINT, SIGTERM] {
            signal_hook::low_level::pipe::register(number, signal.try_clone()?)?;
        }
        Ok(End { signalled })
    }

    /// Waits. A signal that has arrived since [`End::new`] ends it at once.
    pub(crate) fn wait(&self) -> io::Result<()> {
        let mut stdin = io::stdin().lock();
        let mut scrap = [0; 4096];
        loop {
            let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&self.signalled, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let [stdin_ready, signal_ready] = fds.map(|fd| !fd.revents().is_empty());
            if signal_ready {
                return Ok(());
            }
            if stdin_ready {
                match stdin.read(&mut scrap) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    // A stdin that cannot be read any more has ended too.
                    Ok(0) | Err(_) => return Ok(()),
                    Ok(_) => {}
                }
            }
        }
    }
}

/// The option `--hold`: whether a command holds its device after it has printed the result.
pub(crate) struct Hold(Option<End>);

impl Hold {
    /// Catches the signals if the device is to be held: they must not end the process before it has printed the result.
    pub(crate) fn new(holds: bool) -> Result<Hold, Failure> {
        holds.then(End::new).transpose().map(Hold).map_err(|error| cannot_hold(&error))
    }

    /// Waits if the option is given. The caller closes the device afterwards.
    pub(crate) fn wait(self, closing: Closing) -> Result<(), Failure> {
        let Some(end) = self.0 else { return Ok(()) };
        note(format_args!("holding the device until stdin ends or SIGINT or SIGTERM arrives; {closing}"));
        end.wait().map_err(|error| cannot_hold(&error))
    }
}

fn cannot_hold(error: &io::Error) -> Failure {
    Failure::from_io("cannot wait for stdin, SIGINT and SIGTERM", error)
}
