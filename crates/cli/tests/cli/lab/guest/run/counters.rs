//! What QEMU counts and tells of a migration, beside the trace of what it has asked of the devices.

use super::requests::is_data_of_region;
use super::traces::{Side, migrated};
use super::work::Work;
use super::{Way, has_v1};

/// The bytes that calls on data files have moved.
fn moved(side: &Side, call: &str) -> u64 {
    let moves = side.calls.iter().filter(|it| it["file"] == "data" && it["call"] == call);
    moves.filter_map(|it| it["result"].as_u64()).sum()
}

/// The states that the requests of a trace have led to, by device.
fn states_asked(side: &Side) -> Vec<Vec<String>> {
    let mut states: Vec<(String, Vec<String>)> = Vec::new();
    for call in &side.calls {
        if call["argument"]["feature"] != "SET MIG_DEVICE_STATE" || !call["error"].is_null() {
            continue;
        }
        let name = call["name"].as_str().unwrap().to_owned();
        // "3 STOP_COPY", for QEMU's "stop-copy".
        let (_, state) = call["argument"]["device_state"].as_str().unwrap().split_once(' ').unwrap();
        let state = state.to_lowercase().replace('_', "-");
        match states.iter_mut().find(|(known, _)| *known == name) {
            Some((_, states)) => states.push(state),
            None => states.push((name, vec![state])),
        }
    }
    states.sort();
    states.into_iter().map(|(_, states)| states).collect()
}

/// The states that QEMU's events tell, by device.
fn states_told(side: &Side, devices: usize) -> Vec<Vec<String>> {
    let of = |number: usize| {
        let id = format!("device{number}");
        let its = side.events.iter().filter(|event| event["data"]["device-id"] == id.as_str());
        let states = its.map(|event| event["data"]["device-state"].as_str().unwrap().to_owned());
        // QEMU 11 tells "pre-copy-p2p-prepare" too, before a request.
        states.filter(|state| !state.ends_with("-prepare")).collect()
    };
    (0..devices).map(of).collect()
}

#[test]
#[ignore = "long"]
fn what_qemu_says_to_have_transferred_is_what_it_has_read_of_the_devices() {
    for way in Way::BY_V2 {
        let work =
            Work::new(way, &["accel?state=16MiB&rate=1MiB", "serial"]).properties(",migration-events=on");
        let Some(traced) = migrated(&work, false) else { return };
        let read = moved(&traced.source, "read");
        assert!(read >= 16 << 20, "{way:?}: {read}");
        assert_eq!(traced.told["vfio"]["transferred"], read, "{way:?}: {}", traced.told);
        assert_eq!(moved(&traced.destination, "write"), read, "{way:?}");
        for (side, first, last) in
            [(&traced.source, "pre-copy", "stop"), (&traced.destination, "resuming", "running")]
        {
            let told = states_told(side, 2);
            let asked = states_asked(side);
            assert_eq!((told.len(), asked.len()), (2, 2), "{way:?}: {told:?}, {asked:?}");
            for (told, asked) in told.iter().zip(&asked) {
                // The guest was started before QEMU was listened to.
                assert!(asked.ends_with(told), "{way:?}: {told:?}, {asked:?}");
                let ends = (told.first().unwrap().as_str(), told.last().unwrap().as_str());
                assert_eq!(ends, (first, last), "{way:?}: {told:?}");
            }
        }
    }
}

#[test]
#[ignore = "long"]
fn qemu_of_2022_writes_as_much_at_the_destination_as_it_has_read_of_the_data_section() {
    if !has_v1() {
        return;
    }
    let work = Work::new(Way::System, &["legacy?state=64KiB"]);
    let Some(traced) = migrated(&work, false) else { return };
    let section = |side: &Side, call: &str| -> u64 {
        let moves = side.calls.iter().filter(|it| it["call"] == call && is_data_of_region(it));
        moves.map(|it| it["result"].as_u64().unwrap()).sum()
    };
    let read = section(&traced.source, "pread64");
    assert!(read >= 64 << 10, "{read}");
    // Its `query-migrate` counts no data of VFIO devices.
    assert_eq!(section(&traced.destination, "pwrite64"), read);
}
