//! Sets in which everything goes well.

use std::os::unix::net::UnixStream;

use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable, State};

use crate::live::assert_same_memory;
use crate::support::engine::{Destination, Source};
use crate::support::{Rig, Shape, migrate_between};

fn open(models: &[&str], side: &str) -> Vec<Box<dyn Migratable>> {
    let open = |(number, model): (usize, &&str)| -> Box<dyn Migratable> {
        let model: Model = model.parse().unwrap();
        Box::new(Local::new(model.open(format!("{side}{number}")).unwrap()))
    };
    models.iter().enumerate().map(open).collect()
}

fn states(devices: &mut [Option<Box<dyn Migratable>>]) -> Vec<State> {
    devices.iter_mut().map(|device| device.as_mut().unwrap().state().unwrap()).collect()
}

#[test]
fn models_of_every_kind_move_together() {
    let cases: [&[&str]; 3] =
        [&["accel?state=3MiB"], &["accel?state=1MiB", "serial", "accel?state=4KiB"], &["serial", "serial"]];
    for models in cases {
        let (left, right) = UnixStream::pair().unwrap();
        let destination = Destination::new(open(models, "there"));
        let source = Source::new(open(models, "here"));
        let (mut sent, mut arrived) = migrate_between(source, destination, left.into(), right.into());
        let (report, received) = (sent.result.unwrap(), arrived.result.unwrap());
        assert_eq!(states(&mut sent.devices), vec![State::Stop; models.len()], "{models:?}");
        assert_eq!(states(&mut arrived.devices), vec![State::Running; models.len()], "{models:?}");
        assert_eq!(report.device_bytes, received.device_bytes);
        assert!(received.confirmed);
    }
}

#[test]
fn devices_of_different_kinds_move_with_their_memory_and_come_back_in_their_order() {
    let shapes = [
        Shape { size: 3000, dma_pages: 64, ..Shape::default() },
        Shape {
            flags: whimbrel_user::MigrationFlags::STOP_COPY,
            size: 7,
            logging: false,
            ..Shape::default()
        },
        Shape { size: 3 << 20, initial: 1 << 20, ..Shape::default() },
    ];
    let rig = Rig::between(&shapes, &shapes).with_memory(&[(0, 64 << 12), (1 << 30, 0x3000)]);
    let worker = whimbrel_device::Worker::start(rig.here.file()).unwrap();
    let mut ended = rig.migrate();
    drop(worker);
    ended.assert_sane("three kinds");
    assert_same_memory(ended.rig.memory.as_ref().unwrap());
    let names = |units: &[crate::support::Unit]| -> Vec<String> {
        units.iter().map(|unit| unit.device.as_ref().unwrap().name().to_string()).collect()
    };
    assert_eq!(names(&ended.rig.here.units), ["here0", "here1", "here2"]);
    assert_eq!(names(&ended.rig.there.units), ["there0", "there1", "there2"]);
    let (report, received) = (ended.sent.unwrap(), ended.received.unwrap());
    assert_eq!(received.from_devices, ["here0", "here1", "here2"]);
    assert_eq!(report.migration, received.migration);
    let each: Vec<(&str, u64)> =
        report.devices.iter().map(|device| (device.name.as_str(), device.device_bytes)).collect();
    let precopy = 5 + 3;
    assert_eq!(
        each,
        [("here0", precopy + 3006), ("here1", 13), ("here2", (1 << 20) + 3 + (3 << 20) + 6)],
        "the bytes of each device's state"
    );
    assert_eq!(each.iter().map(|(_, bytes)| bytes).sum::<u64>(), report.device_bytes);
    assert_eq!(received.device_bytes, report.device_bytes);
    assert_eq!(received.memory_bytes, report.memory_bytes);
}

#[test]
fn many_devices_move_together() {
    let mut ended = Rig::set(40, &Shape::default()).with_memory(&[(0, 0x8000)]).migrate();
    ended.assert_sane("many devices");
    assert_eq!(ended.sent.unwrap().devices.len(), 40);
}

#[test]
fn a_set_of_another_size_is_refused_before_a_device_is_asked() {
    for (here, there) in [(2, 3), (3, 2), (1, 2)] {
        let shape = Shape::default();
        let mut ended = Rig::between(&vec![shape.clone(); here], &vec![shape; there]).migrate();
        let (sent, received) = ended.refused("another size");
        let why = format!("the source sends {here} devices, the destination has {there} for them");
        assert!(sent.contains(&why) && received.contains(&why), "{sent} / {received}");
        assert!(ended.rig.here.history.list().is_empty() && ended.rig.there.history.list().is_empty());
    }
}

#[test]
fn an_empty_set_is_refused() {
    let (left, _right) = UnixStream::pair().unwrap();
    let sent = Source::new(Vec::new()).send(crate::support::engine::Stream::from(left));
    assert!(sent.result.unwrap_err().to_string().contains("no device"));
}
