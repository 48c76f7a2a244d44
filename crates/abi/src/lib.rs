//! Reads a kernel's `vfio.h` without a C compiler and compares it with [`whimbrel_uapi`].
//!
//! ```
//! use whimbrel_abi::{Property, compare};
//!
//! let header = "
//! #define VFIO_DEVICE_FEATURE_MIGRATION 3
//!
//! struct vfio_precopy_info {
//!     __u32 argsz;
//!     __u32 flags;
//!     __aligned_u64 initial_bytes;
//!     __aligned_u64 dirty_bytes;
//! };
//! ";
//! let comparison = compare(header)?;
//! assert_eq!(comparison.header.path(), "linux/vfio.h");
//! assert_eq!((comparison.compared.structures, comparison.compared.fields), (1, 4));
//!
//! // The structure agrees with the kernel's; the constant does not.
//! let [difference] = &comparison.differences[..] else { panic!("{comparison:#?}") };
//! assert_eq!(difference.kind, Property::Value);
//! assert_eq!((&*difference.name, difference.line), ("VFIO_DEVICE_FEATURE_MIGRATION", 2));
//! assert_eq!((&*difference.header, &*difference.whimbrel), ("3", "1"));
//! # Ok::<(), whimbrel_abi::CompareError>(())
//! ```
//!
//! [`compare`] finds constants whose values differ, structures whose size, alignment or fields differ, names that only
//! one side has, the migration protocols of the header, and clashing names, such as a macro and an enumerator with the
//! same name. It knows `linux/vfio.h`, `linux/iommufd.h`, `linux/vfio_ccw.h` and `linux/vfio_zdev.h` on 64-bit Linux.
//!
//! The text may be anything: unreadable parts are in [`Comparison::unread`], with their lines. The crate has no I/O and
//! prints nothing. A [`Comparison`] is plain data, and serializes to the object of `whimbrel abi --json`.

mod compare;
mod comparison;
mod header;
mod names;

pub use compare::{CompareError, MAX_BYTES, compare};
pub use comparison::{Compared, Comparison, Difference, Lacks, Property, Protocol, UnknownName};
pub use header::{Clash, Unread};

/// The README, whose example is tested.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
