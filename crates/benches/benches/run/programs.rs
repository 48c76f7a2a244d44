//! Whole programs, in seconds: any command, fio, and QEMU that boots a guest (skipped if they are missing).

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::{Way, command, median};

const WAYS: [Way; 2] = [Way::Bare, Way::Run("serial")];

/// Runs of each way, in turns. Their median counts.
const RUNS: usize = 7;

/// Prints how long a program takes in each way, and the ratio.
pub(crate) fn measure(name: &str, program: &[OsString]) {
    assert!(!program.is_empty(), "expected the command of a program after {name}");
    let mut times = WAYS.map(|_| Vec::new());
    for _ in 0..RUNS {
        for (way, times) in WAYS.into_iter().zip(&mut times) {
            let begun = Instant::now();
            let status = command(way, program).stdout(Stdio::null()).status().unwrap();
            assert!(status.success(), "{way}: {status}");
            times.push(begun.elapsed().as_secs_f64());
        }
    }
    let range = |times: &Vec<f64>| {
        let (low, high) =
            times.iter().fold((f64::MAX, 0.0), |(low, high), time| (time.min(low), time.max(high)));
        format!("{low:.3} to {high:.3}")
    };
    let ranges = times.each_ref().map(range);
    let [bare, run] = times.map(median);
    println!(
        "{name:24} bare {bare:.3} s ({}), run {run:.3} s ({}), ratio {:.3}",
        ranges[0],
        ranges[1],
        run / bare
    );
}

/// The jobs of fio: the more of its time is system calls, the worse for `run`.
pub(crate) fn measure_fio() {
    if Command::new("fio").arg("--version").stdout(Stdio::null()).status().is_err() {
        println!("fio is missing (apt-get install fio): skipped");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = format!("--filename={}", folder.path().join("data").display());
    for (name, options) in [
        ("fio, random 4 KiB", ["--rw=randrw", "--bs=4k", "--io_size=1g"]),
        ("fio, 4 KiB read", ["--rw=read", "--bs=4k", "--io_size=4g"]),
        ("fio, 64 KiB write", ["--rw=write", "--bs=64k", "--io_size=4g"]),
        ("fio, verify", ["--rw=randwrite", "--bs=16k", "--verify=crc32c"]),
    ] {
        let fixed =
            ["fio", "--name=job", "--size=256m", "--ioengine=psync", "--fallocate=none", "--randseed=1"];
        // It would leave a file in the current folder.
        let fixed = fixed.into_iter().chain(["--verify_state_save=0"]);
        let mut program: Vec<OsString> = fixed.chain(options).map(OsString::from).collect();
        program.push(file.clone().into());
        // The file is made.
        assert!(command(Way::Bare, &program).stdout(Stdio::null()).status().unwrap().success());
        measure(name, &program);
    }
}

/// Boots a guest of the lab to its program, which does nothing, and ends it.
pub(crate) fn measure_qemu() {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/run");
    let ready = Command::new(&lab).args(["ready", "debian"]).stderr(Stdio::null()).status().unwrap();
    if !ready.success() {
        println!("the lab is missing (lab/run build debian): skipped");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("nothing");
    std::fs::write(&script, "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    measure("QEMU boots a guest", &[lab.into(), "exec".into(), "--".into(), script.into()]);
}
