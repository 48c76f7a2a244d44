//! Signals to a user's eventfds, made as the kernel makes them (`eventfd_signal()` in `fs/eventfd.c`): they never wait.
//!
//! A write(2) is no such signal. It waits for room in the counter, a hostile user can fill the counter at any moment, and
//! O_NONBLOCK belongs to the open file that the user shares. The kernel's own signal saturates instead, and asynchronous
//! I/O makes one when a request is complete (IOCB_FLAG_RESFD). The request used here is a read of no bytes from the
//! eventfd itself: it is complete at once, with EINVAL, and leaves the counter alone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;
use whimbrel_protocol::Errno;

/// Completions that are kept until they are collected.
const COMPLETIONS: usize = 64;

/// IOCB_CMD_PREAD of `include/uapi/linux/aio_abi.h`.
const PREAD: u16 = 0;

/// IOCB_FLAG_RESFD.
const RESFD: u32 = 1;

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

/// One for all devices: a signal holds it for less than a microsecond.
static CONTEXT: Mutex<Option<Context>> = Mutex::new(None);

/// Makes sure that [`signal`] can do its work. ENOSYS on a kernel without asynchronous I/O (CONFIG_AIO), EAGAIN if other
/// processes have all of it that the system allows (`/proc/sys/fs/aio-max-nr`), ENOMEM.
pub(crate) fn prepare() -> Result<(), Errno> {
    let mut context = CONTEXT.lock();
    if context.is_none() {
        *context = Some(Context::new().map_err(|error| {
            tracing::warn!(
                %error,
                "eventfds cannot be signalled without asynchronous I/O: see CONFIG_AIO and /proc/sys/fs/aio-max-nr"
            );
            Errno::from_io_error(&error).unwrap_or(Errno::ENOSYS)
        })?);
    }
    Ok(())
}

/// Adds 1 to the counter of an eventfd and wakes whoever waits for it, unless the counter is full: then the user has
/// not seen earlier signals yet, and this one is among them.
pub(crate) fn signal(eventfd: &EventFd) {
    let mut context = CONTEXT.lock();
    if let Err(error) = send(&mut context, eventfd) {
        // The user has a device that seems to have lost an interrupt. Nothing it can do leads here.
        tracing::error!(%error, "an eventfd cannot be signalled");
    }
}

fn send(context: &mut Option<Context>, eventfd: &EventFd) -> io::Result<()> {
    let refused = match context {
        Some(context) => match context.submit(eventfd) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        },
        None => io::ErrorKind::NotFound.into(),
    };
    // A context belongs to one process: a child that was forked needs its own.
    if context.is_none() || refused.raw_os_error() == Some(libc::EINVAL) {
        return context.insert(Context::new()?).submit(eventfd);
    }
    Err(refused)
}

impl Context {
    fn new() -> io::Result<Context> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup(2) writes the new context's number to `context`, which is 0 as it must be.
        let made = unsafe { libc::syscall(libc::SYS_io_setup, COMPLETIONS, &raw mut context) };
        if made == 0 { Ok(Context(context)) } else { Err(io::Error::last_os_error()) }
    }

    fn submit(&self, eventfd: &EventFd) -> io::Result<()> {
        let descriptor = eventfd.as_raw_fd().cast_unsigned();
        let mut request =
            Iocb { opcode: PREAD, fildes: descriptor, flags: RESFD, resfd: descriptor, ..Iocb::default() };
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

    /// Takes away completions, which nobody looks at, and says how many there were.
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
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::{ReadWriteFlags, preadv2};

    use super::*;

    fn eventfd() -> EventFd {
        EventFd::new(0).unwrap()
    }

    fn is_full(eventfd: &EventFd) -> bool {
        let mut asked = [PollFd::from_borrowed_fd(descriptor(eventfd), PollFlags::OUT)];
        poll(&mut asked, Some(&Timespec::default())).unwrap();
        asked[0].revents().contains(PollFlags::ERR)
    }

    #[test]
    fn each_signal_counts_once() {
        let eventfd = eventfd();
        for _ in 0..3 * COMPLETIONS {
            signal(&eventfd);
        }
        assert_eq!(eventfd.read().unwrap(), 3 * COMPLETIONS as u64);
    }

    #[test]
    fn a_full_counter_is_not_waited_for() {
        let eventfd = eventfd();
        eventfd.write(u64::MAX - 1).unwrap();
        for _ in 0..3 {
            signal(&eventfd);
            assert!(is_full(&eventfd));
        }
        assert_eq!(eventfd.read().unwrap(), u64::MAX);
        signal(&eventfd);
        assert_eq!(eventfd.read().unwrap(), 1, "the next signal counts again");
    }

    #[test]
    fn a_user_that_fills_and_drains_the_counter_at_any_moment_holds_up_nobody() {
        let eventfd = eventfd();
        let (has_ended, has_filled) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !has_ended.load(Ordering::Relaxed) {
                    // It waits for the thread that drains, as a signal that is a write would.
                    eventfd.write(u64::MAX - 1).unwrap();
                }
                has_filled.store(true, Ordering::Relaxed);
            });
            scope.spawn(|| {
                while !has_filled.load(Ordering::Relaxed) {
                    let _ = preadv2(
                        descriptor(&eventfd),
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
        assert_eq!(eventfd.read().unwrap(), 2);
    }

    fn descriptor(eventfd: &EventFd) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as `eventfd` is borrowed.
        unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
    }
}
