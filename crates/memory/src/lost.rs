//! Survival of lost memory. The owner of a mapped file can truncate it, and then the next access past its end raises
//! SIGBUS, which kills a process without a handler.
//!
//! After a call of [`survive_lost_memory`], an access made under `guarded` continues instead in private zeroed memory,
//! and its caller learns that the mapping is lost. Every other SIGBUS goes to the previous handler.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use vm_memory::MmapRegion;

/// One access in progress on a thread, and the accesses around it.
struct Frame<'a> {
    start: usize,
    size: usize,
    lost: &'a AtomicBool,
    outer: *const Frame<'a>,
}

thread_local! {
    /// The innermost access of this thread. It needs neither allocation nor a destructor, so that a signal handler can
    /// read it.
    static INNERMOST: Cell<*const Frame<'static>> = const { Cell::new(ptr::null()) };
}

/// The previous action for SIGBUS; null until ours is installed.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Lets this process survive the loss of memory that it accesses through [`Memory::access`](crate::Memory::access), as
/// devices do through their mappings.
///
/// It handles SIGBUS, and passes every other SIGBUS to the previous handler. A handler installed later must do the
/// same. Repeated calls change nothing and return the same result.
pub fn survive_lost_memory() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed =
        INSTALLED.get_or_init(|| install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
    installed.map_err(io::Error::from_raw_os_error)
}

fn install() -> io::Result<()> {
    // SAFETY: all zeros is a valid sigaction, an empty one.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: with no new action this only writes the present one to `before`.
    if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // The handler may read it as long as the process lives.
    BEFORE.store(Box::into_raw(Box::new(before)), Ordering::Release);
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handle` has the signature that SA_SIGINFO wants, and does only what a handler may: it looks at
    // atomics and a thread-local without destructor, and makes system calls.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes an access to `region` and to no other memory that might be lost. If the region is lost meanwhile, `lost` is
/// set, reads return zeros, and writes are discarded.
#[inline] // Each DMA access passes here: a call of its own takes a fifth of a small one.
pub(crate) fn guarded<T>(region: &MmapRegion, lost: &AtomicBool, access: impl FnOnce() -> T) -> T {
    /// Ends the access, even if it panics.
    struct End(*const Frame<'static>);

    impl Drop for End {
        fn drop(&mut self) {
            INNERMOST.set(self.0);
        }
    }

    let end = End(INNERMOST.get());
    let frame = Frame { start: region.as_ptr() as usize, size: region.size(), lost, outer: end.0 };
    // `end` removes it before the lifetimes of `frame` and `lost` end.
    INNERMOST.set((&raw const frame).cast());
    access()
}

extern "C" fn handle(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid `info`; for SIGBUS it has an address, which
    // for one that a process has sent is no address of a fault.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    if code > 0 && replace(address) {
        return;
    }
    hand_on(signal, info, context);
}

/// Puts memory of zeros in place of the mapping that an access of this thread has lost.
fn replace(address: usize) -> bool {
    let mut at = INNERMOST.get();
    // SAFETY: frames live on this thread's stack as long as they can be reached from `INNERMOST`, and this
    // thread does nothing but run the handler now.
    while let Some(frame) = unsafe { at.as_ref() } {
        if address.wrapping_sub(frame.start) < frame.size {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            );
            // SAFETY: the range is one mapping, whole, which `guarded` was given and which outlives the access;
            // its memory is shared with others, who may write anything there at any time, zeros too.
            let mapped =
                unsafe { libc::mmap(frame.start as *mut c_void, frame.size, protection, flags, -1, 0) };
            frame.lost.store(true, Ordering::Release);
            return mapped != libc::MAP_FAILED;
        }
        at = frame.outer;
    }
    false
}

/// Passes the signal to the previous handler.
fn hand_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: what is stored was leaked, and is never changed.
    let before = unsafe { BEFORE.load(Ordering::Acquire).as_ref() };
    match before {
        Some(before) if !matches!(before.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) => {
            if before.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: it was installed for this signal with SA_SIGINFO, so it is such a function.
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: it was installed for this signal without SA_SIGINFO, so it is such a function.
                let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(before.sa_sigaction) };
                handler(signal);
            }
        }
        // The access is made again on return, and then ends the process. A signal that another process has
        // sent is not: it is raised again.
        _ => {
            // SAFETY: both only change what this signal does, and send it to this thread, where it waits for
            // the handler's end.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::raise(signal);
            }
        }
    }
}
