//! A client's way to the migration of a device whose state is told to it.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use whimbrel_device::{Errno, State};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::migration::PrecopyInfo;
use whimbrel_vfio_user::message::{DeviceFeature, Reply, Request};
use whimbrel_vfio_user::{Backend, Capabilities, MigrationExtensions, ServeError};

use super::support::Peer;
use crate::source_device::open;
pub(crate) use crate::source_device::{FAIL, PIECE, PRODUCE, REINIT, TRAILER};

/// A server of such a device.
pub(crate) fn backend() -> Backend {
    Backend::new(open("source"))
}

/// A client that has proposed these parts of the extension.
pub(crate) fn client(backend: &Backend, extensions: Option<MigrationExtensions>) -> Peer {
    client_with(backend, Backend::capabilities().migration_extensions(extensions))
}

pub(crate) fn client_with(backend: &Backend, capabilities: Capabilities) -> Peer {
    let (server, stream) = UnixStream::pair().unwrap();
    let backend = backend.clone();
    let thread = std::thread::spawn(move || -> Result<(), ServeError> { backend.serve(server) });
    let mut peer = Peer::new(stream, Some(thread));
    peer.agree(capabilities);
    peer
}

/// VFIO_USER_DEVICE_FEATURE by the index of the feature.
pub(crate) fn feature(
    peer: &mut Peer,
    feature: u16,
    flags: FeatureFlags,
    data: &[u8],
) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let request = DeviceFeature { argsz: 16, feature, flags, data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    let data = match answer.reply() {
        Reply::DeviceFeature(reply) => reply.data.to_vec(),
        other => panic!("{other:?}"),
    };
    Ok((data, answer.fds))
}

pub(crate) fn get(peer: &mut Peer, asked: Feature) -> Result<u64, Errno> {
    let (data, fds) = feature(peer, asked.number(), FeatureFlags::GET, &[])?;
    assert!(fds.is_empty());
    Ok(u64::from_ne_bytes(data.try_into().unwrap()))
}

/// The number of the state that the server tells.
pub(crate) fn state(peer: &mut Peer) -> u32 {
    let told = get(peer, Feature::MigDeviceState).unwrap();
    let bytes = told.to_ne_bytes();
    assert_eq!(bytes[4..], (-1_i32).to_ne_bytes(), "a GET has no descriptor");
    u32::from_ne_bytes(bytes[..4].try_into().unwrap())
}

/// Brings the device to a state; `data_fd` of the reply, and its descriptors.
pub(crate) fn set(peer: &mut Peer, to: State) -> Result<(i32, Vec<OwnedFd>), Errno> {
    let data = [to.number().to_ne_bytes(), 77_u32.to_ne_bytes()].concat();
    let (reply, fds) = feature(peer, Feature::MigDeviceState.number(), FeatureFlags::SET, &data)?;
    assert_eq!(reply[..4], data[..4]);
    Ok((i32::from_ne_bytes(reply[4..].try_into().unwrap()), fds))
}

/// Begins a session, and takes its channel.
pub(crate) fn opened(peer: &mut Peer, to: State) -> Peer {
    let (data_fd, mut fds) = set(peer, to).unwrap();
    assert_eq!((data_fd, fds.len()), (0, 1), "the descriptor has index 0");
    Peer::new(UnixStream::from(fds.remove(0)), None)
}

pub(crate) fn read(peer: &mut Peer, size: u32) -> Result<Vec<u8>, Errno> {
    let answer = peer.ask(&Request::MigDataRead { size })?;
    match answer.reply() {
        Reply::MigDataRead { data } => Ok(data.to_vec()),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn write(peer: &mut Peer, data: &[u8]) -> Result<(), Errno> {
    peer.ask(&Request::MigDataWrite { data }).map(drop)
}

/// VFIO_USER_MIG_GET_PRECOPY_INFO.
pub(crate) fn precopy_info(peer: &mut Peer, argsz: u32, flags: u32) -> Result<PrecopyInfo, Errno> {
    let asked = PrecopyInfo { argsz, flags, initial_bytes: 7, dirty_bytes: 7 };
    let answer = peer.ask(&Request::MigGetPrecopyInfo(asked))?;
    match answer.reply() {
        Reply::MigGetPrecopyInfo(info) => Ok(info),
        other => panic!("{other:?}"),
    }
}

/// Has the device produce so many bytes of state.
pub(crate) fn produce(peer: &mut Peer, register: u64, count: u32) {
    peer.write(0, register, &count.to_ne_bytes()).unwrap();
}
