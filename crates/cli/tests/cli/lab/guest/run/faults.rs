//! Migrations of a guest that fail because a device does: the guest works on where it was.

use serde_json::json;

use super::work::{Work, ended, listen};
use super::{Way, has_v1};

/// Options of `whimbrel run`: no fault, or one.
fn options(fault: &str) -> Vec<&str> {
    if fault.is_empty() { Vec::new() } else { vec!["--fault", fault] }
}

/// Migrates a guest from a device with one fault to a device with another.
#[track_caller]
fn fails(work: &Work, source: &str, destination: &str) {
    let Some(mut from) = work.start(&[], &options(source)) else { return };
    let Some(mut to) = work.start(&["--incoming"], &options(destination)) else { return };
    from.wait_for("working");
    for machine in [&mut from, &mut to] {
        // By it the destination says whether it has loaded everything. Without it the source is done once all is sent.
        let wanted = json!({ "capabilities": [{ "capability": "return-path", "state": true }] });
        machine.execute("migrate-set-capabilities", &wanted);
    }
    let uri = listen(&mut to);
    from.execute("migrate", &uri);
    let told = ended(&mut from);
    assert_eq!(told["status"], "failed", "{:?}, '{source}', '{destination}': {told}", work.way);
    drop(to);
    work.goes_on(&mut from);
}

#[test]
#[ignore = "long"]
fn a_guest_works_on_where_it_was_if_a_device_fails_before_the_switchover() {
    let faults =
        [("", "write after 4KiB: ENOSPC"), ("read after 4KiB: EIO", ""), ("arc *->PRE_COPY: EIO", "")];
    for way in Way::BY_V2 {
        for (source, destination) in faults {
            fails(&Work::new(way, &["accel?state=16MiB"]), source, destination);
        }
    }
}

#[test]
#[ignore = "long"]
fn a_guest_of_qemu_of_2022_works_on_where_it_was_if_its_device_refuses_data_elsewhere() {
    if has_v1() {
        let work = Work::new(Way::System, &["accel?state=64KiB&protocol=v1"]);
        fails(&work, "", "write after 4KiB: ENOSPC");
    }
}
