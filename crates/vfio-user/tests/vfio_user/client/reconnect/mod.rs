//! A client whose server ends comes back to the next one at the same path. Servers in processes of their own, which are
//! killed, are in the tests of the program.

mod hostile;
mod live;
mod plain;
mod restored;
mod waiting;

use std::path::Path;
use std::thread::JoinHandle;

use whimbrel_vfio_user::{Backend, Client, Served, Server, Stopper};

use self::waiting::{LONG, connect, wait_until};

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

#[track_caller]
fn wait_until_reset(client: &Client, times: u64) {
    wait_until(client, |client| client.resets() == times);
}
