//! Signalling of a user's eventfds as the kernel does it (`eventfd_signal()` in `fs/eventfd.c`), without blocking.
//!
//! A write(2) can block: it waits until the counter has room, a hostile user can fill the counter at any moment, and
//! O_NONBLOCK belongs to the open file, which the user shares. The kernel's own signal saturates instead, and
//! asynchronous I/O makes one when a request completes (IOCB_FLAG_RESFD). The request used here is a read of 0 bytes
//! from the eventfd itself: it completes at once, with EINVAL, and leaves the counter alone. The errno of a rejected
//! request shows whether the descriptor is an eventfd, by the kernel's own check.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use parking_lot::Mutex;
use whimbrel_protocol::Errno;

/// Completions that are kept until they are collected.
const COMPLETIONS: usize = 64;

/// IOCB_CMD_PREAD of `include/uapi/linux/aio_abi.h`.
const PREAD: u16 = 0;

/// IOCB_FLAG_RESFD.
const RESFD: u32 = 1;

/// A flag for `rw_flags` that no kernel supports: EOPNOTSUPP once the rest of the request is valid.
const UNKNOWN: i32 = i32::MIN;

/// `struct iocb`, in the byte order of the processors that Whimbrel runs on.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    reqprio: i16,
    fildes: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved2: u64,
    flags: u32,
    resfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion {
    data: u64,
    obj: u64,
    res: i64,
    res2: i64,
}

/// An `aio_context_t`. It lives as long as the process.
struct Context(libc::c_ulong);

/// The context of all devices: a signal holds the lock for less than a microsecond.
static CONTEXT: Mutex<Option<Context>> = Mutex::new(None);

/// Prepares for [`signal`]. ENOSYS on a kernel without asynchronous I/O (CONFIG_AIO), EAGAIN if other processes use all
/// that the system allows (`/proc/sys/fs/aio-max-nr`), ENOMEM.
pub(crate) fn prepare() -> Result<(), Errno> {
    let mut context = CONTEXT.lock();
    if context.is_none() {
        *context = Some(Context::new().map_err(|error| {
            tracing::warn!(
                %error,
                "cannot signal eventfds: asynchronous I/O is unavailable; check CONFIG_AIO and /proc/sys/fs/aio-max-nr"
            );
            Errno::from_io_error(&error).unwrap_or(Errno::ENOSYS)
        })?);
    }
    Ok(())
}

/// Adds 1 to the counter of an eventfd and wakes its waiters. A full counter is left alone: the user has not seen the
/// earlier signals yet, which then cover this one.
pub(crate) fn signal(eventfd: &OwnedFd) {
    let mut context = CONTEXT.lock();
    if let Err(error) = send(&mut context, eventfd) {
        // The user has a device that seems to have lost an interrupt. Nothing it can do leads here.
        tracing::error!(%error, "cannot signal an eventfd");
    }
}

/// Checks that a descriptor is an eventfd. Like the kernel's `eventfd_ctx_fdget()` it returns EINVAL for other
/// descriptors and EBADF for O_PATH ones; it also returns the errors of [`prepare`].
pub(crate) fn only_eventfd(fd: OwnedFd) -> Result<OwnedFd, Errno> {
    let asked = ours(&mut CONTEXT.lock()).and_then(|context| context.submit(&fd, UNKNOWN));
    match asked.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EINVAL)) {
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(fd),
        Err(errno) => Err(errno),
    }
}

fn send(context: &mut Option<Context>, eventfd: &OwnedFd) -> io::Result<()> {
    match context {
        Some(known) => match known.submit(eventfd, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => ours(context)?.submit(eventfd, 0),
            result => result,
        },
        None => ours(context)?.submit(eventfd, 0),
    }
}

/// A context of this process: a child that was forked needs its own.
fn ours(context: &mut Option<Context>) -> io::Result<&Context> {
    if !context.as_ref().is_some_and(Context::is_ours) {
        *context = Some(Context::new()?);
    }
    context.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Context {
    fn new() -> io::Result<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup(2) writes the new context's number to `context`, which is 0 as it must be.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, COMPLETIONS, &raw mut context) };
        if made == 0 { Ok(Context(context)) } else { Err(io::Error::last_os_error()) }
    }

    fn is_ours(&self) -> bool {
        // SAFETY: io_submit(2) looks for the context, and of no requests it reads none.
        unsafe { libc::syscall(libc::SYS_io_submit, self.0, 0, ptr::null::<*mut Iocb>()) == 0 }
    }

    fn submit(&self, eventfd: &OwnedFd, rw_flags: i32) -> io::Result<()> {
        let descriptor = eventfd.as_raw_fd().cast_unsigned();
        let mut request = Iocb {
            opcode: PREAD,
            rw_flags,
            fildes: descriptor,
            flags: RESFD,
            resfd: descriptor,
            ..Iocb::default()
        };
        let requests = [&raw mut request];
        loop {
            // SAFETY: io_submit(2) reads one pointer to a request, which is whole and outlives the call. The request has
            // no buffer, and is complete when the call returns.
            if unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, requests.as_ptr()) } == 1 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EAGAIN) || self.collect() == 0 {
                return Err(error);
            }
        }
    }

    /// Discards completions, and returns their number.
    fn collect(&self) -> usize {
        let mut completions = [Completion::default(); COMPLETIONS];
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: io_getevents(2) writes as many completions as there is room for, at most, and reads the timeout, with
        // which it does not wait.
        let count = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                0,
                COMPLETIONS,
                completions.as_mut_ptr(),
                ptr::from_ref(&at_once),
            )
        };
        usize::try_from(count).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{MemfdFlags, Mode, OFlags};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    fn eventfd() -> OwnedFd {
        rustix::event::eventfd(0, EventfdFlags::CLOEXEC).unwrap()
    }

    fn read(eventfd: &OwnedFd) -> u64 {
        let mut counter = [0; 8];
        rustix::io::read(eventfd, &mut counter).unwrap();
        u64::from_ne_bytes(counter)
    }

    fn write(eventfd: &OwnedFd, value: u64) {
        rustix::io::write(eventfd, &value.to_ne_bytes()).unwrap();
    }

    fn is_full(eventfd: &OwnedFd) -> bool {
        let mut asked = [PollFd::new(eventfd, PollFlags::OUT)];
        poll(&mut asked, Some(&Timespec::default())).unwrap();
        asked[0].revents().contains(PollFlags::ERR)
    }

    #[test]
    fn each_signal_counts_once() {
        let eventfd = eventfd();
        for _ in 0..3 * COMPLETIONS {
            signal(&eventfd);
        }
        assert_eq!(read(&eventfd), 3 * COMPLETIONS as u64);
    }

    #[test]
    fn a_full_counter_is_not_waited_for() {
        let eventfd = eventfd();
        write(&eventfd, u64::MAX - 1);
        for _ in 0..3 {
            signal(&eventfd);
            assert!(is_full(&eventfd));
        }
        assert_eq!(read(&eventfd), u64::MAX);
        signal(&eventfd);
        assert_eq!(read(&eventfd), 1, "the next signal counts again");
    }

    #[test]
    fn a_user_that_fills_and_drains_the_counter_at_any_moment_holds_up_nobody() {
        let eventfd = eventfd();
        let (has_ended, has_filled) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    // It waits for the thread that drains, as a signal that is a write would.
                    write(&eventfd, u64::MAX - 1);
                }
                has_filled.store(true, Ordering::Relaxed);
            });
            scope.spawn(|| {
                while !has_filled.load(Ordering::Relaxed) {
                    let _ = preadv2(
                        &eventfd,
                        &mut [IoSliceMut::new(&mut [0; 8])],
                        u64::MAX,
                        ReadWriteFlags::NOWAIT,
                    );
                }
            });
            for _ in 0..20_000 {
                signal(&eventfd);
            }
            has_ended.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_process_that_was_forked_signals_too() {
        let eventfd = eventfd();
        signal(&eventfd);
        // SAFETY: the child makes one signal, which takes neither memory nor a lock that another thread could have held
        // but this module's own, and ends without running anything else.
        match unsafe { libc::fork() } {
            0 => {
                let mut context =
                    Some(Context(CONTEXT.try_lock().and_then(|c| Some(c.as_ref()?.0)).unwrap_or(1)));
                let is_sent = send(&mut context, &eventfd).is_ok();
                // SAFETY: it ends the child, and nothing else.
                unsafe { libc::_exit(i32::from(!is_sent)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: it writes the child's status to `status`.
                assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
                assert_eq!(status, 0);
            }
        }
        assert_eq!(read(&eventfd), 2);
    }

    #[test]
    fn only_an_eventfd_is_taken_for_one_and_its_counter_stays() {
        let eventfd = only_eventfd(eventfd()).unwrap();
        write(&eventfd, 2);
        let eventfd = only_eventfd(eventfd).unwrap();
        assert_eq!(read(&eventfd), 2);
        let memory = rustix::fs::memfd_create("memory", MemfdFlags::CLOEXEC).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        // More of them than the kernel keeps contexts or requests of.
        let context = CONTEXT.lock().as_ref().map(|context| context.0);
        for _ in 0..3 * COMPLETIONS {
            assert_eq!(only_eventfd(memory.try_clone().unwrap()).unwrap_err(), Errno::EINVAL);
        }
        assert_eq!(
            CONTEXT.lock().as_ref().map(|context| context.0),
            context,
            "none has taken another context"
        );
        assert_eq!(only_eventfd(null.into()).unwrap_err(), Errno::EINVAL);
        assert_eq!(only_eventfd(socket.into()).unwrap_err(), Errno::EINVAL);
        let path = format!("/proc/self/fd/{}", eventfd.as_raw_fd());
        let named = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(only_eventfd(named).unwrap_err(), Errno::EBADF);
        signal(&eventfd);
        assert_eq!(read(&eventfd), 1);
    }
}
