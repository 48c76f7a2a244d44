//! v1's text, sentence by sentence, against the two halves.
//!
//! The text (`include/uapi/linux/vfio.h`, 5.8 to 5.17), and the tests of each sentence:
//!
//! - field accesses are only supported at their native width and alignment; otherwise drivers should
//!   return an error: `a_field_is_accessed_whole_or_the_access_fails`
//! - after a successful transition the driver should return success; if it fails, an appropriate -errno:
//!   `a_change_that_fails_answers_the_devices_errno`
//! - if write(device_state) returns an error, read device_state again:
//!   `the_user_reads_the_state_again_after_a_write_that_failed`
//! - the driver should return the previous state, unless it has encountered an internal error, then it
//!   may report ERROR: `after_a_failure_the_state_is_the_one_before`,
//!   `after_an_internal_error_the_state_is_error`, `a_device_that_cannot_go_back_is_in_error`
//! - the user must use the device reset ioctl to recover from ERROR: `only_a_reset_leads_out_of_error`,
//!   `the_user_asks_nothing_but_a_reset_of_a_device_in_error`
//! - if the state is valid the user may attempt any valid state reachable from it:
//!   `after_a_failure_another_state_can_be_tried`
//! - on _STOP the driver should stop the device before write() returns:
//!   `the_device_has_stopped_when_the_write_returns`
//! - bits 3 - 31 are reserved; to preserve them, the user should read, modify and write:
//!   `reserved_bits_of_a_write_are_ignored`, `the_user_preserves_reserved_bits`
//! - 101b, 111b: invalid state; 110b: error state:
//!   `invalid_states_and_the_error_state_cannot_be_asked_for`
//! - the default state is _RUNNING: `a_device_is_running_when_it_is_opened`
//! - RUNNING to STOP: the driver must support this transition but must not require it:
//!   `stop_is_supported_and_never_required`
//! - RUNNING to stop-and-copy: the driver must stop the device, save its state and send it through the
//!   region: `from_running_to_stop_and_copy_the_device_stops_and_all_its_state_comes`
//! - RUNNING to pre-copy: the driver should gather the state while the device runs:
//!   `in_pre_copy_state_comes_while_the_device_runs`
//! - pre-copy to stop-and-copy: the driver must stop the device, save its state and send it:
//!   `from_pre_copy_to_stop_and_copy_the_device_stops_and_the_rest_comes`
//! - drivers must support pre-copy even where no data is provided before stop-and-copy:
//!   `a_device_without_pre_copy_offers_it_all_the_same`
//! - the user must not be required to consume all data before a transition:
//!   `no_data_need_be_taken_before_a_transition`
//! - RUNNING to RESUMING; the data received should be used; then RESUMING to RUNNING:
//!   `a_state_is_loaded_in_resuming_and_runs_in_running`
//! - reserved: reads return zero and writes are ignored:
//!   `the_reserved_field_reads_zero_and_ignores_writes`
//! - pending_bytes, data_offset: read only: `read_only_fields_refuse_writes`
//! - data_size is read in _SAVING and written in _RESUMING: `data_size_is_written_in_resuming_only`
//! - data_offset will always be nonzero: `data_offset_is_never_zero`
//! - if mmapped, data_offset must be page aligned: `mapped_data_begins_at_a_page` (and
//!   `hostile::mapped_data_off_a_page_is_refused`)
//! - the user is not required to access through mmap: `a_mapped_section_can_be_trapped`
//! - repeated read on pending_bytes at this stage should have no side effects:
//!   `pending_bytes_can_be_read_again`
//! - if pending_bytes == 0 the user should not iterate: `the_user_reads_nothing_when_nothing_is_pending`
//! - data_offset returns only after data is available from data_offset to data_offset + data_size:
//!   `data_is_in_place_when_data_offset_returns`
//! - data_offset and data_size return the same when read more than once:
//!   `data_offset_and_data_size_read_the_same_twice`
//! - reading pending_bytes indicates that the data from the previous iteration has been read:
//!   `reading_pending_bytes_acknowledges_the_buffer`
//! - the user can go from pre-copy to stop-and-copy regardless of pending bytes:
//!   `a_buffer_that_is_shown_survives_the_switch_to_stop_and_copy`
//! - the user should iterate in stop-and-copy until pending_bytes is 0:
//!   `pending_bytes_is_zero_only_when_all_was_taken`
//! - the driver must return the write of data_size on consuming the data, and should apply it:
//!   `a_transaction_is_with_the_device_when_the_write_returns`
//! - an error during the sequences: an error code for the next read or write, which terminates the loop:
//!   `an_error_of_the_device_ends_the_loop_with_its_errno`,
//!   `a_transaction_that_failed_ends_the_loop_for_good`,
//!   `a_lost_session_ends_the_loop_and_is_not_begun_again`
//! - data should be written in the same order and of the same transaction size:
//!   `transactions_arrive_in_order_and_of_their_size`, `the_user_refuses_a_transaction_that_does_not_fit`

use whimbrel_protocol::arc::ArcError;
use whimbrel_protocol::region::{
    Layout, Outcome, Phase, TEXT_TRANSITIONS, UserError, Version, View, drive, v1,
};
use whimbrel_protocol::{Errno, MigrationFlags, State};

use super::support::*;

const FLAGS: [u64; 4] = [1, 3, 5, 7];

fn rig(flags: u64) -> Rig {
    Rig::v1(64, Device::new(MigrationFlags::from_bits_retain(flags)))
}

#[test]
fn a_field_is_accessed_whole_or_the_access_fails() {
    for register in [RUNNING, SAVING, PRE_COPY, RESUMING] {
        for offset in 0..32 {
            for length in 0..=16 {
                let whole =
                    if offset < 8 { offset % 4 == 0 && length == 4 } else { offset % 8 == 0 && length == 8 };
                let mut rig = rig(7);
                rig.set_state(register).unwrap();
                let read = rig.read(offset, length);
                let written = rig.vendor.write(&mut rig.device, offset, &vec![0; length]);
                if whole {
                    read.unwrap_or_else(|errno| panic!("{register} {offset} {length}: {errno}"));
                } else {
                    assert_eq!(read, Err(Errno::EINVAL), "read {register} {offset} {length}");
                    assert_eq!(written, Err(Errno::EINVAL), "write {register} {offset} {length}");
                    assert_eq!(rig.state(), Ok(register), "nothing has changed");
                }
            }
        }
    }
}

#[test]
fn a_change_that_fails_answers_the_devices_errno() {
    let mut rig = rig(7);
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Stays(Errno::ENOSPC)));
    assert_eq!(rig.set_state(PRE_COPY), Err(Errno::ENOSPC));
    rig.device.fail_arc = None;
    assert_eq!(rig.set_state(PRE_COPY), Ok(()));
}

#[test]
fn the_user_reads_the_state_again_after_a_write_that_failed() {
    let mut rig = rig(7);
    let mut user = rig.user();
    rig.device.fail_arc = Some((State::RunningP2p, State::Stop, ArcError::Stays(Errno::ENOSPC)));
    let error = rig.phase(&mut user, Phase::StopAndCopy).unwrap_err();
    let now = Some(Phase::Running);
    assert_eq!(error, UserError::Refused { to: Phase::StopAndCopy, errno: Errno::ENOSPC, now });
    let made: Vec<&Made> = rig.made.iter().collect();
    assert!(matches!(made[..], [Made::Read(0, 4), Made::Write(0, _), Made::Read(0, 4)]), "{made:?}");
    assert_eq!(user.phase(), now);
}

/// Every change on every device, with each of its arcs failing.
#[test]
fn after_a_failure_the_state_is_the_one_before() {
    for flags in FLAGS {
        for (from, to) in TEXT_TRANSITIONS {
            let mut whole = rig(flags);
            let bits = |phase| v1::DeviceState::Valid(phase).to_register(0);
            whole.set_state(bits(from)).unwrap();
            let before = whole.device.arcs.len();
            whole.set_state(bits(to)).unwrap();
            for (at, towards) in whole.device.arcs[before..].iter().copied() {
                let mut rig = rig(flags);
                rig.set_state(bits(from)).unwrap();
                rig.device.fail_arc = Some((at, towards, ArcError::Stays(Errno::EAGAIN)));
                assert_eq!(rig.set_state(bits(to)), Err(Errno::EAGAIN));
                let told = rig.state().unwrap();
                assert_eq!(told, bits(from), "{flags} {from} -> {to}, failing {at} -> {towards}");
                let runs = rig.device.state.is_running();
                assert_eq!(runs, from.is_running(), "the device does what its state says");
                assert!(rig.device.tracking == from.is_saving(), "the log is on while SAVING is set");
            }
        }
    }
}

#[test]
fn after_an_internal_error_the_state_is_error() {
    let mut rig = rig(7);
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Broken(Errno::EIO)));
    assert_eq!(rig.set_state(PRE_COPY), Err(Errno::EIO));
    assert_eq!(rig.state(), Ok(ERROR));
}

#[test]
fn a_device_that_cannot_go_back_is_in_error() {
    // RUNNING -> RUNNING_P2P works, the next arc fails, and so does the way back: the same device, asked by
    // hand.
    struct Stuck(Device);
    impl whimbrel_protocol::region::Backend for Stuck {
        fn arc(&mut self, from: State, to: State) -> Result<(), ArcError> {
            if from == State::RunningP2p {
                return Err(ArcError::Stays(Errno::EBUSY));
            }
            self.0.arc(from, to)
        }
        fn save(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
            self.0.save(buffer)
        }
        fn load(&mut self, transaction: &[u8]) -> Result<(), Errno> {
            self.0.load(transaction)
        }
        fn remaining(&mut self) -> Result<u64, Errno> {
            self.0.remaining()
        }
    }
    let mut device = Stuck(Device::new(MigrationFlags::all()));
    let layout = Layout::trapped(Version::V1, 64).unwrap();
    let mut vendor =
        whimbrel_protocol::region::Vendor::new(layout, MigrationFlags::all(), vec![0; 96]).unwrap();
    assert_eq!(vendor.write(&mut device, DEVICE_STATE, &STOP.to_ne_bytes()), Err(Errno::EBUSY));
    let mut state = [0; 4];
    vendor.read(&mut device, DEVICE_STATE, &mut state).unwrap();
    assert_eq!(u32::from_ne_bytes(state), ERROR);
}

#[test]
fn only_a_reset_leads_out_of_error() {
    let mut rig = rig(7);
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Broken(Errno::EIO)));
    rig.set_state(PRE_COPY).unwrap_err();
    for register in 0..8 {
        assert_eq!(rig.set_state(register), Err(Errno::EIO), "{register:03b}");
    }
    for field in [PENDING_BYTES, DATA_OFFSET, DATA_SIZE] {
        assert_eq!(rig.field(field), Err(Errno::EIO), "{field}");
    }
    assert_eq!(rig.read(32, 8), Err(Errno::EIO));
    assert_eq!(rig.state(), Ok(ERROR));
    rig.device.reset();
    rig.vendor.reset();
    assert_eq!(rig.state(), Ok(RUNNING));
    assert_eq!(rig.set_state(PRE_COPY), Ok(()));
}

#[test]
fn the_user_asks_nothing_but_a_reset_of_a_device_in_error() {
    let mut rig = rig(7);
    let mut user = rig.user();
    rig.device.fail_arc = Some((State::Running, State::PreCopy, ArcError::Broken(Errno::ENXIO)));
    let error = rig.phase(&mut user, Phase::PreCopy).unwrap_err();
    assert_eq!(error, UserError::NeedsReset { errno: Some(Errno::ENXIO) });
    rig.made.clear();
    let error = rig.phase(&mut user, Phase::Running).unwrap_err();
    assert_eq!(error, UserError::NeedsReset { errno: None });
    assert_eq!(rig.made, [Made::Read(0, 4)], "it writes nothing");
    rig.device.reset();
    rig.vendor.reset();
    user.reset();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
}

#[test]
fn after_a_failure_another_state_can_be_tried() {
    let mut rig = rig(7);
    rig.set_state(PRE_COPY).unwrap();
    rig.device.fail_arc = Some((State::PreCopyP2p, State::StopCopy, ArcError::Stays(Errno::EBUSY)));
    assert_eq!(rig.set_state(SAVING), Err(Errno::EBUSY));
    assert_eq!(rig.set_state(RUNNING), Ok(()));
    assert_eq!(rig.device.state, State::Running);
}

#[test]
fn the_device_has_stopped_when_the_write_returns() {
    for flags in FLAGS {
        for register in [STOP, SAVING, RESUMING] {
            let mut rig = rig(flags);
            rig.set_state(register).unwrap();
            assert!(!rig.device.state.is_running(), "{flags} {register}");
        }
    }
}

#[test]
fn reserved_bits_of_a_write_are_ignored() {
    let mut rig = rig(7);
    rig.set_state(0xffff_fff8 | PRE_COPY).unwrap();
    assert_eq!(rig.state(), Ok(PRE_COPY));
}

#[test]
fn the_user_preserves_reserved_bits() {
    let layout = Layout::trapped(Version::V1, 64).unwrap();
    let mut user = whimbrel_protocol::region::User::new(View::new(Version::V1, &layout.region()).unwrap());
    user.set_phase(Phase::StopAndCopy);
    user.next_access();
    user.read_done(Ok(&0xabcd_ef01_u32.to_ne_bytes()));
    let whimbrel_protocol::region::Next::Write { data, .. } = user.next_access() else { panic!("no write") };
    assert_eq!(data, 0xabcd_ef02_u32.to_ne_bytes());
}

#[test]
fn invalid_states_and_the_error_state_cannot_be_asked_for() {
    for register in [0b101, 0b110, 0b111, 0xff0d, 0xff0e, 0xff0f] {
        let mut rig = rig(7);
        assert_eq!(rig.set_state(register), Err(Errno::EINVAL), "{register:#x}");
        assert_eq!(rig.state(), Ok(RUNNING), "nothing has changed");
        assert_eq!(rig.device.arcs, []);
    }
}

#[test]
fn a_device_is_running_when_it_is_opened() {
    assert_eq!(rig(1).state(), Ok(RUNNING));
}

#[test]
fn stop_is_supported_and_never_required() {
    for flags in FLAGS {
        let mut supported = rig(flags);
        assert_eq!(supported.set_state(STOP), Ok(()));
        assert_eq!(supported.device.state, State::Stop);
        // Not required: of all changes that the text draws, none needs a write of STOP before it.
        for (from, to) in TEXT_TRANSITIONS {
            let mut rig = rig(flags);
            rig.set_state(v1::DeviceState::Valid(from).to_register(0)).unwrap();
            assert_eq!(rig.set_state(v1::DeviceState::Valid(to).to_register(0)), Ok(()), "{from} -> {to}");
        }
    }
}

#[test]
fn from_running_to_stop_and_copy_the_device_stops_and_all_its_state_comes() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.device.state, State::StopCopy);
    assert_eq!(rig.take_all(), [b"early".to_vec(), b"late".to_vec()]);
    rig.set_state(STOP).unwrap();
    assert_eq!(rig.device.state, State::Stop);
}

#[test]
fn in_pre_copy_state_comes_while_the_device_runs() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    rig.set_state(PRE_COPY).unwrap();
    assert!(rig.device.state.is_running());
    assert_eq!(rig.take_all(), [b"early"]);
}

#[test]
fn from_pre_copy_to_stop_and_copy_the_device_stops_and_the_rest_comes() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    rig.set_state(PRE_COPY).unwrap();
    rig.take_all();
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.device.state, State::StopCopy);
    assert_eq!(rig.take_all(), [b"late"]);
}

#[test]
fn a_device_without_pre_copy_offers_it_all_the_same() {
    for flags in [1, 3] {
        let mut device = Device::with_data(&[], &[b"late"]);
        device.flags = MigrationFlags::from_bits_retain(flags);
        let mut rig = Rig::v1(64, device);
        rig.set_state(PRE_COPY).unwrap();
        assert_eq!(rig.state(), Ok(PRE_COPY));
        assert_eq!(rig.device.state, State::Running);
        assert_eq!(rig.field(PENDING_BYTES), Ok(0));
        assert_eq!(rig.field(DATA_OFFSET), Ok(32));
        assert_eq!(rig.field(DATA_SIZE), Ok(0));
        rig.set_state(SAVING).unwrap();
        assert_eq!(rig.take_all(), [b"late"]);
    }
}

#[test]
fn no_data_need_be_taken_before_a_transition() {
    // However far the loop has gone, every state the text leads to can be asked for.
    for reads in 0..5 {
        for (register, state) in [(SAVING, State::StopCopy), (RUNNING, State::Running), (STOP, State::Stop)] {
            let mut rig = Rig::v1(64, Device::with_data(&[b"one", b"two"], &[b"three"]));
            rig.set_state(PRE_COPY).unwrap();
            for field in [PENDING_BYTES, DATA_OFFSET, DATA_SIZE, PENDING_BYTES].into_iter().take(reads) {
                rig.field(field).unwrap();
            }
            assert_eq!(rig.set_state(register), Ok(()), "{reads} {register}");
            assert_eq!(rig.device.state, state);
        }
    }
}

#[test]
fn a_state_is_loaded_in_resuming_and_runs_in_running() {
    for flags in FLAGS {
        let mut rig = rig(flags);
        rig.set_state(RESUMING).unwrap();
        assert_eq!(rig.device.state, State::Resuming);
        rig.give(b"state").unwrap();
        rig.set_state(RUNNING).unwrap();
        assert_eq!(rig.device.loaded, [b"state"]);
        assert_eq!(rig.device.state, State::Running);
    }
}

#[test]
fn the_reserved_field_reads_zero_and_ignores_writes() {
    let mut rig = rig(7);
    rig.vendor.write(&mut rig.device, RESERVED, &[0xff; 4]).unwrap();
    assert_eq!(rig.read(RESERVED, 4), Ok(vec![0; 4]));
}

#[test]
fn read_only_fields_refuse_writes() {
    for register in [STOP, RUNNING, SAVING, PRE_COPY, RESUMING] {
        let mut rig = rig(7);
        rig.set_state(register).unwrap();
        for field in [PENDING_BYTES, DATA_OFFSET] {
            assert_eq!(rig.set_field(field, 1), Err(Errno::EINVAL), "{register} {field}");
        }
    }
}

#[test]
fn data_size_is_written_in_resuming_only() {
    for register in [STOP, RUNNING, SAVING, PRE_COPY] {
        let mut rig = rig(7);
        rig.set_state(register).unwrap();
        assert_eq!(rig.set_field(DATA_SIZE, 1), Err(Errno::EINVAL), "{register}");
        assert_eq!(rig.vendor.write(&mut rig.device, 32, &[1]), Err(Errno::EINVAL), "{register}");
    }
    let mut rig = rig(7);
    rig.set_state(RESUMING).unwrap();
    assert_eq!(rig.set_field(DATA_SIZE, 64), Ok(()));
    assert_eq!(rig.set_field(DATA_SIZE, 65), Err(Errno::EINVAL), "more than the section holds");
    assert_eq!(rig.set_field(DATA_SIZE, u64::MAX), Err(Errno::EINVAL));
}

#[test]
fn data_offset_is_never_zero() {
    for register in [STOP, RUNNING, SAVING, PRE_COPY, RESUMING] {
        let mut rig = rig(7);
        rig.set_state(register).unwrap();
        assert_eq!(rig.field(DATA_OFFSET), Ok(32), "{register}");
    }
}

#[test]
fn mapped_data_begins_at_a_page() {
    let layouts = [
        Layout::mapped(Version::V1, 0x2000).unwrap(),
        Layout::partly_mapped(Version::V1, 0x2000, 17).unwrap(),
    ];
    for layout in layouts {
        let mut rig = Rig::new(layout, Device::with_data(&[], &[b"data"]));
        rig.set_state(SAVING).unwrap();
        assert_eq!(rig.field(DATA_OFFSET).unwrap() % 4096, 0);
    }
}

#[test]
fn a_mapped_section_can_be_trapped() {
    let layout = Layout::mapped(Version::V1, 0x1000).unwrap();
    let mut rig = Rig::new(layout, Device::with_data(&[], &[b"data"]));
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.take_all(), [b"data"]);
    rig.set_state(RESUMING).unwrap();
    rig.give(b"other").unwrap();
    assert_eq!(rig.device.loaded, [b"other"]);
}

#[test]
fn pending_bytes_can_be_read_again() {
    let mut rig = Rig::v1(64, Device::with_data(&[], &[b"one", b"two"]));
    rig.set_state(SAVING).unwrap();
    for _ in 0..3 {
        assert_eq!(rig.field(PENDING_BYTES), Ok(6));
    }
    assert_eq!(rig.take_all(), [b"one", b"two"]);
}

#[test]
fn the_user_reads_nothing_when_nothing_is_pending() {
    let mut rig = rig(7);
    let mut user = rig.user();
    rig.phase(&mut user, Phase::PreCopy).unwrap();
    rig.made.clear();
    user.save();
    assert_eq!(drive(&mut user, &mut rig), Ok(Outcome::Saved(None)));
    assert_eq!(rig.made, [Made::Read(PENDING_BYTES, 8)]);
}

#[test]
fn data_is_in_place_when_data_offset_returns() {
    let mut rig = Rig::v1(64, Device::with_data(&[], &[b"data"]));
    rig.set_state(SAVING).unwrap();
    rig.field(PENDING_BYTES).unwrap();
    assert_eq!(rig.read(32, 4), Err(Errno::EINVAL), "nothing is shown yet");
    let offset = rig.field(DATA_OFFSET).unwrap();
    assert_eq!(rig.read(offset, 4).unwrap(), b"data");
    assert_eq!(rig.read(offset, 5), Err(Errno::EINVAL), "the buffer has four bytes");
    assert_eq!(rig.read(offset + 4, 1), Err(Errno::EINVAL));
}

#[test]
fn data_offset_and_data_size_read_the_same_twice() {
    let mut rig = Rig::v1(64, Device::with_data(&[], &[b"one", b"longer"]));
    rig.set_state(SAVING).unwrap();
    rig.field(PENDING_BYTES).unwrap();
    for _ in 0..3 {
        assert_eq!(rig.field(DATA_OFFSET), Ok(32));
        assert_eq!(rig.field(DATA_SIZE), Ok(3));
        assert_eq!(rig.read(32, 3).unwrap(), b"one");
    }
}

#[test]
fn reading_pending_bytes_acknowledges_the_buffer() {
    let mut rig = Rig::v1(64, Device::with_data(&[], &[b"one", b"two"]));
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.take().unwrap().unwrap(), b"one");
    assert_eq!(rig.field(PENDING_BYTES), Ok(3));
    assert_eq!(rig.field(DATA_SIZE), Ok(0), "the buffer is gone");
    assert_eq!(rig.read(32, 3), Err(Errno::EINVAL));
    rig.field(DATA_OFFSET).unwrap();
    assert_eq!(rig.read(32, 3).unwrap(), b"two");
}

#[test]
fn a_buffer_that_is_shown_survives_the_switch_to_stop_and_copy() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    rig.set_state(PRE_COPY).unwrap();
    rig.field(PENDING_BYTES).unwrap();
    rig.field(DATA_OFFSET).unwrap();
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.field(DATA_SIZE), Ok(5));
    assert_eq!(rig.read(32, 5).unwrap(), b"early");
    assert_eq!(rig.take_all(), [b"late"]);
}

#[test]
fn pending_bytes_is_zero_only_when_all_was_taken() {
    // Whatever the device estimates.
    for estimate in [0, 1, u64::MAX] {
        let mut device = Device::with_data(&[b"one"], &[b"two", b"three"]);
        device.estimate = Some(estimate);
        let mut rig = Rig::v1(2, device);
        rig.set_state(SAVING).unwrap();
        let all = rig.device.all_data();
        assert_eq!(rig.take_all().concat(), all, "{estimate}");
        assert_eq!(rig.field(PENDING_BYTES), Ok(0));
    }
}

#[test]
fn a_transaction_is_with_the_device_when_the_write_returns() {
    let mut rig = rig(7);
    rig.set_state(RESUMING).unwrap();
    let offset = rig.field(DATA_OFFSET).unwrap();
    rig.vendor.write(&mut rig.device, offset, b"data").unwrap();
    assert!(rig.device.loaded.is_empty(), "data_size hands it over");
    rig.set_field(DATA_SIZE, 4).unwrap();
    assert_eq!(rig.device.loaded, [b"data"]);
}

#[test]
fn an_error_of_the_device_ends_the_loop_with_its_errno() {
    let mut rig = Rig::v1(64, Device::with_data(&[], &[b"data"]));
    rig.set_state(SAVING).unwrap();
    rig.device.fail_save = Some(Errno::EREMOTEIO);
    assert_eq!(rig.take(), Err(Errno::EREMOTEIO));
    // An error takes nothing out of the stream.
    assert_eq!(rig.take_all(), [b"data"]);
}

#[test]
fn a_transaction_that_failed_ends_the_loop_for_good() {
    let mut rig = rig(7);
    rig.set_state(RESUMING).unwrap();
    rig.device.fail_load = Some(Errno::ENOMEM);
    assert_eq!(rig.give(b"one"), Err(Errno::ENOMEM));
    assert_eq!(rig.give(b"two"), Err(Errno::ENOMEM), "it would come behind a hole");
    assert_eq!(rig.set_field(DATA_SIZE, 3), Err(Errno::ENOMEM));
    assert_eq!(rig.set_state(RUNNING), Err(Errno::ENOMEM), "half a state does not run");
    assert_eq!(rig.set_state(RESUMING), Ok(()), "it is there already");
    assert_eq!(rig.state(), Ok(RESUMING));
    assert_eq!(rig.device.loaded, Vec::<Vec<u8>>::new());
    rig.device.reset();
    rig.vendor.reset();
    assert_eq!(rig.set_state(RESUMING), Ok(()));
    assert_eq!(rig.give(b"two"), Ok(()));
}

#[test]
fn a_lost_session_ends_the_loop_and_is_not_begun_again() {
    let mut rig = Rig::v1(64, Device::with_data(&[b"early"], &[b"late"]));
    rig.set_state(PRE_COPY).unwrap();
    assert_eq!(rig.take().unwrap().unwrap(), b"early");
    // On its way to STOP the device leaves PRE_COPY, and then does not stop.
    rig.device.fail_arc = Some((State::RunningP2p, State::Stop, ArcError::Stays(Errno::EBUSY)));
    assert_eq!(rig.set_state(STOP), Err(Errno::EBUSY));
    assert_eq!(rig.state(), Ok(PRE_COPY));
    assert_eq!(rig.device.state, State::Running, "no second session has begun");
    assert_eq!(rig.take(), Err(Errno::EIO));
    rig.device.fail_arc = None;
    rig.set_state(SAVING).unwrap();
    assert_eq!(rig.take(), Err(Errno::EIO), "its data would begin anew");
    rig.set_state(RUNNING).unwrap();
    rig.set_state(PRE_COPY).unwrap();
    assert_eq!(rig.take().unwrap().unwrap(), b"early");
}

#[test]
fn a_resumed_device_that_did_not_start_can_be_started_again() {
    let mut rig = rig(7);
    rig.set_state(RESUMING).unwrap();
    rig.give(b"state").unwrap();
    rig.device.fail_arc = Some((State::Stop, State::RunningP2p, ArcError::Stays(Errno::EBUSY)));
    assert_eq!(rig.set_state(RUNNING), Err(Errno::EBUSY));
    assert_eq!(rig.state(), Ok(RESUMING));
    assert_eq!(rig.set_state(RESUMING), Ok(()), "it is there already, and nothing happens");
    assert_eq!(rig.give(b"more"), Err(Errno::EIO), "the device has closed its state");
    rig.device.fail_arc = None;
    assert_eq!(rig.set_state(RUNNING), Ok(()));
    assert_eq!(rig.device.loaded, [b"state"]);
}

#[test]
fn transactions_arrive_in_order_and_of_their_size() {
    let mut source = Rig::v1(16, Device::with_data(&[b"one", b"four"], &[b"sixteen bytes ok", b"x"]));
    let mut from = source.user();
    let mut destination = Rig::v1(16, Device::new(MigrationFlags::all()));
    let mut to = destination.user();
    source.phase(&mut from, Phase::StopAndCopy).unwrap();
    destination.phase(&mut to, Phase::Resuming).unwrap();
    loop {
        from.save();
        let Outcome::Saved(transaction) = drive(&mut from, &mut source).unwrap() else { panic!("no data") };
        let Some(transaction) = transaction else { break };
        to.load(transaction);
        drive(&mut to, &mut destination).unwrap();
    }
    assert_eq!(destination.device.loaded, [&b"one"[..], b"four", b"sixteen bytes ok", b"x"]);
}

#[test]
fn the_user_refuses_a_transaction_that_does_not_fit() {
    let mut rig = rig(7);
    let mut user = rig.user();
    rig.phase(&mut user, Phase::Resuming).unwrap();
    user.load(vec![7; 65]);
    let error = drive(&mut user, &mut rig).unwrap_err();
    assert_eq!(error, UserError::NoRoom { bytes: 65, room: 64 });
    assert!(rig.device.loaded.is_empty());
    let mut splitting = rig.user().with_splitting();
    splitting.load(vec![7; 65]);
    drive(&mut splitting, &mut rig).unwrap();
    assert_eq!(rig.device.loaded, [vec![7; 64], vec![7]]);
}
