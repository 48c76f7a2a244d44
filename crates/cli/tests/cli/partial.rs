//! `whimbrel probe` of devices that do not tell all: what they tell is shown, and beside it the errors.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use whimbrel_protocol::{Errno, State};
use whimbrel_uapi::device::{DeviceInfoFlags, IrqInfoFlags, RegionInfoFlags};
use whimbrel_user::MigrationFlags;
use whimbrel_user::{Info, Irq, Region};
use whimbrel_vfio_user::message::{
    Command, DeviceFeature, DeviceInfoReply, IrqInfoReply, Limits, MessageBuffer, RegionInfoReply, Reply,
    Request, Version,
};
use whimbrel_vfio_user::{Capabilities, connection};

use crate::support::{argument, whimbrel};

/// A part of what a device tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Info,
    Region(u32),
    Irq(u32),
    Feature(u16),
}

const MIGRATION: u16 = 1;
const STATE: u16 = 2;
const LOGGING_STOP: u16 = 7;

/// A server for one client, which answers EIO about what `fails` says.
fn serve(path: &Path, fails: impl Fn(Part) -> bool + Send + 'static) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let (mut receiver, mut sender) = connection(stream, Limits::default());
        let mut out = MessageBuffer::new();
        while let Some(message) = receiver.receive().unwrap() {
            out.clear();
            let (id, command) = (message.header.id, Command::try_from(message.header.command).unwrap());
            let request = Request::parse(command, message.payload, Limits::default()).unwrap();
            let part = match &request {
                Request::DeviceGetInfo { .. } => Some(Part::Info),
                Request::DeviceGetRegionInfo { index, .. } => Some(Part::Region(*index)),
                Request::DeviceGetIrqInfo { index, .. } => Some(Part::Irq(*index)),
                Request::DeviceFeature(asked) => Some(Part::Feature(asked.feature)),
                _ => None,
            };
            match request {
                _ if part.is_some_and(&fails) => out.error(id, command.number(), Errno::EIO),
                Request::Version(_) => {
                    out.reply(id, &Reply::Version(Version::proposal(Capabilities::default())));
                }
                Request::DeviceGetInfo { argsz } => {
                    let info = Info::new(DeviceInfoFlags::PCI).num_regions(3).num_irqs(2);
                    out.reply(id, &Reply::DeviceGetInfo(DeviceInfoReply::new(info, argsz)));
                }
                Request::DeviceGetRegionInfo { argsz, index } => {
                    let flags = RegionInfoFlags::READ;
                    let region = Region::new(flags, 64);
                    out.reply(id, &Reply::DeviceGetRegionInfo(RegionInfoReply::new(index, region, argsz)));
                }
                Request::DeviceGetIrqInfo { index, .. } => {
                    let irq = Irq::new(IrqInfoFlags::EVENTFD, 4);
                    out.reply(id, &Reply::DeviceGetIrqInfo(IrqInfoReply { index, irq }));
                }
                Request::DeviceFeature(asked) => {
                    let data = match asked.feature {
                        MIGRATION => MigrationFlags::STOP_COPY.bits(),
                        STATE => u64::from(State::Running.number()),
                        _ => 0,
                    };
                    out.reply(
                        id,
                        &Reply::DeviceFeature(DeviceFeature { data: &data.to_ne_bytes(), ..asked }),
                    );
                }
                other => panic!("{other:?}"),
            }
            sender.send(out.as_bytes(), &[]).unwrap();
        }
    })
}

/// The outcome of a probe, as text and as JSON.
fn probe(fails: impl Fn(Part) -> bool + Clone + Send + 'static) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    let [text, json] = [&[][..], &["--json"]].map(|options| {
        let path = folder.path().join(format!("socket{}", options.len()));
        let server = serve(&path, fails.clone());
        let target = format!("vfio-user:{}", argument(&path));
        let run = whimbrel(["probe", &target].into_iter().chain(options.iter().copied())).succeeded();
        server.join().unwrap();
        run
    });
    (text.text().to_owned(), json.json())
}

fn has_line(text: &str, words: &[&str]) {
    let found = text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>() == words);
    assert!(found, "{words:?} is missing in\n{text}");
}

#[test]
fn a_part_that_fails_has_its_errno_in_its_place_and_the_others_are_shown() {
    let fails = |part| matches!(part, Part::Region(1) | Part::Irq(0) | Part::Feature(LOGGING_STOP));
    let (text, json) = probe(fails);
    has_line(&text, &["migration", "STOP_COPY"]);
    has_line(&text, &["state", "RUNNING"]);
    has_line(&text, &["0", "BAR0", "64", "B", "0x0", "READ"]);
    has_line(&text, &["1", "BAR1", "-", "-", "refused:", "EIO"]);
    has_line(&text, &["2", "BAR2", "64", "B", "0x0", "READ"]);
    has_line(&text, &["0", "INTx", "-", "refused:", "EIO"]);
    has_line(&text, &["1", "MSI", "4", "EVENTFD"]);
    has_line(&text, &["7", "DMA_LOGGING_STOP", "refused:", "EIO"]);
    assert_eq!(json["regions"][0]["error"], Value::Null);
    for error in [&json["regions"][1]["error"], &json["irqs"][0]["error"], &json["features"][7]["error"]] {
        assert!(error.as_str().unwrap().contains("EIO"), "{error}");
    }
}

#[test]
fn a_device_that_does_not_say_what_it_is_is_asked_for_what_a_pci_device_has() {
    let (text, json) = probe(|part| part == Part::Info);
    has_line(&text, &["flags", "refused:", "EIO"]);
    has_line(&text, &["0", "BAR0", "64", "B", "0x0", "READ"]);
    has_line(&text, &["1", "MSI", "4", "EVENTFD"]);
    has_line(&text, &["migration", "STOP_COPY"]);
    let info = &json["info"];
    assert_eq!((&info["num_regions"], &info["num_irqs"]), (&Value::Null, &Value::Null));
    assert!(info["error"].as_str().unwrap().contains("VFIO_USER_DEVICE_GET_INFO: EIO"), "{info}");
    assert_eq!((json["regions"].as_array().unwrap().len(), json["irqs"].as_array().unwrap().len()), (9, 5));
}

#[test]
fn a_migration_that_fails_in_part_shows_the_rest() {
    let (text, json) = probe(|part| part == Part::Feature(MIGRATION));
    has_line(&text, &["migration", "refused:", "EIO"]);
    has_line(&text, &["state", "RUNNING"]);
    has_line(&text, &["0", "BAR0", "64", "B", "0x0", "READ"]);
    let migration = &json["migration"];
    assert_eq!((&migration["flags"], &migration["state"]), (&Value::Null, &json!("RUNNING")));
    assert!(migration["error"].as_str().unwrap().contains("EIO"), "{migration}");

    let (text, json) = probe(|part| part == Part::Feature(STATE));
    has_line(&text, &["migration", "STOP_COPY"]);
    has_line(&text, &["state", "refused:", "EIO"]);
    let migration = &json["migration"];
    assert_eq!((&migration["flags"], &migration["state"]), (&json!(["STOP_COPY"]), &Value::Null));
    assert!(migration["state_error"].as_str().unwrap().contains("EIO"), "{migration}");
}

#[test]
fn a_device_that_says_nothing_is_a_failure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = serve(&path, |_| true);
    let run = whimbrel(["probe", &format!("vfio-user:{}", argument(&path))]).failed();
    let run = run.says(&["VFIO_USER_DEVICE_GET_INFO: EIO"]);
    assert!(run.stdout.is_empty(), "{}", run.text());
    server.join().unwrap();
}
