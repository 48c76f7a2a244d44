//! Devices that migrate through a region of theirs, behind a socket: the region is read, written and mapped as
//! any other, and `whimbrel_user::region` makes migration v2 of it.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Source, SourceOptions};
use whimbrel_models::accel::REGISTER_QUEUE_SIZE;
use whimbrel_user::{Capability, Device, MigrationFlags, SavingRead, State, Version, region};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::support::Served;

/// Models that have a region, the texts that one can be taken for, and whether part of it can be mapped. What
/// the draft's has beyond v1's is about dirty pages.
const MODELS: [(&str, &[Version], bool); 4] = [
    ("accel?state=512KiB&protocol=v1", &[Version::V1], true),
    ("accel?state=512KiB&protocol=draft", &[Version::Draft, Version::V1], true),
    ("serial?protocol=v1", &[Version::V1], true),
    ("legacy?state=64KiB&section=4KiB", &[Version::V1], false),
];

/// A served model as a device of migration v2.
fn adapted(served: &mut Served, version: Version) -> Box<dyn Device> {
    let device = region::adapt_as(Box::new(served.client().clone()), version).unwrap();
    assert_eq!(device.region_version(), Some(version));
    device
}

/// With descriptors, through which the region is mapped, and without, where all goes in messages.
fn options() -> [ClientOptions; 2] {
    [Client::capabilities().max_msg_fds, 0].map(|max_msg_fds| {
        let capabilities = Client::capabilities().max_msg_fds(max_msg_fds);
        ClientOptions::default().capabilities(capabilities)
    })
}

/// A register that is kept, and what is left in it.
fn mark_of(model: &str) -> (u64, &'static [u8]) {
    /// The scratch register of a 16550.
    const SCRATCH: u64 = 7;
    if model.starts_with("serial") { (SCRATCH, &[0x5a]) } else { (REGISTER_QUEUE_SIZE, &[64, 0, 0, 0]) }
}

fn mark(device: &mut dyn Device, model: &str) {
    let (offset, value) = mark_of(model);
    device.write_region(0, offset, value).unwrap();
}

fn assert_marked(device: &mut dyn Device, model: &str) {
    let (offset, value) = mark_of(model);
    let mut found = vec![0; value.len()];
    device.read_region(0, offset, &mut found).unwrap();
    assert_eq!(found, value, "{model}");
}

#[test]
fn the_region_can_be_mapped_where_descriptors_can_be_sent() {
    for (model, _, is_mapped) in MODELS {
        for options in options() {
            let with_descriptors = options.capabilities.max_msg_fds > 0;
            let mut served = Served::with(model, &options);
            let info = served.client().region_info(9).unwrap();
            let has_areas = |capability: &Capability| matches!(capability, Capability::SparseMmap(_));
            let areas = info.capabilities.iter().any(has_areas);
            assert_eq!(areas, is_mapped && with_descriptors, "{model}");
            let migration = Capability::Type { region_type: 3, subtype: 1 };
            assert!(info.capabilities.contains(&migration), "{model}");
        }
    }
}

#[test]
fn a_state_is_saved_and_loaded_through_the_region() {
    for (model, versions, _) in MODELS {
        for version in versions {
            for options in options() {
                let mut source = Served::with(model, &options);
                let mut destination = Served::with(model, &options);
                let mut here = adapted(&mut source, *version);
                let mut there = adapted(&mut destination, *version);
                mark(&mut *here, model);
                let flags = here.migration_flags().unwrap().unwrap();
                assert!(flags.contains(MigrationFlags::STOP_COPY), "{model}");
                let mut saved = here.set_state(State::StopCopy).unwrap().unwrap();
                let mut loaded = there.set_state(State::Resuming).unwrap().unwrap();
                let mut piece = vec![0; 1 << 20];
                while let SavingRead::Data(count) = saved.read(&mut piece).unwrap() {
                    loaded.write_piece(&piece[..count], saved.ends_transaction()).unwrap();
                }
                there.set_state(State::Running).unwrap();
                assert_eq!(there.state().unwrap(), State::Running, "{model}");
                assert_marked(&mut *there, model);
            }
        }
    }
}

#[test]
fn a_device_that_works_moves_through_the_region() {
    for (model, versions, _) in MODELS {
        let model =
            if model.starts_with("serial") { model.to_string() } else { format!("{model}&rate=64KiB") };
        for version in versions {
            let (mut source, mut destination) = (Served::new(&model), Served::new(&model));
            let mut here = adapted(&mut source, *version);
            let there = adapted(&mut destination, *version);
            mark(&mut *here, &model);
            let (left, right) = UnixStream::pair().unwrap();
            let options = SourceOptions::default().downtime_limit(Duration::from_mins(1));
            let receiver = std::thread::spawn(|| Destination::new(vec![there]).receive(Stream::from(right)));
            let sent = Source::new(vec![here]).options(options).send(Stream::from(left));
            sent.result.unwrap();
            receiver.join().unwrap().result.unwrap();
            // The same devices through other handles.
            let mut here = adapted(&mut source, *version);
            let mut there = adapted(&mut destination, *version);
            assert_eq!(here.state().unwrap(), State::Stop, "{model}");
            assert_eq!(there.state().unwrap(), State::Running, "{model}");
            assert_marked(&mut *there, &model);
        }
    }
}
