//! Signals around the start of a program.
//!
//! Until exec the program's process is a copy of this one, with its handlers: a signal that one of them takes is lost to the
//! program. And a process that ignores SIGCHLD cannot wait for its children.
#![allow(unsafe_code, reason = "code between fork and exec, and the dispositions of signals")]

use std::mem::MaybeUninit;
use std::ptr::null;

use libc::{SIG_DFL, SIG_ERR, SIG_IGN, c_int, sighandler_t};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use rustix::io::Errno;

/// The signals that a fault of a thread raises in it, which cannot wait.
const OF_FAULTS: [Signal; 5] =
    [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL, Signal::SIGTRAP];

/// The signals that this thread holds back, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held {
    before: SigSet,
}

/// Holds back all signals for the calling thread, and for the processes that it forks.
pub(crate) fn hold() -> Result<Held, Errno> {
    let mut held = SigSet::all();
    for signal in OF_FAULTS {
        held.remove(signal);
    }
    Ok(Held { before: held.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(errno)? })
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

/// The signals of the program, as they were before the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inherited {
    blocked: SigSet,
    ignores_children: bool,
}

impl Inherited {
    /// Returns those that a program of the calling thread inherits.
    pub(crate) fn of_this_thread() -> Result<Inherited, Errno> {
        let blocked = SigSet::thread_get_mask().map_err(errno)?;
        Ok(Inherited { blocked, ignores_children: handler(libc::SIGCHLD)? == SIG_IGN })
    }

    /// Gives SIGCHLD its default in this process if it is ignored, so that the program can be waited for.
    pub(crate) fn await_children(&self) -> Result<(), Errno> {
        if self.ignores_children { set(libc::SIGCHLD, SIG_DFL) } else { Ok(()) }
    }

    /// Gives them to this process, which is about to become the program: without the handlers of this one, and with the
    /// signals that it has held back. It allocates nothing and takes no lock.
    pub(crate) fn give(&self) -> Result<(), Errno> {
        for signal in 1..=libc::SIGRTMAX() {
            // Some are kept by the C library.
            if handler(signal).is_ok_and(|handler| handler != SIG_DFL && handler != SIG_IGN) {
                set(signal, SIG_DFL)?;
            }
        }
        if self.ignores_children {
            set(libc::SIGCHLD, SIG_IGN)?;
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.blocked), None).map_err(errno)
    }
}

fn handler(signal: c_int) -> Result<sighandler_t, Errno> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no action is given, and the kernel writes the present one to a structure of that type.
    let result = unsafe { libc::sigaction(signal, null(), action.as_mut_ptr()) };
    if result == -1 {
        return Err(last());
    }
    // SAFETY: numbers alone, zeroed before.
    Ok(unsafe { action.assume_init() }.sa_sigaction)
}

/// Sets a disposition that is no function.
fn set(signal: c_int, handler: sighandler_t) -> Result<(), Errno> {
    // SAFETY: the default and being ignored run no code of this process.
    if unsafe { libc::signal(signal, handler) } == SIG_ERR { Err(last()) } else { Ok(()) }
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw_os_error(errno as i32)
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
