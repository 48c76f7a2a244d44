//! A request is shown in one line: which one, what it says, and nothing that is not there.

use whimbrel_uapi::decode::{Call, File, Passing};
use whimbrel_uapi::device::{
    DeviceInfo, DeviceInfoFlags, InfoCapHeader, IrqSet, IrqSetFlags, RegionInfo, RegionInfoFlags,
};
use whimbrel_uapi::feature::{DeviceFeature, Feature, FeatureFlags};
use whimbrel_uapi::ioctl::{self, Request};
use whimbrel_uapi::iommufd::{IoasMap, IoasMapFlags};
use whimbrel_uapi::pci::{PciDependentDevice, PciHotResetInfo};
use whimbrel_uapi::type1::{Bitmap, IommuType1DirtyBitmap, IommuType1DirtyBitmapGet, IommuType1DmaMap};
use whimbrel_uapi::{group, migration};
use zerocopy::IntoBytes;

const FILES: [File; 6] =
    [File::Container, File::SpaprContainer, File::Group, File::Device, File::Data, File::Iommufd];

fn shown(file: File, request: Request, argument: &[u8]) -> String {
    Call::new(file, request.number(), argument).to_string()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn feature(verbs: FeatureFlags, feature: Feature, data: &[u8]) -> String {
    let flags = verbs.bits() | u32::from(feature.number());
    let argument = [&words(&[8 + u32::try_from(data.len()).expect("small"), flags]), data].concat();
    shown(File::Device, ioctl::VFIO_DEVICE_FEATURE, &argument)
}

#[test]
fn every_request_is_known_on_some_file_and_shown_by_its_own_name() {
    for request in ioctl::ALL {
        let file =
            FILES.iter().find(|file| Call::new(**file, request.number(), &[]).request() == Some(*request));
        let file = file.unwrap_or_else(|| panic!("{request} belongs to no file"));
        let shown = shown(*file, *request, &[]);
        assert!(shown.starts_with(&format!("{request}(")), "{shown}");
    }
}

#[test]
fn one_number_is_another_request_on_another_file() {
    let names = FILES.map(|file| Call::new(file, 0x3b75, &[]).request().map(Request::name));
    assert_eq!(
        names,
        [
            Some("VFIO_IOMMU_DIRTY_PAGES"),
            Some("VFIO_IOMMU_SPAPR_REGISTER_MEMORY"),
            None,
            Some("VFIO_DEVICE_FEATURE"),
            None,
            // An iommufd stands in for a type1 container.
            Some("VFIO_IOMMU_DIRTY_PAGES"),
        ]
    );
}

#[test]
fn a_number_that_a_file_does_not_have_is_shown_as_a_number() {
    assert_eq!(Call::new(File::Group, 0x3b71, &[1, 2]).to_string(), "unknown request 0x3b71");
    assert_eq!(Call::new(File::Data, u32::MAX, &[]).to_string(), "unknown request 0xffffffff");
    assert_eq!(Call::new(File::Data, 0, &[]).request(), None);
}

#[test]
fn arguments_that_are_no_structure_are_shown_for_what_they_are() {
    let cases: &[(File, Request, &[u8], &str)] = &[
        (File::Device, ioctl::VFIO_DEVICE_RESET, &[], "VFIO_DEVICE_RESET()"),
        (
            File::Container,
            ioctl::VFIO_SET_IOMMU,
            &3_u64.to_ne_bytes(),
            "VFIO_SET_IOMMU(3 VFIO_TYPE1v2_IOMMU)",
        ),
        (File::Container, ioctl::VFIO_CHECK_EXTENSION, &77_u32.to_ne_bytes(), "VFIO_CHECK_EXTENSION(77)"),
        (File::Container, ioctl::VFIO_CHECK_EXTENSION, &[7], "VFIO_CHECK_EXTENSION(cut after 1 bytes)"),
        (
            File::Group,
            ioctl::VFIO_GROUP_SET_CONTAINER,
            &(-1_i32).to_ne_bytes(),
            "VFIO_GROUP_SET_CONTAINER(container -1)",
        ),
        (
            File::Device,
            ioctl::VFIO_DEVICE_GET_GFX_DMABUF,
            &7_u32.to_ne_bytes(),
            "VFIO_DEVICE_GET_GFX_DMABUF(dmabuf_id 7)",
        ),
        (
            File::Group,
            ioctl::VFIO_GROUP_GET_DEVICE_FD,
            b"0000:3b:00.2\0after",
            "VFIO_GROUP_GET_DEVICE_FD(\"0000:3b:00.2\")",
        ),
        (
            File::Group,
            ioctl::VFIO_GROUP_GET_DEVICE_FD,
            b"a\n\"\xff",
            "VFIO_GROUP_GET_DEVICE_FD(\"a\\n\\\"\\xff\", ..)",
        ),
    ];
    for (file, request, argument, expected) in cases {
        assert_eq!(shown(*file, *request, argument), *expected);
    }
}

#[test]
fn a_structure_shows_its_fields_and_names_its_flags() {
    let map =
        IommuType1DmaMap { argsz: 32, flags: 0x13, vaddr: 0x7f00_0000_0000, iova: 0x1000, size: 0x2000 };
    assert_eq!(
        shown(File::Container, ioctl::VFIO_IOMMU_MAP_DMA, map.as_bytes()),
        "VFIO_IOMMU_MAP_DMA(argsz 32, flags READ|WRITE|0x10, vaddr 0x7f0000000000, iova 0x1000, size 0x2000)"
    );
    let flags = IoasMapFlags::FIXED_IOVA.bits();
    let map = IoasMap { size: 40, flags, ioas_id: 2, __reserved: 9, user_va: 0, length: 4096, iova: 0 };
    assert_eq!(
        shown(File::Iommufd, ioctl::IOMMU_IOAS_MAP, map.as_bytes()),
        "IOMMU_IOAS_MAP(size 40, flags FIXED_IOVA, ioas_id 2, __reserved 9, user_va 0x0, length 0x1000, \
         iova 0x0)"
    );
}

#[test]
fn a_structure_ends_where_its_user_says() {
    // The bytes after 16 are not the request's, whatever is there.
    let argument = words(&[16, 0, 5, 0, 0xdead, 0xbeef]);
    assert_eq!(
        shown(File::Device, ioctl::VFIO_DEVICE_BIND_IOMMUFD, &argument),
        "VFIO_DEVICE_BIND_IOMMUFD(argsz 16, flags 0, iommufd 5, out_devid 0)"
    );
    assert_eq!(
        shown(File::Device, ioctl::VFIO_DEVICE_GET_IRQ_INFO, &words(&[0, 1, 2, 3])),
        "VFIO_DEVICE_GET_IRQ_INFO(argsz 0)"
    );
}

#[test]
fn bytes_that_could_not_be_read_are_missed() {
    let cases: &[(&[u8], &str)] = &[
        (&[], "VFIO_DEVICE_GET_IRQ_INFO(cannot be read)"),
        (&[16, 0, 0], "VFIO_DEVICE_GET_IRQ_INFO(cut after 3 bytes)"),
        (
            &words(&[16, 1, 2]),
            "VFIO_DEVICE_GET_IRQ_INFO(argsz 16, flags EVENTFD, index 2, cut after 12 bytes)",
        ),
    ];
    for (argument, expected) in cases {
        assert_eq!(shown(File::Device, ioctl::VFIO_DEVICE_GET_IRQ_INFO, argument), *expected);
    }
    let set = FeatureFlags::SET.bits() | 2;
    assert_eq!(
        shown(File::Device, ioctl::VFIO_DEVICE_FEATURE, &words(&[16, set, 2])),
        "VFIO_DEVICE_FEATURE(SET MIG_DEVICE_STATE, argsz 16, device_state 2 RUNNING, cut after 12 bytes)"
    );
}

#[test]
fn a_feature_is_shown_with_what_is_done_to_it_and_its_data() {
    let (get, set) = (FeatureFlags::GET, FeatureFlags::SET);
    let dma_buf = [words(&[2, 0x8_0000, 0, 2]), [4096_u64, 512].map(u64::to_ne_bytes).concat()].concat();
    let cases = [
        (
            feature(FeatureFlags::PROBE | get | set, Feature::MigDeviceState, &[]),
            "PROBE GET SET MIG_DEVICE_STATE, argsz 8",
        ),
        (feature(FeatureFlags::PROBE, Feature::Migration, &[1; 8]), "PROBE MIGRATION, argsz 16"),
        (
            feature(get, Feature::Migration, &5_u64.to_ne_bytes()),
            "GET MIGRATION, argsz 16, flags STOP_COPY|PRE_COPY",
        ),
        (feature(set, Feature::DmaLoggingStop, &[]), "SET DMA_LOGGING_STOP, argsz 8"),
        (feature(set, Feature::DmaLoggingStop, &[0; 3]), "SET DMA_LOGGING_STOP, argsz 11, 3 bytes of data"),
        (feature(set, Feature::BusMaster, &words(&[1])), "SET BUS_MASTER, argsz 12, op 1 SET_MASTER"),
        (
            feature(get, Feature::DmaBuf, &dma_buf),
            "GET DMA_BUF, argsz 40, region_index 2, open_flags 0x80000, flags 0x0, nr_ranges 2, \
             dma_ranges [0x1000+0x200, ..]",
        ),
    ];
    for (shown, expected) in cases {
        assert_eq!(shown, format!("VFIO_DEVICE_FEATURE({expected})"));
    }
    assert_eq!(
        shown(
            File::Device,
            ioctl::VFIO_DEVICE_FEATURE,
            DeviceFeature { argsz: 12, flags: 0x0009_004d }.as_bytes()
        ),
        "VFIO_DEVICE_FEATURE(GET unknown feature 77 with flags 0x80000, argsz 12, 4 bytes of data)"
    );
}

#[test]
fn a_token_is_never_shown() {
    let shown = feature(FeatureFlags::SET, Feature::PciVfToken, &[0x5a; 16]);
    assert_eq!(shown, "VFIO_DEVICE_FEATURE(SET PCI_VF_TOKEN, argsz 24, token not shown)");
}

#[test]
fn what_follows_a_structure_is_shown_with_it() {
    let flags = IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER;
    let set = IrqSet { argsz: 28, flags: flags.bits(), index: 2, start: 0, count: 2 };
    assert_eq!(
        shown(File::Device, ioctl::VFIO_DEVICE_SET_IRQS, &[set.as_bytes(), &words(&[5, u32::MAX])].concat()),
        "VFIO_DEVICE_SET_IRQS(argsz 28, flags DATA_EVENTFD|ACTION_TRIGGER, index 2, start 0, count 2, \
         eventfds [5, -1])"
    );

    let info = PciHotResetInfo { argsz: 20, flags: 0, count: 2 };
    let device = PciDependentDevice { group_id: 9, segment: 0, bus: 0x3b, devfn: 0x0a };
    assert_eq!(
        shown(
            File::Device,
            ioctl::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            &[info.as_bytes(), device.as_bytes()].concat()
        ),
        "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO(argsz 20, flags 0, count 2, devices [0000:3b:01.2 group 9, ..])"
    );

    let head = IommuType1DirtyBitmap { argsz: 48, flags: 4 };
    let get = IommuType1DirtyBitmapGet {
        iova: 0,
        size: 0x10000,
        bitmap: Bitmap { pgsize: 0x1000, size: 8, data: 0x7000 },
    };
    assert_eq!(
        shown(File::Container, ioctl::VFIO_IOMMU_DIRTY_PAGES, &[head.as_bytes(), get.as_bytes()].concat()),
        "VFIO_IOMMU_DIRTY_PAGES(argsz 48, flags GET_BITMAP, iova 0x0, size 0x10000, bitmap.pgsize 0x1000, \
         bitmap.size 0x8, bitmap.data 0x7000)"
    );
}

fn region_with_capabilities(chain: &[InfoCapHeader]) -> String {
    let info = RegionInfo {
        argsz: 1024,
        flags: RegionInfoFlags::CAPS.bits(),
        cap_offset: 32,
        ..RegionInfo::default()
    };
    shown(File::Device, ioctl::VFIO_DEVICE_GET_REGION_INFO, &[info.as_bytes(), chain.as_bytes()].concat())
}

#[test]
fn capabilities_are_shown_by_name() {
    let header = |id, next| InfoCapHeader { id, version: 1, next };
    let shown = region_with_capabilities(&[header(2, 40), header(99, 48), header(1, 0)]);
    assert!(shown.ends_with("capabilities [TYPE, capability 99, SPARSE_MMAP])"), "{shown}");
}

#[test]
fn a_chain_that_bites_its_tail_or_leaves_the_answer_ends() {
    let header = |id, next| InfoCapHeader { id, version: 1, next };
    let circle = region_with_capabilities(&[header(2, 32)]);
    assert!(circle.ends_with("[TYPE, TYPE, TYPE, TYPE, TYPE, TYPE, TYPE, TYPE, ..])"), "{circle}");
    let outside = region_with_capabilities(&[header(2, u32::MAX)]);
    assert!(outside.ends_with("[TYPE, ..])"), "{outside}");
}

#[test]
fn a_device_without_the_flag_has_no_capabilities_to_show() {
    let info = DeviceInfo {
        argsz: 24,
        flags: DeviceInfoFlags::PCI.bits(),
        num_regions: 9,
        num_irqs: 5,
        cap_offset: 8,
        pad: 0,
    };
    assert_eq!(
        shown(File::Device, ioctl::VFIO_DEVICE_GET_INFO, info.as_bytes()),
        "VFIO_DEVICE_GET_INFO(argsz 24, flags PCI, num_regions 9, num_irqs 5, cap_offset 8)"
    );
}

#[test]
fn numbers_have_the_names_of_their_own_constants() {
    let states = [
        (migration::VFIO_DEVICE_STATE_ERROR, "ERROR"),
        (migration::VFIO_DEVICE_STATE_STOP, "STOP"),
        (migration::VFIO_DEVICE_STATE_RUNNING, "RUNNING"),
        (migration::VFIO_DEVICE_STATE_STOP_COPY, "STOP_COPY"),
        (migration::VFIO_DEVICE_STATE_RESUMING, "RESUMING"),
        (migration::VFIO_DEVICE_STATE_RUNNING_P2P, "RUNNING_P2P"),
        (migration::VFIO_DEVICE_STATE_PRE_COPY, "PRE_COPY"),
        (migration::VFIO_DEVICE_STATE_PRE_COPY_P2P, "PRE_COPY_P2P"),
    ];
    for (state, name) in states {
        let shown = feature(FeatureFlags::GET, Feature::MigDeviceState, &words(&[state, 0]));
        assert!(shown.contains(&format!("device_state {state} {name},")), "{shown}");
    }
    let shown_state = feature(FeatureFlags::GET, Feature::MigDeviceState, &words(&[8, 0]));
    assert!(shown_state.contains("device_state 8,"), "{shown_state}");

    let extensions = [
        (group::VFIO_TYPE1_IOMMU, "VFIO_TYPE1_IOMMU"),
        (group::VFIO_SPAPR_TCE_IOMMU, "VFIO_SPAPR_TCE_IOMMU"),
        (group::VFIO_TYPE1V2_IOMMU, "VFIO_TYPE1v2_IOMMU"),
        (group::VFIO_DMA_CC_IOMMU, "VFIO_DMA_CC_IOMMU"),
        (group::VFIO_EEH, "VFIO_EEH"),
        (group::VFIO_TYPE1_NESTING_IOMMU, "VFIO_TYPE1_NESTING_IOMMU"),
        (group::VFIO_SPAPR_TCE_V2_IOMMU, "VFIO_SPAPR_TCE_v2_IOMMU"),
        (group::VFIO_NOIOMMU_IOMMU, "VFIO_NOIOMMU_IOMMU"),
        (group::VFIO_UNMAP_ALL, "VFIO_UNMAP_ALL"),
        (group::VFIO_UPDATE_VADDR, "VFIO_UPDATE_VADDR"),
    ];
    for (number, name) in extensions {
        assert_eq!(
            shown(File::Container, ioctl::VFIO_CHECK_EXTENSION, &number.to_ne_bytes()),
            format!("VFIO_CHECK_EXTENSION({number} {name})")
        );
    }
}

/// Numbers without a pattern, the same in every run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u8 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.to_ne_bytes()[3]
    }
}

#[test]
fn any_bytes_make_one_short_line() {
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    for file in FILES {
        for number in 0x3b60..0x3bb0 {
            for length in 0..160_u32 {
                let mut argument: Vec<u8> = (0..length).map(|_| noise.next()).collect();
                let fills: [&[u8]; 4] = [&[], &[0x00], &[0xff], &[0x01, 0x00, 0x00]];
                for fill in fills {
                    if !fill.is_empty() {
                        argument = fill.iter().copied().cycle().take(length as usize).collect();
                    }
                    // As it is, and with a size that fits, so that the rest of it is looked at too.
                    for said in [None, Some(length), Some(u32::MAX)] {
                        if let (Some(said), Some(first)) = (said, argument.get_mut(..4)) {
                            first.copy_from_slice(&said.to_ne_bytes());
                        }
                        let shown = Call::new(file, number, &argument).to_string();
                        assert!(shown.len() < 700, "{} bytes: {shown}", shown.len());
                        assert!(shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{shown}");
                    }
                }
            }
        }
    }
}

/// The answer as its list in text, and as pairs of a name and a text.
fn answered(file: File, request: Request, argument: &[u8]) -> (String, Vec<(String, String)>) {
    let call = Call::new(file, request.number(), argument);
    let mut pairs = Vec::new();
    call.answer().values(&mut |name, value| pairs.push((name.to_string(), value.to_string())));
    (call.answer().to_string(), pairs)
}

#[test]
fn an_answer_is_what_the_driver_side_writes() {
    let set = FeatureFlags::SET.bits() | u32::from(Feature::MigDeviceState.number());
    let info = words(&[16, 7, 2, 3]);
    let map = IoasMap { size: 40, flags: 4, ioas_id: 2, __reserved: 0, user_va: 9, length: 8, iova: 0x1000 };
    let reset = PciHotResetInfo { argsz: 24, flags: 0, count: 1 };
    let device = PciDependentDevice { group_id: 9, segment: 0, bus: 0x3b, devfn: 0 };
    let reset = [reset.as_bytes(), device.as_bytes()].concat();
    let cases: &[(File, Request, Vec<u8>, &str)] = &[
        (
            File::Device,
            ioctl::VFIO_DEVICE_FEATURE,
            words(&[16, set, 3, 8]),
            "device_state 3 STOP_COPY, data_fd 8",
        ),
        (File::Device, ioctl::VFIO_DEVICE_GET_IRQ_INFO, info, "flags EVENTFD|MASKABLE|AUTOMASKED, count 3"),
        (File::Iommufd, ioctl::IOMMU_IOAS_MAP, map.as_bytes().to_vec(), "iova 0x1000"),
        (
            File::Device,
            ioctl::VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
            reset,
            "argsz 24, flags 0, count 1, devices [0000:3b:00.0 group 9]",
        ),
        (File::Container, ioctl::VFIO_SET_IOMMU, words(&[3]), ""),
        (File::Group, ioctl::VFIO_GROUP_GET_DEVICE_FD, b"name\0".to_vec(), ""),
        (File::Container, ioctl::VFIO_IOMMU_MAP_DMA, words(&[32, 1, 0, 0, 0, 0, 0, 0]), ""),
        (File::Device, ioctl::VFIO_DEVICE_GET_INFO, words(&[24]), "argsz 24"),
    ];
    for (file, request, argument, expected) in cases {
        let (text, pairs) = answered(*file, *request, argument);
        assert_eq!(text, *expected, "{request}");
        let joined: Vec<String> = pairs.iter().map(|(name, value)| format!("{name} {value}")).collect();
        assert_eq!(joined.join(", "), *expected, "{request}");
    }
}

#[test]
fn a_question_is_what_the_user_sets() {
    let flags = |verbs: FeatureFlags, feature: Feature| verbs.bits() | u32::from(feature.number());
    let (get, set) = (FeatureFlags::GET, FeatureFlags::SET);
    let report = [
        words(&[40, flags(get, Feature::DmaLoggingReport)]),
        [0, 0x1000_u64, 0x1000, 0x7000].map(u64::to_ne_bytes).concat(),
    ]
    .concat();
    let cases: &[(Request, Vec<u8>, &[&str])] = &[
        (
            ioctl::VFIO_DEVICE_FEATURE,
            words(&[16, flags(set, Feature::MigDeviceState), 3, 0]),
            &["feature=SET MIG_DEVICE_STATE", "argsz=16", "device_state=3 STOP_COPY"],
        ),
        (
            ioctl::VFIO_DEVICE_FEATURE,
            words(&[16, flags(get, Feature::MigDeviceState), 3, 0]),
            &["feature=GET MIG_DEVICE_STATE", "argsz=16"],
        ),
        (
            ioctl::VFIO_DEVICE_FEATURE,
            report,
            &[
                "feature=GET DMA_LOGGING_REPORT",
                "argsz=40",
                "iova=0x0",
                "length=0x1000",
                "page_size=0x1000",
                "bitmap=0x7000",
            ],
        ),
        (ioctl::VFIO_DEVICE_GET_REGION_INFO, words(&[32, 9, 7, 9, 0, 0, 0, 0]), &["argsz=32", "index=7"]),
        (ioctl::VFIO_DEVICE_GET_IRQ_INFO, words(&[16, 0]), &["argsz=16", "cut=cut after 8 bytes"]),
    ];
    for (request, argument, expected) in cases {
        let mut pairs = Vec::new();
        let call = Call::new(File::Device, request.number(), argument);
        call.question().values(&mut |name, value| pairs.push(format!("{name}={value}")));
        assert_eq!(pairs, *expected);
    }
    let info = words(&[32, 9, 7, 9, 0, 0, 0, 0]);
    let call = Call::new(File::Device, ioctl::VFIO_DEVICE_GET_REGION_INFO.number(), &info);
    assert_eq!(call.question().to_string(), "VFIO_DEVICE_GET_REGION_INFO(argsz 32, index 7)");
}

#[test]
fn a_request_says_how_it_takes_its_argument() {
    let passing = |file, request: Request| Call::passing(file, request.number());
    assert_eq!(passing(File::Container, ioctl::VFIO_SET_IOMMU), Some(Passing::Number));
    assert_eq!(passing(File::Group, ioctl::VFIO_GROUP_SET_CONTAINER), Some(Passing::Bytes(4)));
    assert_eq!(passing(File::Group, ioctl::VFIO_GROUP_GET_DEVICE_FD), Some(Passing::Text(64)));
    assert_eq!(passing(File::Device, ioctl::VFIO_DEVICE_RESET), Some(Passing::Nothing));
    assert_eq!(passing(File::Device, ioctl::VFIO_DEVICE_FEATURE), Some(Passing::Sized));
    assert_eq!(passing(File::Iommufd, ioctl::IOMMU_DESTROY), Some(Passing::Sized));
    assert_eq!(passing(File::Group, ioctl::VFIO_DEVICE_FEATURE), None);
}

#[test]
fn a_token_is_a_secret_and_other_features_are_not() {
    let has_secret = |feature: Feature| {
        let argument = words(&[24, FeatureFlags::SET.bits() | u32::from(feature.number())]);
        Call::new(File::Device, ioctl::VFIO_DEVICE_FEATURE.number(), &argument).has_secret()
    };
    assert!(has_secret(Feature::PciVfToken));
    assert!(!has_secret(Feature::Migration));
    assert!(!Call::new(File::Device, ioctl::VFIO_DEVICE_FEATURE.number(), &[]).has_secret());
}
