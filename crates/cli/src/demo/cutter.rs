//! `demo --cuts N`: one of the source's connections is cut while the devices work, and the hosts replace all of them.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::net::Shutdown;
use whimbrel_engine::channel::{Channel, Connect, Connector, ConnectorError, Until};
use whimbrel_engine::{Phase, Progress};

/// The connections, and how often one is still to be cut. Its clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Cutter(Arc<Mutex<Cuts>>);

#[derive(Debug)]
struct Cuts {
    left: u32,
    /// The number of connections in use at a time.
    channels: usize,
    /// The position of the next one to cut, in the order in which they were opened: each has its turn.
    next: usize,
    /// The sockets of the newest connections, until one is cut.
    sockets: VecDeque<OwnedFd>,
}

impl Cutter {
    /// Returns one for so many cuts of one among so many connections.
    pub(super) fn new(cuts: u32, channels: u32) -> Cutter {
        let channels = channels.max(1) as usize;
        Cutter(Arc::new(Mutex::new(Cuts { left: cuts, channels, next: 0, sockets: VecDeque::new() })))
    }

    /// Takes in a new connection.
    pub(super) fn watch(&self, channel: &dyn Channel) {
        // Without a descriptor to spare there is one cut less.
        let Ok(socket) = channel.readiness_fd().try_clone_to_owned() else { return };
        let mut cuts = self.0.lock();
        if cuts.sockets.len() == cuts.channels {
            cuts.sockets.pop_front();
        }
        cuts.sockets.push_back(socket);
    }

    /// Cuts a connection in a round, unless that was done often enough.
    pub(super) fn progress(&self, progress: &Progress) {
        let mut cuts = self.0.lock();
        if !matches!(progress.phase, Phase::Round(_)) || cuts.left == 0 || cuts.sockets.len() < cuts.channels
        {
            return;
        }
        let victim = cuts.next % cuts.channels;
        // The others are replaced with it.
        if let Some(socket) = std::mem::take(&mut cuts.sockets).get(victim) {
            (cuts.left, cuts.next) = (cuts.left - 1, victim + 1);
            // Fails if it is gone already.
            let _ = rustix::net::shutdown(socket, Shutdown::Both);
        }
    }

    /// Returns a connector whose connections are cut as well.
    pub(super) fn connector(&self, inner: Connector) -> impl Connect + 'static {
        Cuttable { inner, cutter: self.clone() }
    }
}

struct Cuttable {
    inner: Connector,
    cutter: Cutter,
}

impl Connect for Cuttable {
    fn connect(&mut self, until: Until<'_>) -> Result<Arc<dyn Channel>, ConnectorError> {
        let channel = self.inner.connect(until)?;
        self.cutter.watch(&*channel);
        Ok(channel)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use whimbrel_engine::channel::Stream;

    use super::*;

    /// The connections that were cut, of two, after a moment in each of these phases.
    fn cut(cutter: &Cutter, phases: &[Phase]) -> [bool; 2] {
        let mut connections = [0; 2].map(|_| {
            // Not before all of them are there.
            cutter.progress(&Progress::new(Phase::Round(1)));
            let (near, far) = UnixStream::pair().unwrap();
            far.set_nonblocking(true).unwrap();
            let near = Stream::from(near);
            cutter.watch(&near);
            (near, far)
        });
        for phase in phases {
            cutter.progress(&Progress::new(*phase));
        }
        connections.each_mut().map(|(_, far)| far.read(&mut [0]).is_ok())
    }

    #[test]
    fn each_connection_has_its_turn_in_a_round_until_there_were_enough_cuts() {
        let cutter = Cutter::new(3, 2);
        let others = [Phase::Greeting, Phase::Reconnecting, Phase::Switchover];
        assert_eq!(cut(&cutter, &[&others[..], &[Phase::Round(1), Phase::Round(1)]].concat()), [true, false]);
        assert_eq!(cut(&cutter, &[Phase::Round(2)]), [false, true]);
        assert_eq!(cut(&cutter, &[Phase::Round(2)]), [true, false]);
        assert_eq!(cut(&cutter, &[Phase::Round(3)]), [false, false]);
    }
}
