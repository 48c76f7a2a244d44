//! The answers to the program's calls: requests of VFIO, accesses to regions, and streams of migration data.

use std::sync::{Arc, Once};

use libc::{c_int, c_long, seccomp_data};
use whimbrel_device::{DataFile, DeviceFile, Errno, split_offset};
use whimbrel_uapi::ioctl::{
    VFIO_CHECK_EXTENSION, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_REGION_INFO,
    VFIO_GET_API_VERSION, VFIO_GROUP_GET_STATUS,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::answer::Answer;
use super::buffers::Buffers::{self, One, Several};
use super::caller::TaskCaller;
use super::files::Found;
use super::filter::{KVM_SET_DEVICE_ATTR, REGIONS};
use super::mapping;
use super::open_file::{Object, OpenFile};
use super::unread::Unread;

/// Bytes of the largest access to a register.
const MAX_REGISTER: usize = 8;

/// Said once: programs try it again and again.
static TOLD_OF_RING: Once = Once::new();

/// `struct kvm_device_attr`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct KvmDeviceAttr {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
}

const KVM_DEV_VFIO_FILE: u32 = 1;
const KVM_DEV_VFIO_FILE_ADD: u64 = 1;
const KVM_DEV_VFIO_FILE_DEL: u64 = 2;

/// Returns whether the first argument of a call is the descriptor that it is about.
pub(super) fn is_about_first_argument(data: &seccomp_data) -> bool {
    !matches!(c_long::from(data.nr), libc::SYS_mmap | libc::SYS_io_uring_setup)
}

/// Returns whether a call may be one that [is quick](is_quick).
pub(super) fn may_be_quick(data: &seccomp_data) -> bool {
    match c_long::from(data.nr) {
        libc::SYS_pread64 | libc::SYS_pwrite64 => data.args[2] <= MAX_REGISTER as u64,
        libc::SYS_ioctl => is_quick_request(data.args[1] as u32),
        _ => false,
    }
}

/// Returns whether a call on a known open file is answered at once, whatever the program does meanwhile: it waits for
/// nothing but the device's lock.
///
/// Such a call can be answered for a file that was only [glimpsed](super::files::Files::glimpse). It changes nothing before
/// it reads the program's memory, or it changes nothing but registers that change when they are read, and each access to the
/// memory checks that the call still waits. If it does not, another register of the program may have been read in vain.
pub(super) fn is_quick(data: &seccomp_data, open: &OpenFile) -> bool {
    let is_device = matches!(open.object, Object::Device(_) | Object::Cdev(_));
    may_be_quick(data) && (c_long::from(data.nr) == libc::SYS_ioctl || is_device)
}

/// Returns whether a call is an access at the offset of a region, where no other file has bytes.
fn is_at_regions(data: &seccomp_data) -> bool {
    let has_offset = matches!(
        c_long::from(data.nr),
        libc::SYS_pread64
            | libc::SYS_pwrite64
            | libc::SYS_preadv
            | libc::SYS_pwritev
            | libc::SYS_preadv2
            | libc::SYS_pwritev2
    );
    has_offset && (REGIONS..=i64::MAX.cast_unsigned()).contains(&data.args[3])
}

fn is_quick_request(number: u32) -> bool {
    let quick = [
        VFIO_GET_API_VERSION,
        VFIO_CHECK_EXTENSION,
        VFIO_GROUP_GET_STATUS,
        VFIO_DEVICE_GET_INFO,
        VFIO_DEVICE_GET_REGION_INFO,
        VFIO_DEVICE_GET_IRQ_INFO,
    ];
    quick.iter().any(|request| request.number() == number)
}

/// Answers a call. `open` is the open file behind its first argument, if it is known.
pub(super) fn answer(
    data: &seccomp_data,
    open: Option<&Arc<OpenFile>>,
    caller: &mut TaskCaller<'_>,
) -> Answer {
    let fd = data.args[0] as c_int;
    let (address, length, offset) = (data.args[1], data.args[2], data.args[3]);
    match c_long::from(data.nr) {
        libc::SYS_ioctl if data.args[1] as u32 == KVM_SET_DEVICE_ATTR => {
            return kvm_attribute(fd, data.args[2], caller);
        }
        libc::SYS_ioctl => return ioctl(fd, open, data.args[1] as u32, data.args[2], caller),
        libc::SYS_mmap => return mapping::answer(data, caller),
        libc::SYS_io_uring_setup => {
            TOLD_OF_RING.call_once(|| {
                tracing::warn!(
                    "the program asks for an io_uring: refused (ENOSYS), its requests could not be seen"
                );
            });
            return Answer::Error(Errno::ENOSYS);
        }
        _ => {}
    }
    let found;
    let open = match open {
        Some(open) => open,
        // It may be a duplicate that was made before the first request on its file.
        None if is_at_regions(data) => match caller.find_file(fd) {
            Ok(Found::Open(open)) => {
                found = open;
                &found
            }
            Ok(Found::Other) => return Answer::Continue,
            Err(errno) => return Answer::Error(errno),
        },
        None => return Answer::Continue,
    };
    if let Object::Data(_) = &open.object {
        // The close of its device ends it.
        caller.files.read_closes();
    }
    let flags = match c_long::from(data.nr) {
        // The kernel looks at 32 bits.
        libc::SYS_preadv2 | libc::SYS_pwritev2 => data.args[5] & u64::from(u32::MAX),
        _ => 0,
    };
    let (one, several) = (One(address, length), Several(address, length, flags));
    match (c_long::from(data.nr), &open.object) {
        (libc::SYS_pread64, Object::Device(_) | Object::Cdev(_)) => {
            region(open, one, offset, caller, read_region)
        }
        (libc::SYS_pwrite64, Object::Device(_) | Object::Cdev(_)) => {
            region(open, one, offset, caller, write_region)
        }
        (libc::SYS_preadv | libc::SYS_preadv2, Object::Device(_) | Object::Cdev(_)) => {
            region(open, several, offset, caller, read_region)
        }
        (libc::SYS_pwritev | libc::SYS_pwritev2, Object::Device(_) | Object::Cdev(_)) => {
            region(open, several, offset, caller, write_region)
        }
        // At the file's position.
        (libc::SYS_preadv2, Object::Data(data)) if offset == u64::MAX => {
            stream((data, &open.unread), several, caller, read_stream)
        }
        (libc::SYS_pwritev2, Object::Data(data)) if offset == u64::MAX => {
            stream((data, &open.unread), several, caller, write_stream)
        }
        (libc::SYS_read, Object::Data(data)) => stream((data, &open.unread), one, caller, read_stream),
        (libc::SYS_write, Object::Data(data)) => stream((data, &open.unread), one, caller, write_stream),
        (libc::SYS_readv, Object::Data(data)) => stream((data, &open.unread), several, caller, read_stream),
        (libc::SYS_writev, Object::Data(data)) => stream((data, &open.unread), several, caller, write_stream),
        (libc::SYS_dup, Object::Data(_)) => duplicate(fd, 0, false, caller),
        (libc::SYS_fcntl, Object::Data(_)) => {
            duplicate(fd, data.args[2], data.args[1] as c_int == libc::F_DUPFD_CLOEXEC, caller)
        }
        // lseek, pread and pwrite: a stream has no position.
        (_, Object::Data(_)) => Answer::Error(Errno::ESPIPE),
        _ => Answer::Continue,
    }
}

fn ioctl(
    fd: i32,
    open: Option<&Arc<OpenFile>>,
    number: u32,
    argument: u64,
    caller: &mut TaskCaller<'_>,
) -> Answer {
    let found = open.map_or_else(|| caller.find_file(fd), |open| Ok(Found::Open(open.clone())));
    let open = match found {
        Ok(Found::Open(open)) => open,
        Ok(Found::Other) => return Answer::Continue,
        Err(errno) => return Answer::Error(errno),
    };
    // What was closed before this request is closed for it.
    if !is_quick_request(number) {
        caller.files.read_closes();
    }
    let result = match &open.object {
        Object::Group(group) => group.ioctl(number, argument, caller),
        Object::Container(container) => container.ioctl(number, argument, caller),
        Object::Iommufd(iommufd) => iommufd.ioctl(number, argument, caller),
        Object::Device(device) => device.ioctl(number, argument, caller),
        Object::Cdev(cdev) => cdev.ioctl(number, argument, caller),
        Object::Data(data) => data.ioctl(number, argument, caller),
    };
    // Where this process could not look at memory, the program's memory is not at fault.
    let result =
        result.map_err(|errno| caller.lacks.get().filter(|_| errno == Errno::EFAULT).unwrap_or(errno));
    result.map(i64::from).into()
}

/// KVM_SET_DEVICE_ATTR: KVM refuses a file that is not the kernel's, and needs to know nothing of ours.
fn kvm_attribute(fd: i32, argument: u64, caller: &TaskCaller<'_>) -> Answer {
    let is_vfio = caller.task.link(fd).is_ok_and(|link| link == b"anon_inode:kvm-vfio");
    let mut asked = KvmDeviceAttr::new_zeroed();
    if !is_vfio || caller.task.read(argument, asked.as_mut_bytes()).is_err() {
        return Answer::Continue;
    }
    let is_about_a_file = asked.group == KVM_DEV_VFIO_FILE
        && matches!(asked.attr, KVM_DEV_VFIO_FILE_ADD | KVM_DEV_VFIO_FILE_DEL);
    let mut file = 0i32;
    if is_about_a_file
        && caller.task.read(asked.addr, i32::as_mut_bytes(&mut file)).is_ok()
        && caller.files.is_ours(&caller.task, file)
    {
        return Answer::Value(0);
    }
    Answer::Continue
}

type RegionAccess = fn(&DeviceFile, u32, u64, u64, usize, &TaskCaller<'_>) -> Result<usize, Errno>;

/// Makes an access to a region of a device.
fn region(
    open: &OpenFile,
    buffers: Buffers,
    offset: u64,
    caller: &TaskCaller<'_>,
    access: RegionAccess,
) -> Answer {
    let Some(offset) = offset.checked_sub(REGIONS) else { return Answer::Continue };
    let result = open.device().and_then(|device| {
        let (index, start) = split_offset(offset);
        buffers.each(caller, |address, length, done| {
            let at = start.checked_add(done).ok_or(Errno::EINVAL)?;
            access(device, index, at, address, length, caller)
        })
    });
    result.into()
}

fn read_region(
    device: &DeviceFile,
    index: u32,
    at: u64,
    address: u64,
    length: usize,
    caller: &TaskCaller<'_>,
) -> Result<usize, Errno> {
    with_buffer(bytes_in(device, index, at, length)?, |data| {
        let count = device.read_region(index, at, data)?;
        caller.give(address, &data[..count])?;
        Ok(count)
    })
}

fn write_region(
    device: &DeviceFile,
    index: u32,
    at: u64,
    address: u64,
    length: usize,
    caller: &TaskCaller<'_>,
) -> Result<usize, Errno> {
    with_buffer(bytes_in(device, index, at, length)?, |data| {
        caller.take(address, data)?;
        device.write_region(index, at, data)
    })
}

/// Calls `access` with a zeroed buffer, which is not allocated for an access to a register.
fn with_buffer(
    length: usize,
    access: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut register = [0; MAX_REGISTER];
    match register.get_mut(..length) {
        Some(register) => access(register),
        None => access(&mut vec![0; length]),
    }
}

/// Returns the bytes of an access that lie in a region. EINVAL past its end and for a missing region.
fn bytes_in(device: &DeviceFile, index: u32, at: u64, length: usize) -> Result<usize, Errno> {
    let left =
        device.region_info(index)?.size.checked_sub(at).filter(|left| *left > 0).ok_or(Errno::EINVAL)?;
    Ok(usize::try_from(left).map_or(length, |left| left.min(length)))
}

/// A data file, and what was read from it in vain.
type Stream<'a> = (&'a DataFile, &'a Unread);

type StreamAccess = fn(Stream<'_>, u64, usize, &TaskCaller<'_>) -> Result<usize, Errno>;

/// Makes a read or write of a data file.
fn stream(stream: Stream<'_>, buffers: Buffers, caller: &TaskCaller<'_>, access: StreamAccess) -> Answer {
    buffers.each(caller, |address, length, _| access(stream, address, length, caller)).into()
}

/// Reads a data file. What the program's memory does not take is read again.
fn read_stream(
    (data, unread): Stream<'_>,
    address: u64,
    length: usize,
    caller: &TaskCaller<'_>,
) -> Result<usize, Errno> {
    let mut bytes = vec![0; length];
    if data.is_over() {
        unread.clear();
    }
    let again = unread.take(&mut bytes);
    let count = match data.read(&mut bytes[again..]) {
        Ok(new) => again + new,
        Err(_) if again > 0 => again,
        Err(errno) => return Err(errno),
    };
    caller.give(address, &bytes[..count]).inspect_err(|_| unread.put_back(&bytes[..count]))?;
    Ok(count)
}

fn write_stream(
    (data, _): Stream<'_>,
    address: u64,
    length: usize,
    caller: &TaskCaller<'_>,
) -> Result<usize, Errno> {
    let mut bytes = vec![0; length];
    caller.take(address, &mut bytes)?;
    data.write(&bytes)
}

/// Duplicates the descriptor of a data file to one whose reads and writes are caught too.
fn duplicate(fd: i32, least: u64, close_on_exec: bool, caller: &TaskCaller<'_>) -> Answer {
    let number = caller.free_data_file(least);
    let installed = number.and_then(|number| {
        caller
            .task
            .install_at(number, caller.task.duplicate(fd)?, close_on_exec)
            .map_err(|_| Errno::EMFILE)?;
        Ok(number.into())
    });
    installed.into()
}
