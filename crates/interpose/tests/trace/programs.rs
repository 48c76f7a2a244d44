//! The traced programs. Each is a function that returns an exit status.
#![allow(unsafe_code, reason = "these programs make requests with arguments that are wrong")]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, getpid};

use whimbrel_interpose::trace::{Options, Tracer};

use super::PROGRAM;

pub(crate) const RESET: u64 = 0x3b6f;
pub(crate) const FEATURE: u64 = 0x3b75;
const GET_DEVICE_FD: u64 = 0x3b6a;
const GET_STATUS: u64 = 0x3b67;

/// Runs the program with this name.
pub(crate) fn run(name: &str) -> ExitCode {
    let status = match name {
        "requests" => requests(),
        "one_reset" => one_reset(),
        "threads" => threads(),
        "fork" => forks(),
        "spawn" => spawns(),
        "exec_in_a_thread" => exec_in_a_thread(),
        "handlers" => handlers(),
        "killed" => raise(Signal::SIGKILL).map_or(1, |()| 2),
        "killed_in_a_child" => killed_in_a_child(),
        "stopped" => stopped(),
        "daemon" => daemon(),
        "scribbles" => scribbles(),
        "hostile" => hostile(),
        "duplicates" => duplicates(),
        "vfio_files" => vfio_files(),
        "token" => token(),
        "forever" => forever(),
        "tracer" => tracer(),
        "pipe_signal" => pipe_signal(),
        "never_comes" => never_comes(),
        "crowd" => crowd(),
        "children" => children(),
        "showered" => showered(),
        "stopped_again_and_again" => stopped_again_and_again(),
        "killed_at_work" => killed_at_work(),
        "works" => works(),
        name => panic!("no program {name}"),
    };
    ExitCode::from(status)
}

fn null() -> File {
    File::options().read(true).write(true).open("/dev/null").unwrap()
}

/// Makes a request with any number as its argument, and returns the errno.
fn ask(file: &File, number: u64, argument: u64) -> i32 {
    // SAFETY: the kernel refuses these requests, or checks what they point to.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number, argument) };
    if result == 0 { 0 } else { nix::errno::Errno::last_raw() }
}

fn address<T>(of: &T) -> u64 {
    std::ptr::from_ref(of) as u64
}

fn requests() -> u8 {
    let file = null();
    let mut errors = vec![ask(&file, 0x3b64, 0)];
    let state: [u32; 4] = [16, 0x2_0002, 3, u32::MAX];
    errors.push(ask(&file, FEATURE, address(&state)));
    errors.push(ask(&file, 0x3bff, 0x1234));
    errors.push(ask(&file, 0x5401, 0));
    u8::from(errors.iter().any(|errno| *errno != libc::ENOTTY)) + 7
}

fn one_reset() -> u8 {
    ask(&null(), RESET, 0);
    0
}

/// The number of resets that each thread asks for.
pub(crate) const RESETS: usize = 50;
pub(crate) const THREADS: usize = 8;

fn threads() -> u8 {
    let file = &null();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(move || {
                for _ in 0..RESETS {
                    ask(file, RESET, 0);
                }
            });
        }
    });
    0
}

/// Forks. The child exits with a status of its own.
fn in_child(run: impl FnOnce() -> i32) -> Pid {
    // SAFETY: this program has one thread.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => std::process::exit(run()),
        ForkResult::Parent { child } => child,
    }
}

fn forks() -> u8 {
    let file = null();
    let child = in_child(|| {
        let grandchild = in_child(|| {
            ask(&file, RESET, 0);
            3
        });
        let status = waitpid(grandchild, None).unwrap();
        ask(&file, RESET, 0);
        if status == WaitStatus::Exited(grandchild, 3) { 4 } else { 99 }
    });
    ask(&file, RESET, 0);
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, 4) => 0,
        _ => 1,
    }
}

/// This program as another one.
fn own(program: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(PROGRAM, program);
    command
}

fn spawns() -> u8 {
    let statuses: Vec<_> = (0..3).map(|_| own("one_reset").status().unwrap()).collect();
    u8::from(statuses.iter().any(|status| !status.success()))
}

fn exec_in_a_thread() -> u8 {
    ask(&null(), RESET, 0);
    let other = std::thread::spawn(|| std::thread::sleep(std::time::Duration::from_hours(1)));
    let _ = std::thread::spawn(|| own("requests").exec()).join();
    drop(other);
    1
}

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn count(_: i32) {
    CAUGHT.fetch_add(1, Ordering::Relaxed);
}

/// Gets a signal of each kind, also between requests, and returns their number.
fn handlers() -> u8 {
    let signals = [libc::SIGUSR1, libc::SIGTRAP, libc::SIGRTMIN() + 3, libc::SIGTSTP];
    for signal in signals {
        // SAFETY: the handler only counts.
        unsafe { libc::signal(signal, count as extern "C" fn(i32) as libc::sighandler_t) };
        // SAFETY: kill takes numbers only.
        unsafe { libc::kill(getpid().as_raw(), signal) };
        ask(&null(), RESET, 0);
    }
    u8::try_from(CAUGHT.load(Ordering::Relaxed)).unwrap()
}

fn killed_in_a_child() -> u8 {
    let child = in_child(|| raise(Signal::SIGABRT).map_or(1, |()| 2));
    match waitpid(child, None).unwrap() {
        WaitStatus::Signaled(_, Signal::SIGABRT, _) => 0,
        _ => 1,
    }
}

/// A child stops itself. It stays stopped until it is continued, and then goes on.
fn stopped() -> u8 {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let child = in_child(|| {
        raise(Signal::SIGSTOP).unwrap();
        ask(&null(), RESET, 0);
        nix::unistd::write(&writer, &[1]).unwrap();
        5
    });
    drop(writer);
    if waitpid(child, Some(WaitPidFlag::WUNTRACED)).unwrap() != WaitStatus::Stopped(child, Signal::SIGSTOP) {
        return 1;
    }
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one structure is given. A child that is stopped stays silent however long this takes.
    if unsafe { libc::poll(&raw mut poll, 1, 200) } != 0 {
        return 2;
    }
    kill(child, Signal::SIGCONT).unwrap();
    let mut byte = [0];
    File::from(reader).read_exact(&mut byte).unwrap();
    match waitpid(child, None).unwrap() {
        WaitStatus::Exited(_, 5) => 0,
        _ => 3,
    }
}

/// Ends before its child, which makes a request then.
fn daemon() -> u8 {
    let parent = getpid();
    in_child(|| {
        while nix::unistd::getppid() == parent {
            std::thread::yield_now();
        }
        ask(&null(), RESET, 0);
        0
    });
    6
}

/// A thread changes the argument all the time.
fn scribbles() -> u8 {
    static ARGUMENT: [AtomicU32; 8] = [const { AtomicU32::new(16) }; 8];
    let (file, ends) = (null(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0_u32;
            while !ends.load(Ordering::Relaxed) {
                for word in &ARGUMENT {
                    number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    word.store(number, Ordering::Relaxed);
                }
            }
        });
        for _ in 0..RESETS * 4 {
            ask(&file, FEATURE, address(&ARGUMENT));
        }
        ends.store(true, Ordering::Relaxed);
    });
    0
}

/// Arguments that lie about their size, or are nowhere.
fn hostile() -> u8 {
    let file = null();
    // Two pages, of which the second cannot be read.
    let length = std::num::NonZeroUsize::new(8192).unwrap();
    // SAFETY: new memory at an address that the kernel chooses, of which half is given up at once.
    let page = unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            length.get(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        libc::munmap(memory.byte_add(4096), 4096);
        memory as u64
    };
    // SAFETY: the last eight bytes of the page that is left.
    unsafe { ((page + 4088) as *mut [u32; 2]).write([u32::MAX, 0x2_0002]) };
    ask(&file, FEATURE, page + 4088);
    // SAFETY: the last two bytes.
    unsafe { ((page + 4094) as *mut [u8; 2]).write(*b"ab") };
    ask(&file, GET_DEVICE_FD, page + 4094);
    let sizes: [u32; 4096] = [u32::MAX; 4096];
    ask(&file, FEATURE, address(&sizes));
    for nowhere in [0, 1, page + 4096, u64::MAX, u64::MAX - 7, 1 << 63] {
        ask(&file, FEATURE, nowhere);
        ask(&file, GET_DEVICE_FD, nowhere);
    }
    // SAFETY: a descriptor that is not open.
    unsafe { libc::ioctl(-1, RESET, 0) };
    0
}

fn token() -> u8 {
    let token: [u32; 6] = [24, 0x2_0000, 0x5ec1_e75e, 0x5ec1_e75e, 0x5ec1_e75e, 0x5ec1_e75e];
    ask(&null(), FEATURE, address(&token));
    0
}

/// Duplicates a file that is not of VFIO in every way.
fn duplicates() -> u8 {
    let file = null();
    let raw: RawFd = file.as_raw_fd();
    // SAFETY: these take numbers only.
    unsafe {
        libc::dup(raw);
        libc::dup2(raw, 100);
        libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 0);
    }
    0
}

/// The status of a program that may not mount.
pub(crate) const CANNOT_MOUNT: i32 = 77;

/// Points a request, which the kernel refuses without a look at its argument, at a page that never comes.
fn never_comes() -> u8 {
    let Ok(page) = super::silent::page() else { return u8::try_from(CANNOT_MOUNT).unwrap() };
    let file = null();
    let errors = [ask(&file, FEATURE, page), ask(&file, FEATURE, page), ask(&file, RESET, 0)];
    u8::from(errors != [libc::ENOTTY; 3])
}

/// Uses plain files under the names of VFIO's files.
fn vfio_files() -> u8 {
    let flags = if nix::unistd::geteuid().is_root() {
        CloneFlags::CLONE_NEWNS
    } else {
        CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUSER
    };
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    let none = None::<&str>;
    let mounted =
        unshare(flags).and_then(|()| nix::mount::mount(none, "/", none, private, none)).and_then(|()| {
            nix::mount::mount(Some("tmpfs"), "/dev", Some("tmpfs"), nix::mount::MsFlags::empty(), none)
        });
    if mounted.is_err() {
        return u8::try_from(CANNOT_MOUNT).unwrap();
    }
    fs::create_dir_all("/dev/vfio/devices").unwrap();
    for path in ["/dev/vfio/vfio", "/dev/vfio/12", "/dev/vfio/devices/vfio3", "/dev/iommu", "/dev/other"] {
        fs::write(path, b"0123456789abcdef").unwrap();
    }
    let open = |path: &str| File::options().read(true).write(true).open(path).unwrap();
    let (group, device, iommufd, other) =
        (open("/dev/vfio/12"), open("/dev/vfio/devices/vfio3"), open("/dev/iommu"), open("/dev/other"));
    let status: [u32; 2] = [8, 0];
    ask(&group, GET_STATUS, address(&status));
    ask(&device, RESET, 0);
    ask(&iommufd, 0x3b81, 0);
    let mut bytes = [0; 8];
    for file in [&device, &other] {
        nix::sys::uio::pread(file, &mut bytes, 0).unwrap();
        nix::sys::uio::pread(file, &mut bytes, 7 << 40).unwrap();
        nix::sys::uio::pwrite(file, b"xy", 2).unwrap();
        let mut parts = [0; 3];
        let (first, second) = parts.split_at_mut(1);
        let mut vector = [std::io::IoSliceMut::new(first), std::io::IoSliceMut::new(second)];
        nix::sys::uio::readv(file, &mut vector).unwrap();
    }
    let duplicate = nix::unistd::dup(&device).unwrap();
    ask(&File::from(duplicate), RESET, 0);
    // SAFETY: the descriptors of this program from 200 on are its own.
    unsafe {
        libc::dup2(group.as_raw_fd(), 200);
        libc::close_range(200, u32::MAX, 0);
    }
    0
}

fn forever() -> u8 {
    ask(&null(), RESET, 0);
    loop {
        std::thread::park();
    }
}

/// Traces a program that does not end, and prints its process at the first request.
fn tracer() -> u8 {
    let tracer = Tracer::start(&super::command("forever"), Options::default()).unwrap();
    let process = tracer.process();
    tracer.run(&mut |_| println!("{process}")).unwrap().status()
}

/// Returns whether SIGPIPE leaves a shell alive.
fn pipe_signal() -> u8 {
    let status = Command::new("sh").args(["-c", "kill -PIPE $$"]).status().unwrap();
    let is_killed = std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGPIPE);
    u8::from(!is_killed)
}

/// Threads of the crowd, and children that live for a moment.
pub(crate) const MANY: usize = 200;

/// Many threads ask at once.
fn crowd() -> u8 {
    let (file, all_there) = (&null(), &std::sync::Barrier::new(MANY));
    std::thread::scope(|scope| {
        for _ in 0..MANY {
            scope.spawn(move || {
                all_there.wait();
                ask(file, RESET, 0);
            });
        }
    });
    0
}

/// Many children make a request each, and end: by themselves, or killed.
fn children() -> u8 {
    let (mut left, mut wrong) = (0, 0);
    for number in 0..MANY {
        in_child(|| {
            ask(&null(), RESET, 0);
            if number % 3 == 0 {
                raise(Signal::SIGKILL).unwrap();
            }
            0
        });
        left += 1;
        while left == 20 || (number == MANY - 1 && left > 0) {
            let ended = waitpid(None, None).unwrap();
            wrong += u8::from(!matches!(
                ended,
                WaitStatus::Exited(_, 0) | WaitStatus::Signaled(_, Signal::SIGKILL, _)
            ));
            left -= 1;
        }
    }
    wrong
}

/// The requests of a program in trouble.
pub(crate) const WORK: usize = 500;

/// Makes its requests, and fails if one is disturbed.
fn works() -> u8 {
    let file = null();
    u8::from((0..WORK).any(|_| ask(&file, RESET, 0) != libc::ENOTTY))
}

/// A child sends signals all the time.
fn showered() -> u8 {
    let parent = getpid();
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH] {
        // SAFETY: the handler only counts. signal(3) lets interrupted calls go on.
        unsafe { libc::signal(signal, count as extern "C" fn(i32) as libc::sighandler_t) };
    }
    let child = in_child(|| {
        while [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGWINCH]
            .iter()
            .all(|signal| kill(parent, *signal).is_ok())
        {}
        0
    });
    let mut status = 0;
    while CAUGHT.load(Ordering::Relaxed) < 200 {
        status |= u8::from(ask(&null(), RESET, 0) != libc::ENOTTY);
    }
    status |= works();
    kill(child, Signal::SIGKILL).unwrap();
    waitpid(child, None).unwrap();
    status
}

/// A child is stopped and continued while it works.
fn stopped_again_and_again() -> u8 {
    let child = in_child(|| i32::from(works()));
    loop {
        kill(child, Signal::SIGSTOP).unwrap();
        kill(child, Signal::SIGCONT).unwrap();
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive => {}
            ended => return u8::from(ended != WaitStatus::Exited(child, 0)),
        }
    }
}

/// Children are killed while they work, each after a little more of it.
fn killed_at_work() -> u8 {
    for turn in 0..20 {
        let child = in_child(|| {
            loop {
                works();
            }
        });
        std::thread::sleep(std::time::Duration::from_micros(200 * turn));
        kill(child, Signal::SIGKILL).unwrap();
        if waitpid(child, None).unwrap() != WaitStatus::Signaled(child, Signal::SIGKILL, false) {
            return 1;
        }
    }
    0
}
