//! The seccomp filters: the system calls that a server needs, with their arguments. This module makes no system
//! calls.
//!
//! The names are the kernel's, which `libc` has for each processor. Calls without conditions cost almost
//! nothing: Linux 5.11 and later caches that they are allowed and runs no filter for them. So the calls of a
//! request (recvmsg, sendmsg, poll, futex) have no conditions.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::SandboxError;

/// Data and attributes of open files.
const DESCRIPTORS: &[c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    // The lock of an image, and its pages in the cache.
    libc::SYS_flock,
    libc::SYS_fadvise64,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    // Signals to a client's eventfds. Submitted requests read and write open files.
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    // A link yields a name, which opens nothing: /proc/self/fd tells an eventfd from another file.
    libc::SYS_readlinkat,
];

/// Existing sockets and the identity of their peers.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    // Before Linux 6.5 a socket does not give a handle to its peer's process. The process can be watched, and no
    // more: calls that signal it, or take a descriptor from it, are not allowed.
    libc::SYS_pidfd_open,
];

/// Memory, without execution (see `checked`).
const MEMORY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_memfd_create,
    libc::SYS_membarrier,
];

/// Threads, their signals and their exit.
const THREADS: &[c_long] = &[
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Information of a process about itself.
const KNOWLEDGE: &[c_long] = &[
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrandom,
    // For machines where only the kernel can read the clock.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
];

/// Files by their names.
const BY_NAME: &[c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_unlinkat,
    libc::SYS_getcwd,
];

/// Older calls with the same effect, which only this processor has.
#[cfg(target_arch = "x86_64")]
mod older {
    use libc::c_long;

    pub(super) const ALLOWED: &[c_long] =
        &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_readlink, libc::SYS_dup2, libc::SYS_time];

    pub(super) const BY_NAME: &[c_long] = &[
        libc::SYS_open,
        libc::SYS_creat,
        libc::SYS_stat,
        libc::SYS_lstat,
        libc::SYS_access,
        libc::SYS_unlink,
        libc::SYS_rmdir,
    ];
}

#[cfg(not(target_arch = "x86_64"))]
mod older {
    use libc::c_long;

    pub(super) const ALLOWED: &[c_long] = &[];
    pub(super) const BY_NAME: &[c_long] = &[];
}

/// The flags that glibc's `pthread_create` passes to `clone`; musl adds one without effect.
const THREAD_FLAGS: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// From Linux 6.4 on (`include/uapi/linux/prctl.h`).
const PR_GET_AUXV: libc::c_int = 0x4155_5856;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

/// The policy: the answer to each system call.
#[derive(Debug)]
pub(super) struct Policy {
    /// Allowed calls; those without rules are always allowed.
    allowed: Rules,
    /// Calls answered with EACCES, even if they are in `allowed`.
    by_name: Rules,
    /// Calls answered with ENOSYS, even if they are in `allowed`.
    unknown: Rules,
}

impl Policy {
    /// Returns the policy for the process with this ID.
    pub(super) fn new(process: u32) -> Policy {
        let always = [DESCRIPTORS, SOCKETS, MEMORY, THREADS, KNOWLEDGE, older::ALLOWED];
        let mut allowed: Rules = always.into_iter().flatten().map(|number| (*number, Vec::new())).collect();
        allowed.extend(checked(process));
        let mut by_name: Rules =
            BY_NAME.iter().chain(older::BY_NAME).map(|number| (*number, Vec::new())).collect();
        // With the flag and no name they are fstat.
        let by_flag = |argument, flag: i32| rule([masked(argument, bits(flag), 0)]);
        by_name.insert(libc::SYS_statx, vec![by_flag(2, libc::AT_EMPTY_PATH)]);
        by_name.insert(libc::SYS_newfstatat, vec![by_flag(3, libc::AT_EMPTY_PATH)]);
        // The kernel executes the requests of an io_uring past every filter. A program that
        // probes for it finds an older kernel.
        let unknown = Rules::from([(libc::SYS_clone3, Vec::new()), (libc::SYS_io_uring_setup, Vec::new())]);
        for number in by_name.keys().chain(unknown.keys()) {
            allowed.insert(*number, Vec::new());
        }
        Policy { allowed, by_name, unknown }
    }

    /// Allows further system calls.
    pub(super) fn allow(mut self, numbers: &[c_long]) -> Policy {
        for number in numbers {
            self.by_name.remove(number);
            self.unknown.remove(number);
            self.allowed.insert(*number, Vec::new());
        }
        self
    }

    /// Returns the filters in the order of installation. If several apply to a call, the strictest counts.
    pub(super) fn filters(self) -> Result<Vec<BpfProgram>, SandboxError> {
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| SandboxError::Processor)?;
        let compile = |rules: Rules, otherwise, answer| {
            SeccompFilter::new(rules, otherwise, answer, arch)
                .and_then(BpfProgram::try_from)
                .map_err(|error| SandboxError::Seccomp(error.into()))
        };
        let errno = |errno: i32| SeccompAction::Errno(errno.cast_unsigned());
        Ok(vec![
            compile(self.by_name, SeccompAction::Allow, errno(libc::EACCES))?,
            compile(self.unknown, SeccompAction::Allow, errno(libc::ENOSYS))?,
            // The last one, because it forbids the installation of more.
            compile(self.allowed, SeccompAction::KillProcess, SeccompAction::Allow)?,
        ])
    }
}

/// Returns the system calls that are allowed only with certain arguments.
fn checked(process: u32) -> Rules {
    let one_of = |argument, values: &[u64]| values.iter().map(|value| rule([is(argument, *value)])).collect();
    let not_executable = vec![rule([masked(2, bits(libc::PROT_EXEC), 0)])];
    Rules::from([
        (libc::SYS_mmap, not_executable.clone()),
        (libc::SYS_mprotect, not_executable),
        // Threads of this process, without a namespace of their own.
        (libc::SYS_clone, vec![rule([masked(0, bits(!libc::CLONE_DETACHED), bits(THREAD_FLAGS))])]),
        // abort() and panics that cannot unwind.
        (libc::SYS_tgkill, vec![rule([is(0, u64::from(process))])]),
        // Reading its own limits.
        (libc::SYS_prlimit64, vec![rule([is(0, 0), is_null(2)])]),
        // Names of threads, and of memory; where the kernel has put the clock, which rustix asks once.
        (
            libc::SYS_prctl,
            one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA, PR_GET_AUXV].map(bits)),
        ),
        (
            libc::SYS_fcntl,
            one_of(
                1,
                &[
                    bits(libc::F_GETFD),
                    bits(libc::F_SETFD),
                    bits(libc::F_GETFL),
                    bits(libc::F_SETFL),
                    bits(libc::F_DUPFD_CLOEXEC),
                    bits(libc::F_ADD_SEALS),
                    bits(libc::F_GET_SEALS),
                ],
            ),
        ),
        // Of sockets, and whether stdout is a terminal: not what a device would answer, nor input to a terminal.
        (
            libc::SYS_ioctl,
            one_of(1, &[libc::FIONBIO, libc::FIOCLEX, libc::TCGETS].map(|request| u64::from(request as u32))),
        ),
        // Not those that dial by a name in each message.
        (
            libc::SYS_socketpair,
            vec![rule([is(0, bits(libc::AF_UNIX)), masked(1, 0xf, bits(libc::SOCK_STREAM))])],
        ),
        // To the peer's process.
        (libc::SYS_sendto, vec![rule([is_null(4)])]),
        // Not what attaches programs to a socket.
        (
            libc::SYS_setsockopt,
            [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO, libc::SO_RCVBUF, libc::SO_SNDBUF]
                .map(|option| rule([is(1, bits(libc::SOL_SOCKET)), is(2, bits(option))]))
                .into(),
        ),
    ])
}

fn rule<const N: usize>(conditions: [SeccompCondition; N]) -> SeccompRule {
    SeccompRule::new(conditions.into()).expect("a rule has conditions")
}

/// Returns a C int as the kernel sees it in an argument.
fn bits(value: libc::c_int) -> u64 {
    u64::from(value.cast_unsigned())
}

/// Returns a condition on a 32-bit argument: the kernel ignores the upper bits.
fn is(argument: u8, value: u64) -> SeccompCondition {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
}

fn is_null(argument: u8) -> SeccompCondition {
    condition(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

fn masked(argument: u8, mask: u64, value: u64) -> SeccompCondition {
    condition(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
}

fn condition(argument: u8, length: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, length, operator, value).expect("a system call has six arguments")
}
