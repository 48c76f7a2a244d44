//! Our core with devices that are no more than what the lab's look like.

use std::collections::BTreeMap;
use std::fs::File as OsFile;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::iommufd::{Caller, Iommu, Iommufd, OwnIommu};
use whimbrel_device::{
    Capability, Cdev, Container, ContainerSettings, Context, DeviceFile, DeviceInfoFlags, DeviceSet, Driver,
    Errno, Group, GroupFile, HardwareIommu, Info, Irq, IrqInfoFlags, KernelVersion, LowPower, Memory,
    OpenDevice, PciFunction, PhysicalFunction, Process, Region, RegionInfoFlags, SparseMemory, Translation,
};
use whimbrel_recorder::pci::devices::{BESIDE, DEVICES, E1000E, EDU, Facts, GROUPS, NVME, TESTDEV, VF1, VF2};
use whimbrel_recorder::pci::list::*;
use whimbrel_recorder::pci::{self, Mode, Side};
use whimbrel_recorder::{PCI_GROUPS, PCI_OWN_FILES, Recording};
use whimbrel_uapi::cdev::{DeviceBindFlags, DeviceBindIommufd};
use whimbrel_uapi::ioctl::{
    Request, VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_IOEVENTFD, VFIO_DEVICE_PCI_HOT_RESET,
};
use whimbrel_uapi::type1::IovaRange;

/// What the lab's groups are numbered, in the order of [`GROUPS`].
const GROUP_NUMBERS: [u32; 6] = [7, 8, 11, 12, 4, 5];
/// What lies between these means a message interrupt to a PC's IOMMU.
const WINDOW: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
const LAST_IOVA: u64 = 0x7f_ffff_ffff;

/// A token that is shown where 6.12 asks for none; the page at [`DATA`] has it.
const ZEROS: [u8; 16] = [0; 16];

struct Shown(&'static Facts);

impl Shown {
    fn is(&self, facts: &Facts) -> bool {
        self.0.slot == facts.slot
    }

    fn can_be_reset(&self) -> bool {
        [&E1000E, &VF1, &VF2].iter().any(|facts| self.is(facts))
    }
}

impl Driver for Shown {
    fn info(&self) -> Info {
        let reset = if self.can_be_reset() { DeviceInfoFlags::RESET } else { DeviceInfoFlags::empty() };
        Info::new(DeviceInfoFlags::PCI | reset).num_regions(9).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let both = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let express = !(self.is(&BESIDE) || self.is(&EDU) || self.is(&TESTDEV));
        let size = match index {
            0..=5 => self.0.bars[index as usize],
            7 if express => 4096,
            7 => 256,
            8 => return Err(Errno::EINVAL),
            _ => 0,
        };
        let mut region = Region::new(RegionInfoFlags::empty(), size);
        if size > 0 {
            region.flags = both;
        }
        // Ports, and what shares a page with another device, cannot be mapped.
        if index < 6 && size >= 4096 {
            region.flags |= RegionInfoFlags::MMAP;
        }
        if self.0.table.is_some_and(|(bar, ..)| bar == index) {
            region.capabilities.push(Capability::MsixMappable);
        }
        Ok(region)
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let count = self.0.irqs[index as usize];
        let more = match index {
            0 => IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED,
            2 if count > 0 => IrqInfoFlags::empty(),
            3 if count == 0 => return Err(Errno::EINVAL),
            _ => IrqInfoFlags::NORESIZE,
        };
        Ok(Irq::new(IrqInfoFlags::EVENTFD | more, count))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        // As vfio-pci: others have their own errno for it.
        if self.can_be_reset() { Ok(()) } else { Err(Errno::EINVAL) }
    }

    fn bus_reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }
}

impl LowPower for Shown {
    fn suspend(&mut self, _: &Context) {}

    fn resume(&mut self, _: &Context) {}
}

enum Opened {
    ByGroup(OpenDevice),
    ByOwnFile(Arc<Cdev>),
}

struct Program {
    memory: SparseMemory,
    container: Container,
    groups: Vec<GroupFile>,
    iommufds: [Iommufd; 2],
    eventfds: Vec<EventFd>,
    /// By slot.
    devices: BTreeMap<usize, Arc<Opened>>,
    installed: Option<OpenDevice>,
}

impl Program {
    /// Whether a file of any kind is open there.
    fn is_open(&self, fd: i32) -> bool {
        fd == OTHER
            || (fd == CONTAINER && !self.groups.is_empty())
            || (EVENT..nth(EVENT, EVENTS)).contains(&fd)
            || (GROUP..nth(GROUP, self.groups.len())).contains(&fd)
            || fd
                .checked_sub(DEVICE)
                .is_some_and(|slot| usize::try_from(slot).is_ok_and(|slot| self.devices.contains_key(&slot)))
    }

    fn wrong(&self, fd: i32, wrong: Errno) -> Errno {
        if self.is_open(fd) { wrong } else { Errno::EBADF }
    }
}

impl Process for Program {
    crate::process::with_memory!();

    fn container(&self, fd: i32) -> Result<Container, Errno> {
        if fd == CONTAINER { Ok(self.container.clone()) } else { Err(self.wrong(fd, Errno::EBADFD)) }
    }

    fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
        match fd {
            IOMMUFD => Ok(self.iommufds[0].clone()),
            SECOND_IOMMUFD => Ok(self.iommufds[1].clone()),
            _ => Err(self.wrong(fd, Errno::EBADFD)),
        }
    }

    fn group(&self, fd: i32) -> Result<GroupFile, Errno> {
        let index = fd.checked_sub(GROUP).and_then(|index| usize::try_from(index).ok());
        let group = index.and_then(|index| self.groups.get(index)).cloned();
        group.ok_or_else(|| self.wrong(fd, Errno::EINVAL))
    }

    fn install_device(&mut self, device: OpenDevice) -> Result<i32, Errno> {
        self.installed = Some(device);
        Ok(0)
    }

    fn eventfd(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let index = fd.checked_sub(EVENT).and_then(|index| usize::try_from(index).ok());
        match index.and_then(|index| self.eventfds.get(index)) {
            Some(eventfd) => Ok(eventfd.as_fd().try_clone_to_owned().unwrap()),
            None => Err(self.wrong(fd, Errno::EINVAL)),
        }
    }
}

impl Caller for Program {
    fn memory(&self, _address: u64, _length: u64, _write: bool) -> Result<Vec<Memory>, Errno> {
        Err(Errno::EFAULT)
    }

    fn memory_file(&self, _fd: i32) -> Result<OsFile, Errno> {
        Err(Errno::EBADF)
    }
}

struct Ours {
    program: Program,
    devices: Vec<DeviceFile>,
    /// They are there whether or not anybody has them open.
    _groups: Vec<Group>,
}

fn set(devices: &[DeviceFile], of: &[&Facts]) {
    let functions = of.iter().map(|facts| {
        PciFunction::new(facts.name.parse().unwrap(), GROUP_NUMBERS[facts.group], devices[facts.slot].clone())
    });
    DeviceSet::new(functions).unwrap();
}

impl Ours {
    fn new(mode: Mode) -> Ours {
        let device = |facts: &&'static Facts| DeviceFile::new(facts.name, |_| Shown(facts));
        let devices: Vec<DeviceFile> = DEVICES.iter().map(device).collect();
        set(&devices, &[&E1000E, &BESIDE]);
        set(&devices, &[&NVME, &VF1, &VF2]);
        let physical = PhysicalFunction::new(&devices[NVME.slot]).unwrap();
        for facts in [&VF1, &VF2] {
            physical.add_virtual_function(&devices[facts.slot]).unwrap();
        }
        if mode == Mode::OwnFiles {
            devices[NVME.slot].set_vf_token(ZEROS).unwrap();
        }
        let ranges = vec![
            IovaRange { start: 0, end: WINDOW.0 - 1 },
            IovaRange { start: WINDOW.1 + 1, end: LAST_IOVA },
        ];
        let groups: Vec<Group> = (0..GROUPS.len())
            .map(|group| {
                let hardware = HardwareIommu::new(ranges.clone(), 0x4020_1000, false).unwrap();
                let members = DEVICES.iter().filter(|facts| facts.group == group);
                let members = members.map(|facts| devices[facts.slot].clone()).collect();
                Group::new(Translation::Hardware(hardware), members).unwrap()
            })
            .collect();
        let mut memory = SparseMemory::new();
        memory.insert(ARGUMENT, vec![0; PAGE]);
        memory.insert(DATA, vec![0; PAGE]);
        let kernel = KernelVersion::Linux6_12;
        let opened = match mode {
            Mode::Groups => groups.iter().map(|group| group.open().unwrap()).collect(),
            Mode::OwnFiles => Vec::new(),
        };
        let program = Program {
            memory,
            container: Container::new(ContainerSettings::default().kernel(kernel)),
            groups: opened,
            iommufds: [Iommufd::new(), Iommufd::new()],
            eventfds: (0..EVENTS).map(|_| EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap()).collect(),
            devices: BTreeMap::new(),
            installed: None,
        };
        Ours { program, devices, _groups: groups }
    }
}

impl Side for Ours {
    fn put(&mut self, address: u64, bytes: &[u8]) {
        self.program.write(address, bytes).unwrap();
    }

    fn get(&self, address: u64, bytes: &mut [u8]) {
        self.program.read(address, bytes).unwrap();
    }

    fn ioctl(&mut self, probe: &Probe) -> Result<i32, Errno> {
        let is_function = [&VF1, &VF2].iter().any(|facts| probe.file == File::Device(facts.slot));
        if !is_function || probe.number != VFIO_DEVICE_BIND_IOMMUFD.number() {
            return self.execute(probe);
        }
        // Linux 6.12 does not know the token's flag, nor ask for a token here. We do, as newer kernels.
        let head = &probe.bytes[..8];
        let flags = DeviceBindFlags::TOKEN.bits();
        self.put(ARGUMENT, &words(&[size_of::<DeviceBindIommufd>() as u32, flags]));
        self.put(ARGUMENT + 16, &DATA.to_ne_bytes());
        let result = self.execute(probe);
        self.put(ARGUMENT, head);
        result
    }

    fn open(&mut self, slot: usize) {
        let iommu = OwnIommu::default().last_iova(LAST_IOVA).reserved(vec![WINDOW]);
        let cdev = Cdev::new(self.devices[slot].clone(), Iommu::Own(iommu));
        self.program.devices.insert(slot, Arc::new(Opened::ByOwnFile(Arc::new(cdev))));
    }

    fn close(&mut self, slot: usize) {
        self.program.devices.remove(&slot);
    }

    fn settle(&mut self, _slot: usize) {}

    fn signals(&mut self) -> [u64; EVENTS] {
        let mut counts = [0; EVENTS];
        for (eventfd, count) in self.program.eventfds.iter().zip(&mut counts) {
            *count = eventfd.read().unwrap_or(0);
        }
        counts
    }
}

impl Ours {
    fn execute(&mut self, probe: &Probe) -> Result<i32, Errno> {
        let program = &mut self.program;
        let (number, argument) = (probe.number, probe.argument);
        let result = match probe.file {
            File::Container => program.container.clone().ioctl(number, argument, program)?,
            File::Iommufd => program.iommufds[0].clone().ioctl(number, argument, program)?,
            File::Group(group) => program.groups[group].clone().ioctl(number, argument, program)?,
            File::Device(slot) => match program.devices.get(&slot).cloned().as_deref() {
                Some(Opened::ByGroup(device)) => device.ioctl(number, argument, program)?,
                Some(Opened::ByOwnFile(cdev)) => cdev.ioctl(number, argument, program)?,
                None => return Err(Errno::EBADF),
            },
        };
        if let (Some(slot), Some(device)) = (probe.into, program.installed.take()) {
            program.devices.insert(slot, Arc::new(Opened::ByGroup(device)));
        }
        Ok(result)
    }
}

/// Where `docs/differences.md` says that we answer otherwise, and why.
fn is_explained(probe: &Probe, ours: &str, kernel: &str) -> bool {
    let answer = |line: &str| line.split(' ').nth(4).map(str::to_owned);
    let (ours, kernel) = (answer(ours), answer(kernel));
    let is = |request: Request| probe.number == request.number();
    let File::Device(slot) = probe.file else { return false };
    // QEMU's port does not say that its link is up again: the kernel gives up.
    if is(VFIO_DEVICE_PCI_HOT_RESET) {
        return ours.as_deref() == Some("0") && kernel.as_deref() == Some("ENOTTY");
    }
    // A model's MSI-X table takes writes as any register.
    if is(VFIO_DEVICE_IOEVENTFD) && kernel.as_deref() == Some("EINVAL") {
        let word =
            |at: usize| probe.bytes.get(at..at + 8).map(|word| u64::from_ne_bytes(word.try_into().unwrap()));
        let (Some(offset), Some(width)) = (word(8), probe.bytes.get(4)) else { return false };
        return DEVICES[slot].table.is_some_and(|(bar, table, bytes)| {
            let start = u64::from(bar) << 40 | table;
            offset < start + bytes && start < offset + u64::from(*width)
        });
    }
    false
}

fn compare(mode: Mode, recorded: &Recording) {
    let mut ours = Vec::new();
    pci::answers(&mut Ours::new(mode), mode, |line| ours.push(line));
    let probes = pci::probes(mode);
    recorded.check_with(&ours, |index, ours, kernel| is_explained(&probes[index], ours, kernel));
}

#[test]
fn what_is_opened_through_a_group_answers_as_a_kernels() {
    compare(Mode::Groups, &PCI_GROUPS);
}

#[test]
fn what_is_opened_by_its_own_file_answers_as_a_kernels() {
    compare(Mode::OwnFiles, &PCI_OWN_FILES);
}
