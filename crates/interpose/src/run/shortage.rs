//! Lacks of this process while it answers the program: of descriptors or memory. The program is told of them, instead of a
//! fault of its own, and the user once.

use std::io;
use std::sync::Once;

use whimbrel_device::Errno;

/// Said once: what lacks descriptors once lacks them again and again.
static TOLD: Once = Once::new();

/// Returns the errno of an error if this process lacks something, and warns of missing descriptors.
pub(super) fn of(error: &io::Error) -> Option<Errno> {
    let errno = Errno::from_io_error(error)?;
    match errno {
        Errno::EMFILE | Errno::ENFILE => {
            TOLD.call_once(|| {
                tracing::warn!(
                    "no descriptor is left for a request of the program ({errno}): raise the limit of open files of the \
                     process that serves it (ulimit -n)"
                );
            });
            Some(errno)
        }
        Errno::ENOMEM => Some(errno),
        _ => None,
    }
}

/// Returns the errno of an error if this process lacks something, else EBADF.
pub(super) fn or_bad_descriptor(error: impl Into<io::Error>) -> Errno {
    of(&error.into()).unwrap_or(Errno::EBADF)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_process_lacks_is_passed_on() {
        let cases = [
            (libc::EMFILE, Errno::EMFILE),
            (libc::ENFILE, Errno::ENFILE),
            (libc::ENOMEM, Errno::ENOMEM),
            (libc::ENOENT, Errno::EBADF),
            (libc::EACCES, Errno::EBADF),
        ];
        for (errno, told) in cases {
            assert_eq!(or_bad_descriptor(io::Error::from_raw_os_error(errno)), told);
        }
    }
}
