//! The user half against a device that says anything.

use proptest::prelude::*;
use whimbrel_protocol::info::MmapArea;
use whimbrel_protocol::region::{
    DirtyPages, Layout, Next, Outcome, Phase, User, UserError, Version, View, Way,
};
use whimbrel_protocol::{Errno, MigrationFlags};

use super::support::*;

/// A user of a v1 region whose data section has `capacity` trapped bytes, in stop-and-copy.
fn user(version: Version, capacity: u64) -> User {
    let region = Layout::trapped(version, capacity).unwrap().region();
    stopped(User::new(View::new(version, &region).unwrap()))
}

fn stopped(mut user: User) -> User {
    user.set_phase(Phase::StopAndCopy);
    answer(&mut user, &RUNNING.to_ne_bytes());
    assert!(matches!(user.next_access(), Next::Write { .. }));
    user.write_done(Ok(()));
    assert_eq!(user.next_access(), Next::Finished(Ok(Outcome::Phase(Phase::StopAndCopy))));
    user
}

fn answer(user: &mut User, bytes: &[u8]) {
    assert!(matches!(user.next_access(), Next::Read { length, .. } if length == bytes.len()));
    user.read_done(Ok(bytes));
}

fn answers(user: &mut User, values: &[u64]) -> Option<Result<Outcome, UserError>> {
    for value in values {
        answer(user, &value.to_ne_bytes());
    }
    match user.next_access() {
        Next::Finished(result) => Some(result),
        _ => None,
    }
}

#[test]
fn data_outside_the_region_is_refused() {
    let outside = |offset, bytes| UserError::Outside { offset, bytes, size: 32 + 100 };
    let cases: [(&[u64], UserError); 8] = [
        (&[1, 0], outside(0, 0)),
        (&[1, 31], outside(31, 0)),
        (&[1, 132], outside(132, 0)),
        (&[1, u64::MAX], outside(u64::MAX, 0)),
        (&[1, 32, 101], outside(32, 101)),
        (&[1, 131, 2], outside(131, 2)),
        (&[1, 33, u64::MAX], outside(33, u64::MAX)),
        (&[1, 33, u64::MAX - 32], outside(33, u64::MAX - 32)),
    ];
    for (values, error) in cases {
        let mut user = user(Version::V1, 100);
        user.save();
        assert_eq!(answers(&mut user, values), Some(Err(error)), "{values:?}");
    }
}

#[test]
fn data_that_moves_while_it_is_read_is_refused() {
    let mut user = user(Version::V1, 100);
    user.save();
    let error = UserError::Moved { first: 32, second: 40 };
    assert_eq!(answers(&mut user, &[10, 32, 8, 40]), Some(Err(error)));
}

#[test]
fn mapped_data_off_a_page_is_refused() {
    let region = Layout::mapped(Version::V1, 0x2000).unwrap().region();
    let mut user = stopped(User::new(View::new(Version::V1, &region).unwrap()));
    user.save();
    assert_eq!(answers(&mut user, &[10, 0x1008]), Some(Err(UserError::Unaligned(0x1008))));
    // The draft says "should": what is not at a page can be read all the same.
    let region = Layout::mapped(Version::Draft, 0x2000).unwrap().region();
    let mut user = stopped(User::new(View::new(Version::Draft, &region).unwrap()));
    user.save();
    assert_eq!(answers(&mut user, &[10, 0x1008, 4]), None);
    assert_eq!(user.next_access(), Next::Read { offset: 0x1008, length: 4, way: Way::Mapped });
}

#[test]
fn more_than_the_user_takes_is_refused_before_it_is_read() {
    let mut user = user(Version::V1, 1 << 30).with_limit(1000);
    user.save();
    let error = UserError::TooLarge { bytes: 1001, most: 1000 };
    assert_eq!(answers(&mut user, &[2000, 32, 1001]), Some(Err(error)));
}

#[test]
fn a_stopped_device_that_has_data_and_gives_none_is_refused() {
    let mut user = user(Version::V1, 100);
    user.save();
    assert_eq!(answers(&mut user, &[10, 32, 0, 32]), Some(Err(UserError::Stalled(10))));
}

#[test]
fn a_running_device_may_have_data_and_give_none() {
    let mut rig = Rig::v1(64, Device::new(MigrationFlags::all()));
    let mut user = rig.user();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
    user.save();
    assert_eq!(answers(&mut user, &[10, 32, 0, 32]), Some(Ok(Outcome::Saved(None))));
}

#[test]
fn an_empty_buffer_left_in_pre_copy_is_not_the_end_in_stop_and_copy() {
    let mut rig = Rig::v1(100, Device::new(MigrationFlags::all()));
    let mut user = rig.user();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
    user.save();
    assert_eq!(answers(&mut user, &[10, 32]), None);
    rig.phase(&mut user, Phase::StopAndCopy).unwrap();
    user.save();
    assert_eq!(answers(&mut user, &[32, 0, 32]), None);
    let pending = Next::Read { offset: PENDING_BYTES, length: 8, way: Way::Trapped };
    assert_eq!(user.next_access(), pending, "there may be more");
}

#[test]
fn a_register_that_is_no_state_is_refused() {
    for (version, register) in
        [(Version::V1, 0b101), (Version::V1, 0b111), (Version::Draft, 0b101), (Version::Draft, 0b110)]
    {
        let mut user = user(version, 100);
        user.get_phase();
        answer(&mut user, &u32::to_ne_bytes(register));
        assert_eq!(user.next_access(), Next::Finished(Err(UserError::State(register))), "{register:03b}");
    }
}

#[test]
fn a_device_that_does_not_tell_its_state_after_a_failure_is_unknown() {
    let mut user = user(Version::V1, 100);
    user.set_phase(Phase::Running);
    answer(&mut user, &SAVING.to_ne_bytes());
    user.next_access();
    user.write_done(Err(Errno::EBUSY));
    user.next_access();
    user.read_done(Err(Errno::ENODEV));
    let error = UserError::Unknown { to: Phase::Running, errno: Errno::EBUSY, reading: Errno::ENODEV };
    assert_eq!(user.next_access(), Next::Finished(Err(error)));
    assert_eq!(user.phase(), None);
}

#[test]
fn a_bitmap_for_more_pages_than_were_asked_about_is_refused() {
    let mut user = user(Version::Draft, 100);
    user.dirty(DirtyPages { start_pfn: 0, page_size: 4096, total_pfns: 100 });
    for _ in 0..3 {
        assert!(matches!(user.next_access(), Next::Write { .. }));
        user.write_done(Ok(()));
    }
    let error = UserError::Copied { copied: 101, total: 100 };
    assert_eq!(answers(&mut user, &[101]), Some(Err(error)));
}

#[test]
fn an_answer_of_another_length_is_refused() {
    let mut user = user(Version::V1, 100);
    user.save();
    user.next_access();
    user.read_done(Ok(&[0; 4]));
    let error = UserError::Answer { asked: 8, got: 4 };
    assert_eq!(user.next_access(), Next::Finished(Err(error)));
}

proptest! {
    /// Whatever the device answers, every access lies within the region, is a whole field or bytes of the
    /// section, and a request comes to an end.
    #[test]
    fn no_answer_leads_an_access_out_of_the_region(
        draft in any::<bool>(),
        mapped in any::<bool>(),
        requests in proptest::collection::vec(0u8..7, 1..6),
        answers in proptest::collection::vec(
            proptest::option::weighted(0.8, prop_oneof![0u64..80, 0u64..0x4000, any::<u64>()]),
            1..60,
        ),
    ) {
        let version = if draft { Version::Draft } else { Version::V1 };
        let areas = if mapped { vec![MmapArea::new(0x1000, 0x1000)] } else { Vec::new() };
        let layout = Layout::new(version, 0x1000, 0x2345, areas).unwrap();
        let view = View::new(version, &layout.region()).unwrap();
        let header = if draft { 64 } else { 32 };
        let mut user = User::new(view).with_limit(0x1000);
        let mut next = answers.iter().cycle();
        for request in requests {
            match request {
                0 => user.set_phase(Phase::PreCopy),
                1 => user.set_phase(Phase::StopAndCopy),
                2 => user.set_phase(Phase::Resuming),
                3 => user.pending(),
                4 => user.save(),
                5 => user.load(vec![7; 300]),
                _ => user.dirty(DirtyPages { start_pfn: 1, page_size: 4096, total_pfns: 5000 }),
            }
            for round in 0..100_000 {
                let check = |offset: u64, length: usize| {
                    let end = offset + length as u64;
                    let whole = length == 8 || offset < 8 && length == 4;
                    let field = offset < header && end <= header && whole;
                    let section = offset >= header && end <= layout.size();
                    prop_assert!(length > 0 && (field || section), "{:#x} {}", offset, length);
                    Ok(())
                };
                match user.next_access() {
                    Next::Read { offset, length, .. } => {
                        check(offset, length)?;
                        let answer = next.next().unwrap();
                        let bytes: Vec<u8> =
                            answer.unwrap_or(0).to_ne_bytes().into_iter().cycle().take(length).collect();
                        user.read_done(answer.map(|_| bytes.as_slice()).ok_or(Errno::EIO));
                    }
                    Next::Write { offset, data, .. } => {
                        check(offset, data.len())?;
                        let answer = next.next().unwrap();
                        user.write_done(answer.map(|_| ()).ok_or(Errno::EIO));
                    }
                    Next::Finished(result) => {
                        if let Ok(Outcome::Saved(Some(data))) = result {
                            prop_assert!(!data.is_empty() && data.len() <= 0x1000);
                        }
                        break;
                    }
                    Next::Idle => prop_assert!(false, "the request has vanished"),
                }
                prop_assert!(round < 99_999, "the request does not end");
            }
        }
    }
}
