//! The draft's text, sentence by sentence, where it differs from v1 or says more.
//!
//! The text (seen in the patch of December 2019), and the tests of each sentence:
//!
//! - fields are only supported at their native width and alignment; drivers should return an error:
//!   `a_field_is_accessed_whole_or_the_access_fails`
//! - if device state transition fails, write on this field return error:
//!   `a_change_that_fails_is_told_by_the_write_itself`
//! - _SAVING and _RESUMING at the same time is invalid state: `saving_with_resuming_is_invalid`
//! - bits 3 - 31 are reserved; the user should read, modify and write:
//!   `reserved_bits_are_ignored_and_preserved`
//! - when changed to _STOPPED, driver should stop device before write() returns:
//!   `the_device_has_stopped_when_the_write_returns`
//! - start_pfn, page_size, total_pfns: write only; copied_pfns, pending bytes, data_offset: read only:
//!   `fields_are_read_only_or_write_only`
//! - start_pfn: during _SAVING state: `dirty_pages_are_told_while_saving_only`
//! - NONE if none of the pages are dirty in the requested range or rest of the range:
//!   `none_is_said_of_a_clean_range_and_of_a_clean_rest`
//! - ALL to mark all pages dirty in the given range or rest of the range:
//!   `all_is_said_of_a_dirty_range_and_of_a_dirty_rest`
//! - else the pfn count for which the bitmap is written; each bit represents a page, set if dirty:
//!   `a_bitmap_speaks_of_the_pages_it_counts`
//! - data_offset will always be non-0; same or different for device data and bitmap:
//!   `data_offset_tells_the_bitmap_after_copied_pfns_and_the_data_after_pending_bytes`
//! - if mmapped, data_offset should be page aligned: `mapped_data_begins_at_a_page`
//! - the sequence a to f while _SAVING: `the_loop_carries_the_state`
//! - iterate through a to d while (total copied_pfns < total_pfns):
//!   `every_dirty_page_is_told_once_however_the_range_is_cut`
//! - the sequence while _RESUMING; data in the same order as received:
//!   `a_state_is_loaded_in_the_order_it_was_saved`

use std::collections::BTreeSet;

use proptest::prelude::*;
use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::dirty::DirtyReport;
use whimbrel_protocol::region::{
    DirtyPages, Layout, Outcome, Phase, User, UserError, Version, drive, report_dirty,
};
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::support::*;

const NONE: u64 = 0;
const ALL: u64 = u64::MAX;

/// A draft region whose bitmap speaks of 64 pages at a time.
fn rig() -> Rig {
    let layout = Layout::new(Version::Draft, 64 + 8, 64, Vec::new()).unwrap();
    Rig::new(layout, Device::with_data(&[b"early"], &[b"late"]))
}

fn saving(dirty: impl IntoIterator<Item = u64>) -> Rig {
    let mut rig = rig();
    rig.set_state(PRE_COPY).unwrap();
    rig.device.dirty = dirty.into_iter().map(|page| page * 4096).collect();
    rig
}

fn ask(rig: &mut Rig, start: u64, total: u64) {
    rig.set_field(START_PFN, start).unwrap();
    rig.set_field(PAGE_SIZE_FIELD, 4096).unwrap();
    rig.set_field(TOTAL_PFNS, total).unwrap();
}

/// Steps b to d: the answer, and the bitmap if there is one.
fn answer(rig: &mut Rig) -> (u64, u64) {
    let copied = rig.field(COPIED_PFNS).unwrap();
    if copied == NONE || copied == ALL {
        return (copied, 0);
    }
    let offset = rig.field(DATA_OFFSET).unwrap();
    (copied, rig.field(offset).unwrap())
}

#[test]
fn a_field_is_accessed_whole_or_the_access_fails() {
    for offset in 0..64 {
        for length in 0..=16 {
            let whole =
                if offset < 8 { offset % 4 == 0 && length == 4 } else { offset % 8 == 0 && length == 8 };
            let mut rig = saving([]);
            let written = rig.vendor.write(&mut rig.device, offset, &vec![0; length]);
            if !whole {
                assert_eq!(rig.read(offset, length), Err(Errno::EINVAL), "{offset} {length}");
                assert_eq!(written, Err(Errno::EINVAL), "{offset} {length}");
            }
        }
    }
}

#[test]
fn a_change_that_fails_is_told_by_the_write_itself() {
    let mut rig = rig();
    let mut user = rig.user();
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Stays(Errno::ENOSPC)));
    let error = rig.phase(&mut user, Phase::PreCopy).unwrap_err();
    assert_eq!(error, UserError::Refused { to: Phase::PreCopy, errno: Errno::ENOSPC, now: None });
    assert_eq!(rig.made.len(), 2, "nothing is read after it: {:?}", rig.made);
    // There is no error state: a broken device answers nothing until it is reset.
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Broken(Errno::EIO)));
    assert_eq!(rig.set_state(PRE_COPY), Err(Errno::EIO));
    assert_eq!(rig.state(), Err(Errno::EIO));
    rig.device.reset();
    rig.vendor.reset();
    assert_eq!(rig.state(), Ok(RUNNING));
}

#[test]
fn saving_with_resuming_is_invalid() {
    // 101b is not called invalid; but no device behind a region can be in it.
    for register in [0b101, 0b110, 0b111] {
        let mut rig = rig();
        assert_eq!(rig.set_state(register), Err(Errno::EINVAL), "{register:03b}");
        assert_eq!(rig.state(), Ok(RUNNING));
    }
}

#[test]
fn reserved_bits_are_ignored_and_preserved() {
    let mut rig = rig();
    rig.set_state(0xffff_fff8 | PRE_COPY).unwrap();
    assert_eq!(rig.state(), Ok(PRE_COPY));
    let mut user = rig.user();
    user.set_phase(Phase::StopAndCopy);
    user.next_access();
    user.read_done(Ok(&0xabcd_ef03_u32.to_ne_bytes()));
    let whimbrel_protocol::region::Next::Write { data, .. } = user.next_access() else { panic!("no write") };
    assert_eq!(data, 0xabcd_ef02_u32.to_ne_bytes());
}

#[test]
fn the_device_has_stopped_when_the_write_returns() {
    for register in [STOP, SAVING, RESUMING] {
        let mut rig = rig();
        rig.set_state(register).unwrap();
        assert!(!rig.device.state.is_running(), "{register}");
    }
}

#[test]
fn fields_are_read_only_or_write_only() {
    let mut rig = saving([]);
    for field in [PENDING_BYTES, DATA_OFFSET, COPIED_PFNS] {
        assert_eq!(rig.set_field(field, 0), Err(Errno::EINVAL), "write {field}");
    }
    for field in [START_PFN, PAGE_SIZE_FIELD, TOTAL_PFNS] {
        assert_eq!(rig.field(field), Err(Errno::EINVAL), "read {field}");
        assert_eq!(rig.set_field(field, 4096), Ok(()), "write {field}");
    }
}

#[test]
fn dirty_pages_are_told_while_saving_only() {
    for register in [STOP, RUNNING, RESUMING] {
        let mut rig = rig();
        rig.set_state(register).unwrap();
        for field in [START_PFN, PAGE_SIZE_FIELD, TOTAL_PFNS] {
            assert_eq!(rig.set_field(field, 4096), Err(Errno::EINVAL), "{register} {field}");
        }
        assert_eq!(rig.field(COPIED_PFNS), Err(Errno::EINVAL), "{register}");
    }
    for register in [SAVING, PRE_COPY] {
        let mut rig = rig();
        rig.set_state(register).unwrap();
        ask(&mut rig, 0, 10);
        assert_eq!(rig.field(COPIED_PFNS), Ok(NONE));
    }
}

#[test]
fn a_query_that_is_not_whole_or_cannot_be_is_refused() {
    let cases = [
        (None, Some(4096), Some(1), Errno::EINVAL),
        (Some(0), None, Some(1), Errno::EINVAL),
        (Some(0), Some(4096), None, Errno::EINVAL),
        (Some(0), Some(0), Some(1), Errno::EINVAL),
        (Some(0), Some(2048), Some(1), Errno::EINVAL),
        (Some(0), Some(12288), Some(1), Errno::EINVAL),
        (Some(1 << 52), Some(4096), Some(1), Errno::EOVERFLOW),
        (Some(0), Some(4096), Some(u64::MAX), Errno::EOVERFLOW),
        (Some((1 << 52) - 1), Some(4096), Some(1), Errno::EOVERFLOW),
    ];
    for (start, page_size, total, errno) in cases {
        let mut rig = saving([]);
        for (field, value) in [(START_PFN, start), (PAGE_SIZE_FIELD, page_size), (TOTAL_PFNS, total)] {
            if let Some(value) = value {
                rig.set_field(field, value).unwrap();
            }
        }
        assert_eq!(rig.field(COPIED_PFNS), Err(errno), "{start:?} {page_size:?} {total:?}");
    }
}

#[test]
fn none_is_said_of_a_clean_range_and_of_a_clean_rest() {
    let mut rig = saving([3]);
    // One bitmap's worth, and many.
    for total in [1, 64, 65, 1000] {
        ask(&mut rig, 1000, total);
        assert_eq!(answer(&mut rig), (NONE, 0), "{total}");
    }
    ask(&mut rig, 0, 1000);
    assert_eq!(answer(&mut rig), (64, 1 << 3));
    assert_eq!(answer(&mut rig), (NONE, 0), "the rest");
    assert_eq!(answer(&mut rig), (NONE, 0), "said again");
}

#[test]
fn all_is_said_of_a_dirty_range_and_of_a_dirty_rest() {
    let mut rig = saving(0..1000);
    ask(&mut rig, 10, 500);
    assert_eq!(answer(&mut rig), (ALL, 0));
    assert_eq!(answer(&mut rig), (ALL, 0), "said again");
    ask(&mut rig, 10, 500);
    assert_eq!(answer(&mut rig), (NONE, 0), "it was told");
    let mut rig = saving(1..1000);
    ask(&mut rig, 0, 1000);
    assert_eq!(answer(&mut rig), (64, !1));
    assert_eq!(answer(&mut rig), (ALL, 0), "the rest");
    // A region without room for a bitmap has no other answer.
    let layout = Layout::new(Version::Draft, 64, 64, Vec::new()).unwrap();
    let mut rig = Rig::new(layout, Device::new(MigrationFlags::all()));
    rig.set_state(SAVING).unwrap();
    ask(&mut rig, 0, 1000);
    assert_eq!(answer(&mut rig), (ALL, 0));
}

#[test]
fn a_bitmap_speaks_of_the_pages_it_counts() {
    let mut rig = saving([5, 69, 100, 140]);
    ask(&mut rig, 5, 140);
    assert_eq!(answer(&mut rig), (64, 1));
    assert_eq!(answer(&mut rig), (64, 1 | 1 << 31));
    assert_eq!(answer(&mut rig), (12, 1 << 7));
    assert_eq!(answer(&mut rig), (NONE, 0));
}

#[test]
fn copied_pfns_read_again_before_the_bitmap_says_the_same() {
    let mut rig = saving([5, 100]);
    ask(&mut rig, 0, 128);
    for _ in 0..3 {
        assert_eq!(rig.field(COPIED_PFNS), Ok(64));
    }
    assert_eq!(answer(&mut rig), (64, 1 << 5));
    assert_eq!(answer(&mut rig), (64, 1 << 36));
}

#[test]
fn a_query_that_was_left_loses_no_page() {
    // Left after copied_pfns, and asked anew: also what was looked at ahead is told again.
    let mut rig = saving([5, 200]);
    for (start, total) in [(0, 256), (0, 64), (64, 192), (0, 256)] {
        ask(&mut rig, start, total);
        rig.field(COPIED_PFNS).unwrap();
    }
    ask(&mut rig, 0, 256);
    assert_eq!(answer(&mut rig), (64, 1 << 5));
    ask(&mut rig, 192, 64);
    assert_eq!(answer(&mut rig), (64, 1 << 8));
    // A stretch that was looked at ahead is told in any parts.
    let mut rig = saving(100..140);
    ask(&mut rig, 0, 256);
    assert_eq!(rig.field(COPIED_PFNS), Ok(64));
    for (start, total, told) in
        [(110, 10, ALL), (110, 10, NONE), (100, 10, ALL), (120, 20, ALL), (0, 256, NONE)]
    {
        ask(&mut rig, start, total);
        assert_eq!(answer(&mut rig), (told, 0), "{start}");
    }
}

#[test]
fn what_was_found_of_one_range_is_not_said_of_another() {
    let mut rig = saving([200]);
    ask(&mut rig, 0, 256);
    assert_eq!(answer(&mut rig), (64, 0), "there is a dirty page further on");
    ask(&mut rig, 0, 128);
    assert_eq!(answer(&mut rig), (NONE, 0));
    ask(&mut rig, 64, 128);
    assert_eq!(answer(&mut rig), (NONE, 0));
}

#[test]
fn data_offset_tells_the_bitmap_after_copied_pfns_and_the_data_after_pending_bytes() {
    let mut rig = saving([1]);
    let pending = rig.field(PENDING_BYTES).unwrap();
    assert_eq!(pending, 5);
    let data = rig.field(DATA_OFFSET).unwrap();
    ask(&mut rig, 0, 64);
    assert_eq!(rig.field(COPIED_PFNS), Ok(64));
    let bitmap = rig.field(DATA_OFFSET).unwrap();
    assert!(data != 0 && bitmap != 0 && data != bitmap);
    assert_eq!(rig.read(bitmap, 8).unwrap(), 2_u64.to_le_bytes());
    // The buffer of device data that was shown is as it was.
    assert_eq!(rig.read(data, 5).unwrap(), b"early");
    assert_eq!(rig.field(PENDING_BYTES), Ok(0));
    assert_eq!(rig.field(DATA_OFFSET), Ok(data));
    assert_eq!(rig.read(bitmap, 8), Err(Errno::EINVAL), "the bitmap is over");
}

#[test]
fn mapped_data_begins_at_a_page() {
    let layout = Layout::mapped(Version::Draft, 0x2000).unwrap();
    let mut rig = Rig::new(layout, Device::with_data(&[], &[b"data"]));
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.field(DATA_OFFSET).unwrap() % 4096, 0);
}

#[test]
fn the_loop_carries_the_state() {
    let mut rig = rig();
    rig.set_state(PRE_COPY).unwrap();
    assert_eq!(rig.take_all(), [b"early"]);
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.take_all(), [b"late"]);
}

#[test]
fn a_state_is_loaded_in_the_order_it_was_saved() {
    let mut rig = rig();
    let mut user = rig.user();
    rig.phase(&mut user, Phase::Resuming).unwrap();
    for transaction in [&b"one"[..], b"two", b"three"] {
        user.load(transaction.to_vec());
        assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Loaded));
    }
    rig.phase(&mut user, Phase::Running).unwrap();
    assert_eq!(rig.device.loaded, [&b"one"[..], b"two", b"three"]);
}

#[test]
fn the_log_is_on_while_saving_is_set() {
    let mut rig = rig();
    for (register, on) in
        [(PRE_COPY, true), (SAVING, true), (STOP, false), (RUNNING, false), (SAVING, true), (RESUMING, false)]
    {
        rig.set_state(register).unwrap();
        assert_eq!(rig.device.tracking, on, "{register}");
    }
}

#[test]
fn a_query_ends_with_saving() {
    let mut rig = saving([5, 200]);
    ask(&mut rig, 0, 256);
    assert_eq!(rig.field(COPIED_PFNS), Ok(64));
    rig.set_state(RUNNING).unwrap();
    rig.set_state(PRE_COPY).unwrap();
    assert_eq!(rig.field(COPIED_PFNS), Err(Errno::EINVAL), "nothing was asked yet");
    ask(&mut rig, 0, 256);
    assert_eq!(answer(&mut rig), (NONE, 0), "the log has begun anew");
}

#[test]
fn a_v1_region_is_not_asked_for_dirty_pages() {
    let mut rig = Rig::v1(64, Device::new(MigrationFlags::all()));
    let mut user = rig.user();
    user.dirty(DirtyPages { start_pfn: 0, page_size: 4096, total_pfns: 1 });
    assert_eq!(drive(&mut user, &mut rig), Err(UserError::NoDirtyPages));
    assert_eq!(rig.made, []);
}

/// The pages the user half hears of.
fn collect(user: &mut User, rig: &mut Rig, start: u64, total: u64) -> Result<BTreeSet<u64>, UserError> {
    let mut words = vec![0; total.div_ceil(64) as usize];
    let mut report = DirtyReport::new(start * 4096, total * 4096, 4096, &mut words).unwrap();
    report_dirty(user, rig, &mut report)?;
    let set = |page: &u64| words[(page / 64) as usize] >> (page % 64) & 1 == 1;
    Ok((0..total).filter(set).map(|page| start + page).collect())
}

proptest! {
    #[test]
    fn every_dirty_page_is_told_once_however_the_range_is_cut(
        runs in proptest::collection::vec((0u64..600, 1u64..200), 0..6),
        start in 0u64..100,
        total in 0u64..800,
        words in 1u64..5,
        left in proptest::collection::vec((0u64..700, 1u64..300, 0usize..7), 0..4),
        fault in proptest::option::of((0usize..40, prop_oneof![Just(Fault::Before), Just(Fault::After)])),
    ) {
        let layout = Layout::new(Version::Draft, 64 + words * 8, 64, Vec::new()).unwrap();
        let mut rig = Rig::new(layout, Device::with_data(&[b"early"], &[]));
        rig.set_state(PRE_COPY).unwrap();
        let dirty: BTreeSet<u64> = runs.iter().flat_map(|(first, count)| *first..first + count).collect();
        rig.device.dirty = dirty.iter().map(|page| page * 4096).collect();
        let mut user = rig.user();
        // Queries that are left at some access, before any bitmap has been asked for: nothing of them is
        // lost.
        for (start_pfn, total_pfns, accesses) in left {
            user.dirty(DirtyPages { start_pfn, page_size: 4096, total_pfns });
            for _ in 0..accesses.min(3) {
                step(&mut user, &mut rig);
            }
            user.leave();
        }
        rig.made.clear();
        rig.fault = fault;
        let asked: BTreeSet<u64> = dirty.range(start..start + total).copied().collect();
        let result = collect(&mut user, &mut rig, start, total);
        let heard = result.is_ok();
        match result {
            Ok(told) => prop_assert_eq!(&told, &asked),
            Err(error) => {
                // The user knows; it takes all pages as dirty.
                let access = matches!(error, UserError::Access { errno: Errno::EIO, .. });
                prop_assert!(access, "{}", error);
            }
        }
        rig.fault = None;
        let rest = collect(&mut user, &mut rig, 0, 1000).unwrap();
        let outside: BTreeSet<u64> = dirty.difference(&asked).copied().collect();
        prop_assert!(rest.is_superset(&outside), "pages not asked about are told later");
        prop_assert!(rest.is_subset(&dirty), "no page is made up");
        if heard {
            prop_assert_eq!(rest, outside, "no page is told twice");
        }
    }
}

/// One access of a request.
fn step(user: &mut User, rig: &mut Rig) {
    use whimbrel_protocol::region::{Next, RegionAccess};
    match user.next_access() {
        Next::Read { offset, length, way } => {
            let mut data = vec![0; length];
            let read = RegionAccess::read(rig, offset, way, &mut data);
            user.read_done(read.map(|()| data.as_slice()));
        }
        Next::Write { offset, data, way } => {
            let written = RegionAccess::write(rig, offset, way, data);
            user.write_done(written);
        }
        Next::Finished(_) | Next::Idle => {}
    }
}
