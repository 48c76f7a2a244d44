//! Devices of a real kernel through their groups: the sample driver `mtty`, as the lab makes it.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::mtty::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vm_memory::MmapRegion;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_protocol::{fsm, session};
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::kernel::{self, Adopted, Group};
use whimbrel_user::{
    DataFile, Device, Direction, DmaMap, DmaRegion, Errno, Error, Migratable, MigrationFlags, SavingRead,
    State,
};

fn opened(uuid: &str) -> Group {
    let mut device = Group::find(uuid).unwrap();
    make_fresh(&mut device);
    device
}

/// The error of a request that has to fail with this errno.
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, errno: Errno) -> Error {
    let error = result.expect_err("it is to fail");
    assert_eq!(error.errno(), Some(errno), "{error}");
    error
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_device_says_what_it_is() {
    let mut device = opened(FIRST);
    let info = device.info().unwrap();
    assert_eq!(info.flags, DeviceInfoFlags::PCI);
    assert_eq!((info.num_regions, info.num_irqs), (9, 5));
    assert_eq!(info.capabilities, []);
    assert_eq!(device.migration_flags().unwrap(), Some(MigrationFlags::all()));
    assert_eq!(device.state().unwrap(), State::Running);
    assert_eq!(device.data_size().unwrap(), 60);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn regions_are_as_large_as_the_driver_says_and_no_larger() {
    let mut device = opened(FIRST);
    for index in 0..9 {
        let region = device.region_info(index).unwrap();
        let size = match index {
            0 => 8,
            7 => 0xff,
            _ => 0,
        };
        assert_eq!(region.size, size, "region {index}");
        assert_eq!(region.offset, u64::from(index) << 40, "region {index}");
        assert_eq!(region.flags, RegionInfoFlags::READ | RegionInfoFlags::WRITE, "region {index}");
    }
    refused(device.region_info(9), Errno::EINVAL);
    let mut id = [0; 4];
    device.read_region(7, 0, &mut id).unwrap();
    assert_eq!(id, 0x3253_4348_u32.to_le_bytes());
    let mut all = [0; 0xff];
    device.read_region(7, 0, &mut all).unwrap();
    assert_eq!(all[..4], id);
    let error = refused(device.read_region(7, 0xfe, &mut [0; 2]), Errno::EINVAL);
    assert_eq!(error.to_string(), format!("{FIRST}: read of region 7 at 0xfe: EINVAL: Invalid argument"));
    refused(device.write_region(1, 0, &[0]), Errno::EINVAL);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn interrupts_are_described_and_reach_their_eventfd() {
    let mut device = opened(FIRST);
    let intx = IrqInfoFlags::EVENTFD | IrqInfoFlags::MASKABLE | IrqInfoFlags::AUTOMASKED;
    let msi = IrqInfoFlags::EVENTFD | IrqInfoFlags::NORESIZE;
    for (index, flags) in [(0, intx), (1, msi)] {
        let irq = device.irq_info(index).unwrap();
        assert_eq!((irq.flags, irq.count), (flags, 1), "index {index}");
    }
    // The driver counts five and knows two.
    for index in 2..6 {
        refused(device.irq_info(index), Errno::EINVAL);
    }

    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let (enable, transmit_empty) = (1, 2);
    device.set_irq_triggers(1, 0, &[Some(eventfd.as_fd())]).unwrap();
    write_register(&mut device, enable, transmit_empty);
    assert_eq!(eventfd.read().unwrap(), 1, "the FIFO is empty");
    device.set_irq_triggers(1, 0, &[None]).unwrap();
    write_register(&mut device, enable, transmit_empty);
    assert!(eventfd.read().is_err(), "it was taken away");
    refused(device.set_irq_triggers(1, 0, &[Some(eventfd.as_fd()), None]), Errno::EINVAL);
    let error = refused(device.set_irq_triggers(5, 0, &[None]), Errno::EINVAL);
    assert!(error.to_string().contains("VFIO_DEVICE_SET_IRQS of index 5"), "{error}");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_probe_tells_each_feature_in_each_direction() {
    let mut device = opened(FIRST);
    let (get, set) = (FeatureFlags::GET, FeatureFlags::SET);
    for feature in Feature::ALL {
        let has = match feature {
            Feature::Migration | Feature::MigDataSize | Feature::DmaLoggingReport => get,
            Feature::MigDeviceState => get | set,
            Feature::DmaLoggingStart | Feature::DmaLoggingStop => set,
            _ => FeatureFlags::empty(),
        };
        for asked in [get, set, get | set] {
            let expected = has.contains(asked);
            assert_eq!(device.probe_feature(feature, asked).unwrap(), expected, "{feature} {asked:?}");
        }
        // Without a direction the question is whether the feature is there at all.
        let there = device.probe_feature(feature, FeatureFlags::empty()).unwrap();
        assert_eq!(there, !has.is_empty(), "{feature}");
    }
    assert!(!device.enable_precopy_info_v2().unwrap(), "it is younger than this kernel");
}

/// Brings a fresh device to a state, so that it can leave it again, and returns the session that runs there.
fn enter(device: &mut Group, state: State) -> Option<DataFile> {
    device.reset().unwrap();
    let mut data = device.set_state(state).unwrap();
    if state == State::Resuming {
        data.as_mut().unwrap().write_all(&RECORDED).unwrap();
    }
    data
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn every_pair_of_states_is_answered_as_the_table_says() {
    let mut device = opened(FIRST);
    let flags = MigrationFlags::all();
    let mut walked = 0;
    // No request leads to ERROR, so its row cannot be walked; its column can.
    for from in State::ALL.into_iter().filter(|state| *state != State::Error) {
        for to in State::ALL {
            let _data = enter(&mut device, from);
            assert_eq!(device.state().unwrap(), from);
            let answer = device.set_state(to);
            let arrived = if fsm::path(flags, from, to).is_ok() {
                let opened = answer.unwrap_or_else(|error| panic!("{from} -> {to}: {error}"));
                let direction = opened.map(|data| data.direction());
                assert_eq!(direction, session::opened_by(flags, from, to), "{from} -> {to}");
                to
            } else {
                refused(answer, Errno::EINVAL);
                from
            };
            assert_eq!(device.state().unwrap(), arrived, "{from} -> {to}");
            walked += 1;
        }
    }
    assert_eq!(walked, 56);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_filled_device_saves_the_recorded_bytes() {
    let mut device = opened(FIRST);
    fill(&mut device, b"hello mtty", 0x42);
    assert_eq!(save(&mut device), RECORDED);
    assert_eq!(empty(&mut device), (b"hello mtty".to_vec(), 0x42), "saving changes nothing");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn the_same_bytes_come_through_the_precopy_states() {
    let mut device = opened(FIRST);
    fill(&mut device, b"hello mtty", 0x42);
    for before in [State::PreCopy, State::PreCopyP2p] {
        let (early, rest) = save_through(&mut device, before);
        assert_eq!(early, RECORDED[..HEAD], "{before}");
        assert_eq!(rest, RECORDED[HEAD..], "{before}");
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn precopy_info_counts_the_initial_bytes_down() {
    let mut device = opened(FIRST);
    let mut data = device.set_state(State::PreCopy).unwrap().unwrap();
    let mut buffer = [0; 10];
    for (left, read) in [(24, 10), (14, 10), (4, 4), (0, 0)] {
        let report = data.precopy_info().unwrap();
        assert_eq!((report.bytes.initial, report.bytes.dirty, report.reinit), (left, 0, false));
        let expected = if read == 0 { SavingRead::TemporaryEnd } else { SavingRead::Data(read) };
        assert_eq!(data.read(&mut buffer).unwrap(), expected);
    }
    device.set_state(State::StopCopy).unwrap();
    let error = refused(data.precopy_info(), Errno::EINVAL);
    assert_eq!(error.to_string(), format!("{FIRST}: VFIO_MIG_GET_PRECOPY_INFO: EINVAL: Invalid argument"));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_data_file_goes_one_way() {
    let mut device = opened(FIRST);
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    assert_eq!(data.direction(), Direction::Saving);
    refused(data.write_all(&[0]), Errno::EBADF);
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    assert_eq!(data.direction(), Direction::Resuming);
    refused(data.read(&mut [0; 4]), Errno::EBADF);
    refused(data.precopy_info(), Errno::ENOTTY);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_moves_from_one_device_to_the_other() {
    let (mut first, mut second) = (opened(FIRST), opened(SECOND));
    fill(&mut first, b"from one", 0x17);
    let stream = save(&mut first);
    restore(&mut second, &stream);
    assert_eq!(empty(&mut second), (b"from one".to_vec(), 0x17));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_may_be_written_byte_by_byte() {
    let mut device = opened(FIRST);
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    for byte in RECORDED {
        data.write_all(&[byte]).unwrap();
    }
    device.set_state(State::Running).unwrap();
    assert_eq!(empty(&mut device), (b"hello mtty".to_vec(), 0x42));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_stream_of_another_device_is_refused_and_a_reset_leads_out() {
    let mut device = opened(FIRST);
    let mut two_ports = [0; 96];
    two_ports[..60].copy_from_slice(&RECORDED);
    two_ports[16] = 2;
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    refused(data.write_all(&two_ports[..HEAD]), Errno::EFAULT);
    refused(data.write_all(&two_ports[HEAD..]), Errno::ENOMEM);
    refused(device.set_state(State::Running), Errno::EINVAL);
    assert_eq!(device.state().unwrap(), State::Resuming);
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_that_cannot_be_reached_leaves_the_saving_session_alive() {
    let mut device = opened(FIRST);
    fill(&mut device, b"hello mtty", 0x42);
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    let mut stream = vec![0; 10];
    assert_eq!(data.read(&mut stream).unwrap(), SavingRead::Data(10));
    let error = refused(device.set_state(State::PreCopy), Errno::EINVAL);
    assert_eq!(
        error.to_string(),
        format!("{FIRST}: VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to PRE_COPY: EINVAL: Invalid argument")
    );
    assert_eq!(read_on(&mut data, &mut stream), SavingRead::End);
    assert_eq!(stream, RECORDED);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_that_is_too_short_leaves_the_resuming_session_alive() {
    let mut device = opened(FIRST);
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    data.write_all(&RECORDED[..59]).unwrap();
    refused(device.set_state(State::Running), Errno::EINVAL);
    assert_eq!(device.state().unwrap(), State::Resuming);
    data.write_all(&RECORDED[59..]).unwrap();
    device.set_state(State::Running).unwrap();
    assert_eq!(empty(&mut device), (b"hello mtty".to_vec(), 0x42));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_reset_leads_to_running_and_ends_the_session_from_every_state() {
    let mut device = opened(FIRST);
    for state in State::ALL.into_iter().filter(|state| *state != State::Error) {
        let data = enter(&mut device, state);
        device.reset().unwrap();
        assert_eq!(device.state().unwrap(), State::Running, "{state}");
        let Some(mut data) = data else { continue };
        let error = match data.direction() {
            Direction::Saving => refused(data.read(&mut [0; 4]), Errno::ENODEV),
            // The file is at its beginning again, so there is room.
            Direction::Resuming => refused(data.write_all(&[0]), Errno::ENODEV),
        };
        assert!(error.advice().unwrap().contains("reset"), "{error}");
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn the_log_of_dma_starts_reports_and_stops() {
    let mut device = opened(FIRST);
    let range = |iova, length| IovaRange::new(iova, length).unwrap();
    // This driver writes no memory: it keeps the size it is asked for and reports nothing.
    let ranges = [range(0, 0x10000), range(0x10000, 0x10000)];
    assert_eq!(device.dma_logging_start(0x2000, &ranges).unwrap(), 0x2000);
    let mut words = [1 << 63; 2];
    let reported = device.dma_logging_report(&mut DirtyReport::new(0, 0x80000, 4096, &mut words).unwrap());
    assert_eq!(words, [1 << 63; 2], "bits are only ever set");
    // A kernel without iommufd has logs and starts them, but cannot tell what is in them.
    if std::path::Path::new("/dev/iommu").exists() {
        reported.unwrap();
    } else {
        let error = refused(reported, Errno::EOPNOTSUPP);
        assert!(error.advice().unwrap().contains("CONFIG_IOMMUFD_DRIVER"), "{error}");
    }
    device.dma_logging_stop().unwrap();

    let too_many: Vec<_> = (0..257).map(|n| range(n << 12, 4096)).collect();
    assert_eq!(device.dma_logging_start(4096, &too_many[..256]).unwrap(), 4096);
    refused(device.dma_logging_start(4096, &too_many), Errno::E2BIG);
    refused(device.dma_logging_start(4096, &[]), Errno::EINVAL);
    refused(device.dma_logging_start(4096, &[range(0, 0x2000), range(0x1000, 0x1000)]), Errno::EINVAL);
    device.dma_logging_stop().unwrap();
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn memory_is_held_while_it_is_mapped_and_no_longer() {
    let mut device = opened(FIRST);
    let memory = Arc::new(MmapRegion::<()>::new(0x10000).unwrap());
    let both = DmaMapFlags::READ | DmaMapFlags::WRITE;
    device.map_dma(0x4000, both, DmaRegion::from(memory.clone())).unwrap();
    let error = refused(device.map_dma(0x5000, both, DmaRegion::from(memory.clone())), Errno::EEXIST);
    assert!(error.to_string().contains("VFIO_IOMMU_MAP_DMA at 0x5000"), "{error}");
    let vaddr = both | DmaMapFlags::VADDR;
    refused(device.map_dma(0x40000, vaddr, DmaRegion::from(memory.clone())), Errno::EINVAL);
    assert_eq!(Arc::strong_count(&memory), 2);

    refused(device.unmap_dma(0x4000, 0x1000), Errno::EINVAL);
    assert_eq!(Arc::strong_count(&memory), 2, "a mapping is not cut");
    assert_eq!(device.unmap_dma(0, 0x20000).unwrap(), 0x10000);
    assert_eq!(Arc::strong_count(&memory), 1);
    assert_eq!(device.unmap_dma(0, 0x20000).unwrap(), 0);

    device.map_dma(0, DmaMapFlags::READ, DmaRegion::from(memory.clone())).unwrap();
    let adopted = Adopted::duplicate("kept open", std::os::fd::AsFd::as_fd(&device)).unwrap();
    drop(device);
    assert_eq!(Arc::strong_count(&memory), 1, "unmapped, although the device is still open");
    drop(adopted);
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn an_adopted_device_migrates_and_leaves_memory_to_the_vmm() {
    let mut group = opened(FIRST);
    let mut adopted = Adopted::duplicate("vm", std::os::fd::AsFd::as_fd(&group)).unwrap();
    fill(&mut group, b"hello mtty", 0x42);
    assert_eq!(adopted.migration_flags().unwrap(), Some(MigrationFlags::all()));
    assert_eq!(save(&mut adopted), RECORDED);
    let (early, rest) = save_through(&mut adopted, State::PreCopy);
    assert_eq!([early, rest].concat(), RECORDED);
    restore(&mut adopted, &untouched());
    assert_eq!(empty(&mut group), (Vec::new(), 0));
    assert!(adopted.dma_map().is_none());
    drop(adopted);
    assert_eq!(group.state().unwrap(), State::Running, "the VMM's own file goes on");
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_group_that_is_open_cannot_be_opened_again_and_shows_who_has_it() {
    let _device = opened(FIRST);
    let error = refused(Group::find(FIRST), Errno::EBUSY);
    assert!(error.to_string().starts_with(&format!("{FIRST}: cannot open /dev/vfio/")), "{error}");
    assert!(error.advice().unwrap().contains("in use by another process"), "{error}");
    let devices = kernel::list().unwrap();
    let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(names, [FIRST, SECOND]);
    assert_eq!(devices[0].holders, [std::process::id()]);
    assert!(devices[1].holders.is_empty());
    for device in devices {
        assert_eq!((device.bus.as_str(), device.driver.as_deref()), ("mdev", Some("mtty")));
        let group = device.group.expect("a group");
        assert_eq!(device.group_path, Some(format!("/dev/vfio/{group}").into()));
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_device_of_another_group_is_not_given() {
    let found = kernel::find(FIRST).unwrap();
    let result = Group::open("wrong", found.group_path.unwrap(), SECOND);
    let error = refused(result, Errno::ENODEV);
    assert!(error.to_string().contains(&format!("VFIO_GROUP_GET_DEVICE_FD of {SECOND}")), "{error}");
}
