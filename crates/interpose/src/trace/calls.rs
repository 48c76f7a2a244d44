//! The system calls that a trace looks at, and when each of them stops. This module makes none.

use libc::c_long;
use whimbrel_uapi::ioctl::VFIO_TYPE;

/// The high half of the lowest offset that belongs to a region other than the first: the kernel's drivers place region n at
/// `n << 40`.
const REGION_1: u32 = 1 << 8;

/// A condition on the arguments of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// The low half of an argument has this value under a mask.
    Masked {
        argument: u32,
        mask: u32,
        value: u32,
    },
    /// The low half of an argument is one of these.
    OneOf {
        argument: u32,
        values: [u32; 2],
    },
    /// The high half of an argument is at least this.
    HighHalf {
        argument: u32,
        least: u32,
    },
}

/// The meaning of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ioctl,
    /// Reads or writes a buffer, or the buffers of a vector, at the file's position or at an offset.
    Transfer {
        name: &'static str,
        direction: Way,
        vector: bool,
        offset: bool,
    },
    Map,
    /// The result is the descriptor.
    Open {
        name: &'static str,
    },
    Close,
    CloseRange,
    /// The result is the new descriptor; an argument may name it.
    Duplicate {
        name: &'static str,
        to: Option<usize>,
    },
    Control,
    /// Takes a descriptor of another process.
    Take,
}

/// The way of bytes between a program and a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

const fn transfer(name: &'static str, direction: Way, vector: bool, offset: bool) -> Kind {
    Kind::Transfer { name, direction, vector, offset }
}

/// Every call that a trace looks at.
const CALLS: &[(c_long, Kind)] = &[
    (libc::SYS_ioctl, Kind::Ioctl),
    (libc::SYS_read, transfer("read", Way::Read, false, false)),
    (libc::SYS_write, transfer("write", Way::Write, false, false)),
    (libc::SYS_readv, transfer("readv", Way::Read, true, false)),
    (libc::SYS_writev, transfer("writev", Way::Write, true, false)),
    (libc::SYS_pread64, transfer("pread64", Way::Read, false, true)),
    (libc::SYS_pwrite64, transfer("pwrite64", Way::Write, false, true)),
    (libc::SYS_preadv, transfer("preadv", Way::Read, true, true)),
    (libc::SYS_pwritev, transfer("pwritev", Way::Write, true, true)),
    (libc::SYS_preadv2, transfer("preadv2", Way::Read, true, true)),
    (libc::SYS_pwritev2, transfer("pwritev2", Way::Write, true, true)),
    (libc::SYS_mmap, Kind::Map),
    (libc::SYS_openat, Kind::Open { name: "openat" }),
    (libc::SYS_openat2, Kind::Open { name: "openat2" }),
    (libc::SYS_close, Kind::Close),
    (libc::SYS_close_range, Kind::CloseRange),
    (libc::SYS_dup, Kind::Duplicate { name: "dup", to: None }),
    (libc::SYS_dup3, Kind::Duplicate { name: "dup3", to: Some(1) }),
    (libc::SYS_fcntl, Kind::Control),
    (libc::SYS_pidfd_getfd, Kind::Take),
];

/// Older calls with the same effect, which only this processor has.
#[cfg(target_arch = "x86_64")]
const OLDER: &[(c_long, Kind)] = &[
    (libc::SYS_open, Kind::Open { name: "open" }),
    (libc::SYS_dup2, Kind::Duplicate { name: "dup2", to: Some(1) }),
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[(c_long, Kind)] = &[];

/// Returns the meaning of the call `number`, if a trace looks at it.
pub(crate) fn kind(number: u64) -> Option<Kind> {
    let number = c_long::try_from(number).ok()?;
    CALLS.iter().chain(OLDER).find(|(known, _)| *known == number).map(|(_, kind)| *kind)
}

/// Returns the calls that stop, each with its condition.
pub(super) fn stopping(all_io: bool) -> impl Iterator<Item = (c_long, When)> {
    CALLS.iter().chain(OLDER).filter_map(move |(number, kind)| Some((*number, when(*kind, all_io)?)))
}

fn when(kind: Kind, all_io: bool) -> Option<When> {
    let high = |argument| When::HighHalf { argument, least: REGION_1 };
    match kind {
        Kind::Ioctl => Some(When::Masked { argument: 1, mask: 0xff00, value: u32::from(VFIO_TYPE) << 8 }),
        Kind::Control => {
            all_io.then_some(When::OneOf { argument: 1, values: DUPLICATES.map(i32::cast_unsigned) })
        }
        _ if all_io => Some(When::Always),
        Kind::Transfer { offset: true, .. } => Some(high(3)),
        Kind::Map => Some(high(5)),
        _ => None,
    }
}

/// The commands of `fcntl` that duplicate a descriptor.
pub(super) const DUPLICATES: [i32; 2] = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC];
