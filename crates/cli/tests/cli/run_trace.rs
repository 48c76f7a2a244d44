//! `whimbrel run --trace` as a script uses it: its lines, objects and summary beside each other and beside those of `whimbrel
//! trace`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::run::{ADDRESS, WHIMBREL, can_run};
use crate::support::{Run, argument, command, finish, keys, skip};

/// `whimbrel run --trace` of a program that probes its device.
fn probed(options: &[&str]) -> Run {
    let run = ["run", "--device", "serial", "--trace"];
    let program = ["--", WHIMBREL, "probe", ADDRESS];
    finish(command([&run[..], options, &program].concat()))
}

/// The objects of a trace.
fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn lines_go_to_stderr_and_stdout_is_the_programs() {
    if !can_run("a trace of run") {
        return;
    }
    let run = probed(&[]).succeeded();
    assert!(run.text().starts_with(ADDRESS), "{}", run.text());
    let mut lines = run.stderr.lines();
    // The device, as without a trace.
    assert!(lines.next().unwrap().contains("/dev/vfio/devices/vfio"), "{}", run.stderr);
    assert!(lines.next().unwrap().contains(" device vfio"), "{}", run.stderr);
    let bind = lines.next().unwrap();
    assert!(
        bind.contains(": VFIO_DEVICE_BIND_IOMMUFD(argsz ") || bind.contains(" iommufd: open() = "),
        "{bind}"
    );
    let refused = "VFIO_DEVICE_FEATURE(PROBE GET LOW_POWER_ENTRY, argsz 8) = -1 ENOTTY: ";
    assert!(run.stderr.contains(refused), "{}", run.stderr);
    assert!(run.stderr.lines().last().unwrap().contains(": close() = 0"), "{}", run.stderr);
}

#[test]
fn objects_have_the_keys_of_a_trace_and_stand_alone() {
    if !can_run("a trace of run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("trace"));
    let to_file = probed(&["--json", "--hex", "-o", &path]).succeeded();
    assert!(!to_file.stderr.contains('{'), "{}", to_file.stderr);
    // On stderr nothing stands between them.
    for text in [fs::read_to_string(&path).unwrap(), probed(&["--json", "--hex"]).succeeded().stderr] {
        let objects = objects(&text);
        let common =
            ["at_us", "call", "error", "fd", "file", "name", "process", "result", "thread", "took_us"];
        let of_requests = ["answer", "answer_hex", "argument", "argument_hex", "number"];
        // A VF token is a secret.
        let of_secrets = ["answer", "argument", "number"];
        let of_transfers = ["asked", "data_hex", "offset", "region"];
        for object in &objects {
            let more: &[&str] = match object["call"].as_str().unwrap() {
                "open" | "close" => &[],
                "pread64" | "pwrite64" => &of_transfers,
                _ if object["argument"].to_string().contains("PCI_VF_TOKEN") => &of_secrets,
                _ => &of_requests,
            };
            let expected: BTreeSet<&str> = common.into_iter().chain(more.iter().copied()).collect();
            assert_eq!(keys(object).into_iter().collect::<BTreeSet<_>>(), expected, "{object}");
        }
        let calls: Vec<&str> = objects.iter().map(|object| object["call"].as_str().unwrap()).collect();
        for call in
            ["open", "VFIO_DEVICE_BIND_IOMMUFD", "VFIO_DEVICE_GET_INFO", "VFIO_DEVICE_FEATURE", "close"]
        {
            assert!(calls.contains(&call), "{call} in {calls:?}");
        }
        let ends = objects.iter().map(|it| it["at_us"].as_u64().unwrap() + it["took_us"].as_u64().unwrap());
        let ends: Vec<u64> = ends.collect();
        // Both are rounded down.
        assert!(ends.windows(2).all(|pair| pair[0] <= pair[1] + 1), "{ends:?}");
    }
}

#[test]
fn the_counts_of_a_summary_are_those_of_the_lines() {
    if !can_run("a trace of run") {
        return;
    }
    let mut counted: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for object in objects(&probed(&["--json"]).succeeded().stderr) {
        let [calls, errors] = counted.entry(object["call"].as_str().unwrap().to_owned()).or_default();
        *calls += 1;
        *errors += u64::from(!object["error"].is_null());
    }
    let summary = objects(&probed(&["--json", "--summary"]).succeeded().stderr).remove(0);
    let sums = summary["summary"].as_array().unwrap();
    assert_eq!(keys(&sums[0]), ["bytes", "call", "calls", "errors", "max_us", "total_us"]);
    let told = sums.iter().map(|sum| {
        let number = |key: &str| sum[key].as_u64().unwrap();
        (sum["call"].as_str().unwrap().to_owned(), [number("calls"), number("errors")])
    });
    assert_eq!(told.collect::<BTreeMap<_, _>>(), counted);
    let table = probed(&["--summary"]).succeeded().stderr;
    let heading: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(heading, ["CALL", "CALLS", "ERRORS", "TOTAL", "MAX", "BYTES"]);
}

#[test]
fn a_trace_that_cannot_be_written_does_not_disturb_the_program() {
    if !can_run("a trace of run") {
        return;
    }
    let run = probed(&["-o", "/dev/full"]);
    assert_eq!(run.status, 125, "{}", run.stderr);
    assert!(run.text().contains("9 regions"), "{}", run.text());
    run.says(&["error: cannot write the trace to /dev/full: ENOSPC"]);
    let run = probed(&["-o", "/nonexistent/file"]);
    assert_eq!((run.status, run.text()), (125, ""));
    run.says(&["error: cannot create /nonexistent/file: ENOENT"]);
}

#[test]
fn options_of_a_trace_need_one() {
    for option in [&["--hex"][..], &["--summary"], &["-o", "file"]] {
        let run = [&["run", "--device", "serial"], option, &["--", "true"]].concat();
        finish(command(run)).misused().says(&["--trace"]);
    }
}

#[test]
fn the_end_of_its_program_is_the_end_of_a_traced_run() {
    if !can_run("a trace of run") {
        return;
    }
    let run = ["run", "--device", "serial", "--trace", "--"];
    let ended = finish(command([&run[..], &["sh", "-c", "exit 7"]].concat()));
    assert_eq!(ended.status, 7);
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines[1..], ["no VFIO request was seen: the program has not used its devices"]);
    let run = ["run", "--device", "serial", "--trace", "--json", "--", "true"];
    assert_eq!(
        finish(command(run)).succeeded().stderr,
        "",
        "between objects for scripts there is no other line"
    );
}

#[test]
fn a_tracer_around_it_sees_nothing_of_its_answers() {
    if !can_run("a trace around run") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (outer, inner) = (folder.path().join("outer"), folder.path().join("inner"));
    let trace = ["trace", "-o", &argument(&outer), "--", WHIMBREL];
    let run =
        ["run", "--device", "serial", "--trace", "-o", &argument(&inner), "--", WHIMBREL, "probe", ADDRESS];
    let traced = finish(command([&trace[..], &run].concat()));
    if traced.status == 125 {
        return skip("a trace around run", &traced.stderr);
    }
    assert_eq!(traced.status, 0, "{}", traced.stderr);
    assert!(!fs::read_to_string(&outer).unwrap().contains("VFIO_DEVICE_GET_INFO"));
    assert!(fs::read_to_string(&inner).unwrap().contains("VFIO_DEVICE_GET_INFO"));
}

#[test]
fn qemu_starts_with_the_requests_that_it_is_known_to_make() {
    const QEMU: &str = "qemu-system-x86_64";
    let version = Command::new(QEMU).arg("--version").output();
    let Ok(version) = version else {
        return skip("a trace of QEMU", "no qemu-system-x86_64 (apt-get install qemu-system-x86)");
    };
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    if !version.contains("version 7.2") {
        return skip("a trace of QEMU", &format!("its requests are known of 7.2 only: {version}"));
    }
    if !can_run("a trace of QEMU") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("trace"));
    let device = format!("vfio-pci,host={ADDRESS}");
    let run = ["run", "--device", "serial", "--trace", "--json", "-o", &path, "--", QEMU];
    let options = ["-accel", "tcg", "-m", "64", "-display", "none", "-serial", "none", "-nodefaults", "-S"];
    let mut command = command([&run[..], &options, &["-monitor", "stdio", "-device", &device]].concat());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    child.stdin.take().unwrap().write_all(b"info status\nquit\n").unwrap();
    let mut line = String::new();
    while output.read_line(&mut line).unwrap() > 0 {}
    let mut told = String::new();
    child.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(child.wait().unwrap().success(), "{line}{told}");

    let mut objects = objects(&fs::read_to_string(&path).unwrap());
    // Rings, which it does without.
    objects.retain(|object| object["file"] != "other");
    let shown: Vec<String> = objects
        .iter()
        .map(|object| {
            let argument = &object["argument"];
            let of = |key: &str| argument[key].as_str().map(|value| format!(" {value}")).unwrap_or_default();
            let values = ["value", "argsz", "index"].map(of).concat();
            format!("{} {}{values}", object["file"].as_str().unwrap(), object["call"].as_str().unwrap())
        })
        .collect();
    // Its start, up to the regions.
    let expected = [
        "group open",
        "group VFIO_GROUP_GET_STATUS 8",
        "container open",
        "container VFIO_GET_API_VERSION",
        "container VFIO_CHECK_EXTENSION 3 VFIO_TYPE1v2_IOMMU",
        "group VFIO_GROUP_SET_CONTAINER",
        "container VFIO_SET_IOMMU 3 VFIO_TYPE1v2_IOMMU",
        "container VFIO_IOMMU_GET_INFO 24",
        "container VFIO_IOMMU_GET_INFO 120",
    ];
    assert_eq!(shown[..expected.len()], expected, "{shown:#?}");
    let from = shown.iter().position(|call| call == "group VFIO_GROUP_GET_DEVICE_FD").unwrap();
    let is_map = |call: &String| call == "container VFIO_IOMMU_MAP_DMA 32";
    assert!(from > expected.len() && shown[expected.len()..from].iter().all(is_map), "{shown:#?}");
    assert_eq!(shown[from + 1], "device VFIO_DEVICE_GET_INFO 20");
    let regions: Vec<&String> =
        shown.iter().filter(|call| call.contains("GET_REGION_INFO")).take(7).collect();
    let indexes = [0, 1, 2, 3, 4, 5, 7];
    assert_eq!(
        regions,
        indexes
            .map(|index| format!("device VFIO_DEVICE_GET_REGION_INFO 32 {index}"))
            .iter()
            .collect::<Vec<_>>()
    );
    assert!(shown.contains(&"device VFIO_DEVICE_GET_IRQ_INFO 16 3".to_owned()), "{shown:#?}");
    let config = objects.iter().find(|object| object["call"] == "pread64").unwrap();
    assert_eq!((&config["region"]["index"], &config["result"]), (&7.into(), &256.into()), "{config}");
    assert!(shown.contains(&"device VFIO_DEVICE_RESET".to_owned()), "{shown:#?}");
}
