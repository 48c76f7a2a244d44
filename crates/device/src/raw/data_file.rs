//! VFIO_MIG_GET_PRECOPY_INFO on a data file, as a raw ioctl.

use whimbrel_protocol::Errno;
use whimbrel_protocol::session::Direction;
use whimbrel_uapi::decode;
use whimbrel_uapi::ioctl::VFIO_MIG_GET_PRECOPY_INFO;
use whimbrel_uapi::migration::{PrecopyInfo, PrecopyInfoFlags};
use zerocopy::{FromZeros, IntoBytes};

use super::process::Process;
use super::trace::traced;
use crate::core::data_file::DataFile;

impl DataFile {
    /// A raw ioctl on the file. Only VFIO_MIG_GET_PRECOPY_INFO exists; everything else is ENOTTY.
    ///
    /// The order is that of the kernel's drivers: command, copy in, argsz, state, session. `flags` is left as the user
    /// gave it unless the user opted into REINIT.
    pub fn ioctl(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        traced(decode::File::Data, self.device_name(), (number, argument), process, |process| {
            self.execute(number, argument, process)
        })
    }

    fn execute(&self, number: u32, argument: u64, process: &mut dyn Process) -> Result<i32, Errno> {
        if self.direction() != Direction::Saving || number != VFIO_MIG_GET_PRECOPY_INFO.number() {
            return Err(Errno::ENOTTY);
        }
        let mut info = PrecopyInfo::new_zeroed();
        process.read(argument, info.as_mut_bytes())?;
        if (info.argsz as usize) < size_of::<PrecopyInfo>() {
            return Err(Errno::EINVAL);
        }
        let report = self.precopy_info()?;
        if self.reports_reinit() {
            let flags = if report.reinit { PrecopyInfoFlags::REINIT } else { PrecopyInfoFlags::empty() };
            info.flags = flags.bits();
        }
        info.initial_bytes = report.bytes.initial;
        info.dirty_bytes = report.bytes.dirty;
        process.write(argument, info.as_bytes())?;
        Ok(0)
    }
}
