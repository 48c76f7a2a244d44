//! Migrations of a guest whose requests to its devices are traced at both sides (`whimbrel run --trace`).

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::requests::is_data_of_region;
use super::work::{Work, ended, listen};

/// What was seen of a migration.
pub(super) struct Traced {
    /// QEMU's own account of it.
    pub(super) told: Value,
    pub(super) source: Side,
    pub(super) destination: Side,
}

/// One side of a migration.
pub(super) struct Side {
    /// The calls on VFIO's files, in the order in which they ended.
    pub(super) calls: Vec<Value>,
    /// QEMU's events of devices that change their state.
    pub(super) events: Vec<Value>,
}

/// Migrates a guest; with `pre_copy`, data of its migration region is read before the stop. `None` where there can be none.
#[track_caller]
pub(super) fn migrated(work: &Work, pre_copy: bool) -> Option<Traced> {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["source", "destination"].map(|name| folder.path().join(name));
    let [at_source, at_destination] =
        paths.each_ref().map(|path| ["--trace", "--json", "--hex", "-o", path.to_str().unwrap()]);
    let mut source = work.start(&[], &at_source)?;
    let mut destination = work.start(&["--incoming"], &at_destination)?;
    source.wait_for("working");
    let uri = listen(&mut destination);
    if pre_copy {
        work.begin_with_data(&mut source, &uri, || calls(&paths[0]).iter().any(is_data_of_region));
        Work::hurry(&mut source);
    } else {
        source.execute("migrate", &uri);
    }
    let told = ended(&mut source);
    assert_eq!(told["status"], "completed", "{:?}: {told}", work.way);
    // QEMU leaves STOP_COPY only after that.
    let path = &paths[0];
    while calls(path).iter().rev().find_map(left).is_some_and(|state| state == "3 STOP_COPY") {
        std::thread::sleep(Duration::from_millis(50));
    }
    work.goes_on(&mut destination);
    let [source_events, destination_events] =
        [&mut source, &mut destination].map(|machine| machine.events("VFIO_MIGRATION"));
    source.stop();
    destination.stop();
    let [source, destination] = paths.each_ref().map(|path| calls(path));
    Some(Traced {
        told,
        source: Side { calls: source, events: source_events },
        destination: Side { calls: destination, events: destination_events },
    })
}

/// The state that a request has led to by v2.
fn left(call: &Value) -> Option<&str> {
    let is_set = call["argument"]["feature"] == "SET MIG_DEVICE_STATE" && call["error"].is_null();
    is_set.then(|| call["argument"]["device_state"].as_str()).flatten()
}

/// The lines of a trace. The last one may be torn: the machine was killed.
fn calls(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.split_inclusive('\n')
        .filter(|line| line.ends_with('\n'))
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}
