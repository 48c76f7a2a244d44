//! A client that comes back, and the wait for it. The tests of the program use this too.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use whimbrel_vfio_user::{Client, ClientOptions, Reconnect};

/// How long anything may take that happens at once.
pub(crate) const LONG: Duration = Duration::from_mins(1);

pub(crate) fn connect(path: &Path, within: Duration) -> Client {
    Client::connect(path, &ClientOptions::default().reconnect(Reconnect::within(within))).unwrap()
}

/// Waits until the client has told its owner something, and its status is as wanted.
#[track_caller]
pub(crate) fn wait_until(client: &Client, wanted: impl Fn(&Client) -> bool) {
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
