//! The destination's process of a move, which is this program again.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use super::memory::MemoryFile;
use super::{Move, Result, bare, memory, processor, whimbrel};

/// Tells this program that it is a destination, and of which kind.
const ROLE: &str = "WHIMBREL_BENCH_PEER";
/// The number of its devices whose state is measured.
const DEVICES: &str = "WHIMBREL_BENCH_PEER_DEVICES";
/// The path of its memory.
const MEMORY: &str = "WHIMBREL_BENCH_PEER_MEMORY";
/// Set if the memory is touched before the move.
const TOUCHED: &str = "WHIMBREL_BENCH_PEER_TOUCHED";

/// The folder of its certificates, if it uses TLS.
const CERTIFICATES: &str = "WHIMBREL_BENCH_PEER_CERTIFICATES";

/// A destination that listens. It is killed when dropped.
pub(super) struct Peer {
    child: Child,
    address: String,
    stdout: BufReader<ChildStdout>,
}

impl Peer {
    pub(super) fn start(
        role: &str,
        devices: u64,
        memory: &MemoryFile,
        is_touched: bool,
        certificates: Option<&Path>,
    ) -> Result<Peer> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .env(ROLE, role)
            .env(DEVICES, devices.to_string())
            .env(MEMORY, memory.path())
            .stdout(Stdio::piped());
        if is_touched {
            command.env(TOUCHED, "1");
        }
        if let Some(folder) = certificates {
            command.env(CERTIFICATES, folder);
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or("no pipe to the destination's process")?;
        let mut peer = Peer { child, address: String::new(), stdout: BufReader::new(stdout) };
        peer.address = peer.line()?;
        Ok(peer)
    }

    /// Moves the memory to it, and waits until it has ended well. Adds the processor time that it has used.
    pub(super) fn take(mut self, send: impl FnOnce(&str) -> Result<Move>) -> Result<Move> {
        let mut moved = send(&self.address)?;
        let used = self.line()?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("the destination's process failed: {status}").into());
        }
        moved.processor += Duration::from_micros(used.parse()?);
        Ok(moved)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.by_ref().take(4096).read_line(&mut line)?;
        Ok(line.trim().to_string())
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

/// Receives the memory. The address goes to stdout first, and the microseconds of processor time that it took last.
pub(super) fn run(role: &str) -> Result<()> {
    let path = std::env::var(MEMORY)?;
    let memory = memory::open(Path::new(&path), std::env::var_os(TOUCHED).is_some())?;
    let devices = std::env::var(DEVICES)?.parse()?;
    let certificates = std::env::var_os(CERTIFICATES);
    let told = |address: &str| println!("{address}");
    let before = processor::own()?;
    match role {
        "bare" => bare::receive(&memory, devices, told)?,
        _ => whimbrel::receive(memory, devices, certificates.as_deref().map(Path::new), told)?,
    }
    println!("{}", processor::own_since(before)?.as_micros());
    Ok(())
}
