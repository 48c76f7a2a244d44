//! A model reads as it is written, and a text that names none is refused.

use whimbrel_device::MigrationFlags;

use super::Model;
use crate::accel::AccelConfig;
use crate::legacy::LegacyConfig;
use crate::nvme::NvmeConfig;
use crate::protocol::Protocol;
use crate::serial::{Answers, Ports, SerialConfig};

fn accel(state_bytes: u64, state_rate: u64, flags: MigrationFlags) -> Model {
    Model::Accel(
        AccelConfig::default().state_bytes(state_bytes).state_rate(state_rate).flags(flags),
        Protocol::V2,
    )
}

fn serial(ports: Ports, protocol: Protocol) -> Model {
    Model::Serial(SerialConfig::default().ports(ports), protocol)
}

fn legacy(state_bytes: u64, state_rate: u64, section_bytes: u64) -> Model {
    Model::Legacy(
        LegacyConfig::default().state_bytes(state_bytes).state_rate(state_rate).section_bytes(section_bytes),
    )
}

#[test]
fn a_model_reads_as_it_is_written() {
    let all = MigrationFlags::all();
    let accel_by = |protocol| Model::Accel(AccelConfig::default().state_bytes(4096), protocol);
    let cases = [
        ("serial", serial(Ports::One, Protocol::V2)),
        ("serial?", serial(Ports::One, Protocol::V2)),
        ("serial?ports=2", serial(Ports::Two, Protocol::V2)),
        ("serial?protocol=v2", serial(Ports::One, Protocol::V2)),
        ("serial?protocol=v1&ports=2", serial(Ports::Two, Protocol::V1)),
        ("serial?protocol=draft", serial(Ports::One, Protocol::Draft)),
        ("serial?answers=vfio-pci", serial(Ports::One, Protocol::V2)),
        ("serial?answers=mtty", Model::Serial(SerialConfig::default().answers(Answers::Mtty), Protocol::V2)),
        ("accel?protocol=v1&state=4K", accel_by(Protocol::V1)),
        ("accel?state=4096&protocol=draft", accel_by(Protocol::Draft)),
        ("legacy", legacy(4 << 20, 0, 1 << 20)),
        ("legacy?state=1M&rate=2K&section=100", legacy(1 << 20, 2048, 100)),
        ("accel", accel(64 << 20, 0, all)),
        ("accel?state=64GiB", accel(64 << 30, 0, all)),
        ("accel?state=1K&rate=3M", accel(1024, 3 << 20, all)),
        ("accel?rate=4096&state=2G", accel(2 << 30, 4096, all)),
        ("accel?features=stop-copy", accel(64 << 20, 0, MigrationFlags::STOP_COPY)),
        ("accel?features=p2p", accel(64 << 20, 0, MigrationFlags::STOP_COPY | MigrationFlags::P2P)),
        ("accel?features=stop-copy,p2p,pre-copy&state=1MiB", accel(1 << 20, 0, all)),
        ("accel?config=optional&state=1K", accel(1024, 0, all)),
        ("nvme?image=/dev/vg/disk", Model::Nvme(NvmeConfig::new("/dev/vg/disk"))),
        (
            "nvme?image=a?b=c&size=1G&readonly&queues=64",
            Model::Nvme(NvmeConfig::new("a?b=c").size(1 << 30).read_only(true).queues(64)),
        ),
        ("nvme?readonly=no&image=d", Model::Nvme(NvmeConfig::new("d"))),
        (
            "accel?state=4K&config=required",
            Model::Accel(AccelConfig::default().state_bytes(4096).needs_config(true), Protocol::V2),
        ),
    ];
    for (text, model) in cases {
        assert_eq!(text.parse(), Ok(model.clone()), "{text}");
        assert_eq!(model.to_string().parse(), Ok(model), "{text}");
    }
}

#[test]
fn what_names_no_model_is_refused_with_what_there_is() {
    let cases = [
        ("", "unknown model '': expected one of serial, accel, legacy, nvme"),
        ("mtty", "unknown model 'mtty': expected one of serial, accel, legacy, nvme"),
        ("Serial", "unknown model 'Serial': expected one of serial, accel, legacy, nvme"),
        (
            "serial?state=1M",
            "unknown setting state for model serial: expected one of ports, answers, protocol",
        ),
        (
            "accel?ports=1",
            "unknown setting ports for model accel: expected one of state, rate, features, config, protocol",
        ),
        (
            "legacy?protocol=v2",
            "unknown setting protocol for model legacy: expected one of state, rate, section",
        ),
        ("accel?config=yes", "invalid value 'yes' for config (model accel): expected optional or required"),
        ("accel?protocol=v3", "invalid value 'v3' for protocol (model accel): expected v2, v1 or draft"),
        ("serial?protocol=", "invalid value '' for protocol (model serial): expected v2, v1 or draft"),
        ("serial?answers=qemu", "invalid value 'qemu' for answers (model serial): expected vfio-pci or mtty"),
        ("serial?ports=1&ports=1", "duplicate setting ports for model serial"),
        ("serial?ports=3", "invalid value '3' for ports (model serial): expected 1 or 2"),
        ("serial?ports", "invalid value '' for ports (model serial): expected 1 or 2"),
        (
            "accel?state=1",
            "invalid value '1' for state (model accel): expected 1KiB to 64GiB, a multiple of 8 bytes",
        ),
        (
            "accel?state=65G",
            "invalid value '65G' for state (model accel): expected 1KiB to 64GiB, a multiple of 8 bytes",
        ),
        (
            "legacy?state=1025",
            "invalid value '1025' for state (model legacy): expected 1KiB to 64GiB, a multiple of 8 bytes",
        ),
        (
            "nvme",
            "model nvme needs the setting image: expected the path of a file or block device, as image=PATH",
        ),
        (
            "nvme?image=",
            "model nvme needs the setting image: expected the path of a file or block device, as image=PATH",
        ),
        (
            "nvme?image=a&readonly=maybe",
            "invalid value 'maybe' for readonly (model nvme): expected yes or no",
        ),
        ("nvme?image=a&queues=65", "invalid value '65' for queues (model nvme): expected 1 to 64"),
        (
            "nvme?image=a&size=1000",
            "invalid value '1000' for size (model nvme): expected a multiple of 512 bytes above 0",
        ),
        ("nvme?disk=a", "unknown setting disk for model nvme: expected one of image, size, readonly, queues"),
        ("legacy?section=63", "invalid value '63' for section (model legacy): expected 64 bytes to 64MiB"),
    ];
    for (text, error) in cases {
        assert_eq!(text.parse::<Model>().unwrap_err().to_string(), error);
    }
    for value in [
        "",
        "M",
        "1T",
        "1 M",
        "-1",
        "+1",
        "1.5G",
        "1MB",
        "1k",
        "99999999999999999999",
        "18446744073709551615K",
    ] {
        assert!(format!("accel?state={value}").parse::<Model>().is_err(), "{value}");
    }
    for value in ["", "all", "stop-copy,", "p2p;pre-copy", "STOP_COPY"] {
        assert!(format!("accel?features={value}").parse::<Model>().is_err(), "{value}");
    }
}

#[test]
fn an_image_that_is_given_apart_is_that_of_the_model() {
    let expected = Model::Nvme(NvmeConfig::new("a&b?c").queues(3));
    assert_eq!(Model::parse_with_image("nvme?queues=3", "a&b?c"), Ok(expected));
    assert_eq!(Model::parse_with_image("nvme", "d"), Ok(Model::Nvme(NvmeConfig::new("d"))));
    let cases = [
        ("nvme?image=a", "duplicate setting image for model nvme"),
        ("nvme?queues=0", "invalid value '0' for queues (model nvme): expected 1 to 64"),
        ("serial", "unknown setting image for model serial: expected one of ports, answers, protocol"),
        ("legacy", "unknown setting image for model legacy: expected one of state, rate, section"),
        ("disk", "unknown model 'disk': expected one of serial, accel, legacy, nvme"),
    ];
    for (text, error) in cases {
        assert_eq!(Model::parse_with_image(text, "d").unwrap_err().to_string(), error);
    }
}

#[test]
fn settings_that_cannot_be_had_are_an_error_when_the_model_is_opened() {
    for state_bytes in [0, 1023, (64 << 30) + 1] {
        let error = accel(state_bytes, 0, MigrationFlags::all()).open("model").unwrap_err();
        assert!(error.to_string().contains(&state_bytes.to_string()), "{error}");
    }
}
