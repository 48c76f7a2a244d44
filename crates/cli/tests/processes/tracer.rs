//! Judges every system call of a process: it goes on, fails, does less, or is the last thing that the process does.
#![allow(unsafe_code, reason = "a process asks to be traced between fork and exec")]

use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A system call that a thread is about to make.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// As in `libc::SYS_read`.
    pub(crate) number: i64,
    pub(crate) thread: Pid,
    /// Its first two arguments. Of many calls, the first is a descriptor.
    pub(crate) arguments: [u64; 2],
}

/// What comes of a system call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    Pass,
    /// The process is killed before it.
    Kill,
    /// It is not made, and fails with this.
    Fail(Errno),
    /// It reads or writes at most so many bytes, if it does that.
    Shorten(u64),
}

/// What is to be restored after a call.
enum Changed {
    Nothing,
    Failed(Errno),
    /// A `msghdr` at this address: its number of parts and the length of the first.
    Message {
        header: u64,
        parts: i64,
        part: u64,
        length: i64,
    },
}

/// Runs a command to its end, and returns its status; `None` if a signal killed it. `judge` sees each system call, of any
/// thread, before it is made. The calling thread must have no other children.
#[expect(clippy::zombie_processes, reason = "waitpid waits for it")]
pub(crate) fn trace(
    mut command: Command,
    told: &mpsc::Sender<u32>,
    mut judge: impl FnMut(&Call) -> Verdict,
) -> Option<i32> {
    // SAFETY: ptrace(2) is async-signal-safe, and nothing is allocated.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    let child = command.spawn().expect("the program starts");
    let main = Pid::from_raw(child.id().cast_signed());
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    // It stops at the end of exec(2).
    assert!(matches!(waitpid(main, Some(flags)), Ok(WaitStatus::Stopped(..))));
    let options = Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD;
    ptrace::setoptions(main, options).unwrap();
    told.send(child.id()).unwrap();
    let mut inside: HashMap<Pid, Changed> = HashMap::new();
    let mut seen = vec![main];
    let mut result = None;
    let _ = ptrace::syscall(main, None);
    loop {
        let (pid, signal) = match waitpid(None, Some(flags)) {
            Ok(WaitStatus::Exited(pid, status)) => {
                if pid == main {
                    result = Some(status);
                }
                continue;
            }
            Ok(WaitStatus::PtraceSyscall(pid)) => {
                if let Some(changed) = inside.remove(&pid) {
                    restore(pid, &changed);
                } else {
                    // A thread that is killed has no registers any more.
                    let changed = enter(pid, main, &mut judge).unwrap_or(Changed::Nothing);
                    inside.insert(pid, changed);
                }
                (pid, None)
            }
            Ok(WaitStatus::Stopped(pid, signal)) => {
                // A new thread starts with SIGSTOP.
                let is_new = !seen.contains(&pid);
                seen.push(pid);
                (pid, (!is_new).then_some(signal))
            }
            Ok(WaitStatus::PtraceEvent(pid, ..)) => (pid, None),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return result,
        };
        let _ = ptrace::syscall(pid, signal);
    }
}

/// Judges a call, and changes it accordingly.
fn enter(pid: Pid, main: Pid, judge: &mut impl FnMut(&Call) -> Verdict) -> nix::Result<Changed> {
    let mut registers = ptrace::getregs(pid)?;
    let number = registers.orig_rax.cast_signed();
    match judge(&Call { number, thread: pid, arguments: [registers.rdi, registers.rsi] }) {
        Verdict::Pass => Ok(Changed::Nothing),
        Verdict::Kill => {
            kill(main, Signal::SIGKILL)?;
            Ok(Changed::Nothing)
        }
        Verdict::Fail(errno) => {
            registers.orig_rax = u64::MAX;
            ptrace::setregs(pid, registers)?;
            Ok(Changed::Failed(errno))
        }
        Verdict::Shorten(most) => match number {
            libc::SYS_read
            | libc::SYS_write
            | libc::SYS_pread64
            | libc::SYS_pwrite64
            | libc::SYS_recvfrom
            | libc::SYS_sendto => {
                registers.rdx = registers.rdx.min(most);
                ptrace::setregs(pid, registers)?;
                Ok(Changed::Nothing)
            }
            libc::SYS_readv | libc::SYS_writev | libc::SYS_preadv | libc::SYS_pwritev => {
                registers.rdx = registers.rdx.min(1);
                ptrace::setregs(pid, registers)?;
                Ok(Changed::Nothing)
            }
            libc::SYS_recvmsg | libc::SYS_sendmsg => {
                let header = registers.rsi;
                let part = peek(pid, header + 16)?.cast_unsigned();
                let parts = peek(pid, header + 24)?;
                if parts == 0 {
                    return Ok(Changed::Nothing);
                }
                let length = peek(pid, part + 8)?;
                // Nothing at all would be the end of a stream.
                if length == 0 {
                    return Ok(Changed::Nothing);
                }
                poke(pid, header + 24, 1)?;
                poke(pid, part + 8, length.min(most.cast_signed()))?;
                Ok(Changed::Message { header, parts, part, length })
            }
            _ => Ok(Changed::Nothing),
        },
    }
}

fn restore(pid: Pid, changed: &Changed) {
    // A thread that is killed has no registers any more.
    let _ = match *changed {
        Changed::Nothing => Ok(()),
        Changed::Failed(errno) => ptrace::getregs(pid).and_then(|mut registers| {
            registers.rax = (-(errno as i64)).cast_unsigned();
            ptrace::setregs(pid, registers)
        }),
        Changed::Message { header, parts, part, length } => {
            poke(pid, header + 24, parts).and_then(|()| poke(pid, part + 8, length))
        }
    };
}

fn peek(pid: Pid, address: u64) -> nix::Result<i64> {
    ptrace::read(pid, address as ptrace::AddressType)
}

fn poke(pid: Pid, address: u64, word: i64) -> nix::Result<()> {
    ptrace::write(pid, address as ptrace::AddressType, word)
}
