//! The model `nvme` as the disk of a guest, behind QEMU's vfio-user-pci: it works through resets, reboots and live updates of
//! its server, and keeps what was written when its server is killed.

use std::path::Path;

use serde_json::json;

use super::running::Running;
use super::takeovers::{first, replace};
use super::{Guest, UNTIL};
use crate::lab::machine::{is_ready, succeeded};
use crate::support::{Served, can_be_confined};

/// In the guest, with `lab/run exec --disk`: waits for the disk's stock driver. `verified SIZE` writes a file of this size at
/// random, reads it again, and fails if anything is missing or is of an earlier time. `checked` checks the file system.
/// `used SIZE` mounts what [`NEW_DISK`] has made, and does both. All of it is data: under TCG a guest must execute nothing
/// that lies on our disk.
pub(super) const DISK: &str = r"
until_it test -b /dev/nvme0n1
mkdir -p /mnt
verified() {
    fio --name=verified --directory=/mnt --size=$1 --fallocate=none --rw=randwrite --bs=4k --ioengine=libaio \
        --direct=1 --iodepth=8 --randrepeat=0 --verify=crc32c --verify_fatal=1 --verify_state_save=0 > fio 2>&1 ||
        { cat fio; return 1; }
}
checked() { fsck.ext4 -fn /dev/nvme0n1 > fsck 2>&1 || { cat fsck; return 1; }; }
used() { mount /dev/nvme0n1 /mnt && cmp kept /mnt/kept && verified $1 && umount /mnt && checked; }
";

/// Makes a file system, with a file that stays as it is.
pub(super) const NEW_DISK: &str = r"
mkfs.ext4 -q /dev/nvme0n1
mount /dev/nvme0n1 /mnt
head -c 1000000 /dev/urandom > kept
cp kept /mnt/kept
umount /mnt
";

impl Guest {
    /// Gives the guest what it needs for a disk; `None` where that has not been built.
    pub(super) fn with_disk(self) -> Option<Guest> {
        is_ready("disk").then(|| self.with(&["--disk", "--memory", "512"]))
    }
}

/// A disk with a new image in this folder.
pub(super) fn model(folder: &Path) -> String {
    format!("nvme?image={}&size=64MiB", folder.join("image").display())
}

/// A guest that can have a disk, and the model of one with a new image.
fn guest() -> Option<(Guest, String)> {
    let guest = Guest::new()?.with_disk()?;
    let model = model(guest.folder.path());
    Some((guest, model))
}

/// What a guest does with a new disk: it looks at what the disk tells of itself, uses it, and resets the controller.
pub(super) const USE: &str = r"
nvme list
nvme id-ctrl /dev/nvme0
nvme id-ns /dev/nvme0n1
nvme error-log /dev/nvme0
nvme fw-log /dev/nvme0
for feature in 1 2 4 5 6 7 8 9 0xa 0xb; do nvme get-feature /dev/nvme0 -f $feature -H; done
used 1m
nvme reset /dev/nvme0
mount /dev/nvme0n1 /mnt
cmp kept /mnt/kept
umount /mnt
nvme smart-log /dev/nvme0
grep nvme0q1 /proc/interrupts
";

/// What the disk tells a guest that uses it.
#[track_caller]
pub(super) fn assert_used(text: &str) {
    for told in [
        "Whimbrel NVMe Controller",
        "67.11  MB /  67.11  MB    512   B +  0 B",
        "ver       : 0x10400",
        "mdts      : 6",
        "nsze    : 0x20000",
        "Error Log Entries for device:nvme0 entries:4",
        "Firmware Log for device:nvme0",
        "Volatile Write Cache Enable (WCE): Enabled",
        "Number of IO Submission Queues Allocated (NSQA): 1",
        "critical_warning\t\t\t: 0",
        "media_errors\t\t\t\t: 0",
        "PCI-MSIX-0000:00:1",
    ] {
        assert!(text.contains(told), "{told} in\n{text}");
    }
    let counted = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    // The file that is verified has 256 blocks of 4 KiB.
    assert!(counted("host_read_commands") >= 256, "{text}");
    assert!(counted("host_write_commands") >= 256, "{text}");
}

#[test]
#[ignore = "long"]
fn a_confined_server_is_the_disk_of_a_guest() {
    if !can_be_confined("a confined server of a disk") {
        return;
    }
    let Some((guest, model)) = guest() else { return };
    let socket = guest.socket("disk");
    let _served = Served::confined(&model, &socket);
    let text = succeeded(&guest.plug(&socket).script(&format!("{UNTIL} {DISK} {NEW_DISK} {USE}")));
    assert_used(&text);
}

#[test]
#[ignore = "long"]
fn a_disk_works_by_messages_for_a_guest_whose_memory_has_no_descriptor() {
    let Some((guest, model)) = guest() else { return };
    let socket = guest.socket("disk");
    let _served = Served::start(&model, &socket);
    let guest = guest.with(&["--no-descriptors"]).plug(&socket);
    assert_used(&succeeded(&guest.script(&format!("{UNTIL} {DISK} {NEW_DISK} {USE}"))));
}

#[test]
#[ignore = "long"]
fn nothing_is_lost_while_the_controller_is_reset_under_load() {
    let Some((guest, model)) = guest() else { return };
    let socket = guest.socket("disk");
    let _served = Served::start(&model, &socket);
    let lines = format!(
        "{UNTIL} {DISK} {NEW_DISK}
        (until [ -e enough ]; do used 2m || exit 1; done) & using=$!
        for reset in 1 2 3 4 5; do
            sleep 1
            nvme reset /dev/nvme0
        done
        touch enough
        wait $using
        dmesg | grep -c 'nvme nvme0: resetting controller'"
    );
    assert_eq!(succeeded(&guest.plug(&socket).script(&lines)), "5\n");
}

#[test]
#[ignore = "long"]
fn nothing_is_lost_while_the_server_of_a_disk_is_replaced() {
    for options in [&[][..], &["--no-descriptors"]] {
        let Some((guest, model)) = guest() else { return };
        let socket = guest.socket("disk");
        let mut server = first(&model, &socket);
        let lines = format!(
            "{UNTIL} {DISK} {NEW_DISK}
            while used 2m; do echo round; done"
        );
        let mut running = Running::start(guest.with(options).plug(&socket), &lines);
        running.wait_for("round");
        for _ in 0..3 {
            replace(&mut server, &model, &socket);
            running.waits_for_more("round");
        }
    }
}

#[test]
#[ignore = "long"]
fn a_guest_finds_its_disk_again_when_it_has_booted_again_under_load() {
    let Some((guest, model)) = guest() else { return };
    let socket = guest.socket("disk");
    let _served = Served::start(&model, &socket);
    // Each boot replays the journal that the one before has left, and finds its mark.
    let lines = format!(
        "{UNTIL} {DISK}
        mount /dev/nvme0n1 /mnt || {{ {NEW_DISK} mount /dev/nvme0n1 /mnt; echo 0 > /mnt/boots; }}
        boots=$(($(cat /mnt/boots) + 1))
        echo $boots > /mnt/boots
        sync
        verified 32m &
        echo boot $boots
        sleep 3
        reboot -f"
    );
    let mut running = Running::start(guest.plug(&socket), &lines);
    for boot in 1..=3 {
        running.wait_for(&format!("boot {boot}"));
        running.execute("set-action", &json!({ "reboot": "reset" }));
    }
}

#[test]
#[ignore = "long"]
fn what_a_guest_has_synced_is_there_after_its_server_was_killed_in_mid_write() {
    let Some((guest, model)) = guest() else { return };
    let image = guest.folder.path().join("image");
    let socket = guest.socket("disk");
    let killed = Served::start(&model, &socket);
    // Each file has its own digest ahead.
    let lines = format!(
        "{UNTIL} {DISK} {NEW_DISK}
        mount /dev/nvme0n1 /mnt
        verified 32m &
        number=0
        while :; do
            number=$((number + 1))
            head -c 65536 /dev/urandom > data
            {{ md5sum < data; cat data; }} > /mnt/$number
            sync
            echo $number
        done"
    );
    let mut running = Running::start(guest.plug(&socket), &lines);
    // After the server's end a sync of the guest says nothing.
    running.wait_for("10");
    drop(killed);
    running.stop();

    let Some(guest) = Guest::new().and_then(Guest::with_disk) else { return };
    let socket = guest.socket("disk");
    let _served = Served::start(&format!("nvme?image={}", image.display()), &socket);
    let lines = format!(
        "{UNTIL} {DISK}
        mount /dev/nvme0n1 /mnt
        dmesg | grep 'recovery complete'
        number=1
        while [ $number -le 10 ]; do
            (read -r digest; [ \"$digest\" = \"$(md5sum)\" ]) < /mnt/$number
            number=$((number + 1))
        done
        umount /mnt
        checked"
    );
    let text = succeeded(&guest.plug(&socket).script(&lines));
    assert!(text.contains("recovery complete"), "{text}");
}
