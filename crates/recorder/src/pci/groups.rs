//! Through groups and a container: opening by name, with VF tokens, and hot reset by lists of groups.

use whimbrel_uapi::ioctl::*;
use whimbrel_uapi::pci::PciHotReset;
use zerocopy::IntoBytes;

use super::device::{Depth, device, info, low_power};
use super::devices::{BESIDE, DEVICES, E1000E, EDU, Facts, GROUPS, NVME, TESTDEV, VF1, VF2};
use super::list::*;

pub(crate) const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
const WRONG: &str = "00112233-4455-6677-8899-aabbccddee00";
/// A slot for what must not open.
const SPARE: usize = 7;

pub(crate) fn through_groups() -> Vec<Step> {
    let mut list = List::default();
    for group in 0..GROUPS.len() {
        list.add(File::Group(group), VFIO_GROUP_GET_STATUS, &words(&[8, 0]));
        open(&mut list, DEVICES[0].name, File::Group(group), SPARE);
        list.add(File::Group(group), VFIO_GROUP_SET_CONTAINER, CONTAINER.as_bytes());
        list.add(File::Group(group), VFIO_GROUP_GET_STATUS, &words(&[8, 0]));
    }
    for extension in 0..=12 {
        list.number(File::Container, VFIO_CHECK_EXTENSION, extension);
    }
    list.number(File::Container, VFIO_SET_IOMMU, 3);
    list.add(File::Container, VFIO_IOMMU_GET_INFO, &[[200, 0, 0, 0].as_slice(), &[0; 196]].concat());
    names(&mut list);
    tokens(&mut list);
    for facts in [&E1000E, &BESIDE, &NVME, &EDU, &TESTDEV] {
        open(&mut list, facts.name, File::Group(facts.group), facts.slot);
        if facts.slot == BESIDE.slot {
            info(&mut list, File::Device(facts.slot), Depth::Some);
        } else {
            let depth = if facts.slot == E1000E.slot { Depth::All } else { Depth::Some };
            device(&mut list, facts, depth);
        }
        if facts.slot == E1000E.slot {
            low_power(&mut list, facts);
        }
        close(&mut list, facts);
    }
    functions(&mut list);
    hot_resets(&mut list);
    list.0
}

fn open(list: &mut List, name: &str, group: File, slot: usize) {
    list.opens(group, VFIO_GROUP_GET_DEVICE_FD, &[name.as_bytes(), b"\0"].concat(), slot);
}

fn open_with(list: &mut List, facts: &Facts, token: &str) {
    let name = format!("{} vf_token={token}", facts.name);
    open(list, &name, File::Group(facts.group), facts.slot);
}

fn close(list: &mut List, facts: &Facts) {
    list.0.push(Step::Close(facts.slot));
}

/// Names as a user may write them.
fn names(list: &mut List) {
    // Each device that opens is reset when it is closed, which takes its time.
    for facts in DEVICES {
        let name = facts.name;
        for tail in [
            "",
            " ",
            "   ",
            "0",
            ".0",
            "\t",
            " x",
            " vf_token",
            " vf_token=",
            " vf_token=1",
            " VF_TOKEN=00112233-4455-6677-8899-aabbccddeeff",
            " vf_token=00112233-4455-6677-8899-aabbccddeef",
            " vf_token=00112233-4455-6677-8899-aabbccddeefg",
            " vf_token=00112233445566778899aabbccddeeff",
            " vf_token=00112233-4455-6677-8899-aabbccddeeff",
            "  vf_token=00112233-4455-6677-8899-AABBCCDDEEFF  ",
            " vf_token=00112233-4455-6677-8899-aabbccddeeffx",
            " vf_token=00112233-4455-6677-8899-aabbccddeeff x",
            " x vf_token=00112233-4455-6677-8899-aabbccddeeff",
            "vf_token=00112233-4455-6677-8899-aabbccddeeff",
            " vf_token=00112233-4455-6677-8899-aabbccddeeff vf_token=00112233-4455-6677-8899-aabbccddeeff",
        ] {
            open(list, &format!("{name}{tail}"), File::Group(facts.group), facts.slot);
            close(list, facts);
        }
        for group in (0..GROUPS.len()).filter(|group| *group != facts.group) {
            open(list, name, File::Group(group), SPARE);
        }
        open(list, &name[..11], File::Group(facts.group), SPARE);
        open(list, &name[5..], File::Group(facts.group), SPARE);
        open(list, &format!("{}f", &name[..11]), File::Group(facts.group), SPARE);
    }
}

/// Who must know the token, and when it changes.
fn tokens(list: &mut List) {
    let nil = "00000000-0000-0000-0000-000000000000";
    // Unknown until somebody sets it.
    for facts in [&VF1, &VF2] {
        open_with(list, facts, nil);
        open_with(list, facts, WRONG);
    }
    // A PF that nobody uses takes what it is given.
    open_with(list, &NVME, TOKEN);
    close(list, &NVME);
    for token in [WRONG, nil, TOKEN] {
        open_with(list, &VF1, token);
        close(list, &VF1);
    }
    // Not while a VF is in use.
    open_with(list, &VF1, TOKEN);
    open(list, NVME.name, File::Group(NVME.group), SPARE);
    for token in [WRONG, nil] {
        open_with(list, &NVME, token);
    }
    open_with(list, &VF2, WRONG);
    open_with(list, &NVME, TOKEN);
    // The PF's user sets it; who is in stays in.
    let set = |list: &mut List, token: u8| {
        let bytes = feature(SET, 24, &[token; 16]);
        list.add(File::Device(NVME.slot), VFIO_DEVICE_FEATURE, &bytes);
    };
    let sevens = "07070707-0707-0707-0707-070707070707";
    set(list, 7);
    open_with(list, &VF2, TOKEN);
    open_with(list, &VF2, sevens);
    list.add(File::Device(VF1.slot), VFIO_DEVICE_FEATURE, &feature(SET, 24, &[7; 16]));
    list.add(File::Device(VF1.slot), VFIO_DEVICE_GET_IRQ_INFO, &words(&[16, 0, 2, 0]));
    // Without its user the PF keeps it.
    close(list, &NVME);
    open(list, NVME.name, File::Group(NVME.group), SPARE);
    open_with(list, &NVME, TOKEN);
    open_with(list, &NVME, sevens);
    set(list, 8);
    close(list, &VF1);
    close(list, &VF2);
    open_with(list, &VF1, sevens);
    open_with(list, &VF1, "08080808-0808-0808-0808-080808080808");
    close(list, &VF1);
    close(list, &NVME);
    // With nobody in it, the token need not be known.
    open(list, NVME.name, File::Group(NVME.group), NVME.slot);
    close(list, &NVME);
    open_with(list, &NVME, TOKEN);
    close(list, &NVME);
}

/// A virtual function, with its token.
fn functions(list: &mut List) {
    open_with(list, &NVME, TOKEN);
    close(list, &NVME);
    open_with(list, &VF1, TOKEN);
    device(list, &VF1, Depth::Some);
    low_power(list, &VF1);
    close(list, &VF1);
}

fn reset(list: &mut List, facts: &Facts, argsz: u32, flags: u32, count: u32, fds: &[i32]) {
    let head = PciHotReset { argsz, flags, count };
    let bytes = [head.as_bytes(), fds.as_bytes()].concat();
    list.add(File::Device(facts.slot), VFIO_DEVICE_PCI_HOT_RESET, &bytes);
}

fn with_groups(list: &mut List, facts: &Facts, fds: &[i32]) {
    let count = fds.len() as u32;
    reset(list, facts, 12 + 4 * count, 0, count, fds);
}

/// The device's own and every other group that there is.
fn hot_resets(list: &mut List) {
    let groups: Vec<i32> = (GROUP..).take(GROUPS.len()).collect();
    for facts in [&E1000E, &BESIDE, &NVME, &EDU] {
        open(list, facts.name, File::Group(facts.group), facts.slot);
        let own = groups[facts.group];
        for argsz in [0, 11, 12, 13, 15, 16, 17, MAX] {
            reset(list, facts, argsz, 0, 1, &[own]);
            reset(list, facts, argsz, 0, 0, &[own]);
        }
        for flags in (0..32).map(|bit| 1 << bit).chain([MAX]) {
            reset(list, facts, 16, flags, 1, &[own]);
        }
        for count in [0, 1, 2, 3, 4, 5, 1 << 16, 1 << 30, 1 << 31, MAX] {
            reset(list, facts, 64, 0, count, &[own; 8]);
        }
        let head = PciHotReset { argsz: 16, flags: 0, count: 1 };
        let bytes = [head.as_bytes(), own.as_bytes()].concat();
        let cuts = [1, 11, 12, 13, 15, 16];
        list.sizes(File::Device(facts.slot), VFIO_DEVICE_PCI_HOT_RESET, &bytes, &[], &cuts);
        for fd in [-1, i32::MIN, i32::MAX, CLOSED, OTHER, CONTAINER, EVENT, nth(DEVICE, facts.slot)] {
            with_groups(list, facts, &[fd]);
            with_groups(list, facts, &[own, fd]);
            with_groups(list, facts, &[fd, own]);
        }
        for group in &groups {
            with_groups(list, facts, &[*group]);
            with_groups(list, facts, &[own, *group]);
            with_groups(list, facts, &[*group, own, *group]);
        }
        close(list, facts);
    }
    // Groups of the virtual functions, of which none, one or two are in use.
    let [_, physical, first, second, ..] = groups[..] else { unreachable!("six groups") };
    open_with(list, &NVME, TOKEN);
    for opened in [None, Some(&VF1), Some(&VF2)] {
        if let Some(facts) = opened {
            open_with(list, facts, TOKEN);
        }
        for fds in [
            &[physical][..],
            &[first, second],
            &[physical, first],
            &[physical, second],
            &[physical, first, first],
            &[first, physical, second],
            &[physical, first, second, second],
        ] {
            with_groups(list, &NVME, fds);
        }
    }
    with_groups(list, &VF1, &[physical, first, second]);
    with_groups(list, &VF1, &[first]);
    let info = File::Device(VF1.slot);
    list.add(info, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &words(&[44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    for facts in [&NVME, &VF1, &VF2] {
        close(list, facts);
    }
    // Two devices of a group, one user: the group is named once, or as often as there are devices.
    for facts in [&E1000E, &BESIDE] {
        open(list, facts.name, File::Group(facts.group), facts.slot);
    }
    for facts in [&E1000E, &BESIDE] {
        with_groups(list, facts, &[groups[0]]);
        with_groups(list, facts, &[groups[0]; 2]);
        with_groups(list, facts, &[groups[0]; 3]);
    }
    for facts in [&E1000E, &BESIDE] {
        close(list, facts);
    }
}
