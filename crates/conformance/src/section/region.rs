//! A migration region, as in Linux 5.8 to 5.17 or as drafted in 2019, through the interface that
//! [`whimbrel_user::region`] gives to it. The region's registers themselves are that module's to read.

use whimbrel_protocol::State;
use whimbrel_protocol::info::Capability;
use whimbrel_uapi::device::{
    RegionInfoFlags, VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED, VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::data::CHUNK;
use crate::outcome::{Outcome, check, inconclusive, success};

const REGION: &[Need] = &[Need::Region];
/// Regions that are searched.
const MAX_REGIONS: u32 = 1024;
const PAGE: u64 = 4096;
/// The states of the region's diagram, which an adapted device has.
const STATES: [State; 5] = [State::Running, State::PreCopy, State::StopCopy, State::Stop, State::Resuming];

pub(crate) const CASES: &[Case] = &[
    Case::kernel(
        "region/info/mappable-areas",
        "Only the data section of a migration region can be mapped, in whole pages, and never its registers \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        mappable_areas,
    )
    .looks()
    .needs(REGION),
    Case::kernel(
        "region/state/every-state",
        "The device goes to each state of the diagram, and device_state then reads as that state \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        every_state,
    )
    .needs(REGION),
    Case::kernel(
        "region/session/save-and-load",
        "What is saved in stop-and-copy loads into the same device, in the same order and transactions \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        save_and_load,
    )
    .needs(REGION),
    Case::kernel(
        "region/session/pre-copy",
        "What is saved in pre-copy and then in stop-and-copy is one state \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        pre_copy,
    )
    .needs(REGION),
    Case::kernel(
        "region/session/pending-bytes",
        "pending_bytes is what is still to be saved: at the start of stop-and-copy it is about the size of the state, \
         and zero at the end (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        pending_bytes,
    )
    .needs(REGION),
    Case::kernel(
        "region/session/given-up",
        "A user may leave pre-copy and stop-and-copy whatever is pending, and the next session gives the whole state \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        given_up,
    )
    .needs(REGION),
    Case::kernel(
        "region/reset/every-state",
        "A reset brings the device back to running from each state, and it can migrate again at once \
         (vfio_device_migration_info in include/uapi/linux/vfio.h of Linux 5.17).",
        reset_in_every_state,
    )
    .needs(REGION)
    .resets(),
    Case::robust(
        "region/resuming/wrong-data",
        "Data that is no state is refused or taken, and a reset recovers the device.",
        wrong_data,
    )
    .needs(REGION)
    .resets(),
];

fn mappable_areas(bench: &mut Bench) -> Outcome {
    let migration = Capability::Type {
        region_type: VFIO_REGION_TYPE_MIGRATION_DEPRECATED,
        subtype: VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED,
    };
    let Some(version) = bench.subject.device_mut()?.region_version() else {
        return inconclusive("the device does not migrate through a region");
    };
    let registers = version.header_size();
    for index in 0..bench.subject.info()?.num_regions.min(MAX_REGIONS) {
        let Ok(region) = bench.subject.region_info(index)? else { continue };
        if !region.capabilities.contains(&migration) {
            continue;
        }
        check(
            region.size > registers,
            format_args!("region {index} has its {registers} bytes of registers, and a data section"),
            format_args!("{} bytes", region.size),
        )?;
        if !region.flags.contains(RegionInfoFlags::MMAP) {
            return Ok(());
        }
        let areas = region.capabilities.iter().find_map(|capability| match capability {
            Capability::SparseMmap(areas) => Some(areas.as_slice()),
            _ => None,
        });
        let Some(areas) = areas else {
            return check(
                false,
                "areas of VFIO_REGION_INFO_CAP_SPARSE_MMAP without the registers",
                "the whole region",
            );
        };
        for area in areas {
            let end = area.offset.checked_add(area.size);
            let is_in_section = area.offset >= registers && end.is_some_and(|end| end <= region.size);
            let is_whole = area.offset.is_multiple_of(PAGE) && area.size.is_multiple_of(PAGE);
            check(
                is_in_section && is_whole,
                format_args!("areas of whole pages behind {registers:#x}, up to {:#x}", region.size),
                format_args!("{:#x}+{:#x}", area.offset, area.size),
            )?;
        }
    }
    Ok(())
}

fn every_state(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    for state in STATES {
        let mut data = bench.subject.go(state)?;
        bench.subject.is_in(state)?;
        if let (State::Resuming, Some(data)) = (state, &mut data) {
            let loaded = data.load_saved(&saved)?;
            success("a write of the device's own state", loaded)?;
        }
        drop(data);
        bench.subject.go(State::Running)?;
        bench.subject.is_in(State::Running)?;
    }
    Ok(())
}

/// Fails the case unless the device, which runs, saves and loads.
fn can_migrate(bench: &mut Bench) -> Outcome {
    bench.subject.is_in(State::Running)?;
    let saved = bench.subject.save()?;
    check(!saved.is_empty(), "a byte of state at least", "none")?;
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running)?;
    bench.subject.is_in(State::Running)
}

fn save_and_load(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    can_migrate(bench)
}

fn pre_copy(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let mut data = bench.subject.begin(State::PreCopy)?;
    let before = data.read_precopy(CHUNK, u64::MAX)?.bytes;
    let opened = bench.subject.go(State::StopCopy)?;
    check(opened.is_none(), "the session goes on in stop-and-copy", "another one")?;
    let saved = data.save(before)?;
    drop(data);
    bench.subject.go(State::Running)?;
    if bench.may_reset {
        bench.subject.must_reset()?;
    }
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running).map(drop)
}

fn pending_bytes(bench: &mut Bench) -> Outcome {
    let mut data = bench.subject.begin(State::StopCopy)?;
    let pending = success("a read of pending_bytes", bench.subject.data_size()?)?;
    check(pending > 0, "pending_bytes is not zero at the start", pending)?;
    let saved = data.read_to_end(CHUNK)?.len() as u64;
    // A device may count without what frames its data, and round up.
    check(
        pending >= saved / 2,
        format_args!("about {saved} pending bytes at the start, as were then saved"),
        pending,
    )?;
    let pending = success("a read of pending_bytes", bench.subject.data_size()?)?;
    check(pending == 0, "pending_bytes 0 at the end", pending)?;
    // The end is permanent.
    let result = data.read(&mut [0; 64])?;
    check(result == Ok(0), "no more data", format_args!("{result:?}"))
}

fn given_up(bench: &mut Bench) -> Outcome {
    bench.leave_power_on_state()?;
    let expected = bench.subject.save()?.len();
    for state in [State::PreCopy, State::StopCopy] {
        for enough in [0, 1, expected / 2] {
            let mut data = bench.subject.begin(state)?;
            if enough > 0 {
                // As much as comes at once.
                let _ = data.read(&mut vec![0; enough])?;
            }
            drop(data);
            bench.subject.go(State::Running)?;
        }
    }
    let saved = bench.subject.save()?;
    if bench.may_reset {
        bench.subject.must_reset()?;
    }
    bench.subject.load(&saved)?;
    bench.subject.go(State::Running)?;
    check(
        saved.len() >= expected / 2,
        format_args!("the whole state again, about {expected} bytes"),
        format_args!("{} bytes", saved.len()),
    )
}

fn reset_in_every_state(bench: &mut Bench) -> Outcome {
    for state in STATES {
        let data = bench.subject.go(state)?;
        bench.subject.must_reset()?;
        bench.subject.is_in(State::Running)?;
        if let Some(mut data) = data {
            let read = data.read(&mut [0; 64])?;
            check(
                !matches!(read, Ok(1..)),
                format_args!("no data of a session in {state} after a reset"),
                format_args!("{read:?}"),
            )?;
        }
        can_migrate(bench)?;
    }
    Ok(())
}

fn wrong_data(bench: &mut Bench) -> Outcome {
    let saved = bench.subject.save()?;
    let mut noise = vec![0; saved.len()];
    bench.random.fill(&mut noise);
    let half = saved[..saved.len() / 2].to_vec();
    for wrong in [noise, half, vec![0; 1]] {
        let mut data = bench.subject.begin(State::Resuming)?;
        let _ = data.load(&wrong, CHUNK)?;
        let _ = bench.subject.set_state(State::Running)?;
        bench.subject.state()?;
        drop(data);
        bench.subject.must_reset()?;
        can_migrate(bench)?;
    }
    Ok(())
}
