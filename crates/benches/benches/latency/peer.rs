//! Servers, each in a process of its own.

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use whimbrel_models::Model;
use whimbrel_sandbox::Sandbox;
use whimbrel_vfio_user::{Backend, Listener, Server};

use crate::devices::{self, Fresh};

/// Says to this program that it is a peer, and of which kind.
const ROLE: &str = "WHIMBREL_BENCH_PEER";
/// The path of its socket.
const SOCKET: &str = "WHIMBREL_BENCH_SOCKET";
/// The program of `peers/libvfio_user.c`.
const LIBVFIO_USER: &str = "WHIMBREL_BENCH_LIBVFIO_USER";

/// This benchmark of another build, to compare with.
const OTHER: &str = "WHIMBREL_BENCH_OTHER";

/// A peer, for as long as this lives.
pub(crate) struct Peer {
    process: Child,
    folder: TempDir,
}

/// A build of our server.
pub(crate) struct Build {
    program: PathBuf,
    is_other: bool,
}

impl Build {
    /// This build, and the other one if the environment names one.
    pub(crate) fn all() -> Vec<Build> {
        let other = std::env::var_os(OTHER).map(|program| Build { program: program.into(), is_other: true });
        let this = Build { program: std::env::current_exe().unwrap(), is_other: false };
        std::iter::once(this).chain(other).collect()
    }

    /// The name of something that it serves.
    pub(crate) fn name(&self, name: &str) -> String {
        if self.is_other { format!("{name} (other build)") } else { name.into() }
    }

    /// A server of a model, as `whimbrel serve` runs it.
    pub(crate) fn model(&self, model: &str) -> Peer {
        Peer::start(&self.program, &format!("model {model}"))
    }

    /// As [`Build::model`], with `--sandbox`.
    pub(crate) fn confined(&self, model: &str) -> Peer {
        Peer::start(&self.program, &format!("confined {model}"))
    }

    /// A server of one of the devices of this benchmark.
    pub(crate) fn device(&self, name: &str) -> Peer {
        Peer::start(&self.program, &format!("device {name}"))
    }
}

impl Peer {
    /// Answers `question` bytes with `answer` bytes, without a protocol.
    pub(crate) fn bare(question: usize, answer: usize) -> Peer {
        Peer::ourselves(&format!("bare {question} {answer}"))
    }

    /// As [`Peer::bare`], and copies each question into memory that was not touched before; it has `memory` bytes, and
    /// is new after that.
    pub(crate) fn copying(question: usize, answer: usize, memory: usize) -> Peer {
        Peer::ourselves(&format!("copying {question} {answer} {memory}"))
    }

    /// A server with libvfio-user, if the environment names one.
    pub(crate) fn libvfio_user() -> Option<Peer> {
        let program = std::env::var_os(LIBVFIO_USER)?;
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(program).arg(folder.path().join("socket")).spawn().unwrap();
        Some(Peer { process, folder })
    }

    fn ourselves(role: &str) -> Peer {
        Peer::start(&std::env::current_exe().unwrap(), role)
    }

    fn start(program: &Path, role: &str) -> Peer {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program);
        let process = command.env(ROLE, role).env(SOCKET, folder.path().join("socket")).spawn().unwrap();
        Peer { process, folder }
    }

    /// The path of its socket, once that exists.
    pub(crate) fn path(&self) -> PathBuf {
        drop(self.connect());
        self.folder.path().join("socket")
    }

    /// Connects to it, and waits for its socket to exist.
    pub(crate) fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match UnixStream::connect(self.folder.path().join("socket")) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > deadline => panic!("no peer: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs this process as a peer, if it was started as one.
pub(crate) fn run_if_peer() -> bool {
    let (Ok(role), Some(socket)) = (std::env::var(ROLE), std::env::var_os(SOCKET)) else { return false };
    match role.split_once(' ').unwrap() {
        ("model", model) => serve_model(&socket, model, false),
        ("confined", model) => serve_model(&socket, model, true),
        ("device", name) => serve(&socket, Backend::new(devices::open(name))),
        ("bare", sizes) => answer(&socket, sizes, false),
        (_, sizes) => answer(&socket, sizes, true),
    }
    true
}

fn serve_model(socket: &OsStr, model: &str, confined: bool) {
    let listener = Listener::bind(OsString::from(socket)).unwrap();
    if confined {
        // Before any thread runs.
        Sandbox::new().confine().unwrap();
    }
    let model = model.parse::<Model>().unwrap().open("model").unwrap();
    Server::new(listener, Backend::new(model)).unwrap().run().unwrap();
}

fn serve(socket: &OsStr, backend: Backend) {
    Server::bind(OsString::from(socket), backend).unwrap().run().unwrap();
}

fn answer(socket: &OsStr, sizes: &str, copies: bool) {
    let (mut stream, _) = UnixListener::bind(socket).unwrap().accept().unwrap();
    let sizes: Vec<usize> = sizes.split(' ').map(|size| size.parse().unwrap()).collect();
    // Pages of zeros that were never written would all be one.
    let (mut question, answer) = (vec![0; sizes[0]], vec![1; sizes[1]]);
    let mut memory = copies.then(|| Fresh::new(sizes[2]));
    while stream.read_exact(&mut question).is_ok() {
        if let Some(memory) = &mut memory {
            memory.append(&question);
        }
        if stream.write_all(&answer).is_err() {
            break;
        }
    }
}
