//! A blocking driver for requests, for a caller that accesses the region by function calls.

use super::{DirtyAnswer, DirtyPages, Next, Outcome, User, UserError, Way};
use crate::Errno;
use crate::dirty::DirtyReport;

/// A caller's access to a migration region.
pub trait RegionAccess {
    /// Reads all of `data` from `offset` of the region in one access.
    fn read(&mut self, offset: u64, way: Way, data: &mut [u8]) -> Result<(), Errno>;

    /// Writes all of `data` at `offset` of the region in one access.
    fn write(&mut self, offset: u64, way: Way, data: &[u8]) -> Result<(), Errno>;
}

/// Carries out the current request to its end.
///
/// ```
/// use whimbrel_protocol::Errno;
/// use whimbrel_protocol::region::{
///     Layout, Outcome, Phase, RegionAccess, User, UserError, Version, View, Way, drive,
/// };
///
/// /// A region whose device does not answer.
/// struct Gone;
///
/// impl RegionAccess for Gone {
///     fn read(&mut self, _: u64, _: Way, _: &mut [u8]) -> Result<(), Errno> {
///         Err(Errno::EIO)
///     }
///     fn write(&mut self, _: u64, _: Way, _: &[u8]) -> Result<(), Errno> {
///         Err(Errno::EIO)
///     }
/// }
///
/// let region = Layout::trapped(Version::V1, 4096)?.region();
/// let mut user = User::new(View::new(Version::V1, &region)?);
/// user.set_phase(Phase::Resuming);
/// let error = drive(&mut user, &mut Gone).unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "read of device_state in the migration region failed: EIO: Input/output error"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn drive(user: &mut User, region: &mut dyn RegionAccess) -> Result<Outcome, UserError> {
    let mut buffer = Vec::new();
    loop {
        match user.next_access() {
            Next::Idle => return Err(UserError::NoRequest),
            Next::Finished(result) => return result,
            Next::Read { offset, length, way } => {
                buffer.resize(length, 0);
                let read = region.read(offset, way, &mut buffer);
                user.read_done(read.map(|()| buffer.as_slice()));
            }
            Next::Write { offset, data, way } => {
                let written = region.write(offset, way, data);
                user.write_done(written);
            }
        }
    }
}

/// Asks the draft's region for all dirty pages of a range, part by part, and sets their bits in `report`.
///
/// The device's log forgets the pages it reports: after an error the caller must treat all pages of the
/// range as dirty, because pages reported on the way may be lost.
pub fn report_dirty(
    user: &mut User,
    region: &mut dyn RegionAccess,
    report: &mut DirtyReport<'_>,
) -> Result<(), UserError> {
    let (range, page_size) = (report.range(), report.page_size());
    let mut next = range.iova() / page_size;
    let end = range.end().div_ceil(page_size);
    while next < end {
        let rest = DirtyPages { start_pfn: next, page_size, total_pfns: end - next };
        user.dirty(rest);
        match drive(user, region)? {
            Outcome::Dirty(DirtyAnswer::All) => {
                report.set(next * page_size, (end - next).saturating_mul(page_size));
                return Ok(());
            }
            Outcome::Dirty(DirtyAnswer::Bitmap(bitmap)) => {
                for run in bitmap.runs() {
                    let first = next + run.first as u64;
                    report.set(first * page_size, (run.count as u64).saturating_mul(page_size));
                }
                next += bitmap.pages() as u64;
            }
            _ => return Ok(()),
        }
    }
    Ok(())
}
