//! QEMU with KVM under `whimbrel run`: KVM is told of the devices' files. Guests run elsewhere in these tests, by TCG: a KVM that
//! opens may still be unable to run one.

use std::fs::OpenOptions;
use std::io::Write;
use std::process::Stdio;

use crate::lab::machine::{is_ready, lab_cache};
use crate::run::{ADDRESS, can_run};
use crate::support::{argument, command};

/// The command of a QEMU that the lab has built.
pub(super) fn qemu(target: &str) -> Vec<String> {
    let folder = lab_cache().expect("HOME is set").join(target);
    let at = |name: &str| argument(&folder.join(name));
    let modules = format!("QEMU_MODULE_DIR={}", at("modules"));
    let mut words: Vec<String> = ["env", &modules].map(String::from).into();
    words.push(at("loader"));
    words.extend(["--inhibit-cache", "--library-path"].map(String::from));
    words.extend([at("lib"), at("qemu-system-x86_64"), "-L".into(), at("firmware")]);
    words
}

/// Whether KVM is there. If not, it is said what is unproven then.
fn has_kvm() -> bool {
    let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") else { return true };
    let line = format!("UNPROVEN: QEMU with KVM and our devices: /dev/kvm: {error}\n");
    // Past the test harness, which shows what a test prints only when it fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
    false
}

/// Starts a machine that does not run, with a device, and asks for its state.
#[track_caller]
fn starts(qemu: &[String], device: &str) {
    let words = ["run", "--device", "accel?state=1MiB", "--"];
    let machine = ["-machine", "q35", "-accel", "kvm", "-S", "-m", "64", "-nodefaults", "-display", "none"];
    let options = ["-monitor", "stdio", "-device", device];
    let options: &[&str] = if device.contains("iommufd") {
        &[&options[..], &["-object", "iommufd,id=iommufd0"]].concat()
    } else {
        &options
    };
    let words = words.into_iter().chain(qemu.iter().map(String::as_str)).chain(machine);
    let mut command = command(words.chain(options.iter().copied()));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"info kvm\ninfo pci\nquit\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let [told, errors] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success(), "{device}: {told}{errors}");
    assert!(told.contains("kvm support: enabled"), "{device}: {told}{errors}");
    // By a group QEMU prints that KVM has refused a file and goes on; by an iommufd it ends.
    assert!(!errors.to_lowercase().contains("kvm"), "{device}: {errors}");
    assert!(told.contains("PCI device "), "{device}: {told}{errors}");
}

#[test]
#[ignore = "long"]
fn kvm_takes_the_files_of_qemus_devices() {
    if !has_kvm() || !can_run("QEMU with KVM") {
        return;
    }
    let (group, iommufd) =
        (format!("vfio-pci,host={ADDRESS}"), format!("vfio-pci,host={ADDRESS},iommufd=iommufd0"));
    starts(&["qemu-system-x86_64".into()], &group);
    for target in ["guest", "qemu-10"] {
        if is_ready(target) {
            starts(&qemu(target), &group);
            starts(&qemu(target), &iommufd);
        }
    }
}
