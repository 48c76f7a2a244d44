//! The kernel's data fd: the file that carries a device's state.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_uapi::migration::{PrecopyInfo, PrecopyInfoFlags};

use super::ioctl;
use crate::data_file::StateFile;
use crate::raw::RawData;

/// A data fd that a kernel driver opened.
#[derive(Debug)]
pub(super) struct DataFd(File);

impl DataFd {
    pub(super) fn new(fd: OwnedFd) -> DataFd {
        DataFd(File::from(fd))
    }
}

impl StateFile for DataFd {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.0.read(buffer).map_err(|error| errno(&error))
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        self.0.write(data).map_err(|error| errno(&error))
    }

    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        // Without the user's opt-in to INFOv2 a driver leaves the flags unchanged: 0.
        let mut info = PrecopyInfo { argsz: size_of::<PrecopyInfo>() as u32, ..PrecopyInfo::default() };
        ioctl::repeated(|| ioctl::with_struct(self.0.as_fd(), &mut info))?;
        Ok(PrecopyReport::new(info.initial_bytes, info.dirty_bytes)
            .reinit(PrecopyInfoFlags::from_bits_retain(info.flags).contains(PrecopyInfoFlags::REINIT)))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }

    fn raw(&mut self) -> Option<&mut dyn RawData> {
        Some(self)
    }
}

impl RawData for DataFd {
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> Result<(), Errno> {
        ioctl::raw_precopy_info(self.0.as_fd(), info)
    }

    fn duplicate(&self) -> Result<Box<dyn StateFile>, Errno> {
        let file = self.0.try_clone().map_err(|error| errno(&error))?;
        Ok(Box::new(DataFd(file)))
    }
}

/// Returns the errno of a failed system call.
pub(super) fn errno(error: &io::Error) -> Errno {
    // Only calls that never reached the kernel have no errno.
    Errno::from_io_error(error).unwrap_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_the_files_own() {
        let mut null = DataFd(File::open("/dev/null").unwrap());
        assert_eq!(null.read(&mut [0; 4]), Ok(0));
        assert_eq!(null.write(&[0; 4]), Err(Errno::EBADF), "opened for reading");
        assert_eq!(StateFile::precopy_info(&mut null), Err(Errno::ENOTTY));
    }
}
