//! The start of the program: what its process does between fork and exec, and what this process does meanwhile.
//!
//! ```text
//! the program's process                              this process
//! its own namespaces, the devices' files
//! the filter
//! sends the listener and its /dev      ----------->  checks that it can be served
//! exec                                 <-----------  serves the listener
//! ```
#![allow(unsafe_code, reason = "code between fork and exec")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command};

use libc::sock_filter;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};

use super::access;
use super::error::{RunError, Stage};
use super::forks;
use super::layout::Step;
use super::namespace::{self, IdMaps};
use super::system::{install_filter, wake_on_same_processor};
use crate::signals::{self, Inherited};

/// The data that the program's process needs, all of it made before the fork.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) steps: Vec<Step>,
    pub(super) filter: Vec<sock_filter>,
}

/// The descriptors that the program's process hands over.
#[derive(Debug)]
pub(super) struct Handed {
    pub(super) listener: OwnedFd,
    /// Its `/dev`.
    pub(super) dev: OwnedFd,
}

/// The message of the program's process, three numbers: 0, its own number and that of its socket, with two descriptors; or a
/// failure's stage, detail and errno.
type Message = [u8; 12];

/// Starts a program. `serve` is called before the program begins, and what it returns is returned with the process.
///
/// It runs in a thread of its own, because std's spawn returns only after exec.
pub(super) fn start<T: Send>(
    mut command: Command,
    setup: &Setup,
    serve: impl FnOnce(Handed) -> Result<T, RunError> + Send,
) -> Result<(Child, T), RunError> {
    let program = PathBuf::from(command.get_program());
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let our_number = ours.as_raw_fd();
    let (maps, mut prepared) = (IdMaps::of_this_process(), setup.clone());
    let inherited = Inherited::of_this_thread()?;
    inherited.await_children()?;
    let between = move || {
        inherited.give()?;
        // SAFETY: in this process, a copy with one thread, nobody uses the descriptor.
        unsafe { rustix::io::close(our_number) };
        prepare(theirs.as_fd(), &maps, &mut prepared)
    };
    // SAFETY: `prepare` makes system calls with what is in its arguments, and neither allocates nor locks.
    unsafe { command.pre_exec(between) };
    std::thread::scope(|scope| {
        let welcome = move || welcome(&ours, serve, &setup.steps);
        let served = std::thread::Builder::new().name("start".into()).spawn_scoped(scope, welcome)?;
        let forking = forks::forking();
        let held = signals::hold()?;
        let spawned = command.spawn();
        drop((held, forking));
        // With it goes the other end of the socket in this process: if the program's process is gone, the wait for it ends.
        drop(command);
        match (spawned, served.join().unwrap_or(Ok(None))) {
            (Ok(child), Ok(Some(served))) => Ok((child, served)),
            (Ok(mut child), Ok(None)) => match child.wait()?.signal() {
                Some(signal) => Err(RunError::Killed(signal)),
                None => Err(RunError::System(whimbrel_device::Errno::EPIPE)),
            },
            (Ok(mut child), Err(error)) => {
                let _ = child.kill();
                match child.wait().ok().and_then(|status| status.signal()) {
                    // Another signal came before: the error is that of a process that is gone. With SIGABRT std ends one that
                    // cannot tell its own error any more.
                    Some(signal) if ![libc::SIGKILL, libc::SIGABRT].contains(&signal) => {
                        Err(RunError::Killed(signal))
                    }
                    _ => Err(error),
                }
            }
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(Some(_))) => Err(not_executed(program, &error)),
            (Err(error), Ok(None)) => Err(error.into()),
        }
    })
}

/// The program's process: everything before exec.
fn prepare(socket: BorrowedFd<'_>, maps: &IdMaps, setup: &mut Setup) -> io::Result<()> {
    let done = set_up(socket, maps, setup);
    if let Err((stage, errno)) = done {
        let (code, detail) = encode(stage);
        // If this process cannot tell, std's error alone does.
        let _ =
            send(socket, &message([code, detail, errno.raw_os_error().cast_unsigned()]), SendFlags::NOSIGNAL);
        return Err(io::Error::from_raw_os_error(errno.raw_os_error()));
    }
    let mut answer = [0];
    match recv(socket, &mut answer, RecvFlags::empty()) {
        Ok((1, _)) => Ok(()),
        // The supervisor reports the reason.
        _ => Err(io::Error::from_raw_os_error(libc::ECANCELED)),
    }
}

fn set_up(socket: BorrowedFd<'_>, maps: &IdMaps, setup: &mut Setup) -> Result<(), (Stage, Errno)> {
    namespace::enter(maps)?;
    namespace::lay(&setup.steps)?;
    let at_listener = |errno| (Stage::Listener, errno);
    let dev = open(c"/dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(at_listener)?;
    let listener = install_filter(&mut setup.filter).map_err(|errno| (Stage::Filter, errno))?;
    let descriptors = [listener.as_fd(), dev.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let pid = rustix::process::getpid().as_raw_nonzero().get().cast_unsigned();
    let bytes = message([0, pid, socket.as_raw_fd().cast_unsigned()]);
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).map_err(at_listener)?;
    Ok(())
}

/// This process: takes what the program's process hands over, has it served, and lets the program begin. `None` if the
/// program's process has ended before.
fn welcome<T>(
    socket: &OwnedFd,
    serve: impl FnOnce(Handed) -> Result<T, RunError>,
    steps: &[Step],
) -> Result<Option<T>, RunError> {
    let mut bytes: Message = [0; 12];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes < bytes.len() {
        return Ok(None);
    }
    let [code, detail, errno] = numbers(bytes);
    if let Some(stage) = decode(code, detail) {
        let step = match stage {
            Stage::Layout(number) | Stage::Overlay(number) => steps.get(number as usize).map(Step::to_string),
            _ => None,
        };
        let errno = whimbrel_device::Errno::new(errno.cast_signed()).unwrap_or(whimbrel_device::Errno::EIO);
        return Err(RunError::Start { stage, errno, step });
    }
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let (Some(listener), Some(dev)) = (descriptors.next(), descriptors.next()) else {
        // The kernel drops those that exceed the limit of this process.
        return Err(RunError::System(whimbrel_device::Errno::EMFILE));
    };
    let Some(pid) = rustix::process::Pid::from_raw(detail.cast_signed()) else { return Ok(None) };
    access::check(pid, listener.as_fd(), errno.cast_signed())?;
    // Slower without, before Linux 6.6.
    let _ = wake_on_same_processor(listener.as_fd());
    let served = serve(Handed { listener, dev })?;
    send(socket, &[1], SendFlags::NOSIGNAL)?;
    Ok(Some(served))
}

/// The error of exec.
fn not_executed(program: PathBuf, error: &io::Error) -> RunError {
    match whimbrel_device::Errno::from_io_error(error) {
        Some(whimbrel_device::Errno::ENOENT) => RunError::NotFound { program },
        Some(errno) => RunError::NotExecutable { program, errno },
        None => RunError::NotExecutable { program, errno: whimbrel_device::Errno::EIO },
    }
}

fn encode(stage: Stage) -> (u32, u32) {
    match stage {
        Stage::UserNamespace => (1, 0),
        Stage::IdMaps => (2, 0),
        Stage::MountNamespace => (3, 0),
        Stage::Layout(number) => (4, number),
        Stage::Filter => (5, 0),
        Stage::Listener => (6, 0),
        Stage::Overlay(number) => (7, number),
    }
}

fn decode(code: u32, detail: u32) -> Option<Stage> {
    Some(match code {
        1 => Stage::UserNamespace,
        2 => Stage::IdMaps,
        3 => Stage::MountNamespace,
        4 => Stage::Layout(detail),
        5 => Stage::Filter,
        6 => Stage::Listener,
        7 => Stage::Overlay(detail),
        _ => return None,
    })
}

fn message(numbers: [u32; 3]) -> Message {
    let mut bytes = [0; 12];
    for (number, bytes) in numbers.iter().zip(bytes.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&number.to_ne_bytes());
    }
    bytes
}

fn numbers(bytes: Message) -> [u32; 3] {
    std::array::from_fn(|index| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[4 * index + byte])))
}
