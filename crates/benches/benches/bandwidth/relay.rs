//! A relay in front of a destination: it passes everything on, and notes when the bytes from the source arrive.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// The bytes that arrived at a time, from all connections.
#[derive(Clone, Debug, Default)]
pub(super) struct Arrivals(Arc<Mutex<Vec<(Instant, u64)>>>);

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    /// Between the first and the last hundredth of the bytes.
    pub(super) mean: f64,
    /// In the second with most of them.
    pub(super) most: f64,
    /// In the second with least of them, from the first to the last hundredth.
    pub(super) least: f64,
}

/// Starts a relay to an address, and returns its own. Its threads end with the connections.
pub(super) fn relay(to: &str) -> std::io::Result<(String, Arrivals)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let arrivals = Arrivals::default();
    let (its, to) = (arrivals.clone(), to.to_string());
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let (Ok(near), Ok(far)) = (near, TcpStream::connect(&to)) else { return };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
            let arrivals = its.clone();
            std::thread::spawn(move || pass(near, far, |count| arrivals.note(count)));
            std::thread::spawn(move || pass(far_too, near_too, |_| {}));
        }
    });
    Ok((address, arrivals))
}

fn pass(mut from: TcpStream, mut to: TcpStream, note: impl Fn(usize)) {
    // A late small segment would not be the source's.
    let _ = to.set_nodelay(true);
    let mut piece = vec![0; 256 << 10];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        note(count);
        if to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    // Fails if the other side has closed it.
    let _ = to.shutdown(Shutdown::Write);
}

impl Arrivals {
    fn note(&self, count: usize) {
        if let Ok(mut list) = self.0.lock() {
            list.push((Instant::now(), count as u64));
        }
    }

    /// Returns the rates of everything that has arrived.
    pub(super) fn rates(&self) -> Rates {
        let mut list = self.0.lock().map(|list| list.clone()).unwrap_or_default();
        list.sort();
        let total: u64 = list.iter().map(|(_, count)| count).sum();
        // The times at which so much had arrived.
        let mut so_far = 0;
        let mut had = Vec::new();
        for (at, count) in &list {
            so_far += count;
            had.push((*at, so_far));
        }
        let inner: Vec<_> =
            had.iter().copied().filter(|(_, sum)| (total / 100..=total * 99 / 100).contains(sum)).collect();
        let (Some(begin), Some(end)) = (inner.first(), inner.last()) else {
            return Rates { mean: 0.0, most: 0.0, least: 0.0 };
        };
        let mean = (end.1 - begin.1) as f64 / (end.0 - begin.0).as_secs_f64();
        let least = in_seconds(&inner).fold(f64::INFINITY, f64::min);
        Rates { mean, most: in_seconds(&had).fold(0.0, f64::max), least }
    }
}

/// The bytes that arrived in each second that begins with an arrival.
fn in_seconds(had: &[(Instant, u64)]) -> impl Iterator<Item = f64> {
    let end = had.last().map(|(at, _)| *at);
    had.iter().take_while(move |(at, _)| end.is_some_and(|end| *at + SECOND <= end)).map(|(from, before)| {
        let until = had.partition_point(|(at, _)| *at <= *from + SECOND);
        (had[until - 1].1 - before) as f64
    })
}
