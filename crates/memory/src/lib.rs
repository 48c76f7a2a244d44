//! Memory that processes share with a device: mapped files, remote memory and dirty tracking.
//!
//! [`Memory`] is a file mapped into this process; [`survive_lost_memory`] handles a file that is truncated while a
//! device uses it. Its bytes are [`SharedBytes`]: others may write them at any time. [`RemoteMemory`] has no address in
//! this process and is accessed by requests to its owner. [`DirtyLog`] records the pages that a device has written,
//! without a lock. The crate knows no device addresses.
//!
//! ```
//! use std::fs::File;
//! use rustix::fs::{MemfdFlags, memfd_create};
//! use whimbrel_memory::{FileOffset, Memory};
//!
//! let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
//! file.set_len(0x2000)?;
//! let memory = Memory::of_file(FileOffset::new(file, 0), 0x2000, true)?;
//! memory.access(0x1000, 5, |bytes| bytes.copy_from(b"hello"))?;
//! let mut found = [0_u8; 5];
//! memory.access(0x1000, 5, |bytes| bytes.copy_to(&mut found))?;
//! assert_eq!(&found, b"hello");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod barrier;
mod dirty_log;
mod file_offset;
mod file_transfer;
mod lost;
mod mapped;
mod remote;
mod shared_bytes;

pub use dirty_log::DirtyLog;
pub use file_offset::FileOffset;
pub use file_transfer::{read_file_now, write_file_now};
pub use lost::survive_lost_memory;
pub use mapped::{Memory, MemoryError, Protection};
pub use remote::RemoteMemory;
pub use shared_bytes::{SharedBytes, Word};

/// The README's example, run as a doctest.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
