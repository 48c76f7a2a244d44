//! `whimbrel run`: unmodified programs, among them this one and QEMU, use a model as a VFIO device of the kernel.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::support::{argument, command, finish, skip};

pub(crate) const WHIMBREL: &str = env!("CARGO_BIN_EXE_whimbrel");
pub(crate) const ADDRESS: &str = "0100:00:00.0";

/// `whimbrel run` with a device and a program.
pub(crate) fn run(model: &str, program: &[&str]) -> Command {
    command(["run", "--device", model, "--"].iter().chain(program))
}

/// Whether programs can be run here at all; if not, it is said that `what` is left out.
pub(crate) fn can_run(what: &str) -> bool {
    let run = finish(run("serial", &["true"]));
    if run.status == 0 {
        return true;
    }
    skip(what, &run.stderr);
    false
}

#[test]
fn its_own_failures_have_the_statuses_of_env() {
    if !can_run("the errors of a start") {
        return;
    }
    let missing = finish(run("serial", &["/nonexistent/program"]));
    assert_eq!(missing.status, 127);
    missing.says(&["error: cannot find /nonexistent/program", "hint: name a program of PATH"]);
    let folder = tempfile::tempdir().unwrap();
    let file = argument(&folder.path().join("file"));
    fs::write(&file, "").unwrap();
    let forbidden = finish(run("serial", &[&file]));
    assert_eq!(forbidden.status, 126);
    forbidden.says(&["error: cannot execute", "EACCES: Permission denied", "hint: make the file executable"]);
}

#[test]
fn a_lack_of_descriptors_is_not_taken_for_a_lack_of_rights() {
    if !can_run("a run with few descriptors") {
        return;
    }
    let mut failures = 0;
    for limit in 6..20 {
        let script = format!("ulimit -n {limit}; exec \"$0\" run --device serial -- true");
        let mut shell = Command::new("sh");
        shell.args(["-c", &script, WHIMBREL]).stdin(Stdio::null());
        let run = finish(shell);
        failures += u32::from(run.status != 0);
        assert!(run.status == 0 || run.stderr.contains("EMFILE"), "{limit}: {}", run.stderr);
        assert!(!run.stderr.contains("yama"), "{limit}: {}", run.stderr);
    }
    assert_ne!(failures, 0);
}

#[test]
fn it_serves_with_all_descriptors_that_it_may_have_and_leaves_the_program_its_limit() {
    if !can_run("the limit of open files") {
        return;
    }
    // It raises its own limit once the program has begun.
    let program = "[ $(ulimit -Sn) = 256 ] || exit 3; \
                   for i in $(seq 1000); do \
                   grep -Eq '^Max open files +512 +512 ' /proc/$PPID/limits && exit 0; sleep 0.01; done; exit 4";
    let limited =
        format!("ulimit -Sn 256 && ulimit -Hn 512 && exec {WHIMBREL} run --device serial -- sh -c \"$0\"");
    let mut command = Command::new("sh");
    command.args(["-c", &limited, program]).stdin(Stdio::null());
    let run = finish(command);
    assert_eq!(run.status, 0, "{}", run.stderr);
}

#[test]
fn devices_without_an_address_leave_those_that_are_given_to_others() {
    if !can_run("devices with and without an address") {
        return;
    }
    let named = format!("serial,name={ADDRESS}");
    let arguments = ["run", "--device", "accel", "--device", &named, "--", "cat"];
    let devices =
        ["0100:00:00.0", "0100:00:01.0"].map(|address| format!("/sys/bus/pci/devices/{address}/device"));
    let run = finish(command(arguments.into_iter().chain(devices.iter().map(String::as_str)))).succeeded();
    assert!(run.text().starts_with("0x3253\n"), "{}", run.text());
    run.says(&[" at 0100:00:00.0: ", " at 0100:00:01.0: "]);
}

#[test]
fn a_device_that_cannot_keep_pre_copy_over_a_reset_is_refused() {
    if can_run("a rule for resets") {
        let with = |model| {
            finish(command(["run", "--device", model, "--reset-rule", "keeps-precopy", "--", "true"]))
        };
        assert_eq!(with("accel").status, 0);
        let refused = with("legacy");
        assert_eq!(refused.status, 125);
        refused.says(&["cannot have this --reset-rule, with which a reset keeps pre-copy: ENOTTY"]);
    }
}

#[test]
fn wrong_usage_is_told_apart() {
    finish(run("serial,name=first", &["true"])).misused().says(&["expected the address of a PCI function"]);
    finish(run("parallel", &["true"])).misused().says(&["unknown model 'parallel'"]);
    finish(command(["run", "--device", "serial"])).misused().says(&["PROGRAM"]);
    let device = "serial,name=0200:00:00.0";
    finish(command(["run", "--device", device, "--device", device, "--", "true"]))
        .misused()
        .says(&["two devices have the address 0200:00:00.0", "hint: choose another address"]);
    let help = finish(command(["run", "--help"])).succeeded();
    let help = help.text().split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("2: wrong usage"), "{help}");
}

#[test]
fn a_mistyped_option_is_not_taken_for_the_program() {
    for before in [&["run", "--device", "serial", "--trace", "--all-io"][..], &["trace", "--al-io"]] {
        let last = before[before.len() - 1];
        finish(command([before, &["--", "true"]].concat())).misused().says(&[last]);
    }
    // What follows the program is the program's.
    if can_run("the options of a program") {
        let told = finish(command(["run", "--device", "serial", "echo", "--all-io", "--json"])).succeeded();
        assert_eq!(told.text(), "--all-io --json\n");
    }
}

#[test]
fn a_second_listener_is_refused_by_name() {
    if !can_run("a run within a run") {
        return;
    }
    let within = finish(run("serial", &[WHIMBREL, "run", "--device", "serial", "--", "true"]));
    assert_eq!(within.status, 125);
    within
        .says(&["error: cannot install a seccomp filter with a listener: EBUSY", "start this outside of it"]);
}

#[test]
fn it_passes_the_conformance_suite_as_a_device_of_the_kernel() {
    if !can_run("the conformance suite under run") {
        return;
    }
    for target in [ADDRESS.to_owned(), format!("group:{ADDRESS}")] {
        let run = finish(run("serial", &[WHIMBREL, "conform", &target]));
        assert_eq!(run.status, 0, "{target}: {}", run.text());
        assert!(run.text().contains(", 0 failed, "), "{}", run.text());
    }
}

#[test]
fn a_state_is_saved_and_restored_by_the_programs_of_two_runs() {
    if !can_run("a saved state") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = argument(&folder.path().join("state"));
    finish(run("accel?state=2MiB", &[WHIMBREL, "save", ADDRESS, "-o", &file])).succeeded();
    finish(run("accel?state=2MiB", &[WHIMBREL, "restore", ADDRESS, "-i", &file])).succeeded();
}

#[test]
fn a_device_migrates_live_between_the_programs_of_two_runs() {
    if !can_run("a live migration") {
        return;
    }
    let mut receiver = run("accel?state=2MiB", &[WHIMBREL, "receive", ADDRESS, "--listen", "127.0.0.1:0"]);
    let mut receiver = receiver.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(receiver.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        assert_ne!(told.read_line(&mut line).unwrap(), 0, "it ended without listening");
        if let Some(address) = line.strip_prefix("listening at ") {
            break address.trim_end().to_owned();
        }
    };
    finish(run("accel?state=2MiB", &[WHIMBREL, "send", ADDRESS, "--to", &address])).succeeded();
    let mut rest = String::new();
    told.read_to_string(&mut rest).unwrap();
    assert!(receiver.wait().unwrap().success(), "{rest}");
}

#[test]
fn a_user_without_rights_can_use_it() {
    if !rustix::process::geteuid().is_root() {
        // All other tests show it.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Where it was built, other users may have no access.
    let program = argument(&folder.path().join("whimbrel"));
    fs::copy(WHIMBREL, &program).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(folder.path(), permissions).unwrap();
    let nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(["run", "--device", "serial", "--"]).args(arguments);
        command.uid(65534).gid(65534).current_dir("/").stdin(Stdio::null());
        finish(command)
    };
    let probe = nobody(&[&program, "conform", ADDRESS]);
    if probe.status == 125 {
        return skip("a run without rights", &probe.stderr);
    }
    assert_eq!(probe.status, 0, "{}{}", probe.text(), probe.stderr);
    let group = nobody(&[&program, "conform", &format!("group:{ADDRESS}")]);
    assert_eq!(group.status, 0, "{}{}", group.text(), group.stderr);
}

#[test]
fn a_guest_of_qemu_has_the_device() {
    const QEMU: &str = "qemu-system-x86_64";
    if Command::new(QEMU).arg("--version").output().is_err() {
        return skip("a guest of QEMU under run", "no qemu-system-x86_64 (apt-get install qemu-system-x86)");
    }
    if !can_run("a guest of QEMU under run") {
        return;
    }
    let device = format!("vfio-pci,host={ADDRESS}");
    let options = ["-accel", "tcg", "-m", "64", "-display", "none", "-serial", "none", "-nodefaults"];
    let program = [&[QEMU], &options[..], &["-monitor", "stdio", "-device", &device]].concat();
    let mut command = run("serial", &program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let (mut text, mut output) = (String::new(), BufReader::new(child.stdout.take().unwrap()));
    // Until the firmware has given the device its ports, which is the guest's own access to it.
    while !text.contains("BAR0: I/O at 0xc") {
        if input.write_all(b"info pci\n").is_err() {
            break;
        }
        let mut line = String::new();
        while output.read_line(&mut line).unwrap() > 0 && !line.contains("BAR0: I/O at") {
            text.push_str(&line);
            line.clear();
        }
        text.push_str(&line);
    }
    // It has ended, if this fails.
    let _ = input.write_all(b"quit\n");
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success(), "{status}; {text}{told}");
    assert!(text.contains("Serial port: PCI device 4348:3253"), "{text}{told}");
}
