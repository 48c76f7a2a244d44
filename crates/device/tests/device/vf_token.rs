//! Who may open a physical function and its virtual functions: the errnos of `vfio_pci_core_match()`,
//! `vfio_pci_validate_vf_token()`, VFIO_DEVICE_FEATURE_PCI_VF_TOKEN and VFIO_DEVICE_BIND_IOMMUFD with a
//! token.

use crate::iommufd_program::{ARGUMENT, DATA, Program};
use whimbrel_device::iommufd::{Iommu, Iommufd};
use whimbrel_device::{
    Cdev, Container, Context, DeviceFile, DeviceInfoFlags, DeviceSet, Driver, Errno, Group, GroupFile, Info,
    OpenDevice, PciFunction, PhysicalFunction, SparseMemory, Translation,
};
use whimbrel_uapi::cdev::DeviceBindIommufd;
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
use whimbrel_uapi::ioctl::{VFIO_DEVICE_BIND_IOMMUFD, VFIO_DEVICE_FEATURE, VFIO_GROUP_GET_DEVICE_FD};
use zerocopy::IntoBytes;

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";
const PLAIN: &str = "0000:02:00.0";
const OTHER_BUS: &str = "platform";
const TOKEN: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255];
const TEXT: &str = "00010203-0405-0607-0809-0a0b0c0d0eFF";
const WRONG: &str = "00010203-0405-0607-0809-0a0b0c0d0e00";

struct Function(DeviceInfoFlags);

impl Driver for Function {
    fn info(&self) -> Info {
        Info::new(self.0)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }
}

fn device(name: &str) -> DeviceFile {
    let flags = if name == OTHER_BUS { DeviceInfoFlags::PLATFORM } else { DeviceInfoFlags::PCI };
    DeviceFile::new(name, |_| Function(flags | DeviceInfoFlags::RESET))
}

/// A physical function, its virtual one, a PCI device without SR-IOV and one of another bus.
struct Devices {
    pf: DeviceFile,
    vf: DeviceFile,
    plain: DeviceFile,
    other: DeviceFile,
}

impl Devices {
    fn new() -> Devices {
        let devices =
            Devices { pf: device(PF), vf: device(VF), plain: device(PLAIN), other: device(OTHER_BUS) };
        let sriov = PhysicalFunction::new(&devices.pf).unwrap();
        sriov.add_virtual_function(&devices.vf).unwrap();
        devices.pf.set_vf_token(TOKEN).unwrap();
        devices
    }

    /// All of them in one group, ready to be opened.
    fn group(&self) -> GroupFile {
        let group = self.bare_group();
        let container = Container::default();
        group.set_container(&container).unwrap();
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        group
    }

    fn bare_group(&self) -> GroupFile {
        let devices = [&self.pf, &self.vf, &self.plain, &self.other].map(Clone::clone).to_vec();
        Group::new(Translation::Emulated, devices).unwrap().open().unwrap()
    }
}

/// A device's name and what is behind it, as in `PF vf_token=..`.
fn with(name: &str, token: &str) -> String {
    format!("{name} vf_token={token}")
}

#[test]
fn what_stands_behind_a_name_is_read_as_vfio_pci_reads_it() {
    let group = Devices::new().group();
    let fine = Ok(());
    let cases: [(String, Result<(), Errno>); 27] = [
        (with(VF, TEXT), fine),
        (with(VF, &TEXT.to_lowercase()), fine),
        (format!("{VF}     vf_token={TEXT}   "), fine),
        (VF.into(), Err(Errno::EACCES)),
        (format!("{VF}  "), Err(Errno::EACCES)),
        (with(VF, WRONG), Err(Errno::EACCES)),
        (format!("{VF}0"), Err(Errno::ENODEV)),
        (format!("{VF}\tvf_token={TEXT}"), Err(Errno::ENODEV)),
        (format!(" {VF}"), Err(Errno::ENODEV)),
        (VF[..11].into(), Err(Errno::ENODEV)),
        (format!("{VF} x"), Err(Errno::EINVAL)),
        (format!("{VF} VF_TOKEN={TEXT}"), Err(Errno::EINVAL)),
        (format!("{VF} vf_token"), Err(Errno::EINVAL)),
        (format!("{VF} vf_token ={TEXT}"), Err(Errno::EINVAL)),
        (with(VF, ""), Err(Errno::EINVAL)),
        (with(VF, &TEXT[..35]), Err(Errno::EINVAL)),
        (with(VF, &format!(" {TEXT}")), Err(Errno::EINVAL)),
        (with(VF, &TEXT.replace('-', "_")), Err(Errno::EINVAL)),
        (with(VF, &TEXT.replace('F', "g")), Err(Errno::EINVAL)),
        (with(VF, &format!("{{{}}}", &TEXT[..34])), Err(Errno::EINVAL)),
        (with(VF, &format!("{}    ", TEXT.replace('-', ""))), Err(Errno::EINVAL)),
        (format!("{}x", with(VF, TEXT)), Err(Errno::EINVAL)),
        (format!("{} x", with(VF, TEXT)), Err(Errno::EINVAL)),
        (format!("{} vf_token={TEXT}", with(VF, TEXT)), Err(Errno::EINVAL)),
        // Two options with nothing between them are two options.
        (format!("{}vf_token={TEXT}", with(VF, TEXT)), Err(Errno::EINVAL)),
        // A device of another bus has no options.
        (OTHER_BUS.into(), fine),
        (format!("{OTHER_BUS} "), Err(Errno::ENODEV)),
    ];
    for (name, expected) in cases {
        assert_eq!(group.device(&name).map(drop), expected, "{name:?}");
    }
}

#[test]
fn a_name_that_is_no_text_is_held_to_the_same() {
    let devices = Devices::new();
    let group = devices.group();
    let mut process = SparseMemory::new();
    let mut open = |name: &[u8]| {
        process.insert(ARGUMENT, [name, b"\0"].concat());
        group.ioctl(VFIO_GROUP_GET_DEVICE_FD.number(), ARGUMENT, &mut process).map(|fd| fd > 0)
    };
    assert_eq!(open(&[PLAIN.as_bytes(), b" \xff"].concat()), Err(Errno::EINVAL));
    assert_eq!(open(&[PLAIN.as_bytes(), b"\xff"].concat()), Err(Errno::ENODEV));
    assert_eq!(open(with(VF, TEXT).as_bytes()), Ok(true));
}

#[test]
fn a_token_is_looked_at_before_the_container() {
    let group = Devices::new().bare_group();
    assert_eq!(group.device(VF).map(drop), Err(Errno::EACCES));
    assert_eq!(group.device(&with(VF, TEXT)).map(drop), Err(Errno::EINVAL), "no container");
    assert_eq!(group.device(&with(PLAIN, TEXT)).map(drop), Err(Errno::EINVAL));
}

#[test]
fn a_token_for_a_device_without_one_is_an_error() {
    let group = Devices::new().group();
    assert_eq!(group.device(&with(PLAIN, TEXT)).map(drop), Err(Errno::EINVAL));
    assert_eq!(group.device(&format!("{PLAIN} ")).map(drop), Ok(()));
}

#[test]
fn the_physical_function_needs_the_token_only_while_a_virtual_one_is_open() {
    let group = Devices::new().group();
    let open = |name: &str| -> Result<OpenDevice, Errno> { group.device(name) };
    let of = |result: Result<OpenDevice, Errno>| result.map(drop);
    assert_eq!(of(open(PF)), Ok(()));
    let first = open(&with(VF, TEXT)).unwrap();
    let second = open(&with(VF, TEXT)).unwrap();
    for (name, expected) in [
        (PF.to_string(), Err(Errno::EACCES)),
        (with(PF, WRONG), Err(Errno::EACCES)),
        (with(PF, TEXT), Ok(())),
        (VF.to_string(), Err(Errno::EACCES)),
    ] {
        assert_eq!(of(open(&name)), expected, "{name:?}");
    }
    drop(first);
    assert_eq!(of(open(PF)), Err(Errno::EACCES), "it is still open once");
    drop(second);
    assert_eq!(of(open(PF)), Ok(()));
}

#[test]
fn opening_an_unused_physical_function_with_a_token_sets_it() {
    let devices = Devices::new();
    let group = devices.group();
    group.device(&with(PF, WRONG)).unwrap();
    assert_eq!(group.device(&with(VF, TEXT)).map(drop), Err(Errno::EACCES));
    let _vf = group.device(&with(VF, WRONG)).unwrap();
    // While the virtual function is open, its user is not asked.
    devices.pf.set_vf_token(TOKEN).unwrap();
    assert_eq!(group.device(&with(VF, WRONG)).map(drop), Err(Errno::EACCES));
    assert_eq!(group.device(&with(VF, TEXT)).map(drop), Ok(()));
}

#[test]
fn nobody_knows_the_token_before_it_is_set() {
    let (pf, vf) = (device(PF), device(VF));
    PhysicalFunction::new(&pf).unwrap().add_virtual_function(&vf).unwrap();
    let devices = Devices { pf, vf, plain: device(PLAIN), other: device(OTHER_BUS) };
    let group = devices.group();
    for token in ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"] {
        assert_eq!(group.device(&with(VF, token)).map(drop), Err(Errno::EACCES));
    }
}

#[test]
fn the_feature_is_the_physical_functions_and_checked_in_the_kernels_order() {
    const SET: u32 = 1 << 17;
    const GET: u32 = 1 << 16;
    const PROBE: u32 = 1 << 18;
    let devices = Devices::new();
    let cases: [(u32, u32, usize, Result<i32, Errno>); 11] = [
        (7, SET, 24, Err(Errno::EINVAL)),
        (8, GET, 24, Err(Errno::EINVAL)),
        (8, GET | PROBE, 24, Err(Errno::EINVAL)),
        (8, GET | SET | PROBE, 24, Err(Errno::EINVAL)),
        (8, SET | PROBE, 8, Ok(0)),
        (8, PROBE, 8, Ok(0)),
        (24, 0, 24, Err(Errno::EINVAL)),
        (23, SET, 24, Err(Errno::EINVAL)),
        (24, SET, 23, Err(Errno::EFAULT)),
        (24, SET, 24, Ok(0)),
        (u32::MAX, SET, 24, Ok(0)),
    ];
    let ask = |device: &DeviceFile, argsz: u32, flags: u32, size: usize| {
        let mut process = SparseMemory::new();
        let whole = [[argsz, flags].as_bytes(), &TOKEN].concat();
        process.insert(ARGUMENT, &whole[..size]);
        device.ioctl(VFIO_DEVICE_FEATURE.number(), ARGUMENT, &mut process)
    };
    for (argsz, flags, size, expected) in cases {
        assert_eq!(ask(&devices.pf, argsz, flags, size), expected, "argsz {argsz}, flags {flags:#x}, {size}");
    }
    for device in [&devices.vf, &devices.plain, &devices.other] {
        assert_eq!(ask(device, 24, GET, 24), Err(Errno::ENOTTY), "{}", device.name());
        assert_eq!(ask(device, 24, SET, 24), Err(Errno::ENOTTY), "{}", device.name());
        assert_eq!(device.set_vf_token(TOKEN), Err(Errno::ENOTTY), "{}", device.name());
    }
}

#[test]
fn a_token_set_by_the_feature_opens_the_virtual_function() {
    let devices = Devices::new();
    let mut process = SparseMemory::new();
    process.insert(ARGUMENT, [[24u32, 1 << 17].as_bytes(), &[0x5a; 16]].concat());
    devices.pf.ioctl(VFIO_DEVICE_FEATURE.number(), ARGUMENT, &mut process).unwrap();
    let group = devices.group();
    assert_eq!(group.device(&with(VF, TEXT)).map(drop), Err(Errno::EACCES));
    assert_eq!(group.device(&with(VF, "5a5a5a5a-5a5a-5a5a-5a5a-5a5a5a5a5a5a")).map(drop), Ok(()));
}

#[test]
fn a_device_is_bound_by_its_own_file_by_the_same_rule() {
    const NO_ADDRESS: u64 = 0x66;
    let mut process = Program::new();
    process.iommufds.insert(7, Iommufd::new());
    process.memory.insert(DATA, TOKEN);
    process.memory.insert(DATA + 0x1000, [1; 16]);
    let mut bind = |device: &DeviceFile, flags: u32, token_uuid_ptr: u64| {
        let cdev = Cdev::new(device.clone(), Iommu::Emulated);
        let asked = DeviceBindIommufd { argsz: 24, flags, iommufd: 7, out_devid: 0, token_uuid_ptr };
        let number = VFIO_DEVICE_BIND_IOMMUFD.number();
        process.call(asked, |argument, program| cdev.ioctl(number, argument, program)).map(|_| cdev)
    };
    let devices = Devices::new();
    let cases: [(&DeviceFile, u32, u64, Result<(), Errno>); 12] = [
        (&devices.vf, 0, DATA, Err(Errno::EACCES)),
        (&devices.vf, 1, NO_ADDRESS, Err(Errno::EFAULT)),
        (&devices.vf, 1, DATA + 0x1000, Err(Errno::EACCES)),
        (&devices.vf, 1, DATA, Ok(())),
        (&devices.vf, 3, DATA, Err(Errno::EINVAL)),
        (&devices.plain, 0, NO_ADDRESS, Ok(())),
        (&devices.plain, 1, NO_ADDRESS, Err(Errno::EFAULT)),
        (&devices.plain, 1, DATA, Err(Errno::EINVAL)),
        (&devices.other, 0, NO_ADDRESS, Ok(())),
        (&devices.other, 1, NO_ADDRESS, Err(Errno::EINVAL)),
        (&devices.other, 1, DATA, Err(Errno::EINVAL)),
        (&devices.pf, 0, NO_ADDRESS, Ok(())),
    ];
    for (device, flags, address, expected) in cases {
        let name = device.name();
        assert_eq!(bind(device, flags, address).map(drop), expected, "{name}, flags {flags}, {address:#x}");
    }
    let vf = bind(&devices.vf, 1, DATA).unwrap();
    assert_eq!(bind(&devices.pf, 0, DATA).map(drop), Err(Errno::EACCES));
    assert_eq!(bind(&devices.pf, 1, DATA + 0x1000).map(drop), Err(Errno::EACCES));
    assert_eq!(bind(&devices.pf, 1, DATA).map(drop), Ok(()));
    drop(vf);
    assert_eq!(bind(&devices.pf, 1, DATA + 0x1000).map(drop), Ok(()), "that is the token now");
    assert_eq!(bind(&devices.vf, 1, DATA).map(drop), Err(Errno::EACCES));
}

#[test]
fn a_device_has_one_part_in_sriov() {
    let devices = Devices::new();
    assert_eq!(PhysicalFunction::new(&devices.pf).map(drop), Err(Errno::EEXIST));
    assert_eq!(PhysicalFunction::new(&devices.vf).map(drop), Err(Errno::EEXIST));
    assert_eq!(PhysicalFunction::new(&devices.other).map(drop), Err(Errno::EINVAL));
    let sriov = PhysicalFunction::new(&devices.plain).unwrap();
    assert_eq!(sriov.add_virtual_function(&devices.vf), Err(Errno::EEXIST));
    assert_eq!(sriov.add_virtual_function(&devices.other), Err(Errno::EINVAL));
}

#[test]
fn the_token_is_in_no_log() {
    let pf = device(PF);
    let sriov = PhysicalFunction::new(&pf).unwrap();
    pf.set_vf_token([0xab; 16]).unwrap();
    let shown = format!("{sriov:?}");
    assert!(!shown.contains("171") && !shown.contains("ab, ab") && !shown.contains("abab"), "{shown}");
}

#[test]
fn virtual_functions_on_its_bus_are_told_and_keep_the_physical_one_from_a_hot_reset() {
    let devices = Devices::new();
    let function =
        |address: &str, device: &DeviceFile| PciFunction::new(address.parse().unwrap(), 3, device.clone());
    DeviceSet::new([function(PF, &devices.pf), function(VF, &devices.vf)]).unwrap();
    let group = devices.group();
    for device in [&devices.pf, &devices.vf] {
        assert_eq!(device.hot_reset_info().unwrap().devices.len(), 2);
        assert_eq!(device.hot_reset(std::slice::from_ref(&group)), Err(Errno::EINVAL));
    }
    let alone = DeviceSet::new([function(PLAIN, &devices.plain)]).unwrap();
    assert_eq!(alone.function_count(), 1);
    assert_eq!(devices.plain.hot_reset(&[group]), Ok(()));
}
