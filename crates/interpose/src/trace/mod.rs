//! Shows what a program asks of VFIO devices: each request decoded, with its result and duration.
//!
//! [`Tracer`] starts a program with a seccomp filter that stops its VFIO requests, and follows it by ptrace. All its other
//! system calls run untouched. It gives out [`Record`]s, which `Display` shows as a line, `Serialize` as an object, and
//! [`Summary`] counts. These do not know where a record comes from.
//!
//! ```no_run
//! use whimbrel_interpose::trace::{Event, Options, Tracer};
//!
//! let command = ["whimbrel", "probe", "0000:3b:00.2"].map(Into::into);
//! let tracer = Tracer::start(&command, Options::default())?;
//! let ended = tracer.run(&mut |event| {
//!     if let Event::Record(record) = event {
//!         eprintln!("{record}");
//!     }
//! })?;
//! std::process::exit(ended.status().into());
//! # Ok::<(), whimbrel_interpose::trace::TraceError>(())
//! ```
//!
//! # What is seen
//!
//! - Every `ioctl` of VFIO and iommufd, on whatever file, with its argument before and after. Of an argument at most 4096
//!   bytes are read, whatever size it gives for itself.
//! - `pread`, `pwrite` and `mmap` at offsets from 2^40 on, which are those of regions: all but region 0 of the kernel's
//!   drivers.
//! - While a data file is open, all reads, writes and closes by the thread that opened it, by threads that make a VFIO
//!   request meanwhile, and by threads they start. Other threads run untouched; what they read or write shows as a
//!   difference of the file's position, if the driver keeps one.
//! - With [`Options::all_io`], all of that by all threads, and the opens and duplications of VFIO files, at the cost of a stop at each such
//!   call of the program.
//!
//! Not seen: what goes through io_uring or a mapping of a region, calls that the program's own seccomp filter answers, and
//! programs for another architecture, such as those of 32 bits. What [`run`](crate::run) answers has
//! [a trace of its own](crate::run#traces).
//!
//! A file has the name of another one if the other's descriptor was closed out of sight, and the same number was given to a
//! file of the same driver, by a duplication or a message: nothing tells them apart.
//!
//! # What it changes
//!
//! - The program has no_new_privs: setuid programs run without the rights of their owner.
//! - It cannot be traced by another tracer, nor trace.
//! - It is killed if the tracer dies.
//! - The requests of a child with CLONE_UNTRACED fail with ENOSYS: it has the filter, and no tracer.

pub(crate) mod argument;
pub(crate) mod calls;
pub(crate) mod described;
mod descriptors;
pub(crate) mod dirty;
mod error;
mod filter;
mod line;
mod object;
mod record;
mod summary;
mod tracee;

pub use self::error::TraceError;
pub use self::line::MAX_HEX;
pub use self::record::{Action, Dirty, Map, On, Outcome, Place, Record, Request, Transfer};
pub use self::summary::{Summary, Sums};
pub use self::tracee::{Ended, Event, Options, Tracer};
