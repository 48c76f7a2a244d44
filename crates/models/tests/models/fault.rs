//! Models that misbehave as a list of faults says.

use std::time::{Duration, Instant};

use whimbrel_device::wrap::fault::Faults;
use whimbrel_device::{
    Container, DeviceFile, Errno, FileOffset, Group, Next, OpenDevice, State, Translation,
};
use whimbrel_models::Model;
use whimbrel_models::accel::Descriptor;
use whimbrel_models::accel::guest::{GuestDriver, Rings};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::type1::DmaMapFlags;

/// A device with 64 KiB of state, and these faults.
fn accel(faults: &str) -> DeviceFile {
    let model: Model = "accel?state=64KiB".parse().unwrap();
    // Nothing of it works by itself.
    model.open_with_faults("accel", faults.parse().unwrap()).unwrap().into_device()
}

/// The state of a device that is saved with reads of so many bytes, and how it ended.
fn saved(device: &DeviceFile, piece: usize) -> (Vec<u8>, Result<(), Errno>) {
    let data = device.set_mig_state(State::StopCopy).unwrap().unwrap();
    let (mut state, mut buffer) = (Vec::new(), vec![0; piece]);
    loop {
        match data.read(&mut buffer) {
            Ok(0) => return (state, Ok(())),
            Ok(count) => state.extend_from_slice(&buffer[..count]),
            Err(errno) => return (state, Err(errno)),
        }
    }
}

#[test]
fn without_faults_a_device_is_as_it_is() {
    let (plain, none) = (accel(""), accel(" ; "));
    assert_eq!(saved(&plain, 4096).0.len(), saved(&none, 1000).0.len());
}

#[test]
fn an_arc_fails_as_often_as_it_is_said_and_the_device_stays() {
    let device = accel("arc RUNNING_P2P->STOP: EIO 2 times");
    for _ in 0..2 {
        assert_eq!(device.set_mig_state(State::StopCopy).err(), Some(Errno::EIO));
        assert_eq!(device.mig_state(), Ok(State::RunningP2p));
    }
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_some());
}

#[test]
fn a_broken_arc_leads_to_error_until_a_reset() {
    let device = accel("arc *->STOP_COPY: ENOMEM broken once");
    assert_eq!(device.set_mig_state(State::StopCopy).err(), Some(Errno::ENOMEM));
    assert_eq!(device.mig_state(), Ok(State::Error));
    device.reset().unwrap();
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_some());
}

#[test]
fn a_request_can_succeed_with_the_device_where_it_was_or_in_error() {
    let device = accel("arc RUNNING_P2P->STOP: 0 once; arc STOP->RESUMING: 0 broken once");
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_none(), "no session is opened");
    assert_eq!(device.mig_state(), Ok(State::RunningP2p));
    assert!(device.set_mig_state(State::Resuming).unwrap().is_none());
    assert_eq!(device.mig_state(), Ok(State::Error));
    device.reset().unwrap();
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_some());
}

#[test]
fn a_session_goes_on_where_a_request_has_left_the_device() {
    let device = accel("arc PRE_COPY_P2P->STOP_COPY: 0 once");
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    assert!(device.set_mig_state(State::StopCopy).unwrap().is_none());
    assert_eq!(device.mig_state(), Ok(State::PreCopyP2p));
    assert!(data.read(&mut [0; 64]).is_ok());
    assert!(data.precopy_info().is_ok());
}

#[test]
fn reads_fail_end_or_get_short_from_their_byte_on() {
    let whole = saved(&accel(""), 4096).0;
    let (state, end) = saved(&accel("read after 100: EIO"), 4096);
    assert_eq!((state.as_slice(), end), (&whole[..100], Err(Errno::EIO)));
    let (state, end) = saved(&accel("read after 100: end"), 4096);
    assert_eq!((state.as_slice(), end), (&whole[..100], Ok(())));
    let device = accel("read after 100: short 5 times; read after 103: EIO once");
    let (state, end) = saved(&device, 4096);
    assert_eq!((state.as_slice(), end), (&whole[..105], Err(Errno::EIO)), "the first that fits comes first");
    device.set_mig_state(State::Running).unwrap();
    assert_eq!(saved(&device, 4096).0.len(), whole.len(), "they are used up");
}

#[test]
fn writes_fail_or_get_short_from_their_byte_on() {
    let whole = saved(&accel(""), 4096).0;
    let device = accel("write after 100: short 3 times; write after 103: ENOSPC");
    let data = device.set_mig_state(State::Resuming).unwrap().unwrap();
    let mut at = 0;
    let counts: Vec<_> = std::iter::from_fn(|| {
        let count = data.write(&whole[at..]);
        at += count.unwrap_or_default();
        count.ok()
    })
    .collect();
    assert_eq!(counts, [100, 1, 1, 1]);
    assert_eq!(data.write(&whole[at..]), Err(Errno::ENOSPC));
}

#[test]
fn entering_a_state_takes_longer() {
    let device = accel("delay STOP_COPY 50ms once");
    let started = Instant::now();
    device.set_mig_state(State::StopCopy).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(50));
}

#[test]
fn estimates_counts_reports_and_resets_are_what_the_list_says() {
    let device = accel("size: 100GiB once; size: EIO once; precopy: initial 5 dirty 7; reset: EBUSY once");
    assert_eq!(device.mig_data_size(), Ok(100 << 30));
    assert_eq!(device.mig_data_size(), Err(Errno::EIO));
    assert!(device.mig_data_size().unwrap() < 1 << 20);
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let told = data.precopy_info().unwrap().bytes;
    assert_eq!((told.initial, told.dirty), (5, 7));
    assert_eq!(device.reset(), Err(Errno::EBUSY));
    device.reset().unwrap();
}

#[test]
fn a_read_fails_in_one_state_only() {
    let device = accel("read after 0 in STOP_COPY: EIO once");
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let mut buffer = [0; 64];
    assert_eq!(data.read(&mut buffer), Ok(64));
    device.set_mig_state(State::StopCopy).unwrap();
    assert_eq!(data.read(&mut buffer), Err(Errno::EIO));
    assert_eq!(data.read(&mut buffer), Ok(64));
}

#[test]
fn the_temporary_end_is_enomsg_or_zero_and_the_end_is_zero() {
    for (faults, expected) in [("", Err(Errno::ENOMSG)), ("temporary end: 0", Ok(0))] {
        let device = accel(faults);
        let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
        let mut buffer = vec![0; 64 << 10];
        while data.precopy_info().unwrap().bytes.total() > 0 {
            data.read(&mut buffer).unwrap();
        }
        assert_eq!(data.read(&mut buffer), expected, "{faults}");
        device.set_mig_state(State::StopCopy).unwrap();
        while data.read(&mut buffer).unwrap() > 0 {}
        assert_eq!(data.read(&mut buffer), Ok(0), "{faults}");
    }
}

#[test]
fn initial_data_starts_over_for_a_user_that_has_opted_in() {
    for opts_in in [false, true] {
        let device = accel("reinit after 64 once; precopy: EIO once");
        if opts_in {
            device.enable_precopy_info_v2().unwrap();
        }
        let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
        assert_eq!(data.precopy_info(), Err(Errno::EIO));
        let before = data.precopy_info().unwrap();
        assert!(!before.reinit, "nothing was read");
        data.read(&mut [0; 64]).unwrap();
        let after = data.precopy_info().unwrap();
        assert_eq!(after.reinit, opts_in);
        assert!(!opts_in || after.bytes.dirty == 0 && after.bytes.initial > 0, "{after:?}");
        assert!(!data.precopy_info().unwrap().reinit, "it was once");
    }
}

#[test]
fn initial_data_starts_over_when_all_was_read() {
    let device = accel("reinit at end once");
    device.enable_precopy_info_v2().unwrap();
    let data = device.set_mig_state(State::PreCopy).unwrap().unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let report = data.precopy_info().unwrap();
        if report.reinit {
            assert_eq!((report.bytes.initial, report.bytes.dirty), (1, 0));
            break;
        }
        data.read(&mut buffer).unwrap();
    }
    assert_eq!(data.precopy_info().unwrap().bytes.total(), 0);
}

#[test]
fn a_model_that_migrates_through_a_region_fails_there_too() {
    let model: Model = "accel?protocol=v1".parse().unwrap();
    let faults: Faults = "reset: EIO".parse().unwrap();
    let device = model.open_with_faults("accel", faults).unwrap().into_device();
    assert_eq!(device.reset(), Err(Errno::EIO));
}

/// Opens the device of a group for a user.
fn open(group: &Group) -> OpenDevice {
    let (file, container) = (group.open().unwrap(), Container::default());
    file.set_container(&container).unwrap();
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    file.device("accel").unwrap()
}

#[test]
fn a_job_of_a_device_that_could_not_be_reset_at_its_close_does_not_reach_the_next_user() {
    const SIZE: u64 = 0x10000;
    let device = accel("reset: EIO");
    let group = Group::new(Translation::Emulated, vec![device.clone()]).unwrap();
    let dma = device.bus().dma();
    let map = || {
        let memory = std::fs::File::from(
            rustix::fs::memfd_create(c"memory", rustix::fs::MemfdFlags::empty()).unwrap(),
        );
        memory.set_len(SIZE).unwrap();
        dma.map(0, SIZE, DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::new(memory, 0)).unwrap();
    };
    let first = open(&group);
    map();
    let mut driver = GuestDriver::start(device.clone(), Rings::new(0, 0x1000, 4)).unwrap();
    driver.put(&Descriptor::fill(1, 0x2000, 8, 5)).unwrap();
    driver.ring().unwrap();
    drop(first);
    dma.unmap(0, SIZE).unwrap();
    let _second = open(&group);
    map();
    while device.advance(Duration::ZERO) == Next::Now {}
    let mut memory = vec![0; SIZE as usize];
    dma.read(0, &mut memory).unwrap();
    assert!(memory.iter().all(|byte| *byte == 0), "the device writes to the memory of the next user");
}
