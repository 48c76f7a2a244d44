//! The program's system looks like the host's, with the devices added.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;

use whimbrel_interpose::run::Command;
use whimbrel_models::Model;

use crate::support::{command, said, spawn, wait};

/// Returns what a shell prints that runs on a serial card.
fn shell(script: &str) -> Option<String> {
    let (mut command, _) = command("sh", "serial");
    command.args(["-c", script]);
    output_of(command)
}

fn output_of(command: Command) -> Option<String> {
    let mut child = spawn(command)?;
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    assert!(wait(&mut child).success(), "{}", said(&mut child));
    Some(text)
}

fn names(folder: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

#[test]
fn the_entries_of_dev_remain_and_those_of_vfio_are_added() {
    let Some(text) = shell("ls -A /dev") else { return };
    let mut expected = names("/dev");
    expected.extend(["iommu".to_owned(), "vfio".to_owned()]);
    assert_eq!(lines(&text), expected);
}

#[test]
fn the_files_of_dev_work() {
    let script =
        "head -c 3 /dev/zero | od -An -tx1; echo x > /dev/null; ls /dev/pts /dev/shm > /dev/null; echo $?";
    let Some(text) = shell(script) else { return };
    assert_eq!(text, " 00 00 00\n0\n");
}

#[test]
fn the_devices_of_the_host_remain_in_sysfs() {
    for folder in ["/sys/bus/pci/devices", "/sys/class", "/sys/devices", "/sys/kernel/iommu_groups"] {
        let Some(text) = shell(&format!("ls -A {folder}")) else { return };
        let missing: Vec<_> = names(folder).difference(&lines(&text)).cloned().collect();
        assert!(missing.is_empty(), "{folder} lacks {missing:?}");
    }
}

#[test]
fn sysfs_describes_a_device_as_the_kernel_does() {
    let script = "cd /sys/bus/pci/devices/0100:00:00.0 && cat vendor device class revision uevent && \
                  od -An -tx1 -N4 config && readlink -f subsystem driver && readlink -f . && head -n1 resource";
    let Some(text) = shell(script) else { return };
    assert_eq!(
        text,
        "0x4348\n0x3253\n0x070002\n0x10\nDRIVER=vfio-pci\nPCI_CLASS=70002\nPCI_ID=4348:3253\n\
         PCI_SUBSYS_ID=4348:3253\nPCI_SLOT_NAME=0100:00:00.0\n\
         MODALIAS=pci:v00004348d00003253sv00004348sd00003253bc07sc00i02\n 48 43 53 32\n/sys/bus/pci\n\
         /sys/bus/pci/drivers/vfio-pci\n/sys/devices/pci0100:00/0100:00:00.0\n\
         0x0000000000000000 0x0000000000000007 0x0000000020000100\n"
    );
}

#[test]
fn each_device_has_a_group_and_a_file_of_its_own() {
    let mut command = Command::new("sh");
    let serial: Model = "serial".parse().unwrap();
    for _ in 0..2 {
        let address = command.free_address().unwrap();
        command.device(serial.open(address.to_string()).unwrap()).unwrap();
    }
    let files = command.devices();
    let script = "for d in 0100:00:00.0 0100:00:01.0; do basename $(readlink /sys/bus/pci/devices/$d/iommu_group); \
                  ls /sys/bus/pci/devices/$d/vfio-dev; done";
    command.args(["-c", script]).stdout(std::process::Stdio::piped());
    let Some(text) = output_of(command) else { return };
    let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let expected: Vec<String> =
        files.iter().flat_map(|files| [name(&files.group), name(&files.cdev)]).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert_ne!(files[0].group, files[1].group);
}

#[test]
fn nothing_is_left_in_the_namespace_of_the_host() {
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if shell("true").is_none() {
        return;
    }
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert!(!std::path::Path::new("/sys/bus/pci/devices/0100:00:00.0").exists());
}
