//! A record: one call of a program on a VFIO file, from its entry to its result. Plain data; the text forms are in
//! [`line`](super::line) and [`object`](super::object).

use std::sync::Arc;
use std::time::Duration;

use whimbrel_uapi::Errno;
use whimbrel_uapi::decode::{Call, File};

/// One call of a program on a VFIO file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// When the call began, since the start of the trace.
    pub at: Duration,
    /// Its duration. It includes the time that the trace itself costs between entry and result.
    pub took: Duration,
    /// The process.
    pub process: u32,
    /// The thread of that process.
    pub thread: u32,
    /// The file.
    pub on: On,
    /// The call and its arguments.
    pub action: Action,
    /// The result.
    pub outcome: Outcome,
}

impl Record {
    /// Returns a call that began at `at` and took no time.
    pub fn new(at: Duration, on: On, action: Action, outcome: Outcome) -> Record {
        Record { at, took: Duration::ZERO, process: 0, thread: 0, on, action, outcome }
    }

    /// Returns the name under which a summary counts this call.
    pub fn name(&self) -> String {
        match &self.action {
            Action::Request(request) => request.name(),
            Action::Transfer(transfer) => transfer.call.to_string(),
            Action::Map(_) => "mmap".to_string(),
            Action::Open { call }
            | Action::Close { call }
            | Action::Duplicate { call, .. }
            | Action::Other { call } => (*call).to_string(),
            Action::Passed { .. } => "state not seen in calls".to_string(),
        }
    }

    /// Returns the bytes that moved: device state, bytes of regions, dirty bitmaps.
    pub fn bytes(&self) -> u64 {
        match (&self.action, self.outcome) {
            (Action::Transfer(_), Outcome::Returned(count)) => u64::try_from(count).unwrap_or(0),
            (Action::Passed { bytes }, _) => *bytes,
            (Action::Request(Request { dirty: Some(dirty), .. }), _) => dirty.counted.div_ceil(8),
            _ => 0,
        }
    }
}

/// The file that a call is made on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct On {
    /// The descriptor.
    pub fd: i32,
    /// The kind of file, in one word such as `group`.
    pub kind: &'static str,
    /// The file's name for people, such as `group 12`.
    pub name: Arc<str>,
}

impl On {
    /// Returns the file `name` at the descriptor `fd`.
    pub fn new(fd: i32, kind: &'static str, name: impl Into<Arc<str>>) -> On {
        On { fd, kind, name: name.into() }
    }
}

/// A call and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// An `ioctl` of VFIO or iommufd.
    Request(Request),
    /// `read`, `write` or a relative of them.
    Transfer(Transfer),
    /// `mmap` of a region.
    Map(Map),
    /// The file was opened; the result is the descriptor.
    Open {
        /// Name of the system call.
        call: &'static str,
    },
    /// The descriptor was closed.
    Close {
        /// Name of the system call.
        call: &'static str,
    },
    /// The descriptor was duplicated; the result is the new one.
    Duplicate {
        /// Name of the system call.
        call: &'static str,
        /// The descriptor that was asked for, if one was.
        to: Option<i32>,
    },
    /// Another call, whose arguments are not shown.
    Other {
        /// Name of the system call.
        call: &'static str,
    },
    /// Device state that passed through a data file since the last record of it, in calls that the trace did not see.
    Passed {
        /// Its size.
        bytes: u64,
    },
}

/// An `ioctl` of VFIO or iommufd.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Request {
    /// The kind of file, which gives the number its meaning.
    pub file: File,
    /// The number of the request.
    pub number: u32,
    /// The argument as it was passed: an address, or a number.
    pub value: u64,
    /// The bytes of the argument at the call, as many as were read.
    pub argument: Vec<u8>,
    /// The bytes of the argument after it.
    pub answer: Vec<u8>,
    /// The dirty pages that the answer reports.
    pub dirty: Option<Dirty>,
    /// Set if bytes are shown as such.
    pub hex: bool,
}

impl Request {
    /// Returns the request `number` on a `file`, with an argument that nobody changed.
    pub fn new(file: File, number: u32, value: u64, argument: Vec<u8>) -> Request {
        Request { file, number, value, answer: argument.clone(), argument, dirty: None, hex: false }
    }

    /// Returns the request for the decoder, as it was made.
    pub fn call(&self) -> Call<'_> {
        Call::new(self.file, self.number, &self.argument)
    }

    /// Returns the request for the decoder, as it was answered.
    pub fn answered(&self) -> Call<'_> {
        Call::new(self.file, self.number, &self.answer)
    }

    /// Returns the header's name for it, or its number.
    pub fn name(&self) -> String {
        match self.call().request() {
            Some(request) => request.name().to_string(),
            None => format!("ioctl {:#x}", self.number),
        }
    }
}

/// `read`, `write` or a relative of them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transfer {
    /// Name of the system call.
    pub call: &'static str,
    /// Number of bytes asked for.
    pub asked: u64,
    /// Offset in the file, of a call that has one.
    pub offset: Option<u64>,
    /// The region at that offset.
    pub place: Option<Place>,
    /// The first bytes that moved, if bytes are shown as such.
    pub data: Vec<u8>,
}

impl Transfer {
    /// Returns a call for `asked` bytes.
    pub fn new(call: &'static str, asked: u64) -> Transfer {
        Transfer { call, asked, offset: None, place: None, data: Vec::new() }
    }
}

/// `mmap` of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Map {
    /// Length in bytes.
    pub length: u64,
    /// Offset in the file.
    pub offset: u64,
    /// The region at that offset.
    pub place: Option<Place>,
}

impl Map {
    /// Returns a mapping of `length` bytes at an offset in the file.
    pub fn new(length: u64, offset: u64) -> Map {
        Map { length, offset, place: None }
    }
}

/// A place in a region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// Index of the region.
    pub region: u32,
    /// Offset in the region.
    pub offset: u64,
}

impl Place {
    /// Returns a place in a region.
    pub const fn new(region: u32, offset: u64) -> Place {
        Place { region, offset }
    }
}

/// The dirty pages in a bitmap after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dirty {
    /// Number of dirty pages among those counted.
    pub dirty: u64,
    /// Number of pages counted: fewer than there are if the bitmap is larger than the trace reads, or cannot be read.
    pub counted: u64,
    /// Number of pages that the request asks for.
    pub pages: u64,
}

impl Dirty {
    /// Returns `dirty` of `counted` pages, of `pages` pages altogether.
    pub const fn new(dirty: u64, counted: u64, pages: u64) -> Dirty {
        Dirty { dirty, counted, pages }
    }
}

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It succeeded with this value.
    Returned(i64),
    /// It failed.
    Failed(Errno),
    /// A signal interrupted it, and the kernel restarts it or lets it fail with EINTR.
    Interrupted,
    /// It has no answer: the thread ended in it, or the trace ended before.
    Unfinished,
    /// The kernel answered it out of the trace's sight.
    Unseen,
}

impl Outcome {
    /// Returns the result that a system call left in its register.
    pub fn of(value: i64) -> Outcome {
        // ERESTARTSYS to ERESTART_RESTARTBLOCK of the kernel's own errno.h, which a program never sees.
        match value {
            -516..=-512 => Outcome::Interrupted,
            -4095..=-1 => {
                let errno = i32::try_from(-value).ok().and_then(Errno::new);
                Outcome::Failed(errno.unwrap_or(Errno::EIO))
            }
            value => Outcome::Returned(value),
        }
    }

    /// Returns the value of a call that succeeded.
    pub fn returned(self) -> Option<i64> {
        match self {
            Outcome::Returned(value) => Some(value),
            _ => None,
        }
    }
}
