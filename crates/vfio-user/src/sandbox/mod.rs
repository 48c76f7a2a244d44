//! Confinement of a server to what it holds open. What a system call is answered stands in
//! [`system_calls`], and why.
//!
//! Two parts of the kernel do it, each for itself: Landlock takes away what a process can reach by a name, and
//! seccomp what it can ask the kernel for.

mod system_calls;

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

/// Confines this process, for good, to what it holds open.
///
/// A server reads what others send. If one of them ever makes it do what it should not, it can still do no more
/// than this:
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
/// - All else ends the process with SIGSYS. No code of a server does that, so what does is not the server's. The
///   kernel logs which call it was (`audit: type=1326`, `syscall=` its number).
///
/// A driver that needs more system calls names them ([`Sandbox::allow`]).
///
/// The process must have one thread, for Landlock confines the one that asks and those it starts: confine before
/// the device is opened and the server runs. What has to be opened, such as the socket ([`Listener`](crate::Listener)),
/// is opened before. No rights are needed. What cannot be undone: the process gets no_new_privs.
///
/// The socket's name stays behind when the server ends, because to remove one name is to be allowed to remove all
/// of its folder. Nobody can connect to it then, and [`Listener::bind`](crate::Listener::bind) replaces it.
///
/// ```no_run
/// use whimbrel_models::Model;
/// use whimbrel_vfio_user::{Backend, Listener, Sandbox, Server};
///
/// let listener = Listener::bind("/run/user/1000/accel")?;
/// let confined = Sandbox::new().confine()?;
/// eprintln!("confined by {confined}");
/// let model = "accel?state=1MiB".parse::<Model>()?.open("accel 0")?;
/// Server::new(listener, Backend::new(model.device))?.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Sandbox {
    allowed: Vec<libc::c_long>,
}

/// What confines the process. As text, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    landlock_abi: u32,
}

/// Why the process is not confined as it should be. It may be in part, and should not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// There is no Landlock, or a container's own filter hides it.
    #[error(
        "this kernel has no Landlock: it takes Linux 5.13 with CONFIG_SECURITY_LANDLOCK, and in a container a \
         seccomp profile that allows landlock_create_ruleset"
    )]
    NoLandlock,
    /// There is Landlock, and it was not started.
    #[error("this kernel's Landlock is off: boot with landlock in the list of lsm= (or in CONFIG_LSM)")]
    LandlockOff,
    /// Landlock refused.
    #[error("landlock: {0}")]
    Landlock(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Threads run that Landlock would leave out.
    #[error(
        "{0} threads run, and only the one that confines itself would be confined: do it before others start"
    )]
    Threads(usize),
    /// It cannot be seen how many threads run.
    #[error("the threads of this process cannot be counted in /proc/self/task, where procfs must be: {0}")]
    Uncounted(#[source] io::Error),
    /// The list of system calls is not known for this processor.
    #[error("there is no filter of system calls for {arch}", arch = std::env::consts::ARCH)]
    Processor,
    /// seccomp refused.
    #[error("this kernel takes no filter of system calls (it takes CONFIG_SECCOMP_FILTER): {0}")]
    Seccomp(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Sandbox {
    /// What a server of this crate needs, and no more.
    pub fn new() -> Sandbox {
        Sandbox::default()
    }

    /// Allows one more system call (`libc::SYS_*`), whatever its arguments. Landlock denies what it denies.
    ///
    /// ```
    /// # use whimbrel_vfio_user::Sandbox;
    /// // A driver that locks its memory.
    /// let sandbox = Sandbox::new().allow(libc::SYS_mlock).allow(libc::SYS_munlock);
    /// ```
    #[must_use]
    pub fn allow(mut self, system_call: libc::c_long) -> Sandbox {
        self.allowed.push(system_call);
        self
    }

    /// Confines the process.
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
    /// The version of the kernel's Landlock, as far as it is used.
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

/// Takes away, with Landlock, everything that has a name. Returns the ABI.
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
            Err(SandboxError::Landlock("the kernel has it, and enforces nothing".into()))
        }
        (LandlockStatus::Available { effective_abi, .. }, _) => Ok(effective_abi as u32),
    }
}

fn install(filter: &BpfProgram) -> Result<(), SandboxError> {
    apply_filter_all_threads(filter).map_err(|error| SandboxError::Seccomp(error.into()))
}
