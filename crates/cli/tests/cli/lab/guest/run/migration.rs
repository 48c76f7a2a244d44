//! Guests at work that QEMU migrates to another QEMU, each under a `whimbrel run` of its own. Whether anything was lost is
//! checked in the guest: by each byte and each job of a round that the migration falls into.

use std::time::Duration;

use serde_json::json;

use super::work::{Work, ended, listen};
use super::{Way, has_v1};

/// Migrates a guest while it works, and waits until it has worked on in its new machine.
#[track_caller]
pub(super) fn moves(work: &Work) {
    let Some((mut source, mut destination)) = work.pair() else { return };
    let uri = listen(&mut destination);
    source.execute("migrate", &uri);
    work.arrives(&mut source, &mut destination);
}

#[test]
fn a_guest_goes_on_with_its_engine_when_a_migration_has_failed_and_in_another_qemu_of_today() {
    let work = Work::new(Way::Iommufd, &["accel?state=1MiB"]);
    let Some(mut source) = work.start(&[], &["--fault", "arc RUNNING->PRE_COPY: EIO once"]) else { return };
    let Some(mut destination) = work.start(&["--incoming"], &[]) else { return };
    source.wait_for("working");
    source.execute("migrate", &json!({ "uri": "exec:cat > /dev/null" }));
    let told = ended(&mut source);
    assert_eq!(told["status"], "failed", "{told}");
    let uri = listen(&mut destination);
    source.execute("migrate", &uri);
    // The guest has noticed nothing of either: its rounds go on, and its engine counts all jobs.
    work.arrives(&mut source, &mut destination);
}

#[test]
#[ignore = "long"]
fn a_guest_goes_on_with_its_engine_in_another_qemu_10() {
    for way in [Way::Group10, Way::Iommufd10] {
        moves(&Work::new(way, &["accel?state=1MiB"]));
    }
}

#[test]
fn a_guest_goes_on_with_its_engine_in_another_qemu_of_2022() {
    if has_v1() {
        moves(&Work::new(Way::System, &["legacy?state=4KiB"]));
    }
}

#[test]
#[ignore = "long"]
fn several_devices_migrate_with_their_guest() {
    let models = &["accel?state=16MiB&rate=1MiB", "serial?ports=2", "accel?state=1MiB"];
    for way in Way::BY_V2 {
        moves(&Work::new(way, models));
    }
    if has_v1() {
        let models = &["legacy?state=64KiB", "serial?ports=2&protocol=v1", "accel?state=256KiB&protocol=v1"];
        moves(&Work::new(Way::System, models));
    }
}

#[test]
#[ignore = "long"]
fn devices_migrate_with_a_guest_whose_memory_has_no_descriptor() {
    for way in Way::BY_V2 {
        moves(&Work::new(way, &["accel?state=1MiB"]).options(&["--no-descriptors"]));
    }
    if has_v1() {
        moves(&Work::new(Way::System, &["legacy?state=4KiB"]).options(&["--no-descriptors"]));
    }
}

#[test]
#[ignore = "long"]
fn a_guest_that_was_saved_to_a_file_goes_on_from_there() {
    for way in Way::ALL {
        if way.is_v1() && !has_v1() {
            continue;
        }
        let work = if way.is_v1() {
            Work::new(way, &["legacy?state=4KiB", "serial?protocol=v1"])
        } else {
            Work::new(way, &["accel?state=1MiB", "serial"])
        };
        let Some(mut saved) = work.start(&[], &[]) else { return };
        saved.wait_for("working");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state");
        let file = file.display();
        // QEMU 7.2 knows no files.
        let (to, from) = if way.is_v1() {
            (format!("exec:cat > {file}"), format!("exec:cat {file}"))
        } else {
            (format!("file:{file}"), format!("file:{file}"))
        };
        saved.execute("migrate", &json!({ "uri": to }));
        let told = ended(&mut saved);
        assert_eq!(told["status"], "completed", "{way:?}: {told}");
        saved.stop();
        let Some(mut restored) = work.start(&["--incoming"], &[]) else { return };
        restored.execute("migrate-incoming", &json!({ "uri": from }));
        work.goes_on(&mut restored);
    }
}

#[test]
#[ignore = "long"]
fn a_guest_whose_migration_is_cancelled_works_on_and_migrates_later() {
    for way in Way::ALL {
        if way.is_v1() && !has_v1() {
            continue;
        }
        let work = if way.is_v1() {
            Work::new(way, &["legacy?state=64KiB"])
        } else {
            Work::new(way, &["accel?state=16MiB", "serial"])
        };
        let Some((mut source, mut destination)) = work.pair() else { return };
        let uri = listen(&mut destination);
        work.begin_slowly(&mut source, &uri);
        std::thread::sleep(Duration::from_secs(1));
        source.execute("migrate_cancel", &json!({}));
        let told = ended(&mut source);
        assert_eq!(told["status"], "cancelled", "{way:?}: {told}");
        drop(destination);
        work.goes_on(&mut source);
        let Some(mut destination) = work.start(&["--incoming"], &[]) else { return };
        let uri = listen(&mut destination);
        Work::hurry(&mut source);
        source.execute("migrate", &uri);
        work.arrives(&mut source, &mut destination);
    }
}

/// By the kernel's rule a reset ends the device's migration, and QEMU's fails with it.
#[test]
#[ignore = "long"]
fn a_guest_that_is_reset_in_pre_copy_boots_again_where_it_was() {
    for way in Way::BY_V2 {
        let work = Work::new(way, &["accel?state=64MiB"]);
        let Some((mut source, mut destination)) = work.pair() else { return };
        source.execute("set-action", &json!({ "reboot": "reset" }));
        let uri = listen(&mut destination);
        work.begin_slowly(&mut source, &uri);
        source.execute("system_reset", &json!({}));
        Work::hurry(&mut source);
        let told = ended(&mut source);
        assert_eq!(told["status"], "failed", "{way:?}: {told}");
        drop(destination);
        source.wait_for("booted");
        work.goes_on(&mut source);
    }
}

#[test]
#[ignore = "long"]
fn a_guest_that_is_reset_in_pre_copy_migrates_if_its_device_keeps_that() {
    for way in Way::BY_V2 {
        let work = Work::new(way, &["accel?state=64MiB"]).run(&["--reset-rule", "keeps-precopy"]);
        let Some((mut source, mut destination)) = work.pair() else { return };
        for machine in [&mut source, &mut destination] {
            machine.execute("set-action", &json!({ "reboot": "reset" }));
        }
        let uri = listen(&mut destination);
        work.begin_slowly(&mut source, &uri);
        source.execute("system_reset", &json!({}));
        source.wait_for("booted");
        Work::hurry(&mut source);
        work.arrives(&mut source, &mut destination);
    }
}

#[test]
#[ignore = "long"]
fn a_device_that_migrates_by_another_protocol_than_its_qemu_blocks_the_migration_of_its_guest() {
    for way in Way::ALL {
        if way.is_v1() && !has_v1() {
            continue;
        }
        let (model, why) = if way.is_v1() {
            ("accel?state=1MiB", "VFIO device doesn't support migration")
        } else {
            ("legacy?state=4KiB", "migration is not supported in kernel")
        };
        let work = Work::new(way, &[model]);
        let Some(mut machine) = work.start(&[], &[]) else { return };
        machine.wait_for("working");
        let refusal = machine.refusal("migrate", &json!({ "uri": "exec:true" }));
        assert!(refusal.contains(why), "{way:?}: {refusal}");
        work.goes_on(&mut machine);
    }
}
