//! What is agreed on beyond the text for migration, part by part, over the socket of the commands.

use whimbrel_device::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::BackendOptions;
use whimbrel_vfio_user::message::Request;
use whimbrel_vfio_user::{Backend, MigrationExtensions};

use super::source::*;

const NONE: MigrationExtensions = MigrationExtensions::NONE;
const ALL: MigrationFlags =
    MigrationFlags::STOP_COPY.union(MigrationFlags::P2P).union(MigrationFlags::PRE_COPY);

/// Each part alone.
const PARTS: [MigrationExtensions; 7] = [
    NONE.data_size(true),
    NONE.precopy_info(true),
    NONE.read_end(true),
    NONE.p2p(true),
    NONE.data_channel(true),
    NONE.device_features(true),
    NONE.compatibility(true),
];

#[test]
fn a_client_of_the_plain_protocol_gets_nothing_beyond_it() {
    let backend = backend();
    for extensions in [None, Some(NONE)] {
        let mut peer = client(&backend, extensions);
        let flags = get(&mut peer, Feature::Migration).unwrap();
        assert_eq!(flags, (MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY).bits());
        for index in 0..100 {
            for flags in [FeatureFlags::GET, FeatureFlags::SET, FeatureFlags::PROBE] {
                let is_of_the_text = matches!(index, 1 | 2 | 6..=8);
                if !is_of_the_text {
                    let got = feature(&mut peer, index, flags, &[]).err();
                    assert_eq!(got, Some(Errno::ENOTTY), "{index} {flags:?}");
                }
            }
        }
        for state in [State::RunningP2p, State::PreCopyP2p] {
            assert_eq!(set(&mut peer, state).err(), Some(Errno::EINVAL), "{state}");
        }
        assert_eq!(state(&mut peer), State::Running.number());
        for length in [0, 23, 24] {
            assert_eq!(peer.ask_raw(1, 0x3b79, &vec![0; length]), Err(Errno::ENOTTY), "{length} bytes");
        }
        produce(&mut peer, PRODUCE, 10);
        let (data_fd, fds) = set(&mut peer, State::PreCopy).unwrap();
        assert_eq!((data_fd, fds.len()), (77, 0), "the reply is the request");
        assert_eq!(read(&mut peer, 100).unwrap().len(), 10);
        assert_eq!(read(&mut peer, 100).unwrap().len(), 0, "the end for now is a short read");
        peer.ask(&Request::DeviceReset).unwrap();
        peer.leave().unwrap();
    }
}

#[test]
fn each_part_gives_what_is_its_own_and_nothing_else() {
    for extensions in PARTS {
        let backend = backend();
        let mut peer = client(&backend, Some(extensions));
        let is_there = |result: Option<Errno>| result != Some(Errno::ENOTTY);
        let flags = get(&mut peer, Feature::Migration).unwrap();
        let probe = FeatureFlags::PROBE;
        let data_size = get(&mut peer, Feature::MigDataSize).err();
        let info_v2 = feature(&mut peer, Feature::MigPrecopyInfoV2.number(), probe, &[]).err();
        let low_power =
            feature(&mut peer, Feature::LowPowerEntry.number(), FeatureFlags::SET | probe, &[]).err();
        let p2p = set(&mut peer, State::RunningP2p).is_ok();
        let (data_fd, fds) = set(&mut peer, State::PreCopy).unwrap();
        let info = precopy_info(&mut peer, 24, 0).err();
        let end = read(&mut peer, 8).err();
        assert_eq!(is_there(data_size), extensions.data_size, "{extensions:?}");
        assert_eq!(is_there(info_v2), extensions.precopy_info, "{extensions:?}");
        // The device has no low power, which only a feature that is known can say.
        assert_eq!(low_power, Some(Errno::ENOTTY), "{extensions:?}");
        assert_eq!(is_there(info), extensions.precopy_info, "{extensions:?}");
        assert_eq!(end, extensions.read_end.then_some(Errno::ENOMSG), "{extensions:?}");
        assert_eq!(p2p, extensions.p2p, "{extensions:?}");
        assert_eq!(flags & MigrationFlags::P2P.bits() != 0, extensions.p2p, "{extensions:?}");
        assert_eq!(
            (fds.len(), data_fd),
            if extensions.data_channel { (1, 0) } else { (0, 77) },
            "{extensions:?}"
        );
    }
}

#[test]
fn a_read_says_of_the_end_what_the_data_file_says() {
    let read_end = NONE.read_end(true);
    let mut peer = client(&backend(), Some(read_end));
    produce(&mut peer, PRODUCE, 3 * PIECE as u32);
    set(&mut peer, State::PreCopy).unwrap();
    assert_eq!(read(&mut peer, 50).unwrap().len(), 50);
    assert_eq!(read(&mut peer, 1000).unwrap().len(), 250, "fewer are no end");
    for _ in 0..3 {
        assert_eq!(read(&mut peer, 1000), Err(Errno::ENOMSG), "the end for now");
    }
    assert_eq!(read(&mut peer, 0).unwrap(), [0_u8; 0], "a read of nothing is no end");
    produce(&mut peer, PRODUCE, 5);
    assert_eq!(read(&mut peer, 1000).unwrap().len(), 5, "more has come");
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(read(&mut peer, 1000).unwrap(), TRAILER);
    for _ in 0..3 {
        assert_eq!(read(&mut peer, 1000).unwrap(), [0_u8; 0], "the end for good");
    }
    set(&mut peer, State::Stop).unwrap();
    assert_eq!(read(&mut peer, 1000), Err(Errno::ENODEV));
    assert_eq!(read(&mut peer, 0), Err(Errno::ENODEV));
}

#[test]
fn what_was_read_before_a_failure_is_given_out_before_it() {
    let read_end = NONE.read_end(true);
    let mut peer = client(&backend(), Some(read_end));
    produce(&mut peer, PRODUCE, 3 * PIECE as u32);
    produce(&mut peer, FAIL, Errno::EIO.raw_os_error().cast_unsigned());
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(read(&mut peer, 1000).unwrap().len(), PIECE);
    let rest = read(&mut peer, 1000).unwrap();
    assert_eq!(rest.len(), 2 * PIECE + TRAILER.len(), "the failure was the driver's once");
    assert_eq!(rest[0], PIECE as u8, "and no byte is lost");

    produce(&mut peer, PRODUCE, 10);
    produce(&mut peer, FAIL, Errno::EIO.raw_os_error().cast_unsigned());
    assert_eq!(read(&mut peer, 10).unwrap().len(), 10);
    assert_eq!(read(&mut peer, 10), Err(Errno::EIO));
}

#[test]
fn the_counts_of_pre_copy_are_those_of_the_ioctl() {
    let precopy = NONE.precopy_info(true);
    let mut peer = client(&backend(), Some(precopy));
    assert_eq!(precopy_info(&mut peer, 24, 0).err(), Some(Errno::EBADF), "no session yet");
    produce(&mut peer, PRODUCE, 30);
    set(&mut peer, State::PreCopy).unwrap();
    let junk = 0xdead_beef;
    for argsz in [24, 25, u32::MAX] {
        let info = precopy_info(&mut peer, argsz, junk).unwrap();
        assert_eq!((info.argsz, info.flags, info.initial_bytes, info.dirty_bytes), (argsz, junk, 0, 30));
    }
    for argsz in [0, 23] {
        assert_eq!(precopy_info(&mut peer, argsz, 0).err(), Some(Errno::EINVAL), "argsz {argsz}");
    }
    assert_eq!(peer.ask_raw(9, 0x3b79, &[0; 23]), Err(Errno::EINVAL), "no whole structure");
    read(&mut peer, 12).unwrap();
    assert_eq!(precopy_info(&mut peer, 24, 0).unwrap().dirty_bytes, 18);
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(precopy_info(&mut peer, 24, 0).err(), Some(Errno::EINVAL), "the device has stopped");
    set(&mut peer, State::Resuming).unwrap();
    assert_eq!(precopy_info(&mut peer, 0, 0).err(), Some(Errno::ENOTTY), "first of all");
}

#[test]
fn new_initial_data_is_told_to_who_opted_in() {
    let precopy = NONE.precopy_info(true);
    let backend = backend();
    let mut peer = client(&backend, Some(precopy));
    set(&mut peer, State::PreCopy).unwrap();
    produce(&mut peer, REINIT, 40);
    assert_eq!(precopy_info(&mut peer, 24, 0x10).unwrap().flags, 0x10, "flags are as they were sent");
    feature(&mut peer, Feature::MigPrecopyInfoV2.number(), FeatureFlags::SET, &[]).unwrap();
    produce(&mut peer, REINIT, 50);
    let info = precopy_info(&mut peer, 24, 0x10).unwrap();
    assert_eq!((info.flags, info.initial_bytes, info.dirty_bytes), (1, 50, 0));
    let info = precopy_info(&mut peer, 24, 0x10).unwrap();
    assert_eq!((info.flags, info.initial_bytes), (0, 50), "told once");
}

#[test]
fn the_states_of_p2p_are_on_the_way_where_they_were_agreed_on() {
    let p2p = NONE.p2p(true);
    let mut peer = client(&backend(), Some(p2p));
    assert_eq!(get(&mut peer, Feature::Migration).unwrap(), ALL.bits());
    for to in [State::RunningP2p, State::PreCopyP2p, State::PreCopy, State::PreCopyP2p, State::StopCopy] {
        set(&mut peer, to).unwrap();
        assert_eq!(state(&mut peer), to.number());
    }
    assert_eq!(set(&mut peer, State::PreCopyP2p).err(), Some(Errno::EINVAL));
}

#[test]
fn a_plain_client_finds_a_device_that_was_left_in_p2p_where_it_can_go_on() {
    let p2p = NONE.p2p(true);
    for (left, seen) in [(State::RunningP2p, State::Running), (State::PreCopyP2p, State::PreCopy)] {
        for next in [State::Running, State::Stop, State::PreCopy, State::StopCopy] {
            let backend = backend();
            let mut peer = client(&backend, Some(p2p));
            set(&mut peer, left).unwrap();
            peer.leave().unwrap();
            let mut peer = client(&backend, None);
            assert_eq!(state(&mut peer), seen.number());
            set(&mut peer, next).unwrap();
            assert_eq!(state(&mut peer), next.number(), "from {left}");
        }
    }
}

#[test]
fn a_server_offers_no_more_than_it_is_told_to() {
    let limited = NONE.read_end(true).p2p(true);
    let capabilities = Backend::capabilities().migration_extensions(Some(limited));
    for (offered, proposed, expected) in [
        (Some(limited), Some(MigrationExtensions::ALL), Some(limited)),
        (Some(limited), None, None),
        (None, Some(MigrationExtensions::ALL), None),
    ] {
        let capabilities = capabilities.clone().migration_extensions(offered);
        let backend =
            Backend::with(backend().device().clone(), BackendOptions::default().capabilities(capabilities));
        let (server, stream) = std::os::unix::net::UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || backend.serve(server));
        let mut peer = super::support::Peer::new(stream, Some(thread));
        let version = peer.agree(Backend::capabilities().migration_extensions(proposed));
        assert_eq!(version.capabilities.migration_extensions, expected);
    }
}
