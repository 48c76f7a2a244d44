//! The command that starts a program: its arguments and devices.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::process::{Resource, getrlimit};
use whimbrel_device::iommufd::{Iommu, OwnIommu};
use whimbrel_device::{Errno, Group, HardwareIommu, Translation, WorkingDevice, survive_lost_memory};
use whimbrel_uapi::type1::IovaRange;

use super::child::Child;
use super::device::{Address, Placed};
use super::error::RunError;
use super::files::Files;
use super::host::{self, Numbers};
use super::nodes::Served;
use super::start::{self, Handed, Setup};
use super::supervisor::{Supervisor, Traced};
use super::{checks, filter, layout};
use crate::trace::{Event, Options};

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
    inner: std::process::Command,
    devices: Vec<Placed>,
    host: Numbers,
    traced: Option<Traced>,
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
        let inner = std::process::Command::new(program);
        Command { inner, devices: Vec::new(), host: Numbers::of_host(), traced: None }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Command {
        self.inner.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Command {
        self.inner.args(arguments);
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Command {
        self.inner.env(name, value);
        self
    }

    /// Removes a variable from the program's environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Command {
        self.inner.env_remove(name);
        self
    }

    /// Sets the program's working directory.
    pub fn current_dir(&mut self, folder: impl AsRef<Path>) -> &mut Command {
        self.inner.current_dir(folder);
        self
    }

    /// Sets the program's standard input.
    pub fn stdin(&mut self, stdin: impl Into<Stdio>) -> &mut Command {
        self.inner.stdin(stdin);
        self
    }

    /// Sets the program's standard output.
    pub fn stdout(&mut self, stdout: impl Into<Stdio>) -> &mut Command {
        self.inner.stdout(stdout);
        self
    }

    /// Sets the program's standard error.
    pub fn stderr(&mut self, stderr: impl Into<Stdio>) -> &mut Command {
        self.inner.stderr(stderr);
        self
    }

    /// Puts the program into this process group: 0 for a group of its own.
    pub fn process_group(&mut self, group: i32) -> &mut Command {
        self.inner.process_group(group);
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

    /// Traces the program: `take` gets each request once it is answered, and each open and close of a file. See [the
    /// module](super#traces).
    ///
    /// Of the options, [`Options::all_io`] changes nothing: all calls are seen that are answered here.
    ///
    /// `take` is called in a thread of its own, for one event at a time, in the order in which they ended. Requests go on
    /// meanwhile; they wait for `take` only while 1024 events do. So it may take its time, but must not wait for the program
    /// to go on. All events have been taken once the [`Child`] is dropped.
    pub fn trace(&mut self, options: Options, take: impl FnMut(Event) + Send + 'static) -> &mut Command {
        self.traced = Some(Traced { options, take: Box::new(take) });
        self
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
    /// ([`survive_lost_memory`]). If it ignores SIGCHLD, that signal gets its default here, because the program's end could
    /// not be waited for; the program ignores it as this process did.
    pub fn spawn(self) -> Result<Child, RunError> {
        let Command { inner: command, devices, traced, .. } = self;
        checks::check(command.get_program(), command.get_current_dir())?;
        survive_lost_memory().map_err(RunError::from)?;
        let served =
            devices.iter().map(serve).collect::<Result<Vec<Served>, Errno>>().map_err(RunError::System)?;
        let first_data_file = first_data_file();
        let setup =
            Setup { steps: layout::steps(&devices, &host::host()?), filter: filter::filter(first_data_file) };
        let (child, supervisor) = start::start(command, &setup, |Handed { listener, dev }| {
            let files = Files::new(served, dev)?;
            Ok(Supervisor::start(listener, files, first_data_file.cast_signed(), traced)?)
        })?;
        Ok(Child::new(child, supervisor, devices))
    }

    fn is_taken(&self, address: Address) -> bool {
        self.host.addresses.contains(&address.to_string())
            || self.devices.iter().any(|placed| placed.address == address)
    }
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
