//! `whimbrel save`, `restore` and `inspect` on files that are whole, and where a file cannot be had.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use whimbrel_user::{Migratable as _, State};

use crate::support::{Run, Served, argument, command, finish, keys, skip, whimbrel};

/// What a one-port mtty of a Linux 6.12 yields with "hello mtty" in its FIFO and 0x42 in its scratch register.
const MTTY: &str = "
    4e 2c 3e 8c 89 09 9d 7e 01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00 00 00 00 42
    68 65 6c 6c 6f 20 6d 74 74 79 00 00 00 00 00 00 0a 00 0a 00 00 00 00 00 00 10 00 00";

fn mtty() -> Vec<u8> {
    MTTY.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn names_in(folder: &Path) -> Vec<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn save(target: &str, file: &Path, more: &[&str]) -> Run {
    let file = argument(file);
    whimbrel([&["save", target, "-o", file.as_str()], more].concat())
}

fn restore(target: &str, file: &Path, more: &[&str]) -> Run {
    let file = argument(file);
    whimbrel([&["restore", target, "-i", file.as_str()], more].concat())
}

#[test]
fn what_is_saved_can_be_inspected_and_restored() {
    let folder = TempDir::new().unwrap();
    let cases = [
        ("model:serial", 60),
        ("model:serial?ports=2", 96),
        ("model:accel?state=3MiB&rate=1GiB", 1),
        ("model:accel?state=64KiB&features=stop-copy", 1),
    ];
    for (target, least) in cases {
        let file = folder.path().join("device.whimbrel");
        let saved = save(target, &file, &["--json"]).succeeded().json();
        assert_eq!(keys(&saved), ["device_bytes", "devices", "file", "raw", "warnings"]);
        let device = &saved["devices"][0];
        assert_eq!(keys(device), ["device", "device_bytes", "state"]);
        assert_eq!((&device["device"], &device["state"]), (&json!(target), &json!("RUNNING")));
        let bytes = saved["device_bytes"].as_u64().unwrap();
        assert!(bytes >= least, "{target}: {bytes}");

        let inspected = whimbrel(["inspect", &argument(&file), "--json"]).succeeded().json();
        assert_eq!(
            keys(&inspected),
            [
                "blobs",
                "complete",
                "device_bytes",
                "devices",
                "file",
                "file_bytes",
                "frames",
                "heads",
                "needs",
                "problem",
                "version"
            ]
        );
        assert_eq!(inspected["complete"], true);
        assert_eq!(inspected["device_bytes"], bytes);
        assert_eq!(inspected["file_bytes"], fs::metadata(&file).unwrap().len());
        assert_eq!(inspected["devices"][0]["name"], target);

        let restored = restore(target, &file, &["--json"]).succeeded().json();
        assert_eq!(keys(&restored), ["device_bytes", "devices", "file", "raw", "warnings"]);
        assert_eq!(restored["device_bytes"], bytes);
        assert_eq!(restored["devices"][0]["state"], "RUNNING");
        assert_eq!(names_in(folder.path()), ["device.whimbrel"]);
    }
}

#[test]
fn a_device_that_migrates_through_a_region_is_saved_and_restored_and_its_file_says_so() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("serial");
    save("model:serial?protocol=v1", &file, &[]).succeeded();
    let run = whimbrel(["inspect", &argument(&file)]).succeeded();
    for line in [
        "through       a migration region (v1)\n",
        "transactions  1, the longest of 60 B\n",
        "device        model:serial?protocol=v1 (RESET, PCI; 9 regions, 5 irqs)\n",
    ] {
        assert!(run.text().contains(line), "{line}: {}", run.text());
    }
    for target in ["model:serial", "model:serial?protocol=v1", "model:serial?protocol=draft"] {
        restore(target, &file, &[]).succeeded();
    }
}

#[test]
fn people_are_told_where_it_went_and_what_it_holds() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("serial");
    let run = save("model:serial", &file, &[]).succeeded();
    assert_eq!(
        run.text(),
        format!(
            "saved model:serial to {}: 60 B of device state; the device is in RUNNING again\n",
            file.display()
        )
    );
    let run = whimbrel(["inspect", &argument(&file)]).succeeded();
    for line in [
        "format        whimbrel stream 2.0\n",
        "device        model:serial (RESET, PCI; 9 regions, 5 irqs)\n",
        "migration     STOP_COPY, P2P, PRE_COPY\n",
        "device state  60 B\n",
        ": complete, all checksums match\n",
        "00000000  4e 2c 3e 8c 89 09 9d 7e 01 00 00 00 00 00 00 00  |N,>....~........|\n",
    ] {
        assert!(run.text().contains(line), "'{line}' is missing in {}", run.text());
    }
    let run = restore("model:serial", &file, &[]).succeeded();
    assert!(run.text().starts_with("restored model:serial from "), "{}", run.text());
}

#[test]
fn several_devices_are_saved_to_one_file_and_restored_in_their_order() {
    let folder = TempDir::new().unwrap();
    let model = "accel?state=64KiB";
    let [a, b] = ["a", "b"].map(|name| Served::start(model, &folder.path().join(name)));
    a.mark(8);
    let file = argument(&folder.path().join("both"));
    let run = whimbrel(["save", "model:serial", &a.target, "-o", &file]).succeeded();
    let begins =
        format!("saved model:serial, {} to {file}: \n  model:serial: 60 B of device state", a.target);
    assert!(run.text().starts_with(&begins), "{}", run.text());
    whimbrel(["restore", &b.target, "model:serial", "-i", &file]).failed().says(&["does not fit"]);
    assert_eq!(b.marked(), 0);
    let restored = whimbrel(["restore", "model:serial", &b.target, "-i", &file, "--json"]).succeeded().json();
    assert_eq!(restored["devices"][1]["device"], b.target.as_str());
    assert_eq!(b.marked(), 8);
    for served in [&a, &b] {
        assert_eq!(served.client().state().unwrap(), State::Running);
    }
}

#[test]
fn a_signal_during_a_save_or_a_restore_leaves_a_device_that_runs_and_no_file() {
    let folder = TempDir::new().unwrap();
    let served = Served::start("accel?state=8MiB", &folder.path().join("socket"));
    served.mark(8);
    for signal in ["INT", "TERM"] {
        for arguments in [["save", "-o"], ["restore", "-i"]] {
            // Nobody reads the state, or writes one, to its end.
            let mut command = command([arguments[0], &served.target, arguments[1], "-"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let whole = fs::read(folder.path().join("whole")).unwrap_or_default();
            match arguments[0] {
                "save" => child.stdout.as_mut().unwrap().read_exact(&mut vec![0; 70_000]).unwrap(),
                _ => child.stdin.as_mut().unwrap().write_all(&whole[..300_000]).unwrap(),
            }
            let killed = Command::new("sh").args(["-c", &format!("kill -{signal} {}", child.id())]).status();
            assert!(killed.unwrap().success());
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(1), "{said}");
            assert!(said.contains(&format!("error: cancelled: SIG{signal}")), "{said}");
            assert_eq!(served.client().state().unwrap(), State::Running, "{arguments:?}");
            if arguments[0] == "save" {
                let back = format!("{} is in RUNNING, as before\n", served.target);
                assert!(said.contains(&back), "{said}");
                assert_eq!(served.marked(), 8);
                save(&served.target, &folder.path().join("whole"), &[]).succeeded();
            } else {
                // Part of the state has arrived: the device was reset.
                assert_eq!(served.marked(), 0);
                served.mark(8);
            }
        }
    }
}

#[test]
fn a_device_that_loads_a_state_and_does_not_run_has_not_rejected_it() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    save("model:accel?state=64KiB", &file, &[]).succeeded();
    for (index, (fault, said)) in [
        ("arc *->RUNNING: EIO once", "the device has loaded {} and does not run: "),
        ("arc *->RUNNING: 0 once", "the device has loaded {} and does not run: "),
        ("arc *->RESUMING: EIO once", "cannot restore {}: "),
        ("write after 100: EIO once", "the device rejected {}: "),
        ("arc RESUMING->STOP: EIO once", "the device rejected {}: "),
    ]
    .into_iter()
    .enumerate()
    {
        let socket = folder.path().join(format!("socket {index}"));
        let (served, _) = Served::with("accel?state=64KiB", &socket, &["--fault", fault]).unwrap();
        let said = said.replace("{}", &argument(&file));
        restore(&served.target, &file, &[]).failed().says(&[&format!("error: {said}")]);
        assert_eq!(served.client().state().unwrap(), State::Running, "{fault}: it was reset");
    }
}

#[test]
fn raw_files_hold_the_drivers_bytes_and_nothing_else() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("raw");
    save("model:serial", &file, &["--raw"]).succeeded();
    let bytes = fs::read(&file).unwrap();
    assert_eq!(bytes.len(), 60);
    assert_eq!(bytes[..24], mtty()[..24]);
    restore("model:serial", &file, &["--raw"]).succeeded();
}

#[test]
fn a_state_saved_by_a_kernel_is_restored() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("mtty");
    fs::write(&file, mtty()).unwrap();
    let value = restore("model:serial", &file, &["--raw", "--json"]).succeeded().json();
    assert_eq!(value["device_bytes"], 60);
    restore("model:serial?ports=2", &file, &["--raw"]).failed().says(&["EINVAL", "hint: "]);
}

#[test]
fn stdout_and_stdin_carry_the_state_and_the_result_goes_beside_it() {
    for raw in [&[][..], &["--raw"]] {
        let saved = whimbrel([&["save", "model:serial", "-o", "-", "--json"], raw].concat()).succeeded();
        let told: serde_json::Value = serde_json::from_str(&saved.stderr).unwrap();
        assert_eq!((&told["file"], &told["device_bytes"]), (&json!("stdout"), &json!(60)));

        let mut command = command([&["restore", "model:serial", "-i", "-", "--json"], raw].concat());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(&saved.stdout).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["device_bytes"], 60);
    }
}

#[test]
fn a_failure_does_not_follow_the_state_on_stdout() {
    let folder = TempDir::new().unwrap();
    let target = format!("vfio-user:{}", folder.path().join("nobody").display());
    let run = whimbrel(["save", &target, "-o", "-", "--raw", "--json"]);
    assert_eq!(run.status, 1);
    assert_eq!(run.stdout, b"");
    let told: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    assert!(told["error"].as_str().unwrap().contains("ENOENT"), "{told}");
}

#[test]
fn a_raw_file_given_to_inspect_is_recognised() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("mtty");
    fs::write(&file, mtty()).unwrap();
    let run = whimbrel(["inspect", &argument(&file), "--json"]).failed().says(&[
        ": not a whimbrel stream",
        "raw state of mtty",
        "--raw",
    ]);
    let value = run.json();
    assert!(value["head"].as_str().unwrap().starts_with("4e2c3e8c89099d7e"));
    assert_eq!(value["complete"], false);

    let run = whimbrel(["inspect", &argument(&file)]).failed();
    assert!(run.text().contains("|hello mtty......|"), "{}", run.text());
}

#[test]
fn files_that_cannot_be_had_are_named_with_the_errno() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| argument(&folder.path().join(name));
    let here = argument(folder.path());
    let (missing, inside) = (at("missing"), at("missing/inside"));
    fs::write(at("file"), "x").unwrap();
    let below_file = at("file/below");
    let cases: [(&[&str], &[&str]); 8] = [
        (&["inspect", &missing], &["cannot open", &missing, "ENOENT"]),
        (&["inspect", &here], &["cannot read", "it is a folder"]),
        (&["restore", "model:serial", "-i", &missing], &["cannot open", &missing, "ENOENT"]),
        (&["restore", "model:serial", "-i", &here], &["cannot read", "it is a folder"]),
        (&["save", "model:serial", "-o", &inside], &[&inside, "ENOENT", "hint: folder "]),
        (&["save", "model:serial", "-o", &here], &["cannot write", "it is a folder"]),
        (&["save", "model:serial", "-o", &below_file], &["cannot write", "ENOTDIR"]),
        (&["inspect", &below_file], &["cannot open", "ENOTDIR"]),
    ];
    for (arguments, said) in cases {
        whimbrel(arguments).failed().says(said);
    }
    assert_eq!(names_in(folder.path()), ["file"]);
}

#[test]
fn a_device_file_is_written_to_and_never_replaced() {
    use std::os::unix::fs::FileTypeExt;

    let run = whimbrel(["save", "model:serial", "-o", "/dev/full"]).failed();
    assert!(run.stderr.contains("writing /dev/full: ENOSPC"), "{}", run.stderr);
    whimbrel(["save", "model:serial", "-o", "/dev/null"]).succeeded();
    for path in ["/dev/full", "/dev/null"] {
        assert!(fs::metadata(path).unwrap().file_type().is_char_device(), "{path}");
    }
}

#[test]
fn a_link_stays_and_the_file_it_leads_to_is_replaced() {
    let folder = TempDir::new().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "old").unwrap();
    symlink(&file, &link).unwrap();
    save("model:serial", &link, &[]).succeeded();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    whimbrel(["inspect", &argument(&file)]).succeeded();
}

#[test]
fn a_full_stdout_is_a_failure() {
    let mut command = command(["save", "model:accel?state=1MiB", "-o", "-"]);
    command.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    finish(command).failed().says(&["writing to stdout: ENOSPC"]);
}

#[test]
fn a_full_disk_leaves_the_old_file_and_no_part_of_the_new_one() {
    let folder = TempDir::new().unwrap();
    // A disk of one page, seen by this command alone.
    let script = r#"
        mount -t tmpfs -o size=4k whimbrel "$1" || exit 77
        echo old > "$1/state"
        "$2" save model:serial -o "$1/state"
        status=$?
        ls -A "$1"
        cat "$1/state"
        exit $status
    "#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]);
    command.arg(folder.path()).arg(env!("CARGO_BIN_EXE_whimbrel")).stdin(Stdio::null());
    let what = "a full disk on save";
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return skip(what, &format!("unshare cannot be run: {error}")),
    };
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || stderr.contains("unshare:") {
        return skip(what, &format!("a tmpfs cannot be mounted: {stderr}"));
    }
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "state\nold\n");
    assert!(stderr.contains(&format!("{}/state: ENOSPC", folder.path().display())), "{stderr}");
    assert!(stderr.contains("no partial file remains"), "{stderr}");
}
