//! A device behind a socket is as the device itself.

use whimbrel_models::accel::REGISTER_QUEUE_SIZE;
use whimbrel_protocol::{MigrationFlags, fsm, session};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{Device, Local, Migratable, SavingRead, State};
use whimbrel_vfio_user::{Client, ClientOptions};

use super::support::{Served, brought, open};

const MODELS: [&str; 5] = [
    "serial",
    "serial?ports=2",
    "accel?state=64KiB",
    "accel?state=64KiB&features=stop-copy",
    "accel?state=64KiB&features=stop-copy,p2p",
];

/// What a probe tells, without where a region lies in its file.
fn probed(device: &mut dyn Device) -> Vec<String> {
    let info = device.info().unwrap();
    let mut told = vec![format!("{info:?}")];
    for index in 0..=info.num_regions {
        let region = device.region_info(index).map(|region| region.offset(0));
        told.push(format!("region {index}: {:?}", region.map_err(|error| error.errno())));
    }
    for index in 0..=info.num_irqs {
        let irq = device.irq_info(index).map_err(|error| error.errno());
        told.push(format!("irq {index}: {irq:?}"));
    }
    for feature in Feature::ALL {
        for directions in [FeatureFlags::GET, FeatureFlags::SET, FeatureFlags::GET | FeatureFlags::SET] {
            let has = device.probe_feature(feature, directions).unwrap();
            told.push(format!("{feature} {directions:?}: {has}"));
        }
    }
    told.push(format!("{:?} {:?}", device.migration_flags().unwrap(), device.state().unwrap()));
    told.push(format!("{:?}", device.data_size().unwrap()));
    told
}

#[test]
fn a_probe_tells_the_same() {
    for model in MODELS {
        let mut served = Served::new(model);
        let here = probed(&mut Local::new(open(model).into_device()));
        assert_eq!(probed(served.client()), here, "{model}");
    }
}

#[test]
fn every_request_from_every_state_ends_as_the_table_says() {
    for model in MODELS {
        let flags = Local::new(open(model).into_device()).migration_flags().unwrap().unwrap();
        for from in State::ALL {
            for to in State::ALL {
                let mut here = Local::new(open(model).into_device());
                let mut served = Served::new(model);
                let there = served.client();
                let (one, other) = (brought(&mut here, from), brought(there, from));
                assert_eq!(one, other, "{model}: to {from}");
                if !one {
                    continue;
                }
                let (mut one, mut other) = (here.set_state(to), there.set_state(to));
                let told = |opened: &mut whimbrel_user::Result<Option<whimbrel_user::DataFile>>| match opened
                {
                    Ok(opened) => Ok(opened.as_ref().map(whimbrel_user::DataFile::direction)),
                    Err(error) => Err(error.errno()),
                };
                let case = format!("{model}: {from} to {to}");
                assert_eq!(told(&mut other), told(&mut one), "{case}");
                assert_eq!(there.state().unwrap(), here.state().unwrap(), "{case}");
                let by_table = fsm::path(flags, from, to).is_ok();
                if from != State::Resuming {
                    assert_eq!(other.is_ok(), by_table, "{case}");
                }
                if let Ok(opened) = other {
                    let expected = session::opened_by(flags, from, to);
                    assert_eq!(opened.map(|file| file.direction()), expected, "{case}");
                }
            }
        }
        assert!(flags.contains(MigrationFlags::STOP_COPY));
    }
}

fn saved(device: &mut Client, cut: usize) -> Vec<u8> {
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    let mut state = Vec::new();
    let mut buffer = vec![0; cut];
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        state.extend_from_slice(&buffer[..count]);
    }
    state
}

#[test]
fn a_state_that_is_saved_is_restored_behind_another_socket() {
    let small = ClientOptions::default().capabilities(Client::capabilities().max_data_xfer_size(4096));
    for options in [ClientOptions::default(), small] {
        let mut source = Served::with("accel?state=64KiB", &options);
        let mut destination = Served::with("accel?state=64KiB", &options);
        source.client().write_region(0, REGISTER_QUEUE_SIZE, &64_u32.to_le_bytes()).unwrap();
        let state = saved(source.client(), 10_000);
        let mut data = destination.client().set_state(State::Resuming).unwrap().unwrap();
        data.write_all(&state).unwrap();
        destination.client().set_state(State::Stop).unwrap();
        assert_eq!(saved(destination.client(), 1 << 20), state);
        let gone = data.write_all(b"late").unwrap_err();
        assert_eq!(gone.errno(), Some(whimbrel_user::Errno::ENODEV), "its session is over: {gone}");
    }
}

#[test]
fn accesses_longer_than_a_message_are_made_in_pieces() {
    let capabilities = Client::capabilities().max_data_xfer_size(1000);
    let options = ClientOptions::default().capabilities(capabilities);
    let mut served = Served::with("accel?state=64KiB", &options);
    let mut here = Local::new(open("accel?state=64KiB").into_device());
    let (mut one, mut other) = (vec![1; 64 << 10], vec![2; 64 << 10]);
    here.read_region(2, 0, &mut one).unwrap();
    served.client().read_region(2, 0, &mut other).unwrap();
    assert!(one == other);
    let error = served.client().read_region(2, (64 << 10) - 8, &mut other[..16]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model: VFIO_USER_REGION_READ of region 2 at 0xfff8: invalid reply from the device: \
         short transfer: 8 of 16 bytes"
    );
}
