//! A link through a third party, which records what passes, delays it, slows it down and cuts it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;

use super::engine::Stream;

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

/// The throughput in both directions, which can change at any moment.
#[derive(Clone)]
pub(crate) struct Throttle(Arc<AtomicU64>);

impl Throttle {
    pub(crate) fn open() -> Throttle {
        Throttle(Arc::new(AtomicU64::new(u64::MAX)))
    }

    /// In bytes per second. 0: nothing is taken any more.
    pub(crate) fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::SeqCst);
    }

    /// Waits until `wanted` bytes or fewer may pass, and returns how many.
    fn admit(&self, wanted: usize) -> usize {
        const STEP: Duration = Duration::from_millis(10);
        loop {
            match self.0.load(Ordering::SeqCst) {
                u64::MAX => return wanted,
                0 => std::thread::sleep(STEP),
                rate => {
                    std::thread::sleep(STEP);
                    return wanted.min((rate / 100).max(1) as usize);
                }
            }
        }
    }
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
pub(crate) fn proxy(cut: Cut) -> (Stream, Stream, Recording) {
    proxy_through(cut, Duration::ZERO, &Throttle::open())
}

/// The ends for source and destination of a link with a delay in each direction.
pub(crate) fn proxy_through(cut: Cut, delay: Duration, throttle: &Throttle) -> (Stream, Stream, Recording) {
    let (destination, far) = UnixStream::pair().unwrap();
    let (source, recording) = proxy_to(far, cut, delay, throttle);
    (source, destination.into(), recording)
}

/// The source's end of a link to a connection that exists: TCP if that is, and a Unix socket otherwise.
pub(crate) fn proxy_to(
    far: UnixStream,
    cut: Cut,
    delay: Duration,
    throttle: &Throttle,
) -> (Stream, Recording) {
    let (source, near) = match socket_domain(&far).unwrap() {
        AddressFamily::UNIX => UnixStream::pair().unwrap(),
        _ => tcp_pair(),
    };
    let (from_source, from_destination) = match cut {
        Cut::Never => (None, None),
        Cut::FromSource(count) => (Some((count, false)), None),
        Cut::FromDestination(count) => (None, Some((count, false))),
        Cut::SilentFromSource(count) => (Some((count, true)), None),
        Cut::SilentFromDestination(count) => (None, Some((count, true))),
    };
    let silent = Arc::new(Mutex::new(false));
    let passed: [Arc<Mutex<Vec<u8>>>; 2] = [Arc::default(), Arc::default()];
    let ends = |from: &UnixStream, to: &UnixStream| (from.try_clone().unwrap(), to.try_clone().unwrap());
    let mut threads = Vec::new();
    for (((from, to), limit), passed) in
        [(ends(&near, &far), from_source), (ends(&far, &near), from_destination)].into_iter().zip(&passed)
    {
        let (passed, silent, throttle) = (Arc::clone(passed), silent.clone(), throttle.clone());
        if delay.is_zero() {
            threads.push(std::thread::spawn(move || forward(&from, to, limit, &silent, &passed, &throttle)));
            continue;
        }
        // What is under way is in the channel.
        let (pieces, arriving) = mpsc::channel();
        let late = Late { pieces, delay, end: to.try_clone().unwrap() };
        threads.push(std::thread::spawn(move || forward(&from, late, limit, &silent, &passed, &throttle)));
        threads.push(std::thread::spawn(move || deliver(&arriving, to)));
    }
    (source.into(), Recording { passed, threads })
}

/// Two ends of a TCP connection. What is done with them is the same for every socket.
fn tcp_pair() -> (UnixStream, UnixStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let left = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (right, _) = listener.accept().unwrap();
    (OwnedFd::from(left).into(), OwnedFd::from(right).into())
}

/// Where a link leads to.
trait End {
    /// Returns whether it is still there.
    fn put(&mut self, bytes: &[u8]) -> bool;
    fn finish(&mut self);
    fn cut(&mut self);
}

impl End for UnixStream {
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.write_all(bytes).is_ok()
    }

    fn finish(&mut self) {
        let _ = self.shutdown(Shutdown::Write);
    }

    fn cut(&mut self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// An end that what is put there reaches later.
struct Late {
    pieces: mpsc::Sender<(Instant, Vec<u8>)>,
    delay: Duration,
    end: UnixStream,
}

impl End for Late {
    fn put(&mut self, bytes: &[u8]) -> bool {
        self.pieces.send((Instant::now() + self.delay, bytes.to_vec())).is_ok()
    }

    fn finish(&mut self) {
        let _ = self.pieces.send((Instant::now() + self.delay, Vec::new()));
    }

    fn cut(&mut self) {
        let _ = self.end.shutdown(Shutdown::Both);
    }
}

fn deliver(arriving: &mpsc::Receiver<(Instant, Vec<u8>)>, mut to: UnixStream) {
    for (due, bytes) in arriving {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if bytes.is_empty() || to.write_all(&bytes).is_err() {
            to.finish();
            return;
        }
    }
}

fn forward(
    mut from: &UnixStream,
    mut to: impl End,
    limit: Option<(usize, bool)>,
    silent: &Mutex<bool>,
    passed: &Mutex<Vec<u8>>,
    throttle: &Throttle,
) {
    let mut left = limit.map_or(usize::MAX, |(count, _)| count);
    let mut buffer = vec![0; 64 << 10];
    loop {
        if left == 0 {
            if limit.is_some_and(|(_, silently)| silently) {
                *silent.lock() = true;
            } else {
                let _ = from.shutdown(Shutdown::Both);
                to.cut();
                return;
            }
        }
        let most = throttle.admit(buffer.len().min(if *silent.lock() { buffer.len() } else { left }));
        match from.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => {
                to.finish();
                return;
            }
            Ok(_) if *silent.lock() => {}
            Ok(count) => {
                left -= count;
                passed.lock().extend_from_slice(&buffer[..count]);
                if !to.put(&buffer[..count]) {
                    let _ = from.shutdown(Shutdown::Both);
                    return;
                }
            }
        }
    }
}
