//! `whimbrel trace` on a real kernel: what programs ask of its devices, and what it answers.

use std::process::Command;

use serde_json::{Value, json};

use super::machine::{FIRST, Machine, Ran, succeeded};

/// The lines of a trace with `--json` that was taken.
fn records(ran: &Ran, name: &str) -> Vec<Value> {
    let text = String::from_utf8(ran.taken(name)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The records of one call.
fn of<'a>(records: &'a [Value], call: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["call"] == call).collect()
}

/// The one record of a feature.
fn feature<'a>(records: &'a [Value], feature: &str) -> &'a Value {
    let found: Vec<&Value> =
        records.iter().filter(|record| record["argument"]["feature"] == feature).collect();
    assert!(!found.is_empty(), "{feature} in {records:?}");
    found[0]
}

#[test]
fn a_save_is_traced_from_the_group_to_the_last_byte_of_state() {
    let Some(machine) = Machine::with("debian") else { return };
    let lines = "./whimbrel trace --json -o trace -- ./whimbrel save group:$first -o state --raw >&2
        ./whimbrel trace --summary -o summary -- ./whimbrel save group:$first -o again --raw >&2
        cmp state again";
    let ran = machine.script(lines, &[], &["trace", "summary", "state"]);
    ran.text();
    let records = records(&ran, "trace");
    let size = ran.taken("state").len();

    let opened = of(&records, "VFIO_GROUP_GET_DEVICE_FD")[0];
    assert_eq!((&opened["name"], &opened["error"]), (&"group 0".into(), &Value::Null), "{opened}");
    let device = format!("device {FIRST} of group 0");
    let stopped = feature(&records, "SET MIG_DEVICE_STATE");
    assert_eq!((&stopped["fd"], &stopped["name"]), (&opened["result"], &device.as_str().into()), "{stopped}");
    assert_eq!(stopped["argument"]["device_state"], "3 STOP_COPY", "{stopped}");
    assert_eq!(stopped["answer"]["device_state"], "3 STOP_COPY", "{stopped}");
    let reported = feature(&records, "GET MIG_DATA_SIZE");
    assert_eq!(reported["answer"], json!({ "stop_copy_length": size.to_string() }), "{reported}");

    // The data file is known by the answer that opened it, and all that goes through it is seen.
    let data: Vec<&Value> = records.iter().filter(|record| record["file"] == "data").collect();
    let fd: i64 = stopped["answer"]["data_fd"].as_str().unwrap().parse().unwrap();
    assert!(data.iter().all(|record| record["fd"] == fd), "{data:?}");
    let read: u64 = of(&records, "read").iter().map(|record| record["result"].as_u64().unwrap()).sum();
    assert_eq!(read, size as u64);
    assert_eq!(data.last().unwrap()["call"], "close", "{data:?}");
    assert!(of(&records, "state not seen in calls").is_empty(), "{records:?}");

    let summary = String::from_utf8(ran.taken("summary")).unwrap();
    let row = summary.lines().find(|line| line.starts_with("read ")).unwrap();
    assert!(row.ends_with(&format!(" {size}")), "{summary}");
}

#[test]
#[ignore = "long"]
fn what_is_hard_to_follow_is_shown_as_far_as_it_can_be_known() {
    let Some(machine) = Machine::with("debian") else { return };
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("traced");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/lab/traced.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-static", "-pthread", "-Wall", "-o"]).arg(&program).arg(source);
    succeeded(&compiler.output().unwrap());
    let lines = "for option in '' --all-io; do
            status=0; ./whimbrel trace --json $option -o trace$option ./traced /dev/vfio/0 $first || status=$?
            [ $status = 5 ]
        done";
    let ran = machine.script(lines, &[&program], &["trace", "trace--all-io"]);
    ran.text();
    let device = format!("device {FIRST} of group 0");
    for (name, all) in [("trace", false), ("trace--all-io", true)] {
        let records = records(&ran, name);
        // The thread that reads the state makes no request.
        let [passed, reads] = [of(&records, "state not seen in calls"), of(&records, "read")];
        if all {
            let read: u64 = reads.iter().map(|record| record["result"].as_u64().unwrap()).sum();
            assert_eq!((passed.len(), read), (0, 60), "{records:?}");
            assert!(reads[0]["thread"] != reads[0]["process"], "{records:?}");
            assert_eq!(of(&records, "openat").len(), 2, "{records:?}");
        } else {
            assert_eq!((passed.len(), reads.len()), (1, 0), "{records:?}");
            assert_eq!(passed[0]["bytes"], 60, "{records:?}");
        }
        let [started, present, nowhere] = of(&records, "VFIO_IOMMU_DIRTY_PAGES")[..] else {
            panic!("{records:?}")
        };
        assert_eq!((&started["result"], &started["pages"]), (&0.into(), &Value::Null), "{started}");
        let pages = |record: &Value| {
            ["dirty_pages", "counted_pages", "pages"].map(|key| record[key].as_u64().unwrap())
        };
        assert_eq!(pages(present), [3 + 36, 100, 100], "{present}");
        assert_eq!(pages(nowhere), [0, 0, 100], "{nowhere}");
        // The child got the descriptor by a message, and knows the device by another one that it inherited.
        let [reset] = of(&records, "VFIO_DEVICE_RESET")[..] else { panic!("{records:?}") };
        assert_eq!(reset["name"], device, "{reset}");
        assert!(reset["process"] != started["process"], "{reset}");
    }
}

#[test]
#[ignore = "long"]
fn the_bytes_of_a_save_and_a_restore_are_those_of_the_state() {
    let Some(machine) = Machine::with("debian") else { return };
    let lines = "device=group:$first
        ./whimbrel trace --json --hex -o saved -- ./whimbrel save $device -o state --raw >&2
        ./whimbrel trace --json --hex -o restored -- ./whimbrel restore $device -i state --raw >&2";
    let ran = machine.script(lines, &[], &["saved", "restored", "state"]);
    ran.text();
    let state: String = ran.taken("state").iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, call) in [("saved", "read"), ("restored", "write")] {
        let records = records(&ran, name);
        let moved: String =
            of(&records, call).iter().filter_map(|record| record["data_hex"].as_str()).collect();
        assert_eq!(moved, state, "{records:?}");
    }
}

/// This kernel has neither kcmp nor process_vm_readv, without which descriptors are told by their links, and memory is read by
/// its file.
#[test]
#[ignore = "long"]
fn a_save_is_traced_through_a_devices_own_file_and_an_iommufd() {
    let Some(machine) = Machine::with("iommufd") else { return };
    let lines = "device=cdev:/dev/vfio/devices/vfio0
        ./whimbrel trace --json --hex -o trace -- ./whimbrel save $device -o state --raw >&2
        ./whimbrel trace --json --hex -o restored -- ./whimbrel restore $device -i state --raw >&2";
    let ran = machine.script(lines, &[], &["trace", "restored", "state"]);
    ran.text();
    let state: String = ran.taken("state").iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, call, wanted) in [("trace", "read", "3 STOP_COPY"), ("restored", "write", "4 RESUMING")] {
        let records = records(&ran, name);
        let [bound] = of(&records, "VFIO_DEVICE_BIND_IOMMUFD")[..] else { panic!("{records:?}") };
        assert_eq!((&bound["name"], &bound["error"]), (&"device vfio0".into(), &Value::Null), "{bound}");
        let [space] = of(&records, "IOMMU_IOAS_ALLOC")[..] else { panic!("{records:?}") };
        assert_eq!(
            (&space["file"], &bound["argument"]["iommufd"]),
            (&"iommufd".into(), &space["fd"].to_string().into()),
            "{space}, {bound}"
        );
        let asked = feature(&records, "SET MIG_DEVICE_STATE");
        assert_eq!(asked["argument"]["device_state"], wanted, "{asked}");
        let fd: i64 = asked["answer"]["data_fd"].as_str().unwrap().parse().unwrap();
        let moved: String = of(&records, call)
            .iter()
            .filter(|record| record["fd"] == fd)
            .filter_map(|record| record["data_hex"].as_str())
            .collect();
        assert_eq!(moved, state, "{records:?}");
    }
}

/// The kernel's mock device is the only one here whose pages are not counted by type1: mtty and the displays log no DMA.
#[test]
#[ignore = "long"]
fn the_dirty_pages_that_a_page_table_reports_are_counted() {
    let Some(machine) = Machine::with("iommufd") else { return };
    let program = machine.programs.user_tests.as_path();
    let name = program.file_name().unwrap().to_str().unwrap();
    let test = "kernel::mock::a_page_table_reports_what_its_iommu_has_marked";
    let lines =
        format!("./whimbrel trace --json -o trace -- ./{name} --ignored --exact {test} --test-threads=1");
    let ran = machine.script(&lines, &[program], &["trace"]);
    assert!(ran.text().contains("1 passed"), "{}", ran.text());
    let records = records(&ran, "trace");
    let tracked = of(&records, "IOMMU_HWPT_SET_DIRTY_TRACKING");
    assert_eq!(tracked.len(), 4, "{records:?}");
    // What it marks in its two mappings of four pages, as it reports and unmaps them.
    let reported = of(&records, "IOMMU_HWPT_GET_DIRTY_BITMAP");
    let counts = |key: &str| -> Vec<u64> { reported.iter().map(|it| it[key].as_u64().unwrap()).collect() };
    assert_eq!(counts("dirty_pages"), [0, 0, 2, 1, 0, 0, 2, 1, 1], "{reported:?}");
    assert_eq!(counts("counted_pages"), [4; 9], "{reported:?}");
}
