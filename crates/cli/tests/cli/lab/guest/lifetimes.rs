//! Devices that come and go while a guest runs, a guest that boots again, and servers that die under it.

use std::time::Duration;

use serde_json::json;

use super::running::Running;
use super::{ECHO, Guest, UIO, UNTIL};
use crate::support::Served;

/// In the guest, whether a device is in one of the slots.
const PLUGGED: &str = r"
plugged() { ls /sys/bus/pci/devices/*/0000:*:00.0/vendor > plugged 2> /dev/null && grep -q . plugged; }
unplugged() { ! plugged; }
";

#[test]
#[ignore = "long"]
fn a_device_is_plugged_in_and_unplugged_twice_while_the_guest_runs() {
    let Some(guest) = Guest::new() else { return };
    let (accel, serial) = (guest.socket("accel"), guest.socket("serial"));
    let _accel = Served::start("accel?state=1MiB", &accel);
    let served = Served::start("serial?ports=2", &serial);
    let lines = format!(
        "{UNTIL} {PLUGGED} {ECHO}
        echo booted
        for round in 1 2; do
            until_it plugged
            device=$(sed 's#.*/\\(0000:[^/]*\\)/vendor#\\1#' plugged)
            until_it test -e /sys/bus/pci/devices/$device/driver
            echo_all $device 2048
            echo echoed $round
            until_it unplugged
            echo unplugged $round
        done"
    );
    let mut running = Running::start(guest.plug(&accel), &lines);
    running.wait_for("booted");
    let device = json!({
        "driver": "vfio-user-pci", "id": "plugged", "bus": "slot1",
        "socket": { "type": "unix", "path": serial },
    });
    for round in [1, 2] {
        running.execute("device_add", &device);
        running.wait_for(&format!("echoed {round}"));
        running.execute("device_del", &json!({ "id": "plugged" }));
        running.wait_for_event("DEVICE_DELETED", "plugged");
        running.wait_for(&format!("unplugged {round}"));
    }
    running.finish();
    // Its client has left, so that the next one is served.
    served.client();
}

#[test]
#[ignore = "long"]
fn devices_work_again_when_the_guest_has_booted_again() {
    let Some(guest) = Guest::new() else { return };
    let (serial, accel) = (guest.socket("serial"), guest.socket("accel"));
    let _serial = Served::start("serial?ports=2", &serial);
    let _accel = Served::start("accel?state=1MiB", &accel);
    // The engine's number of jobs since its reset is checked by the program.
    let lines = format!(
        "{ECHO} {UIO} echo_all 0000:00:10.0 2048; uio 0000:00:11.0
        ./jobs uio 0000:00:11.0 intx 500
        echo worked
        sleep 3
        reboot -f"
    );
    let mut running = Running::start(guest.with_jobs().plug(&serial).plug(&accel), &lines);
    for _ in 0..3 {
        running.wait_for("ttyS2 returned 2048 bytes");
        running.wait_for("worked");
        running.execute("set-action", &json!({ "reboot": "reset" }));
    }
}

#[test]
#[ignore = "long"]
fn a_guest_goes_on_without_the_device_whose_idle_server_was_killed() {
    let Some(guest) = Guest::new() else { return };
    let (serial, accel) = (guest.socket("serial"), guest.socket("accel"));
    let killed = Served::start("serial?ports=2", &serial);
    let other = Served::start("accel?state=1MiB", &accel);
    let lines = format!(
        "{ECHO} {UIO} echo_all 0000:00:10.0 2048; uio 0000:00:11.0
        echo idle
        sleep 5
        ./jobs uio 0000:00:11.0 intx 500
        echo others work
        [ \"$(od -An -tx1 -N2 /sys/bus/pci/devices/0000:00:10.0/config)\" = ' ff ff' ]
        echo only ones"
    );
    let mut running = Running::start(guest.with_jobs().plug(&serial).plug(&accel), &lines);
    running.wait_for("idle");
    drop(killed);
    running.wait_for("only ones");
    // QEMU is killed, and the other server has the next client.
    running.stop();
    other.client();
}

/// QEMU 11.1.3 aborts by an assertion of its own if the server dies during an access (docs/differences.md). So whether the
/// guest goes on is told and not judged.
#[test]
#[ignore = "long"]
fn a_server_that_is_killed_while_its_device_works_takes_no_other_server_along() {
    let Some(guest) = Guest::new() else { return };
    let (serial, accel) = (guest.socket("serial"), guest.socket("accel"));
    let other = Served::start("serial?ports=2", &serial);
    let killed = Served::start("accel?state=1MiB", &accel);
    let lines = format!(
        "{ECHO} {UIO} uio 0000:00:11.0
        echo working
        if ./jobs uio 0000:00:11.0 intx 100000000 2> error; then exit 9; fi
        echo_all 0000:00:10.0 2048
        echo others work"
    );
    let mut running = Running::start(guest.with_jobs().plug(&serial).plug(&accel), &lines);
    running.wait_for("working");
    std::thread::sleep(Duration::from_secs(2));
    drop(killed);
    println!("the guest whose device worked goes on: {}", running.goes_on("others work"));
    running.stop();
    other.client();
}
