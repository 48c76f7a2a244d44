//! DMA logging: start, stop and report as requests. What a log has in it is in [`dma_writes`](super::dma_writes).

use std::collections::BTreeSet;

use whimbrel_protocol::dirty::{DirtyReport, IovaRange, MAX_LOGGING_RANGES};
use whimbrel_protocol::{Errno, State, fsm};
use whimbrel_uapi::dma_logging::DeviceFeatureDmaLoggingControl;
use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};

use crate::bench::Bench;
use crate::case::{Case, Need};
use crate::dma::{BASE, PAGE, all_memory, range};
use crate::outcome::{Outcome, check, equal, fails, refused, success};

const LOG: &[Need] = &[Need::V2, Need::DmaLogging];
/// A device that is made to write has a log of its own. One that never writes may answer whatever it likes, as the
/// kernel's mtty does, whose log is empty and cannot be told from a stopped one.
const REAL_LOG: &[Need] = &[Need::V2, Need::DmaLogging, Need::Writer];

pub(crate) const CASES: &[Case] = &[
    Case::must(
        "v2/dma-logging/probe",
        "VFIO_DEVICE_FEATURE_PROBE can be used to detect if the device supports DMA logging.",
        probe,
    )
    .looks()
    .needs(LOG),
    Case::should(
        "v2/dma-logging/hinted-page-size",
        "page_size is an input that hints what tracking granularity the device should try to achieve.",
        hinted_page_size,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/any-hint",
        "If the device cannot do the hinted page size then it's the driver choice which page size to pick based on its support.",
        any_hint,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/selected-page-size",
        "On output the device will return the page size it selected.",
        selected_page_size,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/page-of-ranges",
        "The core kernel code guarantees to support by minimum num_ranges that fit into a single kernel page.",
        page_of_ranges,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/second-start",
        "Another start is not allowed in the meantime.",
        second_start,
    )
    .needs(REAL_LOG),
    Case::must(
        "v2/dma-logging/not-enabled",
        "If DMA logging is not enabled, an error will be returned.",
        not_enabled,
    )
    .needs(REAL_LOG),
    Case::must(
        "v2/dma-logging/report-page-size",
        "The input page_size can be any power of two value and does not have to match the value given to \
         VFIO_DEVICE_FEATURE_DMA_LOGGING_START.",
        report_page_size,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/never-clears",
        "The LOGGING_REPORT will only set bits in the bitmap and never clear or perform any initialization of the user \
         provided bitmap.",
        never_clears,
    )
    .needs(LOG),
    Case::must(
        "v2/dma-logging/in-every-state",
        "Only DMA WRITEs are logged, and this API is not connected to VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE.",
        in_every_state,
    )
    .needs(LOG),
    Case::kernel(
        "v2/dma-logging/no-ranges",
        "A start without a range is EINVAL (vfio_ioctl_device_feature_logging_start() in drivers/vfio/vfio_main.c).",
        no_ranges,
    )
    // Over vfio-user, no range stands for all memory.
    .needs(&[Need::V2, Need::DmaLogging, Need::Raw]),
    Case::kernel(
        "v2/dma-logging/too-many-ranges",
        "A start with more ranges than a page holds is E2BIG (vfio_ioctl_device_feature_logging_start() in \
         drivers/vfio/vfio_main.c).",
        too_many_ranges,
    )
    .needs(LOG),
    Case::kernel(
        "v2/dma-logging/misaligned-range",
        "A range that is not a multiple of the page size is EINVAL (vfio_ioctl_device_feature_logging_start() in \
         drivers/vfio/vfio_main.c).",
        misaligned_range,
    )
    .needs(LOG),
    Case::kernel(
        "v2/dma-logging/overlapping-ranges",
        "Ranges that overlap are EINVAL, and adjacent ones are fine, in any order \
         (vfio_ioctl_device_feature_logging_start() in drivers/vfio/vfio_main.c).",
        overlapping_ranges,
    )
    .needs(LOG),
    Case::kernel(
        "v2/dma-logging/refused-start",
        "A start that is refused starts nothing: the next one succeeds (vfio_ioctl_device_feature_logging_start() in \
         drivers/vfio/vfio_main.c).",
        refused_start,
    )
    .needs(LOG),
    Case::kernel(
        "v2/dma-logging/stop-again",
        "A stop succeeds, whether a log runs or not (mlx5vf_stop_page_tracker() in drivers/vfio/pci/mlx5/cmd.c).",
        stop_again,
    )
    .needs(LOG),
    Case::robust(
        "v2/dma-logging/restarted-often",
        "A user may start and stop a log again and again, with other ranges each time.",
        restarted_often,
    )
    .needs(LOG),
    Case::robust(
        "v2/dma-logging/odd-reports",
        "A report on part of a page, or on addresses that are not logged returns, and the log goes on.",
        odd_reports,
    )
    .needs(LOG),
];

fn probe(bench: &mut Bench) -> Outcome {
    for (feature, direction) in [
        (Feature::DmaLoggingStart, FeatureFlags::SET),
        (Feature::DmaLoggingStop, FeatureFlags::SET),
        (Feature::DmaLoggingReport, FeatureFlags::GET),
    ] {
        let has = bench.subject.probe(feature, direction)?;
        check(has, format_args!("PROBE of {feature} succeeds, as DMA_LOGGING_START's does"), "it fails")?;
    }
    Ok(())
}

/// Page sizes that a user may ask for, with a range that has whole words of a bitmap of each.
const PAGE_SIZES: [u64; 4] = [PAGE, 2 * PAGE, 64 << 10, 2 << 20];

fn any_hint(bench: &mut Bench) -> Outcome {
    for page_size in PAGE_SIZES {
        bench.subject.must_start_log(page_size, &[range(1 << 30, 1 << 30)?])?;
        bench.subject.must_stop_log()?;
    }
    Ok(())
}

fn hinted_page_size(bench: &mut Bench) -> Outcome {
    let range = range(1 << 30, 1 << 30)?;
    for page_size in PAGE_SIZES {
        let selected = bench.subject.must_start_log(page_size, &[range])?;
        bench.subject.must_stop_log()?;
        // What the device has just done, it can do.
        if selected < range.length() {
            let again = bench.subject.must_start_log(selected, &[range])?;
            bench.subject.must_stop_log()?;
            equal(format_args!("the page size with the hint {selected:#x}"), selected, again)?;
        }
    }
    Ok(())
}

fn selected_page_size(bench: &mut Bench) -> Outcome {
    let selected = bench.subject.must_start_log(PAGE, &[all_memory()?])?;
    // The kernel refuses a report of pages that are smaller, so that nobody could ask for them.
    let is_possible = (PAGE..=1 << 30).contains(&selected);
    check(is_possible, "a page size that a report can have, at least 4096", format_args!("{selected:#x}"))?;
    bench.subject.must_stop_log()
}

fn page_of_ranges(bench: &mut Bench) -> Outcome {
    let ranges: Vec<IovaRange> = (0..u64::from(MAX_LOGGING_RANGES))
        .map(|number| range(BASE + number * 16 * PAGE, PAGE))
        .collect::<Outcome<_>>()?;
    bench.subject.must_start_log(PAGE, &ranges)?;
    bench.subject.dirty_pages(ranges[0], PAGE)?;
    bench.subject.dirty_pages(ranges[ranges.len() - 1], PAGE)?;
    bench.subject.must_stop_log()
}

fn second_start(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    let again = bench.subject.start_log(PAGE, &[memory])?;
    fails("a second DMA_LOGGING_START", again)?;
    // The first log goes on.
    bench.subject.dirty_pages(memory, PAGE)?;
    bench.subject.must_stop_log()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()
}

fn not_enabled(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    let mut words = vec![0; DirtyReport::words_needed(memory.length(), PAGE) as usize];
    let report = bench.subject.report_log(memory.iova(), memory.length(), PAGE, &mut words)?;
    fails("DMA_LOGGING_REPORT before a start", report)?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()?;
    let report = bench.subject.report_log(memory.iova(), memory.length(), PAGE, &mut words)?;
    fails("DMA_LOGGING_REPORT after the stop", report).map(drop)
}

fn report_page_size(bench: &mut Bench) -> Outcome {
    for logged in [PAGE, 64 << 10] {
        let range = range(1 << 30, 1 << 30)?;
        bench.subject.must_start_log(logged, &[range])?;
        for page_size in PAGE_SIZES {
            bench.subject.dirty_pages(range, page_size)?;
        }
        bench.subject.must_stop_log()?;
    }
    Ok(())
}

fn never_clears(bench: &mut Bench) -> Outcome {
    const PATTERN: u64 = 0x8000_f00f_5555_0001;
    let memory = all_memory()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    let mut words = vec![PATTERN; DirtyReport::words_needed(memory.length(), PAGE) as usize];
    let report = bench.subject.report_log(memory.iova(), memory.length(), PAGE, &mut words)?;
    success("DMA_LOGGING_REPORT", report)?;
    let cleared = words.iter().position(|word| word & PATTERN != PATTERN);
    if let Some(index) = cleared {
        let word = words[index];
        return check(
            false,
            format_args!("word {index} keeps the bits {PATTERN:#x}"),
            format_args!("{word:#x}"),
        );
    }
    bench.subject.must_stop_log()
}

fn in_every_state(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    let flags = bench.subject.flags();
    // The states of a migration's source, in order.
    let states =
        [State::PreCopy, State::PreCopyP2p, State::StopCopy, State::Stop, State::RunningP2p, State::Running];
    let states = states.into_iter().filter(|state| fsm::supports(flags, *state));
    bench.subject.must_start_log(PAGE, &[memory])?;
    for state in states {
        let opened = bench.subject.go(state)?;
        bench.subject.dirty_pages(memory, PAGE)?;
        bench.subject.is_in(state)?;
        drop(opened);
    }
    bench.subject.go(State::Stop)?;
    bench.subject.must_stop_log()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()?;
    bench.subject.is_in(State::Stop)?;
    bench.subject.go(State::Running).map(drop)
}

fn no_ranges(bench: &mut Bench) -> Outcome {
    const SIZE: usize = size_of::<DeviceFeatureDmaLoggingControl>();
    let memory = all_memory()?;
    refused("DMA_LOGGING_START without a range", &[Errno::EINVAL], bench.subject.start_log(PAGE, &[])?)?;
    let argsz = (size_of::<DeviceFeature>() + SIZE) as u32;
    let flags = u32::from(Feature::DmaLoggingStart.number()) | FeatureFlags::SET.bits();
    let result = bench.subject.feature(argsz, flags, &mut [0; SIZE])?;
    refused("DMA_LOGGING_START of zeros", &[Errno::EINVAL], result)?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()
}

fn too_many_ranges(bench: &mut Bench) -> Outcome {
    let ranges: Vec<IovaRange> = (0..=u64::from(MAX_LOGGING_RANGES))
        .map(|number| range(BASE + number * PAGE, PAGE))
        .collect::<Outcome<_>>()?;
    let what = format_args!("DMA_LOGGING_START with {} ranges", ranges.len());
    refused(what, &[Errno::E2BIG], bench.subject.start_log(PAGE, &ranges)?)
}

fn misaligned_range(bench: &mut Bench) -> Outcome {
    for (page_size, iova, length) in [
        (PAGE, BASE + 1, PAGE),
        (PAGE, BASE, PAGE + 8),
        (PAGE, BASE + PAGE / 2, PAGE),
        (64 << 10, BASE + PAGE, 64 << 10),
        (64 << 10, BASE, PAGE),
    ] {
        let what = format_args!("DMA_LOGGING_START of {iova:#x}+{length:#x} in pages of {page_size:#x}");
        let result = bench.subject.start_log(page_size, &[range(iova, length)?])?;
        refused(what, &[Errno::EINVAL], result)?;
    }
    Ok(())
}

fn overlapping_ranges(bench: &mut Bench) -> Outcome {
    let middle = range(BASE + 4 * PAGE, 4 * PAGE)?;
    for (first, count) in [(4, 4), (5, 1), (3, 2), (7, 2), (0, 16)] {
        let other = range(BASE + first * PAGE, count * PAGE)?;
        for ranges in [[middle, other], [other, middle]] {
            let what = format_args!("DMA_LOGGING_START of {first}+{count} and 4+4 pages");
            let result = bench.subject.start_log(PAGE, &ranges)?;
            refused(what, &[Errno::EINVAL], result)?;
        }
    }
    let (below, above) = (range(BASE, 4 * PAGE)?, range(BASE + 8 * PAGE, 4 * PAGE)?);
    for ranges in [[below, middle, above], [above, middle, below], [middle, above, below]] {
        bench.subject.must_start_log(PAGE, &ranges)?;
        bench.subject.must_stop_log()?;
    }
    Ok(())
}

fn refused_start(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    let result = bench.subject.start_log(PAGE, &[memory, memory])?;
    refused("DMA_LOGGING_START of one range twice", &[Errno::EINVAL], result)?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    bench.subject.must_stop_log()
}

fn stop_again(bench: &mut Bench) -> Outcome {
    bench.subject.must_stop_log()?;
    bench.subject.must_start_log(PAGE, &[all_memory()?])?;
    bench.subject.must_stop_log()?;
    bench.subject.must_stop_log()
}

fn restarted_often(bench: &mut Bench) -> Outcome {
    const TIMES: u64 = 32;
    for number in 0..TIMES {
        // Whole words of a bitmap: pds reports no smaller ranges.
        let range = range(BASE + number * PAGE, (number + 1) * 64 * PAGE)?;
        bench.subject.must_start_log(PAGE, &[range])?;
        bench.subject.dirty_pages(range, PAGE)?;
        bench.subject.must_stop_log()?;
    }
    Ok(())
}

fn odd_reports(bench: &mut Bench) -> Outcome {
    let memory = all_memory()?;
    bench.subject.must_start_log(PAGE, &[memory])?;
    for (iova, length) in
        [(BASE + 1, PAGE), (BASE, 1), (BASE + 8, 16), (0, PAGE), (BASE, 2 * memory.length())]
    {
        let mut words = vec![0; DirtyReport::words_needed(length, PAGE) as usize + 1];
        // Whatever it answers.
        let _ = bench.subject.report_log(iova, length, PAGE, &mut words)?;
    }
    let pages: BTreeSet<u64> = bench.subject.dirty_pages(memory, PAGE)?;
    drop(pages);
    bench.subject.must_stop_log()
}
