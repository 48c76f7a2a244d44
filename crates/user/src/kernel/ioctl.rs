//! The ioctls of VFIO and iommufd files, as safe functions.
//!
//! The callers interpret the answers.
//!
//! A file descriptor says nothing about which driver is behind it. The numbers used here begin with the type
//! character of VFIO; the callers pass files of VFIO and iommufd only, and a driver that gave these numbers
//! another meaning would be at odds with the kernel's list of ioctl numbers.
// An ioctl gives the kernel an address, and the kernel reads and writes there what the request's own fields
// say. Each function below says why that stays within memory it holds.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::cdev::{DeviceAttachIommufdPt, DeviceBindIommufd};
use whimbrel_uapi::device::{DeviceInfo, IrqInfo, IrqSet, RegionInfo};
use whimbrel_uapi::dma_logging::{
    DeviceFeatureDmaLoggingControl, DeviceFeatureDmaLoggingRange, DeviceFeatureDmaLoggingReport,
};
use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};
use whimbrel_uapi::group::GroupStatus;
use whimbrel_uapi::ioctl::{self, Request};
use whimbrel_uapi::iommufd::{Destroy, HwptSetDirtyTracking, IoasAlloc, IoasMap, IoasUnmap};
use whimbrel_uapi::migration::{
    DeviceFeatureMigDataSize, DeviceFeatureMigState, DeviceFeatureMigration, PrecopyInfo,
};
use whimbrel_uapi::type1::{IommuType1DirtyBitmap, IommuType1DmaMap, IommuType1DmaUnmap, IommuType1Info};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::raw;

/// The structure of one request. It begins with its own size in bytes (`argsz`, or `size` of an iommufd), and
/// neither it nor the data after it holds an address.
pub(super) trait Argument: FromBytes + IntoBytes + Immutable {
    /// The request.
    const REQUEST: Request;
}

macro_rules! arguments {
    ($($structure:ty: $request:ident,)*) => {
        $(impl Argument for $structure {
            const REQUEST: Request = ioctl::$request;
        })*
    };
}

arguments! {
    GroupStatus: VFIO_GROUP_GET_STATUS,
    DeviceInfo: VFIO_DEVICE_GET_INFO,
    RegionInfo: VFIO_DEVICE_GET_REGION_INFO,
    IrqInfo: VFIO_DEVICE_GET_IRQ_INFO,
    IrqSet: VFIO_DEVICE_SET_IRQS,
    PrecopyInfo: VFIO_MIG_GET_PRECOPY_INFO,
    // The address in it is only read from, and only if its own size says that it is there.
    DeviceBindIommufd: VFIO_DEVICE_BIND_IOMMUFD,
    DeviceAttachIommufdPt: VFIO_DEVICE_ATTACH_IOMMUFD_PT,
    IoasAlloc: IOMMU_IOAS_ALLOC,
    IoasUnmap: IOMMU_IOAS_UNMAP,
    IommuType1Info: VFIO_IOMMU_GET_INFO,
    // GET_BITMAP needs a larger size of its own than this structure has.
    IommuType1DirtyBitmap: VFIO_IOMMU_DIRTY_PAGES,
    HwptSetDirtyTracking: IOMMU_HWPT_SET_DIRTY_TRACKING,
    Destroy: IOMMU_DESTROY,
}

/// The data of a feature that GET fills. It holds no address.
pub(super) trait FeatureData: FromBytes + IntoBytes + Immutable {
    /// The feature.
    const FEATURE: Feature;
}

impl FeatureData for DeviceFeatureMigration {
    const FEATURE: Feature = Feature::Migration;
}

impl FeatureData for DeviceFeatureMigState {
    const FEATURE: Feature = Feature::MigDeviceState;
}

impl FeatureData for DeviceFeatureMigDataSize {
    const FEATURE: Feature = Feature::MigDataSize;
}

/// Repeats a request that a signal interrupted, for idempotent requests.
pub(super) fn repeated<T>(mut request: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match request() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Makes a request with a structure.
pub(super) fn with_struct<T: Argument>(fd: BorrowedFd<'_>, argument: &mut T) -> Result<i32, Errno> {
    with_bytes::<T>(fd, argument.as_mut_bytes())
}

/// Makes a request with a structure and the data after it, all in `bytes`.
pub(super) fn with_bytes<T: Argument>(fd: BorrowedFd<'_>, bytes: &mut [u8]) -> Result<i32, Errno> {
    // The kernel reads the fixed part before it looks at the size, and then trusts the size.
    let size = u32::read_from_prefix(bytes).map_or(u32::MAX, |(size, _)| size);
    assert!(
        bytes.len() >= size_of::<T>() && size as usize <= bytes.len(),
        "{} with {size} of {} bytes",
        T::REQUEST,
        bytes.len()
    );
    // SAFETY: the kernel reads and writes at most the fixed part or as many bytes as `size` says, whichever
    // is more; the check above keeps both within `bytes`. There is no address in it that the kernel would
    // write to.
    unsafe { call(fd, T::REQUEST, bytes.as_mut_ptr() as libc::c_ulong) }
}

/// Makes a request whose argument is a plain number, or that has no argument (then `number` is 0).
pub(super) fn with_number(fd: BorrowedFd<'_>, request: Request, number: u32) -> Result<i32, Errno> {
    let plain = [
        ioctl::VFIO_GET_API_VERSION,
        ioctl::VFIO_CHECK_EXTENSION,
        ioctl::VFIO_SET_IOMMU,
        ioctl::VFIO_DEVICE_RESET,
    ];
    assert!(plain.contains(&request), "{request} does not take a number");
    // SAFETY: none of these requests takes its argument for an address.
    unsafe { call(fd, request, libc::c_ulong::from(number)) }
}

/// VFIO_GROUP_SET_CONTAINER.
pub(super) fn set_container(group: BorrowedFd<'_>, container: BorrowedFd<'_>) -> Result<(), Errno> {
    let container = container.as_raw_fd();
    // SAFETY: the kernel reads one `i32`, which `container` is.
    unsafe { call(group, ioctl::VFIO_GROUP_SET_CONTAINER, (&raw const container) as libc::c_ulong) }?;
    Ok(())
}

/// VFIO_GROUP_GET_DEVICE_FD.
pub(super) fn device_fd(group: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads a string up to its NUL byte, which a `CStr` has.
    let fd = unsafe { call(group, ioctl::VFIO_GROUP_GET_DEVICE_FD, name.as_ptr() as libc::c_ulong) }?;
    // SAFETY: the request succeeded, so this is a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// VFIO_DEVICE_FEATURE with PROBE. No data goes either way.
pub(super) fn probe_feature(
    device: BorrowedFd<'_>,
    feature: Feature,
    directions: FeatureFlags,
) -> Result<(), Errno> {
    let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
    // SAFETY: a PROBE moves no data.
    unsafe { call_feature(device, feature, flags, &mut []) }
}

/// VFIO_DEVICE_FEATURE with GET.
pub(super) fn get_feature<T: FeatureData>(device: BorrowedFd<'_>) -> Result<T, Errno> {
    let mut data = T::new_zeroed();
    // SAFETY: the data of these features holds no address.
    unsafe { call_feature(device, T::FEATURE, FeatureFlags::GET, data.as_mut_bytes()) }?;
    Ok(data)
}

/// VFIO_DEVICE_FEATURE with SET, for features without data. One that has data answers EINVAL.
pub(super) fn set_feature(device: BorrowedFd<'_>, feature: Feature) -> Result<(), Errno> {
    // SAFETY: there is no data, so there is no address in it.
    unsafe { call_feature(device, feature, FeatureFlags::SET, &mut []) }
}

/// VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE with SET: returns the number of the state in the answer, and the data
/// file if the answer has one. After a failure there is no data file, whatever the structure says.
pub(super) fn set_mig_state(device: BorrowedFd<'_>, to: State) -> Result<(u32, Option<OwnedFd>), Errno> {
    let mut data = DeviceFeatureMigState { device_state: to.number(), data_fd: -1 };
    // SAFETY: the data of this feature holds no address.
    unsafe { call_feature(device, Feature::MigDeviceState, FeatureFlags::SET, data.as_mut_bytes()) }?;
    // SAFETY: the request succeeded, so a descriptor in the answer is new and belongs to the caller.
    let fd = (data.data_fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(data.data_fd) });
    Ok((data.device_state, fd))
}

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_START; returns the page size in the answer, in bytes.
pub(super) fn start_dma_logging(
    device: BorrowedFd<'_>,
    page_size: u64,
    ranges: &[DeviceFeatureDmaLoggingRange],
) -> Result<u64, Errno> {
    let mut data = DeviceFeatureDmaLoggingControl {
        page_size,
        num_ranges: u32::try_from(ranges.len()).map_err(|_| Errno::E2BIG)?,
        __reserved: 0,
        ranges: ranges.as_ptr() as u64,
    };
    // SAFETY: the address is that of `num_ranges` ranges, which are borrowed until this returns; the kernel
    // reads them.
    unsafe { call_feature(device, Feature::DmaLoggingStart, FeatureFlags::SET, data.as_mut_bytes()) }?;
    Ok(data.page_size)
}

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT.
pub(super) fn report_dma_logging(device: BorrowedFd<'_>, report: &mut DirtyReport<'_>) -> Result<(), Errno> {
    let (range, page_size) = (report.range(), report.page_size());
    let words = report.words_mut();
    assert!(
        words.len() as u64 >= DirtyReport::words_needed(range.length(), page_size),
        "{} words for {} bytes",
        words.len(),
        range.length()
    );
    let mut data = DeviceFeatureDmaLoggingReport {
        iova: range.iova(),
        length: range.length(),
        page_size,
        bitmap: words.as_mut_ptr() as u64,
    };
    // SAFETY: the address is that of `words`, which are borrowed mutably until this returns; the kernel
    // writes one bit for each page of the range, rounded up to whole words, and there are that many (the
    // check above).
    unsafe { call_feature(device, Feature::DmaLoggingReport, FeatureFlags::GET, data.as_mut_bytes()) }
}

/// VFIO_DEVICE_FEATURE as bytes, see [`RawDevice`](crate::RawDevice).
pub(super) fn raw_feature(
    device: BorrowedFd<'_>,
    argsz: u32,
    flags: u32,
    data: &mut [u8],
) -> Result<(), Errno> {
    let mut bytes = raw::request(argsz, flags, data)?;
    // SAFETY: the kernel reads and writes at most `argsz` bytes or the head, which `bytes` has. Its data holds no
    // address, or the address 0, where nothing is mapped: `raw::request` refuses all else.
    let result = unsafe { call(device, ioctl::VFIO_DEVICE_FEATURE, bytes.as_mut_ptr() as libc::c_ulong) };
    let answer = &bytes[raw::HEAD..raw::HEAD + data.len()];
    data.copy_from_slice(answer);
    if result.is_ok()
        && let Some(fd) = raw::opened_by_raw_feature(flags, answer)
    {
        // SAFETY: the request succeeded, so a descriptor in the answer is new and belongs to the caller.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    result.map(|_| ())
}

/// VFIO_MIG_GET_PRECOPY_INFO with the structure as it is.
pub(super) fn raw_precopy_info(data: BorrowedFd<'_>, info: &mut PrecopyInfo) -> Result<(), Errno> {
    // SAFETY: the structure is as large as the kernel's, which holds no address; its `argsz` only lets the kernel
    // refuse it.
    unsafe { call(data, ioctl::VFIO_MIG_GET_PRECOPY_INFO, info.as_mut_bytes().as_mut_ptr() as libc::c_ulong) }
        .map(|_| ())
}

/// VFIO_IOMMU_MAP_DMA.
///
/// # Safety
///
/// `map.size` bytes from `map.vaddr` must be memory that stays mapped in this process, and that nothing in it
/// takes for memory of its own, until an unmap of `map.iova` has succeeded or the container is gone.
pub(super) unsafe fn map_type1(container: BorrowedFd<'_>, mut map: IommuType1DmaMap) -> Result<(), Errno> {
    map.argsz = size_of::<IommuType1DmaMap>() as u32;
    // SAFETY: the kernel reads the structure; what it does with the memory is the caller's promise.
    unsafe { call(container, ioctl::VFIO_IOMMU_MAP_DMA, map.as_mut_bytes().as_mut_ptr() as libc::c_ulong) }?;
    Ok(())
}

/// VFIO_IOMMU_UNMAP_DMA; returns the number of bytes that were mapped.
pub(super) fn unmap_type1(container: BorrowedFd<'_>, iova: u64, size: u64) -> Result<u64, Errno> {
    let mut unmap =
        IommuType1DmaUnmap { argsz: size_of::<IommuType1DmaUnmap>() as u32, flags: 0, iova, size };
    // SAFETY: the kernel reads and writes the structure; without a flag it looks for no bitmap after it.
    unsafe {
        call(container, ioctl::VFIO_IOMMU_UNMAP_DMA, unmap.as_mut_bytes().as_mut_ptr() as libc::c_ulong)
    }?;
    Ok(unmap.size)
}

/// IOMMU_IOAS_UNMAP; returns the number of bytes that were mapped.
pub(super) fn unmap_ioas(iommufd: BorrowedFd<'_>, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
    let mut unmap = IoasUnmap { size: size_of::<IoasUnmap>() as u32, ioas_id: ioas, iova, length };
    with_struct(iommufd, &mut unmap)?;
    Ok(unmap.length)
}

/// IOMMU_IOAS_MAP.
///
/// # Safety
///
/// `map.length` bytes from `map.user_va` must be memory that stays mapped in this process, and that nothing
/// in it takes for memory of its own, until an unmap of `map.iova` has succeeded or the address space is
/// gone.
pub(super) unsafe fn map_ioas(iommufd: BorrowedFd<'_>, mut map: IoasMap) -> Result<(), Errno> {
    map.size = size_of::<IoasMap>() as u32;
    // SAFETY: the kernel reads and writes the structure; what it does with the memory is the caller's
    // promise.
    unsafe { call(iommufd, ioctl::IOMMU_IOAS_MAP, map.as_mut_bytes().as_mut_ptr() as libc::c_ulong) }?;
    Ok(())
}

/// VFIO_DEVICE_FEATURE with `data` after its head.
///
/// # Safety
///
/// An address in `data` must be good for what the feature does with it.
unsafe fn call_feature(
    device: BorrowedFd<'_>,
    feature: Feature,
    flags: FeatureFlags,
    data: &mut [u8],
) -> Result<(), Errno> {
    const HEAD: usize = size_of::<DeviceFeature>();
    let mut bytes = vec![0; HEAD + data.len()];
    let head = DeviceFeature {
        argsz: bytes.len() as u32,
        flags: u32::from(feature.number()) | (flags & FeatureFlags::all()).bits(),
    };
    bytes[..HEAD].copy_from_slice(head.as_bytes());
    bytes[HEAD..].copy_from_slice(data);
    // SAFETY: the kernel reads and writes at most `argsz` bytes, which `bytes` has; addresses in the data are
    // the caller's promise.
    unsafe { call(device, ioctl::VFIO_DEVICE_FEATURE, bytes.as_mut_ptr() as libc::c_ulong) }?;
    data.copy_from_slice(&bytes[HEAD..]);
    Ok(())
}

/// Makes a request.
///
/// # Safety
///
/// `argument` must be good for what the request does with it.
pub(super) unsafe fn call(
    fd: BorrowedFd<'_>,
    request: Request,
    argument: libc::c_ulong,
) -> Result<i32, Errno> {
    #[cfg(test)]
    if let Some(answer) = super::driver_side::answer(fd, request, argument) {
        return answer;
    }
    // SAFETY: the descriptor is open as long as it is borrowed; the argument is the caller's promise.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), libc::c_ulong::from(request.number()) as _, argument) };
    Errno::result(answer)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    fn null() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn a_file_that_is_no_device_answers_enotty() {
        let file = null();
        assert_eq!(get_feature::<DeviceFeatureMigration>(file.as_fd()), Err(Errno::ENOTTY));
        assert_eq!(with_number(file.as_fd(), ioctl::VFIO_DEVICE_RESET, 0), Err(Errno::ENOTTY));
        let mut info = DeviceInfo { argsz: size_of::<DeviceInfo>() as u32, ..DeviceInfo::default() };
        assert_eq!(with_struct(file.as_fd(), &mut info), Err(Errno::ENOTTY));
    }

    #[test]
    #[should_panic(expected = "VFIO_DEVICE_GET_INFO with 25 of 24 bytes")]
    fn a_size_beyond_the_buffer_never_reaches_the_kernel() {
        let mut info = DeviceInfo { argsz: 25, ..DeviceInfo::default() };
        let _ = with_struct(null().as_fd(), &mut info);
    }

    #[test]
    #[should_panic(expected = "VFIO_DEVICE_GET_REGION_INFO with 8 of 8 bytes")]
    fn a_buffer_below_the_fixed_part_never_reaches_the_kernel() {
        let _ = with_bytes::<RegionInfo>(null().as_fd(), &mut [8, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    #[should_panic(expected = "VFIO_IOMMU_MAP_DMA does not take a number")]
    fn a_request_with_an_address_cannot_be_made_with_a_number() {
        let _ = with_number(null().as_fd(), ioctl::VFIO_IOMMU_MAP_DMA, 0);
    }

    #[test]
    fn only_an_interrupted_request_is_repeated() {
        let mut answers = vec![Ok(7), Err(Errno::EINTR), Err(Errno::EINTR)];
        assert_eq!(repeated(|| answers.pop().unwrap()), Ok(7));
        let mut answers = vec![Ok(7), Err(Errno::EAGAIN)];
        assert_eq!(repeated(|| answers.pop().unwrap()), Err(Errno::EAGAIN));
    }
}
