//! `whimbrel run --fault`: what a program says of a device that fails, by its own file and by its group.

use crate::run::{ADDRESS, WHIMBREL, can_run, run};
use crate::support::{Run, argument, command, finish};

const MODEL: &str = "accel?state=16KiB";

/// Runs a command of whimbrel on a device with faults.
fn with_fault(fault: &str, program: &[&str]) -> Run {
    let run = ["run", "--device", MODEL, "--fault", fault, "--", WHIMBREL];
    finish(command([&run[..], program].concat()))
}

#[test]
fn a_program_that_meets_a_fault_says_what_failed() {
    if !can_run("the faults of a device") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| argument(&folder.path().join(name));
    let (good, new) = (path("good"), path("new"));
    finish(run(MODEL, &[WHIMBREL, "save", ADDRESS, "-o", &good])).succeeded();
    let to = |state: &str| format!("VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE to {state}: ");
    let cases = [
        ("arc RUNNING_P2P->STOP: EIO", ["save", "-o", &new], to("STOP_COPY") + "EIO: Input/output error"),
        (
            "arc STOP->STOP_COPY: ENOSPC broken",
            ["save", "-o", &new],
            to("STOP_COPY")
                + "ENOSPC: No space left on device; and the device could not be returned to RUNNING, and is in ERROR",
        ),
        ("read after 4KiB: EIO", ["save", "-o", &new], "read of data_fd: EIO: Input/output error".into()),
        ("read after 0 in STOP_COPY: ENODEV", ["save", "-o", &new], "read of data_fd: ENODEV".into()),
        ("arc STOP->RESUMING: EIO", ["restore", "-i", &good], to("RESUMING") + "EIO: Input/output error"),
        ("write after 4KiB: ENOSPC", ["restore", "-i", &good], "write to data_fd: ENOSPC".into()),
        ("arc RESUMING->STOP: EINVAL", ["restore", "-i", &good], to("STOP") + "EINVAL: Invalid argument"),
        (
            "arc RUNNING_P2P->STOP: EIO",
            ["state", "STOP", ""],
            to("STOP") + "EIO: Input/output error; the device is in RUNNING_P2P",
        ),
        (
            "arc RUNNING_P2P->STOP: EIO broken",
            ["state", "STOP", ""],
            to("STOP") + "EIO: Input/output error; the device is in ERROR",
        ),
        (
            "arc RUNNING_P2P->STOP: 0",
            ["state", "STOP", ""],
            to("STOP") + "invalid reply from the device: success, with the device in RUNNING_P2P",
        ),
        (
            "arc RUNNING_P2P->STOP: 0 broken",
            ["state", "STOP", ""],
            to("STOP") + "invalid reply from the device: success, with the device in ERROR",
        ),
        ("reset: EIO", ["reset", "", ""], "VFIO_DEVICE_RESET: EIO: Input/output error".into()),
    ];
    for (fault, program, expected) in cases {
        for target in [ADDRESS.to_owned(), format!("group:{ADDRESS}")] {
            let [name, rest @ ..] = program;
            let rest = rest.into_iter().filter(|argument| !argument.is_empty());
            let program: Vec<&str> = [name, &target].into_iter().chain(rest).collect();
            let failed = with_fault(fault, &program).failed();
            assert!(failed.stderr.contains(&expected), "{fault} at {target}: {}", failed.stderr);
        }
    }
}

#[test]
fn a_fault_that_a_program_can_bear_does_not_stop_it() {
    if !can_run("the faults of a device") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("state"));
    for fault in ["read after 4KiB: short 3 times", "temporary end: 0", "delay STOP_COPY 10ms", "size: EIO"] {
        with_fault(fault, &["save", ADDRESS, "-o", &path]).succeeded();
        std::fs::remove_file(&path).unwrap();
    }
    finish(run(MODEL, &[WHIMBREL, "save", ADDRESS, "-o", &path])).succeeded();
    with_fault("write after 4KiB: short 3 times", &["restore", ADDRESS, "-i", &path]).succeeded();
    let probed = with_fault("size: EIO", &["probe", ADDRESS]).succeeded();
    assert!(probed.text().contains("state size  refused: EIO"), "{}", probed.text());
}

/// Runs a program that resets two devices, with these faults.
fn reset_both(faults: &[&str]) -> Run {
    let options = faults.iter().flat_map(|fault| ["--fault", fault]);
    let devices = ["run", "--device", "serial", "--device", MODEL];
    let script = "\"$0\" reset 0100:00:00.0; first=$?; \"$0\" reset 0100:00:01.0; exit $((10 * first + $?))";
    let program = ["--", "sh", "-c", script, WHIMBREL];
    finish(command(devices.into_iter().chain(options).chain(program)))
}

#[test]
fn a_fault_among_several_devices_is_for_the_one_whose_address_it_has() {
    if !can_run("the faults of several devices") {
        return;
    }
    for (faults, status) in [
        (&["0100:00:00.0 reset: EIO"][..], 10),
        (&["0100:00:01.0 reset: EIO"], 1),
        (&["0100:00:00.0 reset: EIO", "0100:00:01.0 size: EIO; reset: EIO"], 11),
        (&["0100:00:01.0 reset: EIO once", "0100:00:01.0 size: EIO"], 1),
    ] {
        let run = reset_both(faults);
        assert_eq!(run.status, status, "{faults:?}: {}", run.stderr);
    }
}

#[test]
fn a_fault_that_no_device_can_have_is_refused_before_the_program_starts() {
    let cases = [
        (&["reset: EIO"][..], "--fault 'reset: EIO' does not say which device it is for"),
        (&["0100:00:02.0 reset: EIO"], "no device has the address 0100:00:02.0 of --fault 'reset: EIO'"),
        (
            &["0100:00:01.0 arc RUNNING->STOP: EIO"],
            "--fault 'arc RUNNING->STOP: EIO' can never happen: device 0100:00:01.0 does not take this arc",
        ),
    ];
    for (faults, said) in cases {
        let run = reset_both(faults).misused();
        assert_eq!(run.text(), "");
        run.says(&[said, "hint: "]);
    }
    let legacy = ["run", "--device", "legacy", "--fault", "arc *->STOP: EIO", "--", "true"];
    finish(command(legacy)).misused().says(&[
        "--fault 'arc *->STOP: EIO' can never happen: device 0100:00:00.0 has a migration region of its own",
        "hint: use 'reset: ERRNO'",
    ]);
}

#[test]
fn a_fault_that_is_malformed_is_refused_with_a_hint() {
    for (fault, said) in [
        ("explode", "invalid fault 'explode'"),
        ("0100:00:00.0: reset: EIO", "unexpected ':' after the address in '0100:00:00.0:'"),
        ("0100:00:00.0", "no fault follows the address 0100:00:00.0"),
    ] {
        with_fault(fault, &["reset", ADDRESS]).misused().says(&[said, "hint: "]);
    }
}

#[test]
fn the_list_of_faults_is_that_of_serve() {
    let list = |command_name: &str| {
        let help = finish(command([command_name, "--help"])).succeeded().text().to_owned();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let start = help.find("Separate several faults").unwrap();
        let end = start + help[start..].find("number of times.").unwrap();
        help[start..end].to_owned()
    };
    assert_eq!(list("run"), list("serve"));
}
