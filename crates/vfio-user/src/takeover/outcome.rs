//! Ownership of the device after everything was sent: the old server's side of the handover, including the case in
//! which the outcome is uncertain.
//!
//! From HANDOVER on the device belongs to the new server. If that stops responding, the device stays stopped here
//! until the new server reports after all, or its process is known to be dead: a device in that process died with it.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_protocol::handover::{self, Source, SourceAction};

use super::give::{Giving, Transferred};
use super::link::LinkError;
use super::refusal::Refusal;
use super::wire::Message;
use crate::socket::is_readable;

/// Interval of the warning that a device is stopped and may run elsewhere.
const WARNING: Duration = Duration::from_mins(1);

/// The pause after a wait that the system refused.
const UNABLE_TO_WAIT: Duration = Duration::from_millis(100);

/// A new server's report on the device, with the reason.
fn word(message: Message) -> Result<(handover::Message, String), LinkError> {
    match message {
        Message::Ready => Ok((handover::Message::Ready, String::new())),
        Message::Running => Ok((handover::Message::Running, String::new())),
        Message::Failed { why } => Ok((handover::Message::Failed, why)),
        other => Err(LinkError::Malformed(other.kind().into())),
    }
}

impl Giving {
    /// Waits until the new server has loaded everything, and gives it the device. `handed_over` is called right
    /// before.
    pub(super) fn hand_over(&mut self, handed_over: impl FnOnce()) -> Result<Transferred, Refusal> {
        let mut source = Source::new();
        let mut handed_over = Some(handed_over);
        loop {
            let (message, why) = match self.link.receive().and_then(|received| word(received.message)) {
                Ok(said) => said,
                Err(error) => return self.lost(&mut source, error),
            };
            match source.receive(message) {
                Ok(SourceAction::SendHandover) => {
                    if let Some(handed_over) = handed_over.take() {
                        handed_over();
                    }
                    if let Err(error) = self.link.send(&Message::Handover) {
                        // A message of which a part has left may be there.
                        return self.lost(&mut source, error);
                    }
                }
                Ok(SourceAction::Release) => return Ok(Transferred::default()),
                Ok(SourceAction::RunHere) => return Err(Refusal::Declined(why)),
                Ok(_) => {}
                Err(error) => return self.lost(&mut source, LinkError::Malformed(error.to_string())),
            }
        }
    }

    fn lost(&mut self, source: &mut Source, error: LinkError) -> Result<Transferred, Refusal> {
        match source.fail() {
            SourceAction::ReportUnknown => self.watch(source, error),
            _ => Err(error.into()),
        }
    }

    /// Waits after HANDOVER without an answer: for a late report, for the end of the new server's process, or until
    /// this server is stopped.
    fn watch(&mut self, source: &mut Source, why: LinkError) -> Result<Transferred, Refusal> {
        let mut listens =
            matches!(why, LinkError::Silent | LinkError::Slow | LinkError::TooLong(_) | LinkError::Stopped);
        let mut next_warning = Instant::now();
        loop {
            // Asked first: what a dead process has said is all there, and is heard before anything is made of it.
            let is_dead = self.peer.is_dead();
            while listens {
                let heard = self.link.receive_now().and_then(|received| match received {
                    Some(received) => word(received.message).map(Some),
                    None => Ok(None),
                });
                let Ok(Some((message, why))) = heard else {
                    listens = heard.is_ok();
                    break;
                };
                match source.receive(message) {
                    Ok(SourceAction::Release) => return Ok(Transferred::default()),
                    Ok(SourceAction::RunHere) => return Err(Refusal::Declined(why)),
                    _ => listens = false,
                }
            }
            if !listens {
                // What is said from here on is not heard, and the new server is to see that.
                self.link.close();
            }
            if is_dead && source.destination_died() == SourceAction::RunHere {
                return Err(Refusal::Died(self.peer.pid));
            }
            if is_readable(&self.stop) {
                return Ok(Transferred { outcome_unknown: Some(why), ..Transferred::default() });
            }
            let now = Instant::now();
            if now >= next_warning {
                next_warning = now + WARNING;
                tracing::warn!(
                    device = self.device.name(),
                    pid = self.peer.pid,
                    "the device is stopped: the new server did not confirm that it runs the device ({why}), and its \
                     process is still alive; if it does not serve the device, end that process and the device \
                     resumes here"
                );
            }
            if let Err(error) = self.wait(listens, next_warning - now) {
                // Nothing that fails here says where the device is: it stays stopped.
                tracing::debug!(%error, "cannot poll the new server's socket");
                std::thread::sleep(UNABLE_TO_WAIT);
            }
        }
    }

    /// Waits until there is something to process.
    fn wait(&self, listens: bool, time: Duration) -> io::Result<()> {
        let process = self.peer.process();
        let mut asked = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&*self.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.link.as_fd(), PollFlags::IN),
        ];
        let timeout = Timespec::try_from(time).ok();
        match poll(&mut asked[..if listens { 3 } else { 2 }], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
