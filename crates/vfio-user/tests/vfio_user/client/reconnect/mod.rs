//! A client whose server ends comes back to the next one at the same path. Servers in processes of their own, which are
//! killed, are in the tests of the program.

mod hostile;
mod live;
mod plain;
mod restored;

use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_vfio_user::{Backend, Client, ClientOptions, Reconnect, Served, Server, Stopper};

/// How long anything may take that happens at once.
const LONG: Duration = Duration::from_secs(30);

/// A server in a thread, which can end as if it had crashed: its client is not told.
struct Serving {
    stopper: Stopper,
    thread: Option<JoinHandle<std::io::Result<Served>>>,
}

impl Serving {
    fn start(path: &Path, backend: Backend) -> Serving {
        let server = Server::bind(path, backend).unwrap();
        let stopper = server.stopper();
        Serving { stopper, thread: Some(std::thread::spawn(move || server.run())) }
    }

    fn end(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn connect(path: &Path, within: Duration) -> Client {
    Client::connect(path, &ClientOptions::default().reconnect(Reconnect::within(within))).unwrap()
}

/// Waits until the client has told its owner something, and its status is as wanted.
#[track_caller]
fn wait_until(client: &Client, wanted: impl Fn(&Client) -> bool) {
    let deadline = Instant::now() + LONG;
    while !wanted(client) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{:?}", client.connection_status());
        let events = client.connection_events().unwrap();
        let timeout = Timespec::try_from(left).unwrap();
        assert_eq!(poll(&mut [PollFd::new(&events, PollFlags::IN)], Some(&timeout)).unwrap(), 1);
        rustix::io::read(events, &mut [0; 8]).unwrap();
    }
}

#[track_caller]
fn wait_until_reset(client: &Client, times: u64) {
    wait_until(client, |client| client.resets() == times);
}
