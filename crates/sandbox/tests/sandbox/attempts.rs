//! Single system calls from inside, each with its answer.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_long};
use std::fs;
use std::io;
use std::os::fd::IntoRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::Output;

use libtest_mimic::Trial;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use whimbrel_sandbox::Sandbox;

use super::{is_killed, said, say, start, test};

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    /// The errno.
    Refused(i32),
    /// SIGSYS.
    Killed,
}
use Answer::{Done, Killed, Refused};

/// What is tried, as it completes "inside a sandbox"; the answer; system calls that are allowed besides.
struct Attempt {
    name: &'static str,
    answer: Answer,
    allowed: &'static [c_long],
    /// From which Landlock on.
    abi: u32,
    make: fn() -> io::Result<c_long>,
}

/// A file that is there, can be read and run.
const THERE: &str = "/proc/self/exe";
const ITS_NAME: &CStr = c"/proc/self/exe";
/// Memory of nobody else.
const PRIVATE: usize = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned() as usize;

/// Makes a system call.
fn call<const N: usize>(number: c_long, arguments: [usize; N]) -> io::Result<c_long> {
    let mut all = [0; 6];
    all[..N].copy_from_slice(&arguments);
    // SAFETY: the attempts below pass pointers to what lives as long as the program, null where the kernel writes
    // nothing, and ask for nothing that changes memory which this program uses.
    match unsafe { libc::syscall(number, all[0], all[1], all[2], all[3], all[4], all[5]) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn at(text: &'static CStr) -> usize {
    text.as_ptr() as usize
}

fn n(value: i32) -> usize {
    (value as isize).cast_unsigned()
}

fn parent() -> usize {
    // SAFETY: it has no conditions.
    n(unsafe { libc::getppid() })
}

/// An abstract Unix address that nobody has; what matters is who says no.
static ABSTRACT: [u8; 12] = *b"\x01\0\0whimbrel\0";
/// Port 1 of this host, IPv4.
static TCP: [u8; 16] = [2, 0, 0, 1, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

const fn allowed(name: &'static str, make: fn() -> io::Result<c_long>) -> Attempt {
    Attempt { name, answer: Done, allowed: &[], abi: 1, make }
}

const fn refused(name: &'static str, errno: i32, make: fn() -> io::Result<c_long>) -> Attempt {
    Attempt { name, answer: Refused(errno), allowed: &[], abi: 1, make }
}

const fn killed(name: &'static str, make: fn() -> io::Result<c_long>) -> Attempt {
    Attempt { name, answer: Killed, allowed: &[], abi: 1, make }
}

const ATTEMPTS: &[Attempt] = &[
    allowed("memory can be had", || {
        call(libc::SYS_mmap, [0, 4096, n(libc::PROT_READ | libc::PROT_WRITE), PRIVATE, n(-1), 0])
    }),
    allowed("a file in memory can be made, and made longer", || {
        let file = call(libc::SYS_memfd_create, [at(c"file"), 0])?;
        call(libc::SYS_ftruncate, [file.cast_unsigned() as usize, 4096])
    }),
    allowed("a thread can be started", || std::thread::spawn(|| Ok(0)).join().unwrap()),
    allowed("a pair of sockets can be made", || std::os::unix::net::UnixStream::pair().map(|_| 0)),
    allowed("the limit on open files can be asked for", || {
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, 0, 0])
    }),
    allowed("a link of procfs says what a descriptor is", || fs::read_link("/proc/self/fd/1").map(|_| 0)),
    allowed("what is open says what it is", || {
        // SAFETY: no one else has it.
        let out = unsafe { <std::mem::ManuallyDrop<fs::File>>::new(std::os::fd::FromRawFd::from_raw_fd(1)) };
        out.metadata().map(|_| 0)
    }),
    refused("a file is not opened", libc::EACCES, || fs::File::open(THERE).map(|_| 0)),
    refused("a file is not opened by a thread", libc::EACCES, || {
        std::thread::spawn(|| fs::File::open(THERE).map(|_| 0)).join().unwrap()
    }),
    refused("a file is not made", libc::EACCES, || fs::File::create("/dev/shm/whimbrel-inside").map(|_| 0)),
    refused("a file is not looked at by its name", libc::EACCES, || fs::metadata(THERE).map(|_| 0)),
    refused("a file is not looked at by its name in the older way", libc::EACCES, || {
        call(libc::SYS_newfstatat, [n(libc::AT_FDCWD), at(ITS_NAME), 0, 0])
    }),
    refused("a folder is not read", libc::EACCES, || fs::read_dir("/").map(|_| 0)),
    refused("a name is not removed", libc::EACCES, || fs::remove_file("/nothing-is-here").map(|()| 0)),
    refused("what is open is not opened anew", libc::EACCES, || fs::File::open("/proc/self/fd/1").map(|_| 0)),
    refused("a thread's newer system call is as of an older kernel", libc::ENOSYS, || {
        call(libc::SYS_clone3, [0, 0])
    }),
    killed("no socket is made", || call(libc::SYS_socket, [n(libc::AF_INET), n(libc::SOCK_STREAM), 0])),
    killed("no Unix socket is made", || call(libc::SYS_socket, [n(libc::AF_UNIX), n(libc::SOCK_STREAM), 0])),
    killed("no socket is connected", || call(libc::SYS_connect, [0, ABSTRACT.as_ptr() as usize, 12])),
    killed("no socket is bound", || call(libc::SYS_bind, [0, ABSTRACT.as_ptr() as usize, 12])),
    killed("no pair of sockets is made that can send to a name", || {
        call(libc::SYS_socketpair, [n(libc::AF_UNIX), n(libc::SOCK_DGRAM), 0, 0])
    }),
    killed("nothing is sent to a name", || {
        call(libc::SYS_sendto, [0, at(c"x"), 1, 0, ABSTRACT.as_ptr() as usize, 12])
    }),
    killed("no program is attached to a socket", || {
        call(libc::SYS_setsockopt, [0, n(libc::SOL_SOCKET), n(libc::SO_ATTACH_FILTER), 0, 0])
    }),
    killed("no program is run", || call(libc::SYS_execve, [at(ITS_NAME), 0, 0])),
    killed("no program is run by its descriptor", || {
        call(libc::SYS_execveat, [1, at(c""), 0, 0, n(libc::AT_EMPTY_PATH)])
    }),
    killed("no process is started", || call(libc::SYS_clone, [n(libc::SIGCHLD), 0, 0, 0, 0])),
    killed("no process is started that shares memory", || {
        call(libc::SYS_clone, [n(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD), 0, 0, 0, 0])
    }),
    killed("no namespace is made", || call(libc::SYS_unshare, [n(libc::CLONE_NEWUSER)])),
    killed("no process is traced", || call(libc::SYS_ptrace, [libc::PTRACE_ATTACH as usize, parent(), 0, 0])),
    killed("no other process's memory is read", || {
        call(libc::SYS_process_vm_readv, [parent(), 0, 0, 0, 0, 0])
    }),
    killed("no signal is sent to a process", || call(libc::SYS_kill, [parent(), 0])),
    killed("no signal is sent to a thread of another process", || {
        call(libc::SYS_tgkill, [parent(), parent(), 0])
    }),
    killed("no memory is mapped to be executed", || {
        call(libc::SYS_mmap, [0, 4096, n(libc::PROT_READ | libc::PROT_EXEC), PRIVATE, n(-1), 0])
    }),
    killed("no memory is made executable", || {
        call(libc::SYS_mprotect, [0, 4096, n(libc::PROT_READ | libc::PROT_EXEC)])
    }),
    killed("no memory is made executable with a key", || {
        call(libc::SYS_pkey_mprotect, [0, 4096, n(libc::PROT_EXEC), n(-1)])
    }),
    killed("nothing is typed into a terminal", || {
        call(libc::SYS_ioctl, [0, libc::TIOCSTI as usize, at(c"x")])
    }),
    killed("no limit is changed", || {
        static LIMIT: [u64; 2] = [64, 64];
        call(libc::SYS_prlimit64, [0, libc::RLIMIT_NOFILE as usize, LIMIT.as_ptr() as usize, 0])
    }),
    killed("no limit of another process is asked for", || {
        call(libc::SYS_prlimit64, [parent(), libc::RLIMIT_NOFILE as usize, 0, 0])
    }),
    killed("the process is not made another user's", || call(libc::SYS_setuid, [65534])),
    killed("no descriptor is made to send signals", || {
        call(libc::SYS_fcntl, [0, n(libc::F_SETOWN), parent()])
    }),
    killed("no filter is added", || call(libc::SYS_seccomp, [1, 0, 0])),
    killed("the process is not made one that can be looked into", || {
        call(libc::SYS_prctl, [n(libc::PR_SET_DUMPABLE), 1])
    }),
    refused("no ring of requests is made, as on an older kernel", libc::ENOSYS, || {
        call(libc::SYS_io_uring_setup, [1, 0])
    }),
    killed("no ring of requests is entered", || call(libc::SYS_io_uring_enter, [0, 1, 0, 0])),
    killed("no program is given to the kernel", || call(libc::SYS_bpf, [0, 0, 0])),
    killed("no key is asked for", || call(libc::SYS_keyctl, [0, 0])),
    killed("nothing is mounted", || call(libc::SYS_mount, [0, at(c"/mnt"), 0, 0, 0])),
    // What seccomp is told to let through is Landlock's to judge.
    Attempt {
        allowed: &[libc::SYS_openat],
        ..refused("Landlock opens no file either", libc::EACCES, || fs::File::open(THERE).map(|_| 0))
    },
    Attempt {
        allowed: &[libc::SYS_openat],
        ..refused("Landlock opens no file for a thread either", libc::EACCES, || {
            std::thread::spawn(|| fs::File::open(THERE).map(|_| 0)).join().unwrap()
        })
    },
    Attempt {
        allowed: &[libc::SYS_execve],
        ..refused("Landlock runs no program either", libc::EACCES, || {
            call(libc::SYS_execve, [at(ITS_NAME), 0, 0])
        })
    },
    Attempt {
        allowed: &[libc::SYS_socket, libc::SYS_connect],
        abi: 4,
        ..refused("Landlock connects by TCP neither", libc::EACCES, || {
            let socket = call(libc::SYS_socket, [n(libc::AF_INET), n(libc::SOCK_STREAM), 0])?;
            call(libc::SYS_connect, [socket.cast_unsigned() as usize, TCP.as_ptr() as usize, 16])
        })
    },
    Attempt {
        allowed: &[libc::SYS_socket, libc::SYS_connect],
        abi: 6,
        ..refused("Landlock connects to an abstract socket of others neither", libc::EPERM, || {
            UnixStream::connect_addr(&abstract_socket(parent())).map(|_| 0)
        })
    },
    Attempt {
        allowed: &[libc::SYS_kill],
        abi: 6,
        ..refused("Landlock sends no signal either", libc::EPERM, || call(libc::SYS_kill, [parent(), 0]))
    },
    Attempt {
        allowed: &[libc::SYS_kill],
        ..allowed("a driver may do what its author has allowed", || {
            call(libc::SYS_kill, [std::process::id() as usize, 0])
        })
    },
];

/// What a kernel may lack: the system call that is taken away from the process, the errno it then has, and words
/// that the error must have.
const LACKING: [(&str, c_long, i32, &str); 3] = [
    ("no Landlock", libc::SYS_landlock_create_ruleset, libc::ENOSYS, "CONFIG_SECURITY_LANDLOCK"),
    ("a Landlock that is off", libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP, "lsm="),
    ("no filters", libc::SYS_seccomp, libc::EINVAL, "CONFIG_SECCOMP_FILTER"),
];

/// Where the tests' own process listens.
fn abstract_socket(process: usize) -> SocketAddr {
    SocketAddr::from_abstract_name(format!("whimbrel sandbox {process}")).unwrap()
}

pub(crate) fn trials() -> Vec<Trial> {
    let listener = UnixListener::bind_addr(&abstract_socket(std::process::id() as usize)).unwrap();
    // It listens as long as the program lives.
    let _ = listener.into_raw_fd();
    let attempts = ATTEMPTS.iter().map(|attempt| {
        test(format!("inside a sandbox {}", attempt.name), move || {
            let output = start(&format!("attempt {}", attempt.name)).output().unwrap();
            assert_eq!(answer(output), attempt.answer);
        })
    });
    let lacking = LACKING.iter().map(|(name, _, _, words)| {
        test(format!("a sandbox on a kernel with {name} is an error that says so"), move || {
            let error = said(start(&format!("attempt {name}")).output().unwrap());
            assert!(error.contains(words), "{error}");
        })
    });
    let threads = test("a sandbox that would leave out a thread is an error, and changes nothing", || {
        let error = said(start("attempt threads").output().unwrap());
        assert_eq!(
            error,
            "the process has 2 threads, and Landlock confines only one: confine before other threads start"
        );
    });
    attempts.chain(lacking).chain([threads]).collect()
}

#[track_caller]
fn answer(output: Output) -> Answer {
    if is_killed(output.status) {
        assert!(output.stdout.is_empty(), "{output:?}");
        return Killed;
    }
    match said(output).as_str() {
        "done" => Done,
        errno => Refused(errno.parse().unwrap_or_else(|_| panic!("{errno}"))),
    }
}

pub(crate) fn inside(name: &str) {
    if name == "threads" {
        return threads();
    }
    if let Some((_, number, errno, _)) = LACKING.iter().find(|(lacking, ..)| *lacking == name) {
        return lacking(*number, *errno);
    }
    let attempt = ATTEMPTS.iter().find(|attempt| attempt.name == name).unwrap();
    let sandbox = attempt.allowed.iter().fold(Sandbox::new(), |sandbox, number| sandbox.allow(*number));
    let confined = sandbox.confine().unwrap();
    if confined.landlock_abi() < attempt.abi {
        // This kernel's Landlock does not judge it.
        return say_answer(attempt.answer);
    }
    match (attempt.make)() {
        Ok(_) => say_answer(Done),
        Err(error) => say_answer(Refused(error.raw_os_error().unwrap())),
    }
}

fn say_answer(answer: Answer) {
    match answer {
        Done => say("done"),
        Refused(errno) => say(&errno.to_string()),
        Killed => unreachable!("only the kernel says so"),
    }
}

fn threads() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv());
    let error = Sandbox::new().confine().unwrap_err();
    assert!(fs::File::open(THERE).is_ok(), "it is not confined");
    drop(release);
    assert!(other.join().unwrap().is_err(), "nobody has sent anything");
    say(&error.to_string());
}

fn lacking(number: c_long, errno: i32) {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let errno = SeccompAction::Errno(errno.cast_unsigned());
    let rules = [(number, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    say(&Sandbox::new().confine().unwrap_err().to_string());
}
