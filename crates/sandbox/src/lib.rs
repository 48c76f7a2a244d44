//! Landlock and seccomp for a process that serves untrusted peers.
//!
//! [`Sandbox::confine`] permanently limits the process to its open files and sockets:
//!
//! ```
//! use std::fs::File;
//! use whimbrel_sandbox::{Sandbox, SandboxError};
//!
//! let open = File::open("/proc/self/status")?;
//! match Sandbox::new().confine() {
//!     Ok(confinement) => {
//!         println!("confined by {confinement}");
//!         assert!(open.metadata().is_ok());
//!         assert!(File::open("/proc/self/status").is_err());
//!     }
//!     // A server ends here: peers are never served with more rights than were asked for.
//!     Err(error @ (SandboxError::NoLandlock | SandboxError::LandlockOff)) => println!("{error}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Two parts of the kernel enforce this independently: Landlock denies access by name, and seccomp limits the system
//! calls. The list of system calls is made for the servers of [whimbrel-vfio-user](https://docs.rs/whimbrel-vfio-user);
//! a program that needs others adds them with [`Sandbox::allow`].

mod system_calls;

use std::ffi::c_long;
use std::fmt;
use std::io;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr,
    RulesetError, RulesetStatus, Scope,
};
use seccompiler::{BpfProgram, apply_filter_all_threads};

use self::system_calls::Policy;

/// The newest Landlock ABI whose rights have been reviewed. An older kernel provides fewer.
const NEWEST: ABI = ABI::V9;

/// Confinement of this process to its open files and sockets.
///
/// A server reads input from untrusted peers. A peer that takes control of a confined server can do no more than this:
///
/// | allowed | denied |
/// |---|---|
/// | read, write, map, seal and resize open files and files from a client | open, create, remove or rename a file, run a program |
/// | accept on listening sockets, create socket pairs and pipes | create, connect or bind any other socket |
/// | start and end threads | start, trace or signal processes |
/// | map memory, also of its own files (memfd) | map executable memory |
/// | read the time, random bytes, its own IDs and limits | change limits, rights, clocks, or its own confinement |
/// | read the target of a symbolic link (`/proc/self/fd` shows the kind of a descriptor) | read anything else in the file system |
///
/// Landlock denies all rights that the kernel supports: to files from ABI 1 (Linux 5.13) on, TCP from ABI 4, ioctls of
/// devices from ABI 5, signals and abstract sockets of others from ABI 6, sockets in the file system from ABI 9.
/// seccomp denies all calls that are not on a list, with arguments where they matter, on all kernels alike:
///
/// - Calls that open or inspect a file by its name return EACCES, as from Landlock. Libraries make such calls on their
///   own (an allocator for the number of processors, a panic for its own program) and work without them.
/// - `clone3` returns ENOSYS, so that threads are created with `clone`, whose flags a filter can check.
/// - `io_uring_setup` returns ENOSYS: the kernel executes the requests of an io_uring without asking a filter.
/// - Every other call kills the process with SIGSYS: no code of a server makes such a call. The kernel logs its number
///   (`audit: type=1326`, `syscall=`).
///
/// A driver that needs other system calls adds them with [`Sandbox::allow`].
///
/// The process must have only one thread, because Landlock confines the calling thread and those it starts: confine
/// before the device is opened and the server runs. Open files and sockets by name, such as the server's socket, before
/// that. No privileges are needed. The process also gets no_new_privs, which is permanent too.
///
/// A Unix socket's name remains when the process exits, because the right to remove one name is the right to remove all
/// names in its directory.
///
/// ```no_run
/// use std::os::unix::net::UnixListener;
/// use whimbrel_sandbox::Sandbox;
///
/// let listener = UnixListener::bind("/run/user/1000/device")?;
/// let confinement = Sandbox::new().confine()?;
/// eprintln!("confined by {confinement}");
/// for stream in listener.incoming() {
///     // Serve the peer.
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    allowed: Vec<c_long>,
}

/// The kernel features that confine the process. `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Confinement {
    landlock_abi: u32,
}

/// The reason the process is not fully confined. It may be partly confined, and should exit.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel has no Landlock, or a container's own filter hides it.
    #[error(
        "this kernel has no Landlock: it needs Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and in a container a \
         seccomp profile that allows landlock_create_ruleset"
    )]
    NoLandlock,
    /// The kernel has Landlock, but was booted without it.
    #[error("Landlock is disabled in this kernel: boot with landlock in lsm= (or in CONFIG_LSM)")]
    LandlockOff,
    /// Landlock failed.
    #[error("Landlock: {0}")]
    Landlock(Box<dyn std::error::Error + Send + Sync>),
    /// Other threads run, which Landlock would not confine.
    #[error(
        "the process has {0} threads, and Landlock confines only one: confine before other threads start"
    )]
    Threads(usize),
    /// The threads of this process could not be counted.
    #[error("cannot count this process's threads in /proc/self/task (is procfs mounted?): {0}")]
    Uncounted(io::Error),
    /// No list of system calls exists for this processor.
    #[error("no system call filter for {arch}", arch = std::env::consts::ARCH)]
    Processor,
    /// seccomp failed.
    #[error("cannot install the system call filter (it needs CONFIG_SECCOMP_FILTER): {0}")]
    Seccomp(Box<dyn std::error::Error + Send + Sync>),
}

impl Sandbox {
    /// Returns a sandbox that allows only the system calls that a vfio-user server needs.
    pub fn new() -> Sandbox {
        Sandbox::default()
    }

    /// Allows one more system call (`libc::SYS_*`) with any arguments. Landlock's denials still apply.
    ///
    /// ```
    /// # use whimbrel_sandbox::Sandbox;
    /// // A driver that locks its memory.
    /// let sandbox = Sandbox::new().allow(libc::SYS_mlock).allow(libc::SYS_munlock);
    /// ```
    #[must_use]
    pub fn allow(mut self, system_call: c_long) -> Sandbox {
        self.allowed.push(system_call);
        self
    }

    /// Confines the process, permanently.
    pub fn confine(self) -> Result<Confinement, SandboxError> {
        let filters = Policy::new(std::process::id()).allow(&self.allowed).filters()?;
        match threads()? {
            0 | 1 => {}
            more => return Err(SandboxError::Threads(more)),
        }
        let landlock_abi = deny_names()?;
        for filter in &filters {
            install(filter)?;
        }
        Ok(Confinement { landlock_abi })
    }
}

impl Confinement {
    /// Returns the Landlock ABI version in use: the kernel's, or the newest this crate supports.
    pub const fn landlock_abi(&self) -> u32 {
        self.landlock_abi
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Landlock ABI {} and seccomp", self.landlock_abi)
    }
}

fn threads() -> Result<usize, SandboxError> {
    std::fs::read_dir("/proc/self/task").map(Iterator::count).map_err(SandboxError::Uncounted)
}

/// Denies all access by name with Landlock. Returns the ABI.
fn deny_names() -> Result<u32, SandboxError> {
    let refused = |error: RulesetError| SandboxError::Landlock(error.into());
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(refused)?;
    match (status.landlock, status.ruleset) {
        (LandlockStatus::NotImplemented, _) => Err(SandboxError::NoLandlock),
        (LandlockStatus::NotEnabled, _) => Err(SandboxError::LandlockOff),
        (LandlockStatus::Available { .. }, RulesetStatus::NotEnforced) => {
            Err(SandboxError::Landlock("the kernel enforces none of it".into()))
        }
        (LandlockStatus::Available { effective_abi, .. }, _) => Ok(effective_abi as u32),
    }
}

fn install(filter: &BpfProgram) -> Result<(), SandboxError> {
    apply_filter_all_threads(filter).map_err(|error| SandboxError::Seccomp(error.into()))
}

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
