//! A proxy at the source's end of a link: what passes is delayed, or delivered in pieces.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// What a proxy does with what passes, in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) delay: Duration,
    /// The most that is written at a time.
    pub(crate) piece: usize,
}

/// The data on its way. More than so many pieces are not taken from the sender.
const ON_THE_WAY: usize = 64;

/// Starts a proxy to an address for one connection, and returns its own address. It listens and connects in a network
/// namespace, or in this one.
pub(crate) fn start(namespace: Option<impl AsFd + Send + 'static>, to: &str, manner: Manner) -> String {
    let (told, address) = mpsc::channel();
    let to = to.to_string();
    thread::spawn(move || {
        if let Some(namespace) = namespace {
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        told.send(listener.local_addr().unwrap().to_string()).unwrap();
        let (near, _) = listener.accept().unwrap();
        let far = TcpStream::connect(to).unwrap();
        for (from, to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
            to.set_nodelay(true).unwrap();
            let (pieces, arriving) = mpsc::sync_channel(ON_THE_WAY);
            thread::spawn(move || take(from, &pieces, manner.delay));
            thread::spawn(move || deliver(&arriving, to, manner.piece));
        }
    });
    address.recv().unwrap()
}

fn take(mut from: TcpStream, pieces: &mpsc::SyncSender<(Instant, Vec<u8>)>, delay: Duration) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if pieces.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
            break;
        }
    }
}

fn deliver(arriving: &mpsc::Receiver<(Instant, Vec<u8>)>, mut to: TcpStream, piece: usize) {
    let mut write =
        |bytes: &[u8]| bytes.chunks(piece).try_for_each(|piece| -> io::Result<()> { to.write_all(piece) });
    while let Ok((at, bytes)) = arriving.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        if write(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
