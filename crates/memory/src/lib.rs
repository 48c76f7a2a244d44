//! Memory that processes share with a device.
//!
//! [`Memory`] is a file that is mapped into this process. The file may get shorter under a device's feet
//! ([`survive_lost_memory`]). [`RemoteMemory`] has no address here: it is asked for. [`DirtyLog`] keeps account of the
//! pages that a device has written, without a lock. Addresses of devices are not known here.
//!
//! ```
//! use std::fs::File;
//! use rustix::fs::{MemfdFlags, memfd_create};
//! use vm_memory::FileOffset;
//! use whimbrel_memory::Memory;
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
mod lost;
mod mapped;
mod remote;

pub use dirty_log::DirtyLog;
pub use lost::survive_lost_memory;
pub use mapped::{Memory, MemoryError, Protection};
pub use remote::RemoteMemory;

/// The example of the README, run with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
