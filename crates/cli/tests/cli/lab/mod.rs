//! The program on a real kernel's devices: probed, walked, saved, restored and moved.
//!
//! These tests run in the lab's machines. Where the lab has not been built (`lab/run build`) they say so and pass;
//! with WHIMBREL_REQUIRE_ALL in the environment they fail.

mod conform;
mod guest;
pub(crate) mod machine;
mod trace;

use std::path::Path;

use serde_json::Value;
use whimbrel_engine::archive::{self, Form};
use whimbrel_models::Model;
use whimbrel_recorder::RECORDINGS;
use whimbrel_user::{Device, Local};

use machine::{FIRST, Machine, SECOND, succeeded};

/// Stops a test where there is no lab.
macro_rules! machine {
    ($kernel:expr) => {
        match Machine::with($kernel) {
            Some(machine) => machine,
            None => return,
        }
    };
}

/// What a 6.12 kernel's mtty with one port saves once [`FILL`] has been run on it.
const RECORDED: [u8; 60] = [
    0x4e, 0x2c, 0x3e, 0x8c, 0x89, 0x09, 0x9d, 0x7e, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x42, 0x68, 0x65,
    0x6c, 0x6c, 0x6f, 0x20, 0x6d, 0x74, 0x74, 0x79, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x0a,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00,
];

/// "hello mtty" into the FIFO, 0x42 into the scratch register, of `$device`.
const FILL: &str = "./region $device write 0:0 68 65 6c 6c 6f 20 6d 74 74 79; ./region $device write 0:7 42";
/// Ten bytes out of the FIFO and the scratch register, of `$device`.
const SHOW: &str = "./region $device read 0:0:10; ./region $device read 0:7:1";
/// What [`SHOW`] prints of a device that was filled.
const SHOWN: &str = "68656c6c6f206d747479\n42\n";

fn serial() -> Local {
    let model: Model = "serial".parse().unwrap();
    Local::new(model.open("serial").unwrap().into_device())
}

fn read(device: &mut dyn Device, offset: u64, count: usize) -> Vec<u8> {
    (0..count)
        .map(|_| {
            let mut byte = [0];
            device.read_region(0, offset, &mut byte).unwrap();
            byte[0]
        })
        .collect()
}

#[test]
fn probe_tells_what_both_serial_cards_of_a_kernel_are() {
    let machine = machine!("debian");
    let lines = "./whimbrel probe group:$first --json > first; ./whimbrel probe group:$second --json > second
        ./whimbrel probe $first";
    let ran = machine.script(lines, &[], &["first", "second"]);
    for name in ["first", "second"] {
        ran.text();
        let told: Value = serde_json::from_slice(&ran.taken(name)).unwrap();
        assert_eq!(told["migration"]["state"], "RUNNING", "{told}");
        assert_eq!(told["migration"]["flags"], serde_json::json!(["STOP_COPY", "P2P", "PRE_COPY"]), "{told}");
        assert_eq!(told["regions"][0]["size"], 8, "{told}");
    }
    for word in ["RUNNING", "PRE_COPY", "BAR0", "CONFIG", "MIG_DEVICE_STATE"] {
        assert!(ran.text().contains(word), "{word} in\n{}", ran.text());
    }
}

#[test]
fn a_kernel_answers_every_request_for_a_state_as_the_table_says() {
    let machine = machine!("debian");
    let ran = machine.script("./whimbrel fsm --walk group:$first --json", &[], &[]);
    let told: Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!(told["differences"], serde_json::json!([]), "{told}");
}

#[test]
fn a_raw_save_is_what_the_kernel_gives_byte_for_byte() {
    let machine = machine!("debian");
    let lines = format!("device=group:$first; {FILL}; ./whimbrel save $device -o state --raw");
    let ran = machine.script(&lines, &[], &["state"]);
    ran.text();
    assert_eq!(ran.taken("state"), RECORDED);
}

#[test]
fn what_a_kernel_saves_is_restored_into_the_model() {
    let machine = machine!("debian");
    let lines = format!(
        "device=group:$first; {FILL}; ./whimbrel save $device -o raw --raw; ./whimbrel save $device -o stream
        ./whimbrel inspect stream; ./whimbrel restore model:serial -i stream"
    );
    let ran = machine.script(&lines, &[], &["raw", "stream"]);
    ran.text();
    for (name, form) in [("raw", Form::Raw), ("stream", Form::Stream)] {
        let mut model = serial();
        archive::restore(&mut model, ran.taken(name).as_slice(), form).unwrap();
        assert_eq!(read(&mut model, 0, 10), b"hello mtty", "{name}");
        assert_eq!(read(&mut model, 7, 1), [0x42], "{name}");
    }
}

#[test]
fn what_the_model_saves_is_restored_into_a_kernels_second_card() {
    let machine = machine!("debian");
    let mut model = serial();
    for byte in b"hello mtty" {
        model.write_region(0, 0, &[*byte]).unwrap();
    }
    model.write_region(0, 7, &[0x42]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (stream, raw) = (folder.path().join("stream"), folder.path().join("raw"));
    archive::save_to_path(&mut model, &stream, Form::Stream).unwrap();
    archive::save_to_path(&mut model, &raw, Form::Raw).unwrap();
    for (path, option) in [(stream, ""), (raw, "--raw")] {
        let name = path.file_name().unwrap().to_str().unwrap();
        let lines =
            format!("./whimbrel restore group:$second -i {name} {option} >&2; device=group:$second; {SHOW}");
        assert_eq!(machine.script(&lines, &[&path], &[]).text(), SHOWN, "{name}");
    }
}

#[test]
fn a_device_moves_from_one_kernel_to_another_over_tcp() {
    let machine = machine!("debian");
    let receive = format!(
        "device=group:$first; ./whimbrel receive $device --listen 0.0.0.0:4000 --insecure >&2; {SHOW}; ./whimbrel probe $device"
    );
    let send = format!(
        "device=group:$second; {FILL}; ./whimbrel send $device --to 10.0.0.2:4000 --insecure --patience 20 --json; \
         ./whimbrel probe $device --json"
    );
    let text = succeeded(&machine.pair(&receive, &send));
    let said = |prefix: &str| -> String {
        text.lines().filter_map(|line| line.strip_prefix(prefix)).map(|line| format!("{line}\n")).collect()
    };
    assert!(said("receive: ").contains(SHOWN), "{text}");
    assert!(said("receive: ").contains("RUNNING"), "{text}");
    assert!(said("send: ").contains("downtime_ms"), "{text}");
    assert!(said("receive: ").contains("dirty logs  device, address space"), "{text}");
}

#[test]
fn devices_move_over_vsock() {
    let machine = machine!("iommufd");
    // To the machine itself: two of them have no vsock between them.
    let lines = "./vsock receive 4000 > received & ./vsock send 1 4000; wait $!; cat received";
    let text = machine.script(lines, &[&machine.programs.vsock], &[]).text();
    assert!(text.contains("bytes of device state went there"), "{text}");
    assert!(text.contains("the register holds what was written there"), "{text}");
}

#[test]
fn a_device_whose_descriptor_outlives_its_user_is_settled_by_the_journals() {
    let machine = machine!("iommufd");
    let lines = "./fd_store /dev/vfio/devices/vfio0 /dev/vfio/devices/vfio1";
    let text = machine.script(lines, &[&machine.programs.fd_store], &[]).text();
    let told = [
        "the VMM at the source died: signal: 6 (SIGABRT); its device is in STOP_COPY",
        "nothing arrived at the destination",
        "source: all devices are stopped: they may have been handed over\nsource: returned",
    ];
    for line in told {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    assert!(text.ends_with("the device runs at the source\n"), "{text}");
}

#[test]
fn a_file_that_is_not_for_the_device_is_refused_and_the_device_is_as_before() {
    let machine = machine!("debian");
    let folder = tempfile::tempdir().unwrap();
    let cut = folder.path().join("cut");
    std::fs::write(&cut, &RECORDED[..40]).unwrap();
    let lines = "device=group:$first
        if ./whimbrel restore $device -i cut --raw; then exit 9; fi
        ./whimbrel probe $device --json";
    let ran = machine.script(lines, &[&cut], &[]);
    let told: Value = serde_json::from_str(&ran.text()).unwrap();
    assert_eq!(told["migration"]["state"], "RUNNING", "{told}");
    let errors = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    for word in [FIRST, "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE", "EINVAL"] {
        assert!(errors.contains(word), "{word} in {errors}");
    }
}

#[test]
fn a_device_is_probed_saved_and_restored_through_its_own_file() {
    let machine = machine!("iommufd");
    let lines = format!(
        "device=cdev:/dev/vfio/devices/vfio0; ./whimbrel probe $device --json > probe
        {FILL}; ./whimbrel save $device -o state --raw >&2; ./whimbrel save $device -o stream >&2
        ./whimbrel devices --json > devices; ./whimbrel fsm --walk $device >&2
        device=cdev:/dev/vfio/devices/vfio1; ./whimbrel restore $device -i stream >&2; {SHOW}"
    );
    let ran = machine.script(&lines, &[], &["probe", "state", "devices"]);
    assert_eq!(ran.text(), SHOWN);
    assert_eq!(ran.taken("state"), RECORDED);
    let told: Value = serde_json::from_slice(&ran.taken("probe")).unwrap();
    assert_eq!(told["migration"]["state"], "RUNNING", "{told}");
    assert_eq!(told["migration"]["debugfs"]["state"], "RUNNING", "{told}");
    let devices = String::from_utf8(ran.taken("devices")).unwrap();
    for word in [FIRST, SECOND, "/dev/vfio/devices/vfio0", "/dev/vfio/devices/vfio1"] {
        assert!(devices.contains(word), "{word} in {devices}");
    }
}

/// Holds `$device` by a command that the script starts as `hold COMMAND..`, until `let_go`, or `stop`, which sends SIGTERM.
const HOLD: &str = r#"
hold() {
    rm -f done said held
    (until [ -e done ]; do sleep 0.1; done) | ./whimbrel "$@" --hold --json > held 2> said & holder=$!
    until grep -q 'holding the device' said; do kill -0 $holder || { cat said >&2; exit 8; }; sleep 0.1; done
    cat said
}
let_go() { touch done; wait $holder; }
stop() { kill -TERM $holder; touch done; wait $holder; }
# Nobody else gets at the device meanwhile.
in_use() { if ./whimbrel state $device 2> refused; then exit 9; fi; cat refused; }
"#;

/// What the kernel's device is said to go through while it is held and after it.
fn assert_held(text: &str, held: &[(&str, &str)], files: &[Vec<u8>]) {
    let closing = "most kernel drivers reset the device when this command opens it and when it closes it";
    let notes = text.lines().filter(|line| line.starts_with("holding the device until stdin ends"));
    let notes: Vec<&str> = notes.collect();
    assert_eq!(notes.len(), held.len(), "{text}");
    assert!(notes.iter().all(|note| note.ends_with(closing)), "{text}");
    assert_eq!(text.matches("error: ").count(), held.len(), "{text}");
    for ((before, state), file) in held.iter().zip(files) {
        let told: Value = serde_json::from_slice(file).unwrap();
        assert_eq!((&told["before"], &told["state"]), (&(*before).into(), &(*state).into()), "{told}");
        assert_eq!(told["closing"], "resets", "{told}");
    }
}

#[test]
fn a_groups_device_is_held_in_a_state_until_stdin_ends_or_a_signal_arrives() {
    let machine = machine!("debian");
    let lines = format!(
        "{HOLD}
        device=group:$first; {FILL}
        hold state $device STOP_COPY; in_use; let_go; mv held first
        ./whimbrel state $device --json > after
        hold state $device resuming; in_use; stop; mv held second
        hold reset $device; in_use; let_go; mv held third
        ./whimbrel probe $device --json > probe"
    );
    let ran = machine.script(&lines, &[], &["first", "second", "third", "after", "probe"]);
    // This driver is one of the few that keep the state of a device that is closed.
    let held = [("RUNNING", "STOP_COPY"), ("STOP_COPY", "RESUMING"), ("RESUMING", "RUNNING")];
    let files = ["first", "second", "third"].map(|name| ran.taken(name));
    assert_held(&ran.text(), &held, &files);
    let [after, probe] =
        ["after", "probe"].map(|name| serde_json::from_slice::<Value>(&ran.taken(name)).unwrap());
    assert_eq!((&after["state"], &after["session"]), (&"STOP_COPY".into(), &Value::Null), "{after}");
    assert_eq!(probe["migration"]["state"], "RUNNING", "{probe}");
    for (file, session) in files.iter().zip([Some("saving"), Some("resuming"), None]) {
        let told: Value = serde_json::from_slice(file).unwrap();
        assert_eq!(told["session"].as_str(), session, "{told}");
    }
}

#[test]
fn the_kernel_itself_shows_the_state_in_which_a_device_is_held_through_its_own_file() {
    let machine = machine!("iommufd");
    let lines = format!(
        "{HOLD}
        device=cdev:/dev/vfio/devices/vfio0
        kernel_says() {{ cat /sys/kernel/debug/vfio/$first/migration/state; }}
        hold state $device STOP_COPY; kernel_says; in_use; let_go; mv held first
        hold reset $device; kernel_says; in_use; stop; mv held second
        hold state $device pre-copy; kernel_says; in_use; let_go; mv held third"
    );
    let ran = machine.script(&lines, &[], &["first", "second", "third"]);
    let held = [("RUNNING", "STOP_COPY"), ("STOP_COPY", "RUNNING"), ("RUNNING", "PRE_COPY")];
    assert_held(&ran.text(), &held, &["first", "second", "third"].map(|name| ran.taken(name)));
    let text = ran.text();
    let states = ["STOP_COPY", "PRE_COPY", "RUNNING"];
    let shown: Vec<&str> = text.lines().filter(|line| states.contains(line)).collect();
    assert_eq!(shown, ["STOP_COPY", "RUNNING", "PRE_COPY"], "{text}");
}

#[test]
fn a_confined_server_serves_on_a_kernel_with_the_landlock_it_has() {
    let machine = machine!("debian");
    let lines = "./whimbrel serve 'accel?state=1MiB' --sandbox --socket socket 2> said & server=$!
        until grep -q serving said; do kill -0 $server; sleep 0.1; done
        cat said
        ./whimbrel probe vfio-user:socket
        ./whimbrel save vfio-user:socket -o state >&2; ./whimbrel restore vfio-user:socket -i state >&2
        kill $server; wait $server";
    let text = machine.script(lines, &[], &[]).text();
    for words in [", confined by Landlock ABI 6 and seccomp", "STOP_COPY", "RUNNING"] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn where_a_kernel_cannot_confine_a_server_nothing_is_served_and_what_it_lacks_is_said() {
    let machine = machine!("iommufd");
    let lines = "if ./whimbrel serve serial --sandbox --socket socket; then exit 9; fi; [ ! -e socket ]";
    let ran = machine.script(lines, &[], &[]);
    ran.text();
    let errors = String::from_utf8_lossy(&ran.output.stderr).into_owned();
    for words in ["the server cannot be confined", "CONFIG_SECURITY_LANDLOCK"] {
        assert!(errors.contains(words), "{words} in {errors}");
    }
}

/// Tests of the user side that run in a machine: (module, kernels, options of `lab/run exec`).
const IN_A_MACHINE: [(&str, &[&str], &[&str]); 7] = [
    ("kernel::group", &["debian", "iommufd"], &[]),
    ("kernel::model", &["debian", "iommufd"], &[]),
    ("kernel::cdev", &["iommufd"], &[]),
    ("kernel::dirty", &["debian", "iommufd"], &[]),
    ("kernel::mock", &["iommufd"], &[]),
    ("kernel::pci", &["debian", "iommufd"], &["--pci"]),
    ("kernel::behind_iommu", &["debian", "iommufd"], &["--pci"]),
];

#[test]
fn the_user_sides_tests_pass_in_the_machines() {
    for (name, kernels, options) in IN_A_MACHINE {
        for kernel in kernels {
            let machine = machine!(kernel);
            let program: &Path = &machine.programs.user_tests;
            let text =
                succeeded(&machine.program_with(options, program, &["--ignored", "--test-threads=1", name]));
            assert!(text.contains("test result: ok."), "{name} on {kernel}:\n{text}");
            assert!(!text.contains(" 0 passed"), "{name} on {kernel} ran nothing:\n{text}");
        }
    }
}

#[test]
fn the_kernels_answer_as_they_did_when_they_were_recorded() {
    for recording in RECORDINGS {
        let machine = machine!(recording.kernel);
        let record = &machine.programs.record;
        let text = succeeded(&machine.program_with(recording.options, record, &[recording.name]));
        recording.check(&text.lines().collect::<Vec<_>>());
    }
}
