//! Landlock and seccomp for a process that serves untrusted peers.
//!
//! [`Sandbox::confine`] leaves the process, permanently, with what it holds open:
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
//! Two parts of the kernel do it independently: Landlock denies what a process can reach by a name, and seccomp
//! limits the system calls it can make. The list of system calls was made for the servers of
//! [whimbrel-vfio-user](https://docs.rs/whimbrel-vfio-user); a program that needs more names them
//! ([`Sandbox::allow`]).

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

/// The newest Landlock whose rights have been looked at. A kernel that has less gives what it has.
const NEWEST: ABI = ABI::V9;

/// Confinement of this process to what it holds open.
///
/// A server reads what untrusted peers send. A peer that takes control of a confined server can do no more than this:
///
/// | it can | and cannot |
/// |---|---|
/// | read, write, map, seal and resize files that are open or come from a client | open, make, remove or rename one, nor run a program |
/// | serve at sockets that listen already, and make pairs of connected sockets and pipes | make any other socket, connect or bind one |
/// | start and end threads | start processes, trace one, send a signal to one |
/// | have memory, also of its own files (memfd) | have memory that can be executed |
/// | ask for the time, random bytes, its own numbers and limits | change limits, rights, clocks, or its own confinement |
/// | read where a symbolic link leads (`/proc/self/fd` says so what a descriptor is) | read what else is in the file system |
///
/// Landlock denies all rights that the kernel's has: to files from ABI 1 (Linux 5.13) on, TCP from ABI 4, ioctls of
/// devices from ABI 5, signals and abstract sockets of others from ABI 6, sockets in the file system from ABI 9.
/// seccomp denies what is not on a list, with arguments where they matter, on all kernels alike:
///
/// - What opens a file or looks at one by its name is EACCES, as Landlock answers. Libraries ask so on their own
///   (an allocator for the number of processors, a panic for its own program) and do without.
/// - `clone3` is ENOSYS, so that threads are made by `clone`, whose flags can be looked at.
/// - All else ends the process with SIGSYS: no code of a server makes such a call. The kernel logs its number
///   (`audit: type=1326`, `syscall=`).
///
/// A driver that needs more system calls names them ([`Sandbox::allow`]).
///
/// The process must have one thread, because Landlock confines the calling thread and those it starts: confine before
/// the device is opened and the server runs. Open what has to be opened by its name, such as the server's socket,
/// before. No privileges are needed. The process also gets no_new_privs, which cannot be undone either.
///
/// A Unix socket's name stays behind when the process ends, because the right to remove one name is the right to remove
/// all names in its folder.
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

/// The kernel features that confine the process. Its `Display` is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    landlock_abi: u32,
}

/// A reason why the process is not fully confined. It may be confined in part, and should end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel has no Landlock, or a container's own filter hides it.
    #[error(
        "this kernel has no Landlock: it takes Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and in a container a \
         seccomp profile that allows landlock_create_ruleset"
    )]
    NoLandlock,
    /// The kernel has Landlock, but was booted without it.
    #[error("this kernel's Landlock is off: boot with landlock in the list of lsm= (or in CONFIG_LSM)")]
    LandlockOff,
    /// Landlock failed.
    #[error("Landlock: {0}")]
    Landlock(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Other threads run, which Landlock would not confine.
    #[error("the process has {0} threads, and Landlock confines one: confine before other threads start")]
    Threads(usize),
    /// The threads of this process could not be counted.
    #[error("cannot count this process's threads in /proc/self/task (is procfs mounted?): {0}")]
    Uncounted(#[source] io::Error),
    /// The list of system calls is not known for this processor.
    #[error("no system call filter for {arch}", arch = std::env::consts::ARCH)]
    Processor,
    /// seccomp failed.
    #[error("this kernel takes no system call filter (it needs CONFIG_SECCOMP_FILTER): {0}")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Sandbox {
    /// The system calls that a vfio-user server needs, and no more.
    pub fn new() -> Sandbox {
        Sandbox::default()
    }

    /// Allows one more system call (`libc::SYS_*`), whatever its arguments. Landlock denies what it denies.
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
    /// Returns the ABI version of Landlock that is used: the kernel's, or the newest this crate knows.
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

/// Denies, with Landlock, everything that has a name. Returns the ABI.
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

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
