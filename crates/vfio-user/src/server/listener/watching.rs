//! The descriptors that a server watches at the moment. This module handles none of their events.

use std::io;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use whimbrel_device::Errno;

#[cfg(feature = "takeover")]
use super::server::TAKEOVERS;
use super::server::{CHANGED, CLIENTS, STOP, Server, ServerState};
use crate::server::refusal::reject;
use crate::server::session::current::Current;

impl Server {
    /// Watches the descriptors that matter now. A peer whose socket cannot be watched is disconnected: a user can watch
    /// only so many descriptors (`fs.epoll.max_user_watches`), and the other peers are not to blame. The listeners stay
    /// watched when they accept nothing.
    pub(super) fn watch(&self, state: &mut ServerState) -> io::Result<()> {
        let now = Instant::now();
        let paused =
            state.accepts_at.map(|at| at.saturating_duration_since(now)).filter(|left| !left.is_zero());
        #[cfg(feature = "takeover")]
        let (closed, turn) =
            (state.under_way.closed_for(state.current.is_some()), state.under_way.time_left(now));
        #[cfg(not(feature = "takeover"))]
        let (closed, turn) = (None, None);
        let is_open = closed.is_none() && paused.is_none();
        let read_if = |accepts| if accepts { EventFlags::IN } else { EventFlags::ET };
        self.poller.watch(STOP, &*self.stop, EventFlags::IN)?;
        self.poller.watch(CHANGED, &*self.changed, EventFlags::IN)?;
        self.poller.watch(CLIENTS, &self.listener, read_if(is_open && state.unidentified.have_room()))?;
        #[cfg(feature = "takeover")]
        if let Some(listener) = &self.takeovers.listener {
            self.poller.watch(TAKEOVERS, listener, read_if(is_open))?;
        }
        let watched = state
            .unidentified
            .sockets()
            .map(|(token, fd)| (token, self.poller.watch(token, fd, EventFlags::IN)));
        let failed: Vec<_> = watched.filter_map(|(token, watched)| Some((token, watched.err()?))).collect();
        for (token, error) in failed {
            self.cannot_watch(&error);
            state.unidentified.remove(token).inspect(|stream| reject(stream, 0, Errno::ENOMEM));
        }
        let watch_client = |(token, socket)| match socket {
            Some((socket, flags)) => self.poller.watch(token, socket, flags),
            None => Ok(()),
        };
        let watched = match &state.current {
            Some(Current::Inline(client)) => {
                state.client_tokens.into_iter().zip(client.sockets()).try_for_each(watch_client)
            }
            _ => Ok(()),
        };
        if let Err(error) = watched {
            self.cannot_watch(&error);
            self.remove_client(state).into_iter().for_each(Current::end);
        }
        let left = [closed, turn, paused, state.unidentified.time_left(now)];
        self.poller.wake_after(left.into_iter().flatten().min())
    }

    fn cannot_watch(&self, error: &io::Error) {
        if let Some(left_out) = self.not_accepted.admit(Instant::now()) {
            let path = self.path().display();
            tracing::warn!(%path, %error, left_out, "cannot watch a client's socket; raise fs.epoll.max_user_watches");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use whimbrel_device::{DeviceFile, DeviceInfoFlags, Driver, Info};

    use super::*;
    use crate::server::backend::Backend;

    struct Idle;

    impl Driver for Idle {
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PCI)
        }
    }

    #[test]
    fn a_newcomer_that_cannot_be_watched_is_disconnected_and_the_others_stay() {
        let folder = tempfile::tempdir().unwrap();
        let device = DeviceFile::new("idle", |_| Idle);
        let server = Server::bind(folder.path().join("socket"), Backend::new(device)).unwrap();
        let mut state = server.state.lock();
        let (first, _theirs) = UnixStream::pair().unwrap();
        let (last, _theirs) = UnixStream::pair().unwrap();
        // epoll refuses a regular file, as it refuses every descriptor past the limit.
        let refused = UnixStream::from(OwnedFd::from(tempfile::tempfile().unwrap()));
        for (token, stream) in [(100, first), (101, refused), (102, last)] {
            state.unidentified.add(token, stream, Instant::now());
        }
        server.watch(&mut state).unwrap();
        let left: Vec<_> = state.unidentified.sockets().map(|(token, _)| token).collect();
        assert_eq!(left, [100, 102]);
    }
}
