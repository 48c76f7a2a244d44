//! The model `nvme` as the disk of a guest whose QEMU runs under `whimbrel run`, and migrates to another QEMU with the same
//! image. Whether anything was lost is checked in the guest: `fio` verifies in each round what it has written, also in those
//! that a migration falls into, and the file system is checked.

use serde_json::{Value, json};

use super::super::disk::{DISK, NEW_DISK, USE, assert_used, model};
use super::super::running::Running;
use super::super::{Guest, UNTIL};
use super::Way;
use super::migration::moves;
use super::work::{Work, ended, listen};
use crate::lab::machine::succeeded;

#[test]
#[ignore = "long"]
fn a_guest_uses_a_disk_by_its_stock_driver() {
    for way in Way::ALL {
        let Some(guest) = way.guest().and_then(Guest::with_disk) else { return };
        let model = model(guest.folder.path());
        let guest = guest.give(&model, "");
        let text = succeeded(&guest.script(&format!("{UNTIL} {DISK} {NEW_DISK} {USE}")));
        assert_used(&text);
    }
}

#[test]
#[ignore = "long"]
fn a_guest_goes_on_with_its_disk_in_one_qemu_after_the_other() {
    for way in Way::BY_V2 {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(way, &[&model(folder.path())]);
        let Some((mut source, mut destination)) = work.pair() else { return };
        for is_last in [false, false, true] {
            let uri = listen(&mut destination);
            source.execute("migrate", &uri);
            let told = work.arrives(&mut source, &mut destination);
            println!("{way:?}: downtime {} ms", told["downtime"]);
            if !is_last {
                let Some(next) = work.start(&["--incoming"], &[]) else { return };
                source = std::mem::replace(&mut destination, next);
            }
        }
    }
}

#[test]
#[ignore = "long"]
fn a_disk_migrates_with_other_devices_and_a_guest_whose_memory_has_no_descriptor() {
    for way in [Way::Iommufd, Way::Group10] {
        let folder = tempfile::tempdir().unwrap();
        let models = ["accel?state=1MiB", &model(folder.path())];
        moves(&Work::new(way, &models).options(&["--no-descriptors"]));
    }
}

/// The machine that waits for a migration has the same image open, and does not touch it.
#[test]
#[ignore = "long"]
fn a_guest_keeps_its_disk_when_a_migration_is_cancelled_or_fails_and_migrates_later() {
    for way in [Way::Iommufd, Way::Iommufd10] {
        let folder = tempfile::tempdir().unwrap();
        let work = Work::new(way, &[&model(folder.path())]);
        let Some((mut source, destination)) = work.pair() else { return };
        let (uri, destination) = waits(destination);
        knows_failures(&mut source);
        work.begin_slowly(&mut source, &uri);
        source.execute("migrate_cancel", &json!({}));
        assert_eq!(ended(&mut source)["status"], "cancelled", "{way:?}");
        drop(destination);
        work.goes_on(&mut source);

        Work::hurry(&mut source);
        let Some(destination) = work.start(&["--incoming"], &["--fault", "write after 0: EIO"]) else {
            return;
        };
        let (uri, destination) = waits(destination);
        source.execute("migrate", &uri);
        assert_eq!(ended(&mut source)["status"], "failed", "{way:?}");
        drop(destination);
        work.goes_on(&mut source);

        let Some(destination) = work.start(&["--incoming"], &[]) else { return };
        let (uri, mut destination) = waits(destination);
        source.execute("migrate", &uri);
        work.arrives(&mut source, &mut destination);
    }
}

/// Has a machine wait for a migration, and returns from where.
fn waits(mut machine: Running) -> (Value, Running) {
    knows_failures(&mut machine);
    (listen(&mut machine), machine)
}

/// Without a return path the source is done once all is sent, whatever the destination makes of it.
fn knows_failures(machine: &mut Running) {
    let wanted = json!({ "capabilities": [{ "capability": "return-path", "state": true }] });
    machine.execute("migrate-set-capabilities", &wanted);
}
