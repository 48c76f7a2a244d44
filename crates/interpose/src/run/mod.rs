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
mod device;
mod error;
mod files;
mod filter;
mod layout;
mod maps;
mod memory;
mod namespace;
mod requests;
mod start;
mod supervisor;
mod system;
mod task;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::process::{Resource, getrlimit};
use whimbrel_device::iommufd::{Iommu, OwnIommu};
use whimbrel_device::{Errno, Group, HardwareIommu, Translation, WorkingDevice, survive_lost_memory};
use whimbrel_uapi::type1::IovaRange;

pub use self::device::{Address, AddressError};
pub use self::error::{RunError, Stage};

use self::device::Placed;
use self::files::{Files, Served};
use self::layout::{DevEntry, Host, SYSFS_FOLDERS};
use self::start::{Handed, Setup};
use self::supervisor::Supervisor;

/// The domain of devices without an address of their own, unless the host has it.
const FIRST_DOMAIN: u16 = 0x0100;

/// The window of message interrupts, which is no memory.
const MESSAGES: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// The last IOVA of an IOMMU with four levels of tables.
const LAST_IOVA: u64 = (1 << 48) - 1;

/// Highest descriptor at which data files begin.
const MAX_DATA_FILE: u64 = 65536;

/// Descriptors below the program's limit that data files have.
const DATA_FILES: u64 = 64;

/// A program to be started on devices of this process, used like [`std::process::Command`].
#[derive(Debug)]
pub struct Command {
    command: std::process::Command,
    devices: Vec<Placed>,
    host: Numbers,
}

/// The numbers of the host that devices must not have.
#[derive(Debug)]
struct Numbers {
    addresses: BTreeSet<String>,
    first_group: u32,
    first_number: u32,
    domain: u16,
}

/// A program that runs. Its devices are served until this is dropped.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    supervisor: Supervisor,
    /// The devices, whose workers run until here.
    _devices: Vec<Placed>,
}

/// A device as the program finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceFiles {
    /// Its address in sysfs.
    pub address: Address,
    /// The file of its group.
    pub group: PathBuf,
    /// Its own file, for iommufd.
    pub cdev: PathBuf,
}

impl Command {
    /// Returns a command that starts a program, searched in `PATH` unless it has a slash.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command {
            command: std::process::Command::new(program),
            devices: Vec::new(),
            host: Numbers::of_host(),
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Command {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Command {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Command {
        self.command.env(name, value);
        self
    }

    /// Removes a variable from the program's environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Command {
        self.command.env_remove(name);
        self
    }

    /// Sets the program's working directory.
    pub fn current_dir(&mut self, folder: impl AsRef<Path>) -> &mut Command {
        self.command.current_dir(folder);
        self
    }

    /// Sets the program's standard input.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Command {
        self.command.stdin(stdin);
        self
    }

    /// Sets the program's standard output.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Command {
        self.command.stdout(stdout);
        self
    }

    /// Sets the program's standard error.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Command {
        self.command.stderr(stderr);
        self
    }

    /// Returns an address that neither the host nor a device of this program has: `0100:00:00.0` for the first device,
    /// unless the host has that domain, and the next slot for each further one.
    pub fn free_address(&self) -> Result<Address, RunError> {
        let first = Address::of_slot(self.host.domain, 0);
        let slots = (0..32).map(|slot| Address::of_slot(self.host.domain, slot));
        slots.into_iter().find(|address| !self.is_taken(*address)).ok_or(RunError::AddressInUse(first))
    }

    /// Adds a PCI device, whose name is the address at which the program finds it.
    ///
    /// It is in a group of its own, behind an IOMMU with dirty tracking. Fails if the name is not an address, or if the
    /// host or another device of this program has it.
    pub fn device(&mut self, device: impl Into<WorkingDevice>) -> Result<&mut Command, RunError> {
        let device = device.into();
        let address: Address = device.name().parse().map_err(|_| RunError::Name(device.name().to_owned()))?;
        if self.is_taken(address) {
            return Err(RunError::AddressInUse(address));
        }
        let index = self.devices.len() as u32;
        let (group, number) = (self.host.first_group + index, self.host.first_number + index);
        let placed = Placed::new(address, group, number, device);
        self.devices.push(placed.map_err(|errno| RunError::ConfigSpace { address, errno })?);
        Ok(self)
    }

    /// Returns the devices as the program will find them.
    pub fn devices(&self) -> Vec<DeviceFiles> {
        let files = |placed: &Placed| DeviceFiles {
            address: placed.address,
            group: format!("/dev/vfio/{}", placed.group).into(),
            cdev: format!("/dev/vfio/devices/vfio{}", placed.number).into(),
        };
        self.devices.iter().map(files).collect()
    }

    /// Starts the program. Once this returns, it runs, and its requests are answered.
    ///
    /// This process survives the loss of memory that the program shares with it from now on
    /// ([`survive_lost_memory`]).
    pub fn spawn(self) -> Result<Child, RunError> {
        let Command { command, devices, .. } = self;
        checks::check(command.get_program(), command.get_current_dir())?;
        survive_lost_memory().map_err(RunError::from)?;
        let served =
            devices.iter().map(serve).collect::<Result<Vec<Served>, Errno>>().map_err(RunError::System)?;
        let first_data_file = first_data_file();
        let setup =
            Setup { steps: layout::steps(&devices, &host()?), filter: filter::filter(first_data_file) };
        let (child, supervisor) = start::start(command, &setup, |Handed { listener, dev }| {
            let files = Files::new(served, dev)?;
            Ok(Supervisor::start(listener, files, first_data_file as i32)?)
        })?;
        Ok(Child { child, supervisor, _devices: devices })
    }

    fn is_taken(&self, address: Address) -> bool {
        self.host.addresses.contains(&address.to_string())
            || self.devices.iter().any(|placed| placed.address == address)
    }
}

impl Child {
    /// Returns the number of the program's process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills the program's process.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()
    }

    /// Waits for the program's process, not for its descendants.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    /// Returns the exit status of the program's process if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until neither the program nor a descendant of it has a VFIO file open, or until [`Child::stop`].
    pub fn wait_until_unused(&self) {
        self.supervisor.wait_until_unused();
    }

    /// Returns a handle that ends [`Child::wait_until_unused`], from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.supervisor.stopper())
    }

    /// Takes the program's standard input, if it is piped.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.child.stdin.take()
    }

    /// Takes the program's standard output, if it is piped.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.child.stdout.take()
    }

    /// Takes the program's standard error, if it is piped.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.child.stderr.take()
    }
}

/// Ends the service of a program.
#[derive(Clone, Debug)]
pub struct Stopper(supervisor::Stopper);

impl Stopper {
    /// Ends [`Child::wait_until_unused`], and the service of what remains of the program: its requests fail with ENOSYS
    /// once the [`Child`] is dropped.
    pub fn stop(&self) {
        self.0.stop();
    }
}

impl Numbers {
    fn of_host() -> Numbers {
        let addresses: BTreeSet<String> = names("/sys/bus/pci/devices").collect();
        let has_domain =
            |domain: u16| addresses.iter().any(|name| name.starts_with(&format!("{domain:04x}:")));
        let domain = (FIRST_DOMAIN..=u16::MAX).find(|domain| !has_domain(*domain)).unwrap_or(FIRST_DOMAIN);
        let after = |folder: &str, prefix: &str| {
            let numbers = names(folder).filter_map(|name| name.strip_prefix(prefix)?.parse::<u32>().ok());
            numbers.max().map_or(0, |last| last.saturating_add(1))
        };
        let first_group = after("/sys/kernel/iommu_groups", "");
        let first_number = after("/sys/class/vfio-dev", "vfio");
        Numbers { addresses, first_group, first_number, domain }
    }
}

fn names(folder: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok())
}

/// Returns what the layout has to keep of this host.
fn host() -> Result<Host, RunError> {
    let mut dev = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let name = entry.file_name().into_vec();
        // It may have gone meanwhile.
        let Ok(kind) = entry.file_type() else { continue };
        dev.push(if kind.is_symlink() {
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            DevEntry::Link(name, target.as_os_str().as_bytes().to_vec())
        } else if kind.is_dir() {
            DevEntry::Folder(name)
        } else {
            DevEntry::File(name)
        });
    }
    let sysfs = SYSFS_FOLDERS.into_iter().filter(|folder| Path::new("/sys").join(folder).is_dir()).collect();
    Ok(Host { dev, sysfs })
}

/// Puts a device behind its files.
fn serve(placed: &Placed) -> Result<Served, Errno> {
    let (first, last) = MESSAGES;
    let ranges = vec![IovaRange { start: 0, end: first - 1 }, IovaRange { start: last + 1, end: LAST_IOVA }];
    // Pages of 4 KiB, 2 MiB and 1 GiB.
    let translation = Translation::Hardware(HardwareIommu::new(ranges, 0x4020_1000, true)?);
    let iommu = OwnIommu::default().dirty_tracking(true).last_iova(LAST_IOVA).reserved(vec![MESSAGES]);
    let device = (*placed.device).clone();
    Ok(Served {
        group: Group::new(translation, vec![device.clone()])?,
        device,
        group_number: placed.group,
        iommu: Iommu::Own(iommu),
        number: placed.number,
    })
}

/// Returns the first number of data files: near the program's limit, where no other file of it is.
fn first_data_file() -> u32 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MAX_DATA_FILE).min(MAX_DATA_FILE);
    (limit.saturating_sub(DATA_FILES)).max(limit / 2).max(3) as u32
}
