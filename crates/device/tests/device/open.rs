//! A device is open through its group or by its own file, never both; what its last close ends.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use crate::iommufd_program::{ARGUMENT, Program};
use whimbrel_device::iommufd::{Iommu, Iommufd, OwnIommu};
use whimbrel_device::{
    ArcError, Cdev, Container, Context, DeviceFile, DeviceInfoFlags, DmaLogging, Driver, Errno, Group,
    GroupFile, HardwareIommu, Info, Migration, MigrationFlags, Observed, PrecopyReport, State, Translation,
};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::cdev::DeviceBindIommufd;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::{VFIO_DEVICE_BIND_IOMMUFD, VFIO_MIG_GET_PRECOPY_INFO};
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_uapi::type1::IovaRange;
use zerocopy::{FromBytes, IntoBytes};

/// A device that migrates and logs, and that cannot be reset.
#[derive(Default)]
struct Busy {
    logging_stopped: Arc<AtomicU32>,
}

impl Driver for Busy {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }
}

impl Migration for Busy {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY
    }

    fn arc(&mut self, _: &Context, _from: State, _to: State) -> Result<(), ArcError> {
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }

    fn read(&mut self, _: &Context, _buffer: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }

    fn precopy(&mut self, _: &Context) -> Result<PrecopyReport, Errno> {
        Ok(PrecopyReport::default().reinit(true))
    }
}

impl DmaLogging for Busy {
    fn start(&mut self, _: &Context, _ranges: &LoggingRanges) -> Result<u64, Errno> {
        Ok(4096)
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        self.logging_stopped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn report(&mut self, _: &Context, _report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

fn device(name: &str) -> DeviceFile {
    DeviceFile::new(name, |_| Busy::default())
}

const OURS: i32 = 20;
const OTHERS: i32 = 21;

fn program() -> Program {
    let mut program = Program::new();
    program.iommufds.insert(OURS, Iommufd::new());
    program.iommufds.insert(OTHERS, Iommufd::new());
    program
}

fn bind(program: &mut Program, cdev: &Cdev, iommufd: i32) -> Result<u32, Errno> {
    let asked = DeviceBindIommufd { argsz: 16, iommufd, ..Default::default() };
    let number = VFIO_DEVICE_BIND_IOMMUFD.number();
    let answer = program.call(asked, |argument, program| cdev.ioctl(number, argument, program));
    answer.map(|answer| answer.out_devid)
}

fn own_file(device: &DeviceFile) -> Cdev {
    Cdev::new(device.clone(), Iommu::Emulated)
}

/// Opens the group, with a container that has an IOMMU.
fn open(group: &Group) -> GroupFile {
    let file = group.open().unwrap();
    let container = Container::default();
    file.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    file
}

#[test]
fn a_group_cannot_be_opened_while_one_of_its_devices_is_bound() {
    let (a, b) = (device("a"), device("b"));
    let group = Group::new(Translation::Emulated, vec![a.clone(), b.clone()]).unwrap();
    let mut program = program();
    let (first, second) = (own_file(&a), own_file(&b));
    group.open().expect("a file that is open and not bound is in nobody's way");
    bind(&mut program, &first, OURS).unwrap();
    bind(&mut program, &second, OURS).unwrap();
    assert_eq!(group.open().map(drop), Err(Errno::EBUSY));
    drop(first);
    assert_eq!(group.open().map(drop), Err(Errno::EBUSY), "the other is still bound");
    drop(second);
    assert_eq!(group.open().map(drop), Ok(()));
}

#[test]
fn a_device_cannot_be_bound_while_its_group_is_open() {
    let (a, b) = (device("a"), device("b"));
    let group = Group::new(Translation::Emulated, vec![a.clone(), b]).unwrap();
    let mut program = program();
    let cdev = own_file(&a);
    let file = open(&group);
    let other = file.device("b").unwrap();
    assert_eq!(bind(&mut program, &cdev, OURS), Err(Errno::EBUSY), "though only the other device is open");
    // EBUSY is found out before the descriptor is looked at, and after the arguments are.
    assert_eq!(bind(&mut program, &cdev, 999), Err(Errno::EBUSY));
    assert_eq!(bind(&mut program, &cdev, -1), Err(Errno::EINVAL));
    drop(file);
    assert_eq!(bind(&mut program, &cdev, OURS), Err(Errno::EBUSY), "the open device keeps its group open");
    drop(other);
    assert_eq!(bind(&mut program, &cdev, 999), Err(Errno::EBADF));
    assert_eq!(group.open().map(drop), Ok(()), "a bind that failed blocks nothing");
    assert_eq!(bind(&mut program, &cdev, OURS), Ok(1));
}

#[test]
fn of_two_that_come_at_once_by_both_ways_one_gets_in() {
    let a = device("a");
    let group = Group::new(Translation::Emulated, vec![a.clone()]).unwrap();
    for _ in 0..200 {
        let cdev = own_file(&a);
        let (opened, bound) = std::thread::scope(|scope| {
            let opened = scope.spawn(|| group.open());
            let bound = bind(&mut program(), &cdev, OURS);
            (opened.join().unwrap(), bound)
        });
        match (opened, bound) {
            (Ok(_), Err(Errno::EBUSY)) | (Err(Errno::EBUSY), Ok(_)) => {}
            both => panic!("{both:?}"),
        }
    }
}

#[test]
fn a_device_is_bound_once() {
    let a = device("a");
    let mut program = program();
    let (first, second) = (own_file(&a), own_file(&a));
    bind(&mut program, &first, OURS).unwrap();
    assert_eq!(bind(&mut program, &first, OTHERS), Err(Errno::EINVAL), "by one file");
    assert_eq!(bind(&mut program, &second, OURS), Err(Errno::EINVAL), "by two");
    assert_eq!(bind(&mut program, &second, 999), Err(Errno::EBADF), "which is found out last");
    drop(first);
    assert_eq!(bind(&mut program, &second, OURS), Ok(1));
}

#[test]
fn a_bind_whose_answer_cannot_be_written_leaves_nothing_behind() {
    /// Memory that can be read and not written.
    struct ReadOnly(Program);

    impl whimbrel_device::Process for ReadOnly {
        fn read(&self, address: u64, buffer: &mut [u8]) -> Result<(), whimbrel_device::Fault> {
            self.0.read(address, buffer)
        }
        fn write(&mut self, address: u64, _data: &[u8]) -> Result<(), whimbrel_device::Fault> {
            Err(whimbrel_device::Fault::new(address))
        }
        fn install(&mut self, file: whimbrel_device::DataFile) -> Result<i32, Errno> {
            self.0.install(file)
        }
        fn uninstall(&mut self, fd: i32) {
            self.0.uninstall(fd);
        }
        fn iommufd(&self, fd: i32) -> Result<Iommufd, Errno> {
            self.0.iommufd(fd)
        }
    }

    impl whimbrel_device::iommufd::Caller for ReadOnly {
        fn memory(
            &self,
            address: u64,
            length: u64,
            write: bool,
        ) -> Result<Vec<whimbrel_device::Memory>, Errno> {
            self.0.memory(address, length, write)
        }
        fn memory_file(&self, fd: i32) -> Result<std::fs::File, Errno> {
            self.0.memory_file(fd)
        }
    }

    let a = device("a");
    let group = Group::new(Translation::Emulated, vec![a.clone()]).unwrap();
    let mut program = ReadOnly(program());
    let cdev = own_file(&a);
    let asked = DeviceBindIommufd { argsz: 16, iommufd: OURS, ..Default::default() };
    program.0.memory.insert(ARGUMENT, asked.as_bytes());
    let number = VFIO_DEVICE_BIND_IOMMUFD.number();
    assert_eq!(cdev.ioctl(number, ARGUMENT, &mut program), Err(Errno::EFAULT));
    assert_eq!(program.0.iommufds[&OURS].objects(), 0);
    assert_eq!(cdev.device().map(drop), Err(Errno::EINVAL));
    assert_eq!(group.open().map(drop), Ok(()));
    assert_eq!(bind(&mut program.0, &cdev, OURS), Ok(1));
}

#[test]
fn an_iommufd_owns_a_whole_group_of_devices_with_an_iommu() {
    let hardware = HardwareIommu::new(vec![IovaRange { start: 0, end: u64::MAX }], 0x1000, true).unwrap();
    let (a, b) = (device("a"), device("b"));
    let devices = vec![a.clone(), b.clone()];
    let group = Group::new(Translation::Hardware(hardware), devices).unwrap();
    let mut program = program();
    let own = |device: &DeviceFile| Cdev::new(device.clone(), Iommu::Own(OwnIommu::default()));
    let (first, second) = (own(&a), own(&b));
    group.set_viable(false);
    assert_eq!(bind(&mut program, &first, OURS), Err(Errno::EPERM), "the host uses a device of the group");
    group.set_viable(true);
    bind(&mut program, &first, OURS).unwrap();
    assert_eq!(bind(&mut program, &second, OTHERS), Err(Errno::EPERM));
    bind(&mut program, &second, OURS).unwrap();
    drop(first);
    let first = own(&a);
    assert_eq!(bind(&mut program, &first, OTHERS), Err(Errno::EPERM), "the second is left");
    drop(second);
    assert_eq!(bind(&mut program, &first, OTHERS), Ok(1));
}

#[test]
fn a_device_is_in_one_group() {
    let a = device("a");
    let group = Group::new(Translation::Emulated, vec![a.clone()]).unwrap();
    let again = || Group::new(Translation::Emulated, vec![device("b"), a.clone()]).map(drop);
    assert_eq!(again(), Err(Errno::EEXIST));
    drop(group);
    assert_eq!(again(), Ok(()));
}

/// The flags that VFIO_MIG_GET_PRECOPY_INFO answers, which are the user's own unless it has opted into more.
fn precopy_flags(program: &mut Program, device: &DeviceFile) -> u32 {
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let asked = PrecopyInfo { argsz: 24, flags: 0x50, initial_bytes: 0, dirty_bytes: 0 };
    program.memory.insert(ARGUMENT, asked.as_bytes());
    data.ioctl(VFIO_MIG_GET_PRECOPY_INFO.number(), ARGUMENT, program).unwrap();
    device.set_mig_state(State::Running).unwrap();
    PrecopyInfo::read_from_bytes(program.memory.piece(ARGUMENT).unwrap()).unwrap().flags
}

#[test]
fn the_last_close_forgets_that_a_user_understood_reinit() {
    let a = device("a");
    let group = Group::new(Translation::Emulated, vec![a.clone()]).unwrap();
    let mut program = program();
    let file = open(&group);
    let first = file.device("a").unwrap();
    let second = file.device("a").unwrap();
    first.enable_precopy_info_v2().unwrap();
    drop(first);
    assert_eq!(precopy_flags(&mut program, &second), 1, "it is still open");
    drop(second);
    assert_eq!(precopy_flags(&mut program, &file.device("a").unwrap()), 0x50);
    drop(file);

    let cdev = own_file(&a);
    bind(&mut program, &cdev, OURS).unwrap();
    cdev.device().unwrap().enable_precopy_info_v2().unwrap();
    drop(cdev);
    let cdev = own_file(&a);
    bind(&mut program, &cdev, OURS).unwrap();
    assert_eq!(precopy_flags(&mut program, cdev.device().unwrap()), 0x50);
}

#[test]
fn the_last_close_is_observed_and_not_taken_for_a_request_of_the_user() {
    let a = device("a");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let observed = Arc::clone(&seen);
    a.observe(move |request| {
        observed.lock().unwrap().push(match request {
            Observed::Close { from, result, now } => ("close", *from, *result, *now),
            Observed::Reset { from, result, now } => ("reset", *from, *result, *now),
            _ => return,
        });
    });
    let file = open(&Group::new(Translation::Emulated, vec![a]).unwrap());
    let (first, second) = (file.device("a").unwrap(), file.device("a").unwrap());
    drop(first.set_mig_state(State::StopCopy).unwrap());
    drop(first);
    assert_eq!(*seen.lock().unwrap(), []);
    drop(second);
    // This driver cannot be reset.
    let refused = Err(Errno::ENOTTY);
    assert_eq!(*seen.lock().unwrap(), [("close", State::StopCopy, refused, State::StopCopy)]);
}

#[test]
fn the_last_close_ends_session_and_log_of_a_device_that_cannot_be_reset() {
    let busy = Busy::default();
    let stopped = Arc::clone(&busy.logging_stopped);
    let a = DeviceFile::new("a", |_| busy);
    let file = open(&Group::new(Translation::Emulated, vec![a]).unwrap());
    let first = file.device("a").unwrap();
    let second = file.device("a").unwrap();
    let data = first.set_mig_state(State::PreCopy).unwrap().unwrap();
    drop(first);
    assert_eq!(data.read(&mut [0]), Err(Errno::ENOMSG));
    assert_eq!(stopped.load(Ordering::Relaxed), 0);
    drop(second);
    assert_eq!(data.read(&mut [0]), Err(Errno::ENODEV));
    assert_eq!(stopped.load(Ordering::Relaxed), 1);
}
