//! The demo on two servers that run already.

use serde_json::Value;
use tempfile::TempDir;
use whimbrel_user::{Migratable, State};

use crate::support::{Run, Served, argument, whimbrel};

const MODEL: &str = "accel?state=2MiB&rate=1MiB";

/// Two servers that have just been started.
fn servers(folder: &TempDir, models: [&str; 2]) -> [Served; 2] {
    let [source, destination] = models;
    [
        Served::start(source, &folder.path().join("source")),
        Served::start(destination, &folder.path().join("destination")),
    ]
}

fn demo([source, destination]: [&Served; 2]) -> Run {
    demo_of(&["--memory=32MiB", "--device", &source.target, "--destination", &destination.target])
}

/// Small, so that it is quick in a build without optimisation too.
fn demo_of(arguments: &[&str]) -> Run {
    let small = ["demo", "--json", "--dirty-rate=8MiB", "--downtime-limit=30000"];
    whimbrel(small.iter().chain(arguments))
}

fn verified(run: Run) -> Value {
    let told = run.succeeded().json();
    assert_eq!(told["verified"], true, "{told}");
    let devices = told["devices"].as_array().unwrap().len();
    assert_eq!(told["checks"].as_array().map(Vec::len), Some(1 + 6 * devices), "{told}");
    told
}

#[test]
fn a_device_moves_between_servers_that_run_already_as_often_as_is_asked_for_and_both_ways() {
    let folder = TempDir::new().unwrap();
    let [one, other] = servers(&folder, [MODEL, MODEL]);
    for [source, destination] in [[&one, &other], [&one, &other], [&other, &one]] {
        let told = verified(demo([source, destination]));
        assert_eq!(told["reached_by"], "vfio-user");
        assert_eq!(told["devices"][0]["source"], source.target.as_str());
        assert_eq!(told["devices"][0]["destination"], destination.target.as_str());
        assert_eq!(source.client().state().unwrap(), State::Stop);
        assert_eq!(destination.client().state().unwrap(), State::Running);
    }
}

#[test]
fn servers_whose_devices_migrate_through_a_region_do_too() {
    for model in ["accel?state=2MiB&protocol=v1", "legacy?state=64KiB"] {
        let folder = TempDir::new().unwrap();
        let [source, destination] = servers(&folder, [model, model]);
        verified(demo([&source, &destination]));
    }
}

#[test]
fn devices_of_running_servers_move_together_with_a_model_of_the_demos_own() {
    let folder = TempDir::new().unwrap();
    let [one, other] = servers(&folder, [MODEL, MODEL]);
    let [card, another] = ["card", "another"].map(|name| Served::start("serial", &folder.path().join(name)));
    let told = verified(demo_of(&[
        "--device",
        &card.target,
        "--device",
        "model:accel?state=1MiB",
        "--device",
        &one.target,
        "--memory=64MiB",
        "--destination",
        &another.target,
        "--destination",
        &other.target,
    ]));
    let ends = |number: usize| {
        let device = &told["devices"][number];
        [&device["source"], &device["destination"]].map(|end| end.as_str().unwrap().to_string())
    };
    assert_eq!(ends(0), [card.target.clone(), another.target.clone()]);
    assert_eq!(ends(1), ["model:accel?state=1MiB", "model:accel?state=1MiB"]);
    assert_eq!(ends(2), [one.target.clone(), other.target.clone()]);
    for (served, state) in
        [(&card, State::Stop), (&one, State::Stop), (&another, State::Running), (&other, State::Running)]
    {
        assert_eq!(served.client().state().unwrap(), state, "{}", served.target);
    }
}

#[test]
fn a_device_runs_on_when_its_verification_before_the_migration_fails() {
    for (fault, says) in [
        ("read after 4KiB: EIO", &["MIG_DATA_READ: EIO"][..]),
        ("arc RUNNING_P2P->STOP: EIO once", &["to STOP: EIO"]),
        ("arc STOP->STOP_COPY: EIO broken once", &["to STOP_COPY: EIO", "the device was reset"]),
        ("arc STOP->RUNNING_P2P: EIO once", &["to RUNNING: EIO", "the device was reset"]),
    ] {
        let folder = TempDir::new().unwrap();
        let socket = folder.path().join("faulty");
        let (source, _) = Served::with(MODEL, &socket, &["--fault", fault]).unwrap();
        let destination = Served::start(MODEL, &folder.path().join("destination"));
        demo([&source, &destination]).failed().says(says);
        assert_eq!(source.client().state().unwrap(), State::Running, "{fault}");
    }
}

#[test]
fn servers_whose_devices_differ_are_told_apart_before_anything_moves() {
    let folder = TempDir::new().unwrap();
    let [source, destination] = servers(&folder, [MODEL, "accel?state=1MiB"]);
    demo([&source, &destination]).failed().says(&[
        "with 2097152 bytes of own state at the source, a DMA engine with 1048576 bytes of own state at the destination",
        "hint: serve the same model with the same settings",
    ]);
    let card = Served::start("serial", &folder.path().join("card"));
    demo([&source, &card]).failed().says(&[
        "a DMA engine with 2097152 bytes of own state at the source, a serial card with 1 port at the destination",
    ]);
}

#[test]
fn a_server_that_is_busy_or_gone_is_named() {
    let folder = TempDir::new().unwrap();
    let [source, destination] = servers(&folder, [MODEL, MODEL]);
    let client = destination.client();
    demo([&source, &destination]).failed().says(&[
        "the destination process",
        &destination.target,
        "the device is in use by another client; disconnect it first",
    ]);
    drop(client);
    let target = source.target.clone();
    drop(source);
    whimbrel(["demo", "--device", &target, "--destination", &destination.target]).failed().says(&[
        "the source process",
        &target,
        "no server is listening; start it first",
    ]);
}

#[test]
fn a_socket_is_not_its_own_destination_whatever_the_path_to_it() {
    let folder = TempDir::new().unwrap();
    let [source, _destination] = servers(&folder, [MODEL, MODEL]);
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path().join("source"), &link).unwrap();
    let link = format!("vfio-user:{}", argument(&link));
    whimbrel(["demo", "--device", &source.target, "--destination", &link])
        .misused()
        .says(&["cannot be migrated to itself"]);
}
