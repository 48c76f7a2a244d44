//! What a TARGET may be, `whimbrel probe` and `whimbrel devices`.

use serde_json::{Value, json};

use crate::support::{keys, whimbrel};

#[test]
fn a_device_that_cannot_be_opened_is_named_with_what_to_do() {
    let cases: [(&str, &[&str]); 4] = [
        (
            "vfio-user:/run/x.sock",
            &["vfio-user:/run/x.sock: cannot connect: ENOENT", "no server is listening; start it first"],
        ),
        ("cdev:/no/such/file", &["/no/such/file", "ENOENT", "hint: "]),
        ("0000:ff:1f.7", &["0000:ff:1f.7", "ENOENT", "hint: "]),
        ("group:ffffffff-ffff-4fff-8fff-ffffffffffff", &["ffffffff-ffff-4fff-8fff-ffffffffffff", "hint: "]),
    ];
    for (target, said) in cases {
        let run = whimbrel(["probe", target]).failed().says(said);
        assert!(run.stdout.is_empty(), "{target}");
    }
}

#[test]
fn probe_tells_regions_irqs_features_and_migration_of_a_pci_device() {
    let value = whimbrel(["probe", "model:serial?ports=2&answers=mtty", "--json"]).succeeded().json();
    assert_eq!(keys(&value), ["device", "dirty_logs", "features", "info", "irqs", "migration", "regions"]);
    assert_eq!(value["dirty_logs"], json!({"device": true, "address_space": true}));
    assert_eq!(value["device"], "model:serial?ports=2&answers=mtty");
    assert_eq!(keys(&value["info"]), ["capabilities", "error", "flags", "num_irqs", "num_regions"]);
    assert_eq!(value["info"]["error"], Value::Null);
    assert_eq!(value["info"]["flags"], json!(["RESET", "PCI"]));
    assert_eq!(
        value["migration"],
        json!({
            "flags": ["STOP_COPY", "P2P", "PRE_COPY"],
            "error": null,
            "state": "RUNNING",
            "state_error": null,
            "data_size": 96,
            "data_size_error": null,
            "reset_rule": "ends_migration",
            "debugfs": null,
        })
    );
    assert_eq!(
        value["regions"][1],
        json!({
            "index": 1,
            "name": "BAR1",
            "size": 8,
            "offset": 1_u64 << 40,
            "flags": ["READ", "WRITE"],
            "capabilities": [],
            "error": null,
        })
    );
    let names = |list: &str| -> Vec<Value> {
        value[list].as_array().unwrap().iter().map(|row| row["name"].clone()).collect()
    };
    assert_eq!(names("regions"), ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5", "ROM", "CONFIG", "VGA"]);
    assert_eq!(names("irqs"), ["INTx", "MSI", "MSI-X", "ERR", "REQ"]);
    assert_eq!(keys(&value["irqs"][0]), ["count", "error", "flags", "index", "name"]);
    assert!(
        value["irqs"][2]["error"].as_str().unwrap().contains("VFIO_DEVICE_GET_IRQ_INFO of index 2: EINVAL")
    );
}

#[test]
fn probe_asks_for_each_feature_in_each_direction() {
    let value = whimbrel(["probe", "model:serial", "--json"]).succeeded().json();
    let features: Vec<(u64, &str, bool, bool)> = value["features"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            assert_eq!(keys(row), ["error", "get", "index", "name", "set"]);
            (
                row["index"].as_u64().unwrap(),
                row["name"].as_str().unwrap().strip_prefix("VFIO_DEVICE_FEATURE_").unwrap(),
                row["get"].as_bool().unwrap(),
                row["set"].as_bool().unwrap(),
            )
        })
        .collect();
    let expected = [
        (0, "PCI_VF_TOKEN", false, false),
        (1, "MIGRATION", true, false),
        (2, "MIG_DEVICE_STATE", true, true),
        (3, "LOW_POWER_ENTRY", false, false),
        (4, "LOW_POWER_ENTRY_WITH_WAKEUP", false, false),
        (5, "LOW_POWER_EXIT", false, false),
        (6, "DMA_LOGGING_START", false, true),
        (7, "DMA_LOGGING_STOP", false, true),
        (8, "DMA_LOGGING_REPORT", true, false),
        (9, "MIG_DATA_SIZE", true, false),
        (10, "BUS_MASTER", false, false),
        (11, "DMA_BUF", false, false),
        (12, "MIG_PRECOPY_INFOv2", false, true),
        (13, "ZPCI_ERROR", false, false),
    ];
    assert_eq!(features, expected);
}

#[test]
fn probe_prints_what_a_person_looks_for() {
    let run = whimbrel(["probe", "model:accel?state=1MiB&features=stop-copy,p2p"]).succeeded();
    for line in
        ["  migration   STOP_COPY, P2P\n", "  state       RUNNING\n", "MIG_PRECOPY_INFOv2           -"]
    {
        assert!(run.text().contains(line), "'{line}' is missing in {}", run.text());
    }
    assert!(run.text().lines().all(|line| line == line.trim_end()), "{}", run.text());
}

#[test]
fn devices_lists_this_hosts_or_says_how_one_would_appear() {
    let value = whimbrel(["devices", "--json"]).succeeded().json();
    assert_eq!(keys(&value), ["devices"]);
    let run = whimbrel(["devices", "--no-open"]).succeeded();
    let devices = value["devices"].as_array().unwrap();
    if devices.is_empty() {
        assert!(run.text().contains("This host has no VFIO device. One appears when"), "{}", run.text());
    }
    for device in devices {
        assert_eq!(
            keys(device),
            ["bus", "cdev_path", "driver", "group", "group_path", "holders", "migration", "name", "problem"]
        );
        assert!(run.text().contains(device["name"].as_str().unwrap()), "{}", run.text());
    }
}
