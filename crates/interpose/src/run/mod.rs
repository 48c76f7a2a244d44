//! Runs an unmodified VFIO program on devices of this process: without the kernel's VFIO, without rights, and without a
//! change to the program.
//!
//! ```no_run
//! use whimbrel_interpose::run::Command;
//! use whimbrel_models::Model;
//!
//! let serial: Model = "serial".parse()?;
//! let mut command = Command::new("qemu-system-x86_64");
//! let address = command.free_address()?;
//! command.device(serial.open(address.to_string())?)?;
//! command.arg("-device").arg(format!("vfio-pci,host={address}"));
//! let status = command.spawn()?.wait()?;
//! # let _ = status;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How
//!
//! The program gets a mount namespace, and without rights a user namespace around it, whose sysfs and `/dev` have the
//! devices: what it opens, lists and reads there runs untouched. A seccomp filter passes on the requests of VFIO and
//! iommufd, accesses at the offsets of regions, and reads and writes of migration data; they are answered here as the
//! kernel answers them. Everything else that the program does costs a few steps of the filter.
//!
//! # What a program can use
//!
//! - groups, containers with type1 v1 and v2, the devices' own files (cdev) and iommufd;
//! - regions by pread(2) and pwrite(2), interrupts and ioeventfds by eventfd, and all features, with migration;
//! - DMA in its memory, shared or private;
//! - threads, fork, exec, dup and SCM_RIGHTS: its descendants are served too.
//!
//! # Where it differs from the kernel
//!
//! - Regions cannot be mapped: VFIO_DEVICE_GET_REGION_INFO offers no mapping.
//! - A group that is open can be opened once more; the first request on it fails with EBUSY.
//! - Memory is not pinned. A device's access to memory that the program has unmapped is a DMA fault.
//! - read(2) and write(2) at the file position of a device do nothing, and neither do sendfile(2) and splice(2).
//! - A descriptor of migration data has a number near the program's limit, and so has its duplicate. One that was made
//!   lower by dup2(2) or received by SCM_RIGHTS can be polled and closed; reads and writes fail with EBADF.
//! - io_uring_setup(2) fails with ENOSYS: the filter does not see the requests of a ring.
//! - The real devices of VFIO are hidden: `/dev/vfio` has the devices of this process only.
//!
//! Programs with a seccomp listener of their own, 32-bit programs, and without root those that gain rights at exec cannot
//! be served.

mod caller;
mod checks;
mod child;
mod command;
mod device;
mod error;
mod files;
mod filter;
mod forks;
mod host;
mod layout;
mod maps;
mod memory;
mod namespace;
mod requests;
mod start;
mod supervisor;
mod system;
mod task;
mod turn;

pub use self::child::{Child, Stopper};
pub use self::command::{Command, DeviceFiles};
pub use self::device::{Address, AddressError};
pub use self::error::{RunError, Stage};
