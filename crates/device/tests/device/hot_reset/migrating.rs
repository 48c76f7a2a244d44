//! Hot reset of devices that migrate: an accelerator and its neighbour on the bus.

use whimbrel_device::{
    Container, DeviceFile, DeviceSet, Errno, Group, GroupFile, SparseMemory, State, Translation,
};
use whimbrel_models::Model;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use zerocopy::IntoBytes;

use super::support::{FIRST, SECOND, function, raw_info, raw_reset};

fn accelerator(name: &str) -> DeviceFile {
    "accel".parse::<Model>().unwrap().open(name).unwrap().into_device()
}

fn open(device: &DeviceFile, container: &Container) -> GroupFile {
    let group = Group::new(Translation::Emulated, vec![device.clone()]).unwrap().open().unwrap();
    group.set_container(container).unwrap();
    group
}

#[test]
fn two_accelerators_in_two_groups_are_brought_back_to_running_and_their_sessions_end() {
    let devices = [FIRST, SECOND].map(accelerator);
    DeviceSet::new([function(FIRST, 11, Some(&devices[0])), function(SECOND, 12, Some(&devices[1]))])
        .unwrap();
    let container = Container::default();
    let groups = devices.each_ref().map(|device| open(device, &container));
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let first = groups[0].device(FIRST).unwrap();
    let second = groups[1].device(SECOND).unwrap();
    let saving = first.set_mig_state(State::StopCopy).unwrap().unwrap();
    let loading = second.set_mig_state(State::Resuming).unwrap().unwrap();

    // A program asks how many there are, whose they are, and shows that it has them all.
    let (result, head) = raw_info(&first, [12u32, 0, 0].as_bytes());
    assert_eq!((result, head), (Err(Errno::ENOSPC), [12u32, 0, 2].as_bytes().to_vec()));
    let (result, answer) = raw_info(&first, [28u32, 0, 0, 0, 0, 0, 0].as_bytes());
    assert_eq!(result, Ok(0));
    let told = [28u32, 0, 2, 11, 1 << 16, 12, 1 << 16 | 1 << 24];
    assert_eq!(answer, told.as_bytes());
    let mut process = SparseMemory::new();
    let fds = groups.map(|group| process.insert_group(group));
    assert_eq!(raw_reset(&first, &mut process, &[16, 0, 1, fds[0]]), Err(Errno::EINVAL));
    assert_eq!(saving.read(&mut [0; 8]), Ok(8), "nothing has happened yet");
    assert_eq!(raw_reset(&first, &mut process, &[20, 0, 2, fds[0], fds[1]]), Ok(0));

    assert_eq!((first.mig_state(), second.mig_state()), (Ok(State::Running), Ok(State::Running)));
    assert_eq!(saving.read(&mut [0; 8]), Err(Errno::ENODEV));
    assert_eq!(loading.write(&[0; 8]), Err(Errno::ENODEV));
}

#[test]
fn an_accelerator_in_no_set_sits_on_a_root_bus() {
    let device = accelerator(FIRST);
    let container = Container::default();
    let group = open(&device, &container);
    container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
    let device = group.device(FIRST).unwrap();
    assert_eq!(raw_info(&device, [100u32, 0, 0].as_bytes()).0, Err(Errno::ENODEV));
    let mut process = SparseMemory::new();
    let fd = process.insert_group(group);
    assert_eq!(raw_reset(&device, &mut process, &[16, 0, 1, fd]), Err(Errno::ENODEV));
}
