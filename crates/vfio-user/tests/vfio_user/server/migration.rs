//! A device's state through the messages of the protocol.

use whimbrel_device::{Errno, MigrationFlags, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::MigrationExtensions;
use whimbrel_vfio_user::message::{DeviceFeature, Reply, Request};

use super::support::*;

fn feature(peer: &mut Peer, feature: Feature, flags: FeatureFlags, data: &[u8]) -> Result<Vec<u8>, Errno> {
    let feature = feature.number();
    let request = DeviceFeature { argsz: 16, feature, flags, data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    match answer.reply() {
        Reply::DeviceFeature(reply) => Ok(reply.data.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn set(peer: &mut Peer, state: State) -> Result<(), Errno> {
    let data = [state.number().to_ne_bytes(), 77_u32.to_ne_bytes()].concat();
    let got = feature(peer, Feature::MigDeviceState, FeatureFlags::SET, &data)?;
    assert_eq!(got, data, "the reply to a SET is the request");
    Ok(())
}

fn state(peer: &mut Peer) -> u32 {
    let got = feature(peer, Feature::MigDeviceState, FeatureFlags::GET, &[]).unwrap();
    assert_eq!(got[4..], (-1_i32).to_ne_bytes(), "there is no descriptor");
    u32::from_ne_bytes(got[..4].try_into().unwrap())
}

fn read(peer: &mut Peer, size: u32) -> Result<Vec<u8>, Errno> {
    let answer = peer.ask(&Request::MigDataRead { size })?;
    match answer.reply() {
        Reply::MigDataRead { data } => Ok(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

fn write(peer: &mut Peer, data: &[u8]) -> Result<(), Errno> {
    peer.ask(&Request::MigDataWrite { data }).map(drop)
}

#[test]
fn the_state_moves_from_one_server_to_another() {
    let mut source = Host::new().client();
    let mut destination = Host::new().client();
    source.write(BAR, 5, b"whimbrel").unwrap();
    set(&mut source, State::StopCopy).unwrap();
    set(&mut destination, State::Resuming).unwrap();
    loop {
        // Not a divisor of what the driver gives at once.
        let data = read(&mut source, 1000).unwrap();
        if !data.is_empty() {
            write(&mut destination, &data).unwrap();
        }
        if data.len() < 1000 {
            break;
        }
    }
    assert_eq!(read(&mut source, 1000).unwrap(), [0_u8; 0], "the end stays the end");
    set(&mut destination, State::Running).unwrap();
    assert_eq!(destination.read(BAR, 5, 8).unwrap(), b"whimbrel");
    assert_eq!(state(&mut destination), State::Running.number());
}

#[test]
fn the_end_for_now_is_a_short_read() {
    let mut peer = Host::new().client();
    set(&mut peer, State::PreCopy).unwrap();
    assert_eq!(read(&mut peer, 1 << 20).unwrap().len() as u64, PAGE);
    assert_eq!(read(&mut peer, 1 << 20).unwrap().len(), 0);
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(read(&mut peer, 1 << 20).unwrap().len(), 0);
}

#[test]
fn features_answer_as_the_kernels_do() {
    let mut peer = Host::new().client_with(Some(MigrationExtensions::ALL));
    let flags = feature(&mut peer, Feature::Migration, FeatureFlags::GET, &[]).unwrap();
    assert_eq!(flags, (MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY).bits().to_ne_bytes());
    let size = feature(&mut peer, Feature::MigDataSize, FeatureFlags::GET, &[]).unwrap();
    assert_eq!(size, PAGE.to_ne_bytes());
    let probe = FeatureFlags::PROBE;
    for (asked, directions, expected) in [
        (Feature::Migration, FeatureFlags::GET, Ok(vec![])),
        (Feature::Migration, FeatureFlags::SET, Err(Errno::EINVAL)),
        (Feature::MigDeviceState, FeatureFlags::GET | FeatureFlags::SET, Ok(vec![])),
        (Feature::DmaLoggingStart, FeatureFlags::SET, Ok(vec![])),
        (Feature::DmaLoggingStop, FeatureFlags::SET, Ok(vec![])),
        (Feature::DmaLoggingReport, FeatureFlags::GET, Ok(vec![])),
        (Feature::BusMaster, FeatureFlags::SET, Err(Errno::ENOTTY)),
    ] {
        assert_eq!(feature(&mut peer, asked, probe | directions, &[]), expected, "{asked}");
    }
    feature(&mut peer, Feature::MigPrecopyInfoV2, FeatureFlags::SET, &[]).unwrap();
    feature(&mut peer, Feature::DmaLoggingStop, FeatureFlags::SET, &[]).unwrap();
}

#[test]
fn a_state_that_is_refused_leaves_the_device_where_it_is() {
    let mut peer = Host::new().client();
    assert_eq!(set(&mut peer, State::RunningP2p), Err(Errno::EINVAL));
    assert_eq!(state(&mut peer), State::Running.number());
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(set(&mut peer, State::PreCopy), Err(Errno::EINVAL));
    assert_eq!(state(&mut peer), State::StopCopy.number());
}

#[test]
fn data_goes_only_the_way_and_as_long_as_its_session_does() {
    let mut peer = Host::new().client();
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(write(&mut peer, b"x"), Err(Errno::EBADF));
    set(&mut peer, State::Running).unwrap();
    assert_eq!(read(&mut peer, 1), Err(Errno::ENODEV));
    set(&mut peer, State::Resuming).unwrap();
    assert_eq!(read(&mut peer, 1), Err(Errno::EBADF));
    assert_eq!(write(&mut peer, &vec![0; PAGE as usize + 1]), Err(Errno::ENOMEM), "more than there is");
    peer.ask(&Request::DeviceReset).unwrap();
    assert_eq!(write(&mut peer, b"x"), Err(Errno::ENODEV));
}

#[test]
fn a_state_that_is_not_whole_is_refused_and_a_reset_leads_out() {
    let mut peer = Host::new().client();
    set(&mut peer, State::Resuming).unwrap();
    write(&mut peer, b"short").unwrap();
    assert_eq!(set(&mut peer, State::Running), Err(Errno::EINVAL));
    assert_eq!(state(&mut peer), State::Resuming.number());
    peer.ask(&Request::DeviceReset).unwrap();
    assert_eq!(state(&mut peer), State::Running.number());
}

#[test]
fn a_session_outlives_the_client_that_began_it() {
    let host = Host::new();
    let mut peer = host.client();
    peer.write(BAR, 0, b"whimbrel").unwrap();
    set(&mut peer, State::StopCopy).unwrap();
    assert_eq!(read(&mut peer, 3).unwrap(), b"whi");
    peer.leave().unwrap();
    let mut peer = host.client();
    assert_eq!(state(&mut peer), State::StopCopy.number());
    assert_eq!(read(&mut peer, 5).unwrap(), b"mbrel");
}
