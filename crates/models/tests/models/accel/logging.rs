//! The engine's log of the memory it writes.

use std::collections::BTreeSet;

use proptest::prelude::*;
use whimbrel_device::{DeviceFile, Errno};
use whimbrel_models::accel::{Descriptor, SLICE_BYTES};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::guest::{BASE, COMPLETIONS, DATA, Guest, MEMORY, Memory, config};

const PAGE: u64 = 4096;

fn ranges(list: &[(u64, u64)]) -> LoggingRanges {
    let mut ranges = LoggingRanges::new(PAGE, list.len() as u32).unwrap();
    for (iova, length) in list {
        ranges.push(*iova, *length).unwrap();
    }
    ranges
}

/// The pages reported dirty in all of the memory.
fn report(device: &DeviceFile) -> Result<BTreeSet<u64>, Errno> {
    let mut words = vec![0; DirtyReport::words_needed(MEMORY, PAGE) as usize];
    device.dma_logging_report(&mut DirtyReport::new(BASE, MEMORY, PAGE, &mut words).unwrap())?;
    let dirty = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
    Ok((0..MEMORY / PAGE).filter(dirty).map(|page| BASE + page * PAGE).collect())
}

fn pages(iova: u64, length: u64) -> impl Iterator<Item = u64> {
    (iova / PAGE..=(iova + length - 1) / PAGE).map(|page| page * PAGE)
}

fn job() -> impl Strategy<Value = Descriptor> {
    let at = || (0..MEMORY - (DATA - BASE) - 3 * SLICE_BYTES).prop_map(|offset| DATA + offset);
    let length = || prop_oneof![1u64..9000, SLICE_BYTES..2 * SLICE_BYTES];
    prop_oneof![
        (at(), at(), length()).prop_map(|(source, destination, length)| Descriptor::copy(
            1,
            source,
            destination,
            length
        )),
        (at(), length()).prop_map(|(destination, length)| Descriptor::fill(1, destination, length, 9)),
        (at(), length()).prop_map(|(source, length)| Descriptor::checksum(1, source, length)),
        Just(Descriptor::scramble(1, 0, 4096, 1)),
        Just(Descriptor::default()),
    ]
}

#[test]
fn a_log_is_started_once_and_stopped_at_will() {
    let device = Memory::new().device(config(1024));
    let all = ranges(&[(BASE, MEMORY)]);
    assert_eq!(device.dma_logging_stop(), Ok(()));
    assert_eq!(report(&device), Err(Errno::EINVAL));
    assert_eq!(device.dma_logging_start(&all), Ok(PAGE));
    assert_eq!(device.dma_logging_start(&all), Err(Errno::EINVAL));
    assert_eq!(report(&device), Ok(BTreeSet::new()));
    assert_eq!(device.dma_logging_stop(), Ok(()));
    assert_eq!(device.dma_logging_stop(), Ok(()));
    assert_eq!(report(&device), Err(Errno::EINVAL));
    assert_eq!(device.dma_logging_start(&all), Ok(PAGE));
}

#[test]
fn a_reset_ends_the_log() {
    let memory = Memory::new();
    let device = memory.device(config(1024));
    device.dma_logging_start(&ranges(&[(BASE, MEMORY)])).unwrap();
    device.reset().unwrap();
    assert_eq!(report(&device), Err(Errno::EINVAL));
    device.dma_logging_start(&ranges(&[(BASE, MEMORY)])).unwrap();
    let mut guest = Guest::start(&memory, device, 4);
    guest.execute(&Descriptor::fill(1, DATA, 8, 1));
    assert_eq!(report(&guest.device), Ok(BTreeSet::from([COMPLETIONS, DATA])));
}

#[test]
fn a_page_size_no_log_can_keep_is_refused() {
    let device = Memory::new().device(config(1024));
    let mut fine = LoggingRanges::new(512, 1).unwrap();
    fine.push(BASE, MEMORY).unwrap();
    assert_eq!(device.dma_logging_start(&fine), Err(Errno::EINVAL));
    assert_eq!(report(&device), Err(Errno::EINVAL));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn exactly_the_pages_written_are_reported_and_once(
        batches in proptest::collection::vec(proptest::collection::vec(job(), 0..6), 1..4),
        middle in 0..MEMORY / PAGE,
        gap in 0..100u64,
    ) {
        let memory = Memory::new();
        let mut guest = Guest::start(&memory, memory.device(config(64 << 10)), 4);
        let gap_at = BASE + middle * PAGE;
        let gap = gap.min(MEMORY / PAGE - middle - 1) * PAGE;
        let end = BASE + MEMORY;
        let logged = [(BASE, gap_at - BASE), (gap_at + gap, end - gap_at - gap)];
        let logged: Vec<(u64, u64)> = logged.into_iter().filter(|(_, length)| *length > 0).collect();
        guest.execute(&Descriptor::fill(1, DATA, 8, 1));
        guest.device.dma_logging_start(&ranges(&logged)).unwrap();
        for batch in batches {
            let mut written = BTreeSet::new();
            for job in batch {
                let done = guest.execute(&job);
                written.extend(pages(COMPLETIONS, 1));
                let writes_memory = job == (Descriptor::fill(1, job.destination, job.length, 9)) || job.source != 0;
                if writes_memory && job.destination != 0 && done.status == 0 {
                    written.extend(pages(job.destination, job.length));
                }
            }
            written.retain(|page| logged.iter().any(|(iova, length)| (*iova..iova + length).contains(page)));
            prop_assert_eq!(report(&guest.device).unwrap(), written);
        }
        prop_assert_eq!(report(&guest.device).unwrap(), BTreeSet::new());
    }
}
