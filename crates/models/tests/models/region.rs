//! Models that migrate through a region, moved by the user half of the same rules.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use whimbrel_device::wrap::migration_region::{Layout, MigrationRegion};
use whimbrel_device::{DeviceFile, Driver, Errno, RemoteMemory};
use whimbrel_models::accel::{Descriptor, STATUS_DONE};
use whimbrel_models::legacy::{HEAD_BYTES, MIGRATION_REGION_INDEX};
use whimbrel_models::{Accel, Legacy, LegacyConfig, Model, Protocol, Serial};
use whimbrel_protocol::region::{Outcome, Phase, RegionAccess, User, UserError, Version, View, Way, drive};
use whimbrel_uapi::type1::DmaMapFlags;

use crate::accel::guest::{BASE, DATA, Guest, MEMORY, Memory};

/// Reaches a region by raw reads and writes, and the mapped parts by mappings.
struct Raw<'a>(&'a DeviceFile);

impl RegionAccess for Raw<'_> {
    fn read(&mut self, offset: u64, way: Way, data: &mut [u8]) -> Result<(), Errno> {
        match way {
            Way::Trapped => {
                let count = self.0.read_region(MIGRATION_REGION_INDEX, offset, data)?;
                assert_eq!(count, data.len());
            }
            Way::Mapped => {
                let (page, start) = (offset & !0xfff, offset & 0xfff);
                let file = self.0.mmap(MIGRATION_REGION_INDEX, page, start + data.len() as u64)?;
                file.file().read_exact_at(data, file.start() + start).unwrap();
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, way: Way, data: &[u8]) -> Result<(), Errno> {
        match way {
            Way::Trapped => {
                let count = self.0.write_region(MIGRATION_REGION_INDEX, offset, data)?;
                assert_eq!(count, data.len());
            }
            Way::Mapped => {
                let (page, start) = (offset & !0xfff, offset & 0xfff);
                let file = self.0.mmap(MIGRATION_REGION_INDEX, page, start + data.len() as u64)?;
                file.file().write_all_at(data, file.start() + start).unwrap();
            }
        }
        Ok(())
    }
}

/// A model's device. What it does by itself is done by the test: a worker would begin by its own clock.
fn without_worker(model: &str) -> DeviceFile {
    DeviceFile::new(model, |bus| match model.parse().unwrap() {
        Model::Accel(config, protocol) => offered(Accel::new(config, bus).unwrap().into(), protocol),
        Model::Serial(config, protocol) => offered(Serial::new(config, bus).into(), protocol),
        Model::Legacy(config) => Legacy::new(config, bus).unwrap().into(),
        other => panic!("{other} is not known here"),
    })
}

fn offered(driver: Box<dyn Driver>, protocol: Protocol) -> Box<dyn Driver> {
    let version = match protocol {
        Protocol::V1 => Version::V1,
        Protocol::Draft => Version::Draft,
        _ => panic!("a device without a region"),
    };
    MigrationRegion::new(driver, Layout::mapped(version, 1 << 20).unwrap()).unwrap().into()
}

/// A device and its user.
struct Seat {
    device: DeviceFile,
    user: User,
}

impl Seat {
    fn new(model: &str) -> Seat {
        let version = if model.contains("draft") { Version::Draft } else { Version::V1 };
        let device = without_worker(model);
        let region = device.region_info(MIGRATION_REGION_INDEX).unwrap();
        Seat { user: User::new(View::new(version, &region).unwrap()), device }
    }

    /// After some work, so that there is state of which something must be said.
    fn worked(model: &str) -> Seat {
        let seat = Seat::new(model);
        seat.work(0);
        seat.work(10);
        seat
    }

    fn splitting(mut self) -> Seat {
        self.user = self.user.with_splitting();
        self
    }

    fn go(&mut self) -> Result<Outcome, UserError> {
        drive(&mut self.user, &mut Raw(&self.device))
    }

    fn phase(&mut self, phase: Phase) -> Result<Outcome, UserError> {
        self.user.set_phase(phase);
        self.go()
    }

    /// All transactions until there are none, for now or for good.
    fn save(&mut self) -> Vec<Vec<u8>> {
        let mut transactions = Vec::new();
        loop {
            self.user.save();
            match self.go().unwrap() {
                Outcome::Saved(Some(data)) => transactions.push(data),
                Outcome::Saved(None) => return transactions,
                other => panic!("{other:?}"),
            }
        }
    }

    fn save_stopped(&mut self) -> Vec<Vec<u8>> {
        self.phase(Phase::StopAndCopy).unwrap();
        let transactions = self.save();
        self.phase(Phase::Stop).unwrap();
        transactions
    }

    fn load(&mut self, transactions: &[Vec<u8>]) -> Result<(), UserError> {
        self.phase(Phase::Resuming).unwrap();
        for data in transactions {
            self.user.load(data.clone());
            self.go()?;
        }
        self.phase(Phase::Running).map(drop)
    }

    /// The engine's registers and its own state.
    fn content(&self) -> (Vec<u8>, Vec<u8>) {
        let mut registers = vec![0; 0x100];
        self.device.read_region(0, 0, &mut registers).unwrap();
        let mut state = vec![0; self.device.region_info(2).unwrap().size as usize];
        self.device.read_region(2, 0, &mut state).unwrap();
        (registers, state)
    }

    /// Lets the state change by itself.
    fn work(&self, until_ms: u64) {
        self.device.advance(Duration::from_millis(until_ms));
    }
}

const ENGINES: [&str; 4] = [
    "accel?state=300K&rate=10M&protocol=v1",
    "accel?state=300K&rate=10M&protocol=draft",
    "legacy?state=300K&rate=10M",
    "legacy?state=300K&rate=10M&section=1000",
];

#[test]
fn an_engine_moves_live() {
    for model in ENGINES {
        let mut source = Seat::worked(model);
        source.phase(Phase::PreCopy).unwrap();
        let mut transactions = source.save();
        source.work(12);
        transactions.extend(source.save());
        source.work(13);
        transactions.extend(source.save_stopped());
        let mut destination = Seat::new(model);
        assert!(destination.content() != source.content(), "{model}");
        destination.load(&transactions).unwrap();
        assert!(destination.content() == source.content(), "{model}");
    }
}

#[test]
fn a_serial_card_moves() {
    for model in ["serial?ports=2&protocol=v1", "serial?ports=2&protocol=draft"] {
        let mut source = Seat::new(model);
        source.device.write_region(1, 0, b"!").unwrap();
        let transactions = source.save_stopped();
        assert_eq!(transactions.concat().len(), 96, "mtty's bytes");
        let mut destination = Seat::new(model);
        destination.load(&transactions).unwrap();
        let mut received = [0];
        destination.device.read_region(1, 0, &mut received).unwrap();
        assert_eq!(received, *b"!", "{model}");
    }
}

#[test]
fn a_model_with_a_region_says_nothing_of_v2() {
    for model in ENGINES.into_iter().chain(["serial?protocol=v1", "serial?protocol=draft"]) {
        let device = model.parse::<Model>().unwrap().open("model").unwrap().into_device();
        assert_eq!(device.migration_flags(), Err(Errno::ENOTTY), "{model}");
        assert!(!device.has_dma_logging(), "{model}");
        assert_eq!(device.info().num_regions, MIGRATION_REGION_INDEX + 1, "{model}");
    }
}

#[test]
fn a_model_of_v2_has_no_region() {
    for model in ["accel?state=4K", "serial", "serial?protocol=v2"] {
        let device = model.parse::<Model>().unwrap().open("model").unwrap().into_device();
        assert!(device.migration_flags().is_ok(), "{model}");
        assert_eq!(device.info().num_regions, MIGRATION_REGION_INDEX, "{model}");
    }
}

#[test]
fn the_bytes_of_a_model_are_the_same_whatever_its_protocol() {
    let mut v1 = Seat::worked("accel?state=300K&rate=10M&protocol=v1");
    let mut draft = Seat::worked("accel?state=300K&rate=10M&protocol=draft");
    assert!(v1.save_stopped().concat() == draft.save_stopped().concat());
}

/// Guest memory that an engine has to ask for.
#[derive(Debug)]
struct Remote(Memory);

impl RemoteMemory for Remote {
    fn read(&self, iova: u64, data: &mut [u8], _: Instant) -> Result<(), Errno> {
        data.copy_from_slice(&self.0.read(iova, data.len() as u64));
        Ok(())
    }

    fn write(&self, iova: u64, data: &[u8], _: Instant) -> Result<(), Errno> {
        self.0.write(iova, data);
        Ok(())
    }
}

#[test]
fn an_engine_with_a_region_does_jobs_in_memory_that_it_has_to_ask_for() {
    for model in ["legacy?state=4K", "accel?state=4K&protocol=v1", "accel?state=4K&protocol=draft"] {
        let (memory, device) = (Memory::new(), without_worker(model));
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        device.bus().dma().map_remote(BASE, MEMORY, rights, Arc::new(Remote(memory.clone()))).unwrap();
        memory.write(DATA, &[0x5a; 5000]);
        let mut guest = Guest::start(&memory, device, 8);
        let completion = guest.execute(&Descriptor::copy(1, DATA, DATA + 8192, 5000));
        assert_eq!(completion.status, STATUS_DONE, "{model}");
        assert_eq!(memory.read(DATA + 8192, 5000), [0x5a; 5000], "{model}");
    }
}

#[test]
fn a_legacy_engine_gives_records_as_long_as_its_section() {
    let mut source = Seat::worked("legacy?state=300K&rate=10M&section=1000");
    let transactions = source.save_stopped();
    let (last, whole) = transactions.split_last().unwrap();
    assert!(whole.len() > 10 && whole.iter().all(|record| record.len() == 1000));
    assert!(last.len() > HEAD_BYTES && last.len() <= 1000);
}

#[test]
fn a_legacy_engine_does_not_take_transactions_that_a_user_has_cut() {
    let mut source = Seat::worked("legacy?state=300K&rate=10M&section=2000");
    let transactions = source.save_stopped();
    assert!(transactions[0].len() > 1000);
    let mut strict = Seat::new("legacy?state=300K&section=1000");
    assert!(strict.load(&transactions).is_err(), "they do not fit");
    let mut cutting = Seat::new("legacy?state=300K&section=1000").splitting();
    let error = cutting.load(&transactions).unwrap_err();
    assert!(error.to_string().contains("EINVAL"), "{error}");
    // The newer engine does not mind: its bytes are a stream.
    let mut stream = Seat::worked("accel?state=300K&rate=10M&protocol=v1");
    let cut: Vec<Vec<u8>> = stream.save_stopped().concat().chunks(777).map(<[u8]>::to_vec).collect();
    Seat::new("accel?state=300K&protocol=v1").load(&cut).unwrap();
}

#[test]
fn a_legacy_engine_is_not_a_newer_one() {
    let legacy = Seat::new("legacy?state=300K").save_stopped();
    assert!(Seat::new("accel?state=300K&protocol=v1").load(&legacy).is_err());
    let newer = Seat::new("accel?state=300K&protocol=v1").save_stopped();
    assert!(Seat::new("legacy?state=300K").load(&newer).is_err());
}

#[test]
fn a_legacy_engine_that_got_a_wrong_record_runs_again_after_a_reset() {
    let mut seat = Seat::new("legacy?state=4K");
    seat.load(&[b"nothing of mine".to_vec()]).unwrap_err();
    assert!(seat.phase(Phase::Running).is_err(), "what it holds is not whole");
    seat.device.reset().unwrap();
    seat.user.reset();
    seat.user.get_phase();
    assert_eq!(seat.go().unwrap(), Outcome::Phase(Phase::Running));
    let transactions = Seat::new("legacy?state=4K").save_stopped();
    seat.load(&transactions).unwrap();
}

#[test]
fn sections_that_cannot_be_had_are_an_error_when_the_model_is_opened() {
    for section_bytes in [0, 63, (64 << 20) + 1] {
        let config = LegacyConfig::default().section_bytes(section_bytes);
        let error = Model::Legacy(config).open("model").unwrap_err();
        assert!(error.to_string().contains(&section_bytes.to_string()), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn records_in_any_other_order_or_shape_are_refused(
        swap in any::<proptest::sample::Index>(),
        cut in 1usize..900,
        change in 0..4,
    ) {
        let mut transactions = Seat::worked("legacy?state=16K&rate=10M&section=900").save_stopped();
        prop_assert!(transactions.len() > 2);
        let at = swap.index(transactions.len() - 1);
        match change {
            0 => transactions.swap(at, at + 1),
            1 => drop(transactions.remove(at)),
            2 => {
                let keep = cut.min(transactions[at].len() - 1);
                transactions[at].truncate(keep);
            }
            _ => {
                let again = transactions[at].clone();
                transactions.insert(at, again);
            }
        }
        prop_assert!(Seat::new("legacy?state=16K&section=900").load(&transactions).is_err());
    }
}
