//! Where the text says more than the kernel's VFIO, or less: a client gets what it has agreed on.

use std::os::unix::net::UnixStream;

use whimbrel_device::{DeviceInfoFlags, Errno};
use whimbrel_models::Model;
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::message::{
    DeviceFeature, LoggingReport, LoggingStart, Reply, Request, SetIrqs, Version,
};
use whimbrel_vfio_user::{Backend, Capabilities, MigrationExtensions};

use super::support::*;

const MODELS: [&str; 3] = ["serial", "accel?state=4KiB", "legacy?state=4KiB"];

/// A client of a model.
fn client(model: &str, extensions: Option<MigrationExtensions>) -> Peer {
    let opened = model.parse::<Model>().unwrap().open("model").unwrap();
    let (server, stream) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || Backend::new(opened).serve(server));
    let mut peer = Peer::new(stream, Some(thread));
    peer.agree(Capabilities::default().migration_extensions(extensions));
    peer
}

fn word(payload: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(payload[at..at + 4].try_into().unwrap())
}

#[test]
fn a_plain_client_gets_the_sixteen_bytes_of_the_text_about_a_device() {
    for model in MODELS {
        let mut peer = client(model, None);
        for argsz in [16, 32, 4096] {
            let answer = peer.ask(&Request::DeviceGetInfo { argsz }).unwrap();
            assert_eq!(answer.payload.len(), 16, "{model}");
            assert_eq!(word(&answer.payload, 0), 16, "{model}: argsz");
            let flags = (DeviceInfoFlags::RESET | DeviceInfoFlags::PCI).bits();
            assert_eq!(word(&answer.payload, 4), flags, "{model}");
        }
        peer.leave().unwrap();
    }
}

#[test]
fn a_client_that_agrees_on_device_features_gets_the_capabilities_of_a_device() {
    let only = r#"{"capabilities": {"migration_extensions": {"device_features": true}}}"#;
    let extensions = Capabilities::from_json(only.as_bytes()).unwrap().migration_extensions;
    let mut peer = client("accel?state=4KiB", extensions);
    let short = peer.ask(&Request::DeviceGetInfo { argsz: 16 }).unwrap();
    assert!(word(&short.payload, 0) > 16 && short.payload.len() == 16);
    assert!(DeviceInfoFlags::from_bits_retain(word(&short.payload, 4)).contains(DeviceInfoFlags::CAPS));
    let answer = peer.ask(&Request::DeviceGetInfo { argsz: 4096 }).unwrap();
    let Reply::DeviceGetInfo(reply) = answer.reply() else { panic!() };
    assert_eq!(reply.info().capabilities.len(), 1);
    peer.leave().unwrap();
}

#[test]
fn an_interrupt_that_a_pci_device_lacks_has_a_count_of_zero() {
    for model in MODELS {
        let mut peer = client(model, None);
        for index in 0..5 {
            let answer = peer.ask(&Request::DeviceGetIrqInfo { argsz: 16, index }).unwrap();
            let Reply::DeviceGetIrqInfo(reply) = answer.reply() else { panic!() };
            assert_eq!(reply.index, index, "{model}");
            let is_there = index < 2 || index == 3 && model != "serial";
            assert_eq!(reply.irq.count, u32::from(is_there), "{model}: index {index}");
        }
        assert_eq!(peer.ask(&Request::DeviceGetIrqInfo { argsz: 16, index: 5 }).err(), Some(Errno::EINVAL));
        peer.leave().unwrap();
    }
}

#[test]
fn interrupts_that_are_not_in_use_can_be_disabled() {
    let disable = |index| SetIrqs {
        flags: (IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_TRIGGER).bits(),
        index,
        start: 0,
        count: 0,
        data: &[],
    };
    let mut peer = client("accel?state=4KiB", None);
    for _ in 0..2 {
        for index in 0..5 {
            peer.ask(&Request::DeviceSetIrqs(disable(index))).unwrap();
        }
    }
    // What is no such request is the device's to judge.
    for set in [
        disable(5),
        SetIrqs { start: 1, ..disable(0) },
        SetIrqs { count: 1, ..disable(0) },
        SetIrqs { flags: (IrqSetFlags::DATA_NONE | IrqSetFlags::ACTION_MASK).bits(), ..disable(0) },
    ] {
        assert_eq!(peer.ask(&Request::DeviceSetIrqs(set)).err(), Some(Errno::EINVAL), "{set:?}");
    }
    peer.leave().unwrap();
}

fn start(peer: &mut Peer, page_size: u64) -> Result<u64, Errno> {
    let mut room = [[0; 16]; 1];
    let data = LoggingStart::new(page_size, &[(0, 0x10_0000)], &mut room).to_bytes();
    let flags = FeatureFlags::SET;
    let request =
        DeviceFeature { argsz: 4096, feature: Feature::DmaLoggingStart.number(), flags, data: &data };
    let answer = peer.ask(&Request::DeviceFeature(request))?;
    Ok(u64::from_ne_bytes(answer.payload[8..16].try_into().unwrap()))
}

fn report(peer: &mut Peer) -> Result<(), Errno> {
    let data = LoggingReport { iova: 0, length: 0x10_0000, page_size: 4096 }.to_bytes();
    let flags = FeatureFlags::GET;
    let request =
        DeviceFeature { argsz: 4096, feature: Feature::DmaLoggingReport.number(), flags, data: &data };
    peer.ask(&Request::DeviceFeature(request)).map(drop)
}

#[test]
fn dirty_pages_are_reported_only_while_they_are_logged() {
    for model in ["serial", "accel?state=4KiB"] {
        let mut peer = client(model, None);
        assert_eq!(report(&mut peer), Err(Errno::EINVAL), "{model}: before a start");
        start(&mut peer, 4096).unwrap();
        assert_eq!(report(&mut peer), Ok(()), "{model}");
        let flags = FeatureFlags::SET;
        let stop = DeviceFeature { argsz: 8, feature: Feature::DmaLoggingStop.number(), flags, data: &[] };
        peer.ask(&Request::DeviceFeature(stop)).unwrap();
        assert_eq!(report(&mut peer), Err(Errno::EINVAL), "{model}: after the stop");
        peer.leave().unwrap();
    }
}

#[test]
fn a_page_size_that_is_no_power_of_two_is_refused() {
    let mut peer = client("accel?state=4KiB", None);
    assert_eq!(start(&mut peer, 4095), Err(Errno::EINVAL));
    assert_eq!(start(&mut peer, 8192), Ok(8192));
    peer.leave().unwrap();
}

#[test]
fn version_data_without_their_nul_are_taken() {
    let (server, stream) = UnixStream::pair().unwrap();
    let opened = "serial".parse::<Model>().unwrap().open("model").unwrap();
    let thread = std::thread::spawn(move || Backend::new(opened).serve(server));
    let mut peer = Peer::new(stream, Some(thread));
    let proposed = Version::proposal(Capabilities::default().max_dma_maps(3));
    let text = proposed.capabilities.to_json();
    let payload = [&proposed.major.to_ne_bytes(), &proposed.minor.to_ne_bytes(), text.as_bytes()].concat();
    let answer = peer.ask_raw(1, 1, &payload).unwrap();
    assert_eq!(answer.last(), Some(&0), "the reply has one");
    let agreed = Capabilities::from_json(&answer[4..answer.len() - 1]).unwrap();
    assert_eq!(agreed.max_dma_maps, 3);
    peer.leave().unwrap();
}
