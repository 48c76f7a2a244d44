//! Region info for a client, and the file by which the client maps the region.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use whimbrel_device::{Capability, DeviceFile, Errno, MmapArea, Region, RegionInfoFlags};

/// A region as a client sees it. Its offset is a position in the file sent with it; without a file it cannot be
/// mapped.
pub(super) fn describe(
    device: &DeviceFile,
    index: u32,
    takes_file: bool,
) -> Result<(Region, Option<OwnedFd>), Errno> {
    let mut region = device.region_info(index)?;
    region.offset = 0;
    if !region.flags.contains(RegionInfoFlags::MMAP) {
        return Ok((region, None));
    }
    if let Some((file, offset)) = takes_file.then(|| file_of(device, index, &region)).flatten() {
        region.offset = offset;
        return Ok((region, Some(file)));
    }
    region.flags.remove(RegionInfoFlags::MMAP);
    region.capabilities.retain(|capability| !matches!(capability, Capability::SparseMmap(_)));
    Ok((region, None))
}

/// Returns the file that contains all mappable parts of a region, each at the same distance from the offset as from
/// the start of the region: the protocol has one descriptor per region. `None` without such a file.
fn file_of(device: &DeviceFile, index: u32, region: &Region) -> Option<(OwnedFd, u64)> {
    let sparse = region.capabilities.iter().find_map(|capability| match capability {
        Capability::SparseMmap(areas) => Some(areas.clone()),
        _ => None,
    });
    let areas = sparse.unwrap_or_else(|| vec![MmapArea::new(0, region.size)]);
    let mut found: Option<(OwnedFd, u64, (u64, u64))> = None;
    for area in areas {
        let part = device.mmap(index, area.offset, area.size).ok()?;
        let offset = part.start().checked_sub(area.offset)?;
        let identity = identity(part.file())?;
        match &found {
            None => found = Some((part.file().try_clone().ok()?.into(), offset, identity)),
            Some((_, other, of)) if (*other, *of) == (offset, identity) => {}
            Some(_) => return None,
        }
    }
    found.map(|(file, offset, _)| (file, offset))
}

fn identity(file: &File) -> Option<(u64, u64)> {
    file.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()))
}
