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
use crate::socket::{SocketError, is_readable};

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
                        if !self.link.is_cut() {
                            // Nothing of it has left.
                            return Err(error.into());
                        }
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
        // What cannot be sent says nothing of what has arrived already. Of a peer that has sent nonsense nothing is believed.
        let mut listens = !matches!(
            why,
            LinkError::Malformed(_) | LinkError::Answered(_) | LinkError::Socket(SocketError::Frame(_))
        );
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

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::mpsc;

    use rustix::event::{EventfdFlags, eventfd};
    use whimbrel_device::{DeviceFile, DeviceInfoFlags, Driver, Info};

    use super::*;
    use crate::server::backend::Backend;
    use crate::server::signal::signal;
    use crate::takeover::Description;
    use crate::takeover::give::Offer;
    use crate::takeover::link::Link;
    use crate::takeover::peer::Peer;
    use crate::takeover::wire::{TIMEOUT, VERSIONS};

    struct Idle;

    impl Driver for Idle {
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PCI)
        }
    }

    fn new_eventfd() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")
    }

    /// An old server that has sent everything, and the new server's end, which has accepted, and heard nothing.
    fn sent() -> (Giving, Link) {
        let (here, there) = UnixStream::pair().expect("a pair of sockets");
        let mut theirs = Link::new(there, TIMEOUT).expect("a link");
        for message in [Message::Request { versions: VERSIONS.to_vec() }, Message::Accept] {
            theirs.send(&message).expect("there is room");
        }
        let backend = Backend::new(DeviceFile::new("idle", |_| Idle));
        let offer = Offer {
            device: backend.device().clone(),
            description: Description::of(backend.device()).expect("a description"),
            clients: new_eventfd(),
            identity: (0, 0),
            takeovers: None,
            pause: TIMEOUT,
            backend,
        };
        let peer = Peer::of(&here).expect("it lives");
        let stop = Arc::new(new_eventfd());
        let link = Link::new(here, TIMEOUT).expect("a link").stopped_by(stop.clone());
        (Giving::begin(link, peer, stop, offer).expect("it is accepted"), theirs)
    }

    #[test]
    fn a_failure_that_came_before_the_handover_could_be_sent_gives_the_device_back() {
        let (mut giving, mut theirs) = sent();
        theirs.receive().expect("the offer");
        for message in [Message::Ready, Message::Failed { why: "it was reset".into() }] {
            theirs.send(&message).expect("there is room");
        }
        drop(theirs);
        // Its process, which is this one, does not die: what is not heard would be waited for.
        let (done, is_done) = mpsc::channel();
        let stop = giving.stop.clone();
        let ending = std::thread::spawn(move || is_done.recv_timeout(TIMEOUT).map_err(|_| signal(&stop)));
        let outcome = giving.hand_over(|| ());
        let _ = done.send(());
        assert!(matches!(&outcome, Err(Refusal::Declined(why)) if why == "it was reset"), "{outcome:?}");
        let _ = ending.join();
    }

    #[test]
    fn a_handover_of_which_nothing_has_left_gives_nothing() {
        let (mut giving, mut theirs) = sent();
        theirs.send(&Message::Ready).expect("there is room");
        let stop = giving.stop.clone();
        // Between READY and HANDOVER.
        let outcome = giving.hand_over(|| signal(&stop));
        assert!(matches!(outcome, Err(Refusal::Link(LinkError::Stopped))), "{outcome:?}");
    }
}
