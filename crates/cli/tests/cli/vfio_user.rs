//! `vfio-user:<socket>` as a TARGET: devices that other processes serve.

use serde_json::Value;
use whimbrel_user::{Migratable, State};

use crate::support::{Receiver, argument, plain_and_confined, whimbrel};

/// What a probe tells, but for the device's name, the names of requests that failed, and where regions lie in
/// its file.
fn probe(target: &str) -> Value {
    let mut told = whimbrel(["probe", target, "--json"]).succeeded().json();
    told.as_object_mut().unwrap().remove("device");
    // A server has no address space of its own: the memory is the client's.
    told["dirty_logs"].as_object_mut().unwrap().remove("address_space");
    for part in ["regions", "irqs"] {
        for row in told[part].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("offset");
            if let Some((_, errno)) = row["error"].as_str().and_then(|error| error.split_once(" of index ")) {
                row["error"] = errno.into();
            }
        }
    }
    told
}

#[test]
fn a_probe_tells_of_a_served_device_what_it_tells_of_the_device() {
    plain_and_confined(|serve, folder| {
        for (at, model) in ["serial", "accel?state=64KiB"].into_iter().enumerate() {
            let served = serve(model, &folder.join(at.to_string()));
            let told = probe(&served.target);
            assert!(told["regions"].is_array(), "{told}");
            assert_eq!(told, probe(&format!("model:{model}")), "{model}");
        }
    });
}

#[test]
fn a_served_device_walks_its_states_as_the_table_says() {
    plain_and_confined(|serve, folder| {
        let served = serve("accel?state=64KiB", &folder.join("socket"));
        whimbrel(["fsm", "--walk", &served.target]).succeeded();
    });
}

#[test]
fn a_state_is_saved_from_one_server_and_restored_to_another() {
    plain_and_confined(|serve, folder| {
        let source = serve("accel?state=1MiB", &folder.join("source"));
        let destination = serve("accel?state=1MiB", &folder.join("destination"));
        source.mark(64);
        let file = argument(&folder.join("state"));
        whimbrel(["save", &source.target, "-o", &file]).succeeded();
        assert_eq!(destination.marked(), 0);
        whimbrel(["restore", &destination.target, "-i", &file]).succeeded();
        assert_eq!(destination.marked(), 64);
    });
}

#[test]
fn a_device_moves_from_one_server_to_another_while_it_works() {
    plain_and_confined(|serve, folder| {
        let model = "accel?state=8MiB&rate=1MiB";
        let source = serve(model, &folder.join("source"));
        let destination = serve(model, &folder.join("destination"));
        source.mark(128);
        let receiver = Receiver::start(&[&destination.target, "--listen", "127.0.0.1:0", "--json"]);
        let address = receiver.address.clone();
        let limit = "--downtime-limit=60000";
        let sent = whimbrel(["send", &source.target, "--to", &address, limit, "--json"]).succeeded().json();
        let taken = receiver.finish().succeeded().json();
        assert_eq!(sent["devices"][0]["name"], source.target.as_str());
        assert_eq!(taken["device_bytes"], sent["device_bytes"]);
        assert_eq!(source.client().state().unwrap(), State::Stop);
        assert_eq!(destination.client().state().unwrap(), State::Running);
        assert_eq!(destination.marked(), 128);
    });
}

#[test]
fn a_device_that_migrates_through_a_region_moves_from_one_server_to_another() {
    plain_and_confined(|serve, folder| {
        let models =
            ["accel?state=1MiB&protocol=v1", "accel?state=1MiB&protocol=draft", "legacy?state=64KiB"];
        for (at, model) in models.into_iter().enumerate() {
            let source = serve(model, &folder.join(format!("{at}-source")));
            let destination = serve(model, &folder.join(format!("{at}-destination")));
            source.mark(64);
            let file = argument(&folder.join(at.to_string()));
            whimbrel(["save", &source.target, "-o", &file]).succeeded();
            whimbrel(["restore", &destination.target, "-i", &file]).succeeded();
            assert_eq!(destination.marked(), 64, "{model}");
            source.mark(128);
            let receiver = Receiver::start(&[&destination.target, "--listen", "127.0.0.1:0", "--json"]);
            let limit = "--downtime-limit=60000";
            whimbrel(["send", &source.target, "--to", &receiver.address.clone(), limit]).succeeded();
            receiver.finish().succeeded();
            assert_eq!(destination.marked(), 128, "{model}");
        }
    });
}

#[test]
fn a_device_that_cannot_be_had_is_said_with_why() {
    plain_and_confined(|serve, folder| {
        let socket = folder.join("socket");
        let served = serve("serial", &socket);
        let first = served.client();
        whimbrel(["probe", &served.target])
            .failed()
            .says(&[&served.target, "the device is in use by another client; disconnect it first"]);
        drop(first);
        drop(served);
        whimbrel(["probe", &format!("vfio-user:{}", argument(&socket))])
            .failed()
            .says(&["cannot connect: ECONNREFUSED", "no server is listening; start it first"]);
    });
}

#[test]
fn a_file_that_is_not_a_socket_is_named_as_such() {
    let file = tempfile::NamedTempFile::new().unwrap();
    whimbrel(["probe", &format!("vfio-user:{}", argument(file.path()))]).failed().says(&[
        "cannot connect: ECONNREFUSED",
        "not a socket",
        "serve --socket",
    ]);
}
