//! A proxy between `whimbrel send` and `whimbrel receive` that lets everything pass up to a frame of one kind, and then
//! nothing: both sides wait where the test wants them.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// Sizes of the stream (docs/stream.md).
const PREAMBLE: usize = 16;
const HEADER: usize = 24;

/// Kinds of frames.
pub(crate) const ROUND: u16 = 9;
pub(crate) const END: u16 = 15;
pub(crate) const READY: u16 = 16;
pub(crate) const HANDOVER: u16 = 17;
pub(crate) const RUNNING: u16 = 18;

/// The proxy. Both directions end with the processes.
pub(crate) struct Gate {
    pub(crate) address: String,
    held: Receiver<()>,
}

impl Gate {
    /// A proxy for one connection to `to`, which holds the first frame of this kind.
    pub(crate) fn new(to: &str, kind: u16) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (to, (holds, held)) = (to.to_string(), channel());
        std::thread::spawn(move || {
            let (source, _) = listener.accept().unwrap();
            let destination = TcpStream::connect(to).unwrap();
            let (back, other) = (destination.try_clone().unwrap(), source.try_clone().unwrap());
            let its = holds.clone();
            std::thread::spawn(move || connect(back, other, kind, &its));
            connect(source, destination, kind, &holds);
        });
        Gate { address, held }
    }

    /// Waits until the frame is held: its sender has sent it, and the other side does not get it.
    pub(crate) fn wait(&self) {
        self.held.recv_timeout(Duration::from_mins(1)).expect("the frame comes");
    }
}

/// Forwards one direction, and ends both with it.
fn connect(from: TcpStream, to: TcpStream, kind: u16, holds: &Sender<()>) {
    let _ = forward(&from, &to, kind, holds);
    for stream in [from, to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Forwards one direction, frame by frame, up to the kind. Then the connection stays open without a byte.
fn forward(mut from: &TcpStream, mut to: &TcpStream, kind: u16, holds: &Sender<()>) -> io::Result<()> {
    let mut bytes = vec![0; PREAMBLE];
    from.read_exact(&mut bytes)?;
    to.write_all(&bytes)?;
    loop {
        bytes.resize(HEADER, 0);
        from.read_exact(&mut bytes)?;
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        if u16::from_le_bytes([bytes[0], bytes[1]]) == kind {
            let _ = holds.send(());
            // Until the process is dead, which ends its connection.
            io::copy(&mut from, &mut io::sink())?;
            return Ok(());
        }
        bytes.resize(HEADER + length as usize, 0);
        from.read_exact(&mut bytes[HEADER..])?;
        to.write_all(&bytes)?;
    }
}
