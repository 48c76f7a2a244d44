//! Regions around a migration: what of them can be mapped, and what a read does in each state.

use whimbrel_protocol::info::{Capability, Region};
use whimbrel_protocol::{Errno, State, fsm};
use whimbrel_uapi::device::{DeviceInfoFlags, RegionInfoFlags};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::outcome::{Outcome, check, fail, refused, skip, success};
use crate::subject::Subject;

const V2: &[Need] = &[Need::V2];
/// Regions that are looked at.
const MAX_REGIONS: u32 = 64;
/// The smallest and the largest page of a host that kernels are built for.
const PAGE: u64 = 4 << 10;
const LARGE_PAGE: u64 = 64 << 10;

pub(crate) const CASES: &[Case] = &[
    Case::should(
        "v2/regions/mappable-areas",
        "When specified, the user should only mmap the offset ranges specified by the areas array.",
        mappable_areas,
    )
    .looks()
    .needs(V2),
    Case::kernel(
        "v2/regions/unknown-index",
        "An index past the last region is EINVAL (vfio_pci_ioctl_get_region_info() in drivers/vfio/pci/vfio_pci_core.c).",
        unknown_index,
    )
    .looks()
    .needs(V2),
    Case::robust(
        "v2/regions/mapping-past-the-end",
        "Nothing behind a region's last page can be mapped, such as registers of the migration that are in the same BAR.",
        mapping_past_the_end,
    )
    .needs(V2),
    Case::robust(
        "v2/regions/access-past-the-end",
        "Nothing behind a region's end can be read, such as registers of the migration that are in the same BAR.",
        access_past_the_end,
    )
    .needs(V2),
    Case::robust(
        "v2/regions/reads-in-every-state",
        "A read of a region returns in every state, and leaves the device in its state.",
        reads_in_every_state,
    )
    .needs(V2),
    Case::robust(
        "v2/regions/reads-during-a-save",
        "A read of the configuration space while the state is read leaves the state as it is.",
        reads_during_a_save,
    )
    .needs(V2),
];

/// Returns the regions that the device has, with their indices.
fn regions(subject: &mut Subject) -> Outcome<Vec<(u32, Region)>> {
    let count = subject.info()?.num_regions.min(MAX_REGIONS);
    let mut regions = Vec::new();
    for index in 0..count {
        // Some drivers refuse an index without a region.
        if let Ok(region) = subject.region_info(index)?
            && region.size > 0
        {
            regions.push((index, region));
        }
    }
    Ok(regions)
}

fn mappable_areas(bench: &mut Bench) -> Outcome {
    for (index, region) in regions(&mut bench.subject)? {
        for capability in &region.capabilities {
            let Capability::SparseMmap(areas) = capability else { continue };
            for area in areas {
                let size = region.size.next_multiple_of(PAGE);
                let lies_within = area.offset.checked_add(area.size).is_some_and(|end| end <= size);
                let is_whole = area.offset.is_multiple_of(PAGE) && area.size.is_multiple_of(PAGE);
                check(
                    lies_within && is_whole,
                    format_args!("areas of whole pages in region {index} of {:#x} bytes", region.size),
                    format_args!("{:#x}+{:#x}", area.offset, area.size),
                )?;
            }
        }
    }
    Ok(())
}

fn unknown_index(bench: &mut Bench) -> Outcome {
    let count = bench.subject.info()?.num_regions;
    for index in [count, count.saturating_add(1), u32::MAX] {
        let result = bench.subject.region_info(index)?;
        refused(format_args!("VFIO_DEVICE_GET_REGION_INFO {index}"), &[Errno::EINVAL], result)?;
    }
    Ok(())
}

/// Tries to map a part of a region, which must fail.
fn cannot_be_mapped(subject: &mut Subject, index: u32, offset: u64, length: u64) -> Outcome {
    let request = format!("mmap of region {index} at {offset:#x}+{length:#x}");
    let device = subject.device_mut()?;
    match device.map_region(index, offset, length) {
        Ok(_) => fail(format_args!("{request} fails"), "it succeeds"),
        Err(_) => Ok(()),
    }
}

fn mapping_past_the_end(bench: &mut Bench) -> Outcome {
    /// A driver's region offsets are its own: past this, another region may begin.
    const MAX_SIZE: u64 = 1 << 32;
    let regions = regions(&mut bench.subject)?;
    let is_mappable =
        |region: &Region| region.flags.contains(RegionInfoFlags::MMAP) && region.size < MAX_SIZE;
    let mappable: Vec<&(u32, Region)> = regions.iter().filter(|(_, region)| is_mappable(region)).collect();
    if mappable.is_empty() {
        return skip("the device has no region that can be mapped");
    }
    for (index, region) in mappable {
        for page in [PAGE, LARGE_PAGE] {
            let end = region.size.next_multiple_of(page);
            cannot_be_mapped(&mut bench.subject, *index, end, page)?;
            cannot_be_mapped(&mut bench.subject, *index, 0, end + page)?;
        }
    }
    Ok(())
}

fn access_past_the_end(bench: &mut Bench) -> Outcome {
    for (index, region) in regions(&mut bench.subject)? {
        let Some(past) = region.size.checked_add(LARGE_PAGE) else { continue };
        for offset in [region.size, past] {
            let request = format!("read of region {index} of {:#x} bytes at {offset:#x}", region.size);
            let device = bench.subject.device_mut()?;
            let result = device.read_region(index, offset, &mut [0; 4]);
            check(result.is_err(), format_args!("{request} fails"), "it succeeds")?;
        }
    }
    Ok(())
}

fn reads_in_every_state(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let regions = regions(&mut bench.subject)?;
    let subject = &mut bench.subject;
    let flags = subject.flags();
    for state in State::ALL.into_iter().filter(|state| fsm::supports(flags, *state)) {
        let mut data = subject.go(state)?;
        for (index, region) in &regions {
            let length = region.size.min(4) as usize;
            for offset in [0, (region.size - length as u64) & !3] {
                let _ = subject.read_region(*index, offset, &mut vec![0; length])?;
            }
        }
        subject.is_in(state)?;
        if let (State::Resuming, Some(data)) = (state, &mut data) {
            let loaded = data.load_saved(&saved)?;
            success("a write of the device's own state", loaded)?;
        }
        drop(data);
        subject.go(State::Running)?;
    }
    Ok(())
}

fn reads_during_a_save(bench: &mut Bench) -> Outcome {
    if !bench.subject.info()?.flags.contains(DeviceInfoFlags::PCI) {
        return skip("the device has no configuration space");
    }
    bench.leave_power_on_state()?;
    bench.subject.go(State::Stop)?;
    let expected = bench.subject.save_stopped()?;
    let chunk = expected.len().div_ceil(8).max(1);
    let mut data = bench.subject.begin(State::StopCopy)?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; chunk]);
    loop {
        let _ = bench.subject.read_region(VFIO_PCI_CONFIG_REGION_INDEX, 0, &mut [0; 64])?;
        let result = data.read(&mut buffer)?;
        match success("a read in STOP_COPY", result)? {
            0 => break,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        data.check_size(bytes.len() as u64)?;
    }
    drop(data);
    bench.subject.go(State::Running)?;
    bench.subject.load(&bytes.clone().into())?;
    bench.equal_states(
        "a state that was read with reads of the configuration space",
        &expected,
        &bytes.into(),
    )
}
