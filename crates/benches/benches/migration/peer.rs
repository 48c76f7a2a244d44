//! The destination's process of a move, which is this program again.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::memory::MemoryFile;
use super::{Result, bare, memory, whimbrel};

/// Tells this program that it is a destination, and of which kind.
const ROLE: &str = "WHIMBREL_BENCH_PEER";
/// The number of its devices whose state is measured.
const DEVICES: &str = "WHIMBREL_BENCH_PEER_DEVICES";
/// The path of its memory.
const MEMORY: &str = "WHIMBREL_BENCH_PEER_MEMORY";
/// Set if the memory is touched before the move.
const TOUCHED: &str = "WHIMBREL_BENCH_PEER_TOUCHED";

/// A destination that listens. It is killed when dropped.
pub(super) struct Peer {
    child: Child,
    address: String,
}

impl Peer {
    pub(super) fn start(role: &str, devices: u64, memory: &MemoryFile, is_touched: bool) -> Result<Peer> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env(ROLE, role)
            .env(DEVICES, devices.to_string())
            .env(MEMORY, memory.path())
            .stdout(Stdio::piped());
        if is_touched {
            command.env(TOUCHED, "1");
        }
        let mut peer = Peer { child: command.spawn()?, address: String::new() };
        let stdout = peer.child.stdout.take().ok_or("no pipe to the destination's process")?;
        BufReader::new(stdout.take(4096)).read_line(&mut peer.address)?;
        Ok(peer)
    }

    /// Moves the memory to it, and waits until it has ended well.
    pub(super) fn take<T>(mut self, send: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let moved = send(self.address.trim())?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(moved)
        } else {
            Err(format!("the destination's process failed: {status}").into())
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has ended, unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role of this process, if it is a destination.
pub(super) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// Receives the memory. The address goes to stdout first.
pub(super) fn run(role: &str) -> Result<()> {
    let path = std::env::var(MEMORY)?;
    let memory = memory::open(Path::new(&path), std::env::var_os(TOUCHED).is_some())?;
    let devices = std::env::var(DEVICES)?.parse()?;
    let told = |address: &str| println!("{address}");
    match role {
        "bare" => bare::receive(&memory, devices, told),
        _ => whimbrel::receive(memory, devices, told),
    }
}
