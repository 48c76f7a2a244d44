//! A link through a third party, which records what passes and cuts it.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use whimbrel_engine::Link;

/// Where the link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Never,
    /// After so many bytes from the source, both ways.
    FromSource(usize),
    /// After so many bytes from the destination, both ways.
    FromDestination(usize),
    /// After so many bytes from the source nothing passes any more, but nobody is told.
    SilentFromSource(usize),
    /// After so many bytes from the destination nothing passes any more, but nobody is told.
    SilentFromDestination(usize),
}

/// What passed.
pub(crate) struct Recording {
    passed: [Arc<Mutex<Vec<u8>>>; 2],
    threads: Vec<JoinHandle<()>>,
}

impl Recording {
    /// Waits for the ends to close, and gives what passed from the source and from the destination.
    pub(crate) fn end(self) -> (Vec<u8>, Vec<u8>) {
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let [source, destination] = self.passed;
        (source.lock().clone(), destination.lock().clone())
    }
}

/// The ends for source and destination.
pub(crate) fn proxy(cut: Cut) -> (Link, Link, Recording) {
    let (source, near) = UnixStream::pair().unwrap();
    let (destination, far) = UnixStream::pair().unwrap();
    let (from_source, from_destination) = match cut {
        Cut::Never => (None, None),
        Cut::FromSource(count) => (Some((count, false)), None),
        Cut::FromDestination(count) => (None, Some((count, false))),
        Cut::SilentFromSource(count) => (Some((count, true)), None),
        Cut::SilentFromDestination(count) => (None, Some((count, true))),
    };
    let silent = Arc::new(Mutex::new(false));
    let passed = [Arc::default(), Arc::default()];
    let ends = |from: &UnixStream, to: &UnixStream| (from.try_clone().unwrap(), to.try_clone().unwrap());
    let threads = [(ends(&near, &far), from_source), (ends(&far, &near), from_destination)]
        .into_iter()
        .zip(&passed)
        .map(|(((from, to), limit), passed)| {
            let (passed, silent) = (Arc::clone(passed), silent.clone());
            std::thread::spawn(move || forward(from, to, limit, &silent, &passed))
        })
        .collect();
    (source.into(), destination.into(), Recording { passed, threads })
}

fn forward(
    mut from: UnixStream,
    mut to: UnixStream,
    limit: Option<(usize, bool)>,
    silent: &Mutex<bool>,
    passed: &Mutex<Vec<u8>>,
) {
    let mut left = limit.map_or(usize::MAX, |(count, _)| count);
    let mut buffer = vec![0; 64 << 10];
    loop {
        if left == 0 {
            if limit.is_some_and(|(_, silently)| silently) {
                *silent.lock() = true;
            } else {
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                return;
            }
        }
        let most = buffer.len().min(if *silent.lock() { buffer.len() } else { left });
        match from.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(_) if *silent.lock() => {}
            Ok(count) => {
                left -= count;
                passed.lock().extend_from_slice(&buffer[..count]);
                if to.write_all(&buffer[..count]).is_err() {
                    let _ = from.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }
}
