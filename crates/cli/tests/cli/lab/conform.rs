//! The conformance suite on the kernel's sample driver, by group and through the device's own file. With
//! `WHIMBREL_LONG=1` also on the newest kernel (`lab/run build newest`).

use std::env;
use std::path::Path;

use serde_json::Value;

use super::machine::{Machine, module};

/// Where mtty is known to break the header or the kernel's rules.
const KNOWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/conformance/mtty-known-failures.toml");

/// The devices of a machine, by group.
const GROUPS: &str = "group:$first group:$second";
/// The same through their own files.
const OWN_FILES: &str = "cdev:/dev/vfio/devices/vfio0 cdev:/dev/vfio/devices/vfio1";

#[test]
fn the_kernels_sample_driver_conforms_but_for_known_failures() {
    let mut runs = vec![("debian", GROUPS), ("iommufd", GROUPS), ("iommufd", OWN_FILES)];
    if env::var_os("WHIMBREL_LONG").is_some() {
        runs.extend([("newest", GROUPS), ("newest", OWN_FILES)]);
    }
    for (kernel, devices) in runs {
        let Some(machine) = Machine::with(kernel) else { return };
        // What the kernel's log has of the boot is nobody's fault.
        let lines = format!(
            "if ./whimbrel conform {devices} --allow reset --known-failures mtty-known-failures.toml --format json \
             --output report >&2; then echo passed; else echo status $?; fi"
        );
        let ran = machine.script(&lines, &[Path::new(KNOWN)], &["report"]);
        let text = String::from_utf8_lossy(&ran.output.stderr).into_owned();
        assert_eq!(ran.text().trim(), "passed", "{kernel}: {devices}\n{text}");
        let report = String::from_utf8(ran.taken("report")).unwrap();
        let events: Vec<Value> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let end = events.last().unwrap();
        assert!(end["expected_failures"].as_u64().unwrap() > 0, "its known fault is found: {end}");
        assert!(end["passed"].as_u64().unwrap() > 40, "{end}");
        assert!(!events.iter().any(|event| event["event"] == "notice"), "the log is watched: {report}");
    }
}

#[test]
fn a_warning_of_the_kernel_fails_the_case_that_ran() {
    let (Some(machine), Some(_)) = (Machine::with("debian"), Machine::with("tree")) else { return };
    let folder = tempfile::tempdir().unwrap();
    let warns = module(folder.path(), "warns", include_str!("warns.c"));
    let lines = "
        ./whimbrel conform group:$first --only v2/feature/defined-flags --repeat 100 --format json \
            --output report >&2 & suite=$!
        while kill -0 $suite 2> /dev/null; do echo > /sys/module/warns/parameters/now; usleep 50000; done
        wait $suite || echo status $?";
    let ran = machine.script_with(&["--module", warns.to_str().unwrap()], lines, &[], &["report"]);
    let text = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    assert_eq!(ran.text().trim(), "status 1", "{text}");
    let report = String::from_utf8(ran.taken("report")).unwrap();
    let results = report.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let failed: Vec<Value> = results.filter(|event| event["verdict"] == "fail").collect();
    assert!(!failed.is_empty(), "{report}");
    for result in failed {
        assert_eq!(result["expected"], "no warning in the kernel's log", "{result}");
        let found = result["found"].as_str().unwrap();
        assert!(found.contains("kernel log: WARNING: CPU") && found.contains("warns_now"), "{found}");
    }
}
