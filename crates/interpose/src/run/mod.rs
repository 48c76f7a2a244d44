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
//! - regions by pread(2), pwrite(2) and mmap(2), interrupts and ioeventfds by eventfd, and all features, with migration;
//! - DMA in its memory, shared or private;
//! - threads, fork, exec, dup and SCM_RIGHTS: its descendants are served too.
//!
//! # Faults
//!
//! A device can be given [faults](whimbrel_device::wrap::fault), which show what a program does when its device fails. Wrap
//! the driver with [`Faulty`](whimbrel_device::wrap::fault::Faulty):
//!
//! ```standalone_crate
//! use whimbrel_device::wrap::fault::{Faults, Faulty};
//! use whimbrel_device::{DeviceFile, Errno, State};
//! use whimbrel_interpose::run::Command;
//! use whimbrel_models::serial::{Serial, SerialConfig};
//! use whimbrel_user::Migratable;
//! use whimbrel_user::kernel::Cdev;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // The program here is this one itself, started with the path of its device.
//!     if let Some(path) = std::env::args().nth(1) {
//!         let mut device = Cdev::open(&path)?;
//!         let failed = device.set_state(State::Stop).err();
//!         assert_eq!(failed.and_then(|error| error.errno()), Some(Errno::EIO));
//!         device.set_state(State::Stop)?;
//!         return Ok(());
//!     }
//!     let faults: Faults = "arc RUNNING_P2P->STOP: EIO once".parse()?;
//!     let mut command = Command::new(std::env::current_exe()?);
//!     let address = command.free_address()?.to_string();
//!     let driver = |bus| Faulty::new(Serial::new(SerialConfig::default(), bus), faults);
//!     command.device(DeviceFile::new(address, driver))?;
//!     let device = command.devices().remove(0);
//!     command.arg(device.cdev);
//!     match command.spawn() {
//!         Ok(mut child) => assert!(child.wait()?.success()),
//!         Err(error) => eprintln!("{error}; {}", error.advice().unwrap_or_default()),
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # Traces
//!
//! [`Command::trace`] gives out each request with its answer, as records of the [`trace`](crate::trace) module, without
//! ptrace:
//!
//! - each call that is answered here: requests, accesses to regions, reads and writes of migration data, their duplications;
//! - the open of a group, a container, an iommufd or a device's own file, at its first use, because open(2) runs untouched;
//! - the close of the last descriptor of a file, by close(2), exec or the end of its processes. The descriptor and the
//!   thread are those of the file's last use.
//!
//! A record shows the bytes of the argument that the answer read. Bytes that it neither read nor wrote are read for the
//! record, up to 4096 bytes of an argument. A dirty bitmap is counted in the program's memory after the answer. The duration
//! is from the reception of the call to its answer: the program also waits for the changes to this process and back.
//!
//! Records come in the order in which calls end. A call that its thread does not survive is
//! [`Unfinished`](crate::trace::Outcome::Unfinished), as is one that has no answer a second after the end. The mapping of a
//! region is recorded when the kernel is left to make it: its result is [`Unseen`](crate::trace::Outcome::Unseen). No other call
//! that the kernel answers is seen, such as a request on a file that is not one of VFIO.
//!
//! ```no_run
//! # use whimbrel_interpose::run::Command;
//! use whimbrel_interpose::trace::{Event, Options};
//!
//! # let mut command = Command::new("my-vmm");
//! command.trace(Options::default(), |event| {
//!     if let Event::Record(record) = event {
//!         eprintln!("{record}");
//!     }
//! });
//! let mut child = command.spawn()?;
//! let status = child.wait()?;
//! // All events have been given out after this.
//! drop(child);
//! # let _ = status;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where it differs from the kernel
//!
//! - A region can be mapped if its memory lies in its file where the region lies in the device's file, as that of
//!   [`RegionMemory::for_programs`](whimbrel_device::RegionMemory::for_programs) does, and if the file's size is sealed.
//!   VFIO_DEVICE_GET_REGION_INFO offers no other mapping.
//! - A descriptor by which a region was mapped is the driver's file: fstat(2), and mappings below the offsets of regions, are
//!   those of that file, and mremap(2) reaches all of it. An F_OFD_SETLK lock of the file tells that the program has it: a
//!   program that removes the lock closes the device.
//! - A group that is open can be opened once more; the first request on it fails with EBUSY.
//! - Memory is not pinned. A device's access to memory that the program has unmapped is a DMA fault, and so is one to private
//!   memory that a userfaultfd of the program does not fill within five seconds.
//! - read(2) and write(2) at the file position of a device do nothing, and neither do sendfile(2) and splice(2). By a
//!   duplicate of a device's own file that was made before the first request, they are those of `/dev/full` until there is a
//!   request or an access to a region by it.
//! - A group, a container, an iommufd and a device's own file have an F_OFD_SETLK lock as long as a descriptor is still the
//!   file that open(2) gave: a program that removes the lock loses what was opened, for its duplicates.
//! - A descriptor of migration data has one of the last 64 numbers below the soft limit of open files (RLIMIT_NOFILE) with
//!   which the program began, at most 65535, and so has its duplicate. A program that lowers its limit below that cannot
//!   migrate (EMFILE); one that raises it has slower reads and writes of other files with such numbers or higher ones;
//!   select(2) takes numbers below 1024 only. One that was made lower by dup2(2) or received by SCM_RIGHTS can be polled and
//!   closed; reads and writes fail with EBADF.
//! - A descriptor is replaced at the first request on it, and when a region is mapped by it, if it still is the same open file.
//!   A thread that closes it at that moment and opens a file with its number may find that file replaced.
//! - io_uring_setup(2) fails with ENOSYS: the filter does not see the requests of a ring.
//! - Memory of a program that sets PR_SET_DUMPABLE to 0 cannot be mapped for DMA without root (EFAULT).
//! - The real devices of VFIO are hidden: `/dev/vfio` has the devices of this process only.
//!
//! # Descriptors of this process
//!
//! Each VFIO file of the program takes two descriptors here, each eventfd one, each file of shared memory that is mapped for
//! DMA one, and all mappings of private memory of one program together one; up to 64 more make frequent accesses to registers
//! faster. Without a free one, requests fail with EMFILE. The soft
//! limit of this process is not changed here: raise it after [`Command::spawn`], as the program begins with the one that
//! this process has then.
//!
//! # What cannot be served
//!
//! Programs with a seccomp listener of their own, 32-bit programs, and without root those that gain rights at exec cannot
//! be served.

mod access;
mod answer;
mod buffers;
mod caller;
mod checks;
mod child;
mod closer;
mod command;
mod copies;
mod device;
mod error;
mod events;
mod fdinfo;
mod files;
mod filter;
mod forks;
mod held_pages;
mod host;
mod layout;
mod mapping;
mod mapping_calls;
mod maps;
mod memory;
mod namespace;
mod nodes;
mod open_file;
mod program_memory;
mod recording;
mod region_files;
mod requests;
mod shared_files;
mod shortage;
mod slow;
mod start;
mod supervisor;
mod system;
mod task;
mod traced;
mod turn;
mod under_way;
mod unread;
mod workers;

pub use self::child::{Child, Stopper};
pub use self::command::{Command, DeviceFiles};
pub use self::device::{Address, AddressError};
pub use self::error::{RunError, Stage};
