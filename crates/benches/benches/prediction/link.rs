//! A link with a given throughput and delay: two threads pass on what arrives, no faster and no earlier than it allows.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The bytes that pass at a time.
const PIECE: usize = 32 << 10;
/// The delay of a thread that is made up for.
const CATCH_UP: Duration = Duration::from_millis(20);

/// Returns both ends of a link. `throughput` is in bytes per second for each direction, `delay` is one way. Its threads
/// end with the connections.
pub(super) fn link(throughput: u64, delay: Duration) -> std::io::Result<(UnixStream, UnixStream)> {
    let (left, near) = UnixStream::pair()?;
    let (right, far) = UnixStream::pair()?;
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        let (passed, arriving) = mpsc::channel();
        std::thread::spawn(move || pass(from, throughput, delay, &passed));
        std::thread::spawn(move || deliver(&arriving, to));
    }
    Ok((left, right))
}

fn pass(mut from: UnixStream, throughput: u64, delay: Duration, passed: &mpsc::Sender<(Instant, Vec<u8>)>) {
    let mut free_at = Instant::now();
    loop {
        let mut piece = vec![0; PIECE];
        let Ok(count @ 1..) = from.read(&mut piece) else { return };
        piece.truncate(count);
        // A thread that was woken too late catches up; time in which nothing was to send is not saved.
        let earliest = Instant::now().checked_sub(CATCH_UP).unwrap_or(free_at);
        free_at = free_at.max(earliest) + Duration::from_secs_f64(count as f64 / throughput as f64);
        std::thread::sleep(free_at.saturating_duration_since(Instant::now()));
        if passed.send((free_at.max(Instant::now()) + delay, piece)).is_err() {
            return;
        }
    }
}

fn deliver(arriving: &mpsc::Receiver<(Instant, Vec<u8>)>, mut to: UnixStream) {
    for (due, piece) in arriving {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&piece).is_err() {
            return;
        }
    }
    // Fails if the other side has closed it.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
