//! Devices that migrate through a region, used as devices of migration v2.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{FileOffset, MmapRegion};
use whimbrel_device::{
    Capability, Context, DeviceFile, DeviceInfoFlags, Driver, Info, MmapArea, Region, RegionInfoFlags,
};
use whimbrel_models::Model;
use whimbrel_protocol::dirty::{DirtyReport, IovaRange};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{
    DataFile, Device, DmaMap, DmaRegion, Errno, Error, Local, MigrationFlags, SavingRead, State, Version,
    region,
};

/// A model's device as a user finds it.
fn open(model: &str) -> Box<dyn Device> {
    let opened = model.parse::<Model>().unwrap().open(model).unwrap();
    adapted(model, Local::new(opened.into_device()))
}

/// After some work of its own, so that there is state of which much must be said.
fn worked(model: &str) -> Box<dyn Device> {
    let device = model.parse::<Model>().unwrap().open(model).unwrap().into_device();
    device.advance(Duration::ZERO);
    device.advance(Duration::from_millis(10));
    adapted(model, Local::new(device))
}

fn adapted(model: &str, device: Local) -> Box<dyn Device> {
    let version = if model.contains("draft") { Version::Draft } else { Version::V1 };
    region::adapt_as(Box::new(device), version).unwrap()
}

fn read_all(data: &mut DataFile) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 777];
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

fn save(device: &mut dyn Device) -> Vec<u8> {
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    let state = read_all(&mut data);
    device.set_state(State::Stop).unwrap();
    state
}

#[test]
fn the_same_model_gives_the_same_bytes_through_every_interface() {
    for model in ["serial?", "accel?state=3K&"] {
        let expected = save(&mut *open(&format!("{model}protocol=v2")));
        for protocol in ["v1", "draft"] {
            let name = format!("{model}protocol={protocol}");
            assert_eq!(save(&mut *open(&name)), expected, "{name}");
        }
    }
}

#[test]
fn a_state_of_one_interface_is_loaded_through_every_other() {
    for from in ["v2", "v1", "draft"] {
        for to in ["v2", "v1", "draft"] {
            let mut source = open(&format!("serial?protocol={from}"));
            // The scratch register of the port.
            source.write_region(0, 7, &[0x5a]).unwrap();
            let state = save(&mut *source);
            let mut destination = open(&format!("serial?protocol={to}"));
            let mut data = destination.set_state(State::Resuming).unwrap().unwrap();
            data.write_all(&state).unwrap();
            destination.set_state(State::Running).unwrap();
            let mut scratch = [0];
            destination.read_region(0, 7, &mut scratch).unwrap();
            assert_eq!(scratch, [0x5a], "{from} to {to}");
        }
    }
}

#[test]
fn a_device_with_migration_v2_or_without_any_is_left_as_it_is() {
    let device = open("serial");
    assert_eq!(device.region_version(), None);
    let plain = Local::new(DeviceFile::new("plain", |_| Vendor::default()));
    let mut plain = region::adapt(Box::new(plain)).unwrap();
    assert_eq!(plain.migration_flags().unwrap(), None);
}

#[test]
fn it_answers_as_a_device_with_stop_copy_and_pre_copy() {
    for (model, version) in [("serial?protocol=v1", Version::V1), ("serial?protocol=draft", Version::Draft)] {
        let mut device = open(model);
        assert_eq!(device.region_version(), Some(version));
        let flags = MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY;
        assert_eq!(device.migration_flags().unwrap(), Some(flags));
        assert_eq!(device.state().unwrap(), State::Running);
        let both = FeatureFlags::GET | FeatureFlags::SET;
        assert!(device.probe_feature(Feature::MigDeviceState, both).unwrap());
        assert!(device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::SET).unwrap());
        assert!(!device.probe_feature(Feature::DmaLoggingStart, FeatureFlags::GET).unwrap());
        assert!(!device.enable_precopy_info_v2().unwrap());
        assert_eq!(device.data_size().unwrap_err().errno(), Some(Errno::ENOTTY), "not before it is saved");
        let index = device.info().unwrap().num_regions - 1;
        let error = device.read_region(index, 0, &mut [0; 4]).unwrap_err().to_string();
        assert!(error.contains("is the migration region"), "{error}");
    }
}

#[test]
fn every_change_of_state_that_v2_has_is_made_and_no_other() {
    use State::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
    let states = [Running, Stop, PreCopy, StopCopy, Resuming];
    for model in ["serial?protocol=v1", "serial?protocol=draft"] {
        for from in states {
            for to in states {
                let what = format!("{model}: {from} to {to}");
                let mut device = open(model);
                let before = device.set_state(from).unwrap();
                if from == Resuming {
                    // A device judges what it was given when it leaves.
                    before.unwrap().write_all(&save(&mut *open("serial"))).unwrap();
                }
                let result = device.set_state(to);
                if (from, to) == (StopCopy, PreCopy) {
                    assert_eq!(result.unwrap_err().errno(), Some(Errno::EINVAL), "{what}");
                    continue;
                }
                let opens = matches!(to, PreCopy | StopCopy | Resuming)
                    && from != to
                    && (from, to) != (PreCopy, StopCopy);
                assert_eq!(result.unwrap().is_some(), opens, "{what}");
                assert_eq!(device.state().unwrap(), to, "{what}");
            }
        }
        for state in [RunningP2p, PreCopyP2p, State::Error] {
            assert_eq!(open(model).set_state(state).unwrap_err().errno(), Some(Errno::EINVAL), "{state}");
        }
    }
}

#[test]
fn a_session_ends_with_the_states_it_belongs_to() {
    for model in ["serial?protocol=v1", "serial?protocol=draft"] {
        let mut device = open(model);
        let mut saving = device.set_state(State::PreCopy).unwrap().unwrap();
        assert_eq!(saving.precopy_info().unwrap().bytes.initial, 0);
        assert_eq!(saving.write_all(b"x").unwrap_err().errno(), Some(Errno::EBADF));
        device.set_state(State::StopCopy).unwrap();
        assert_eq!(saving.precopy_info().unwrap_err().errno(), Some(Errno::EINVAL));
        assert!(device.data_size().unwrap() >= 60, "an estimate");
        assert_eq!(read_all(&mut saving).len(), 60);
        device.set_state(State::Resuming).unwrap();
        let over = saving.read(&mut [0; 8]).unwrap_err();
        assert_eq!(over.errno(), Some(Errno::ENODEV));

        // Also in the middle of a transaction.
        let mut device = open(model);
        let mut saving = device.set_state(State::StopCopy).unwrap().unwrap();
        assert_eq!(saving.read(&mut [0; 8]).unwrap(), SavingRead::Data(8));
        device.set_state(State::Stop).unwrap();
        assert_eq!(saving.read(&mut [0; 8]).unwrap_err().errno(), Some(Errno::ENODEV));

        let mut resuming = open(model).set_state(State::Resuming).unwrap().unwrap();
        assert_eq!(resuming.read(&mut [0; 8]).unwrap_err().errno(), Some(Errno::EBADF));
        device.reset().unwrap();
        assert_eq!(device.state().unwrap(), State::Running);
    }
}

#[test]
fn transactions_keep_their_sizes_and_a_v1_device_gets_each_when_it_is_whole() {
    let model = "legacy?state=20K&rate=10M&section=1000";
    let mut source = worked(model);
    let mut data = source.set_state(State::StopCopy).unwrap().unwrap();
    let mut destination = open(model);
    let mut into = destination.set_state(State::Resuming).unwrap().unwrap();
    let mut transactions = 0;
    let mut buffer = [0; 300];
    while let SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
        into.write_piece(&buffer[..count], data.ends_transaction()).unwrap();
        transactions += u32::from(data.ends_transaction());
    }
    assert!(transactions > 1);
    destination.set_state(State::Running).unwrap();

    // This device's records are its transactions: cut elsewhere, they are none.
    let state = save(&mut *worked(model));
    let mut into = destination.set_state(State::Resuming).unwrap().unwrap();
    let error = into.write_all(&state[..300]).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL), "{error}");
    let error = into.write_all(&state[300..600]).unwrap_err().to_string();
    assert!(error.contains("did not accept an earlier transaction"), "{error}");
}

#[test]
fn a_transaction_that_the_section_has_no_room_for_is_refused_with_both_sizes() {
    let mut device = open("legacy?state=2K&section=1000");
    let mut into = device.set_state(State::Resuming).unwrap().unwrap();
    into.write_piece(&[1; 900], false).unwrap();
    let error = into.write_piece(&[1; 101], true).unwrap_err();
    assert!(
        error.to_string().ends_with(
            "a transaction of 1001 bytes does not fit the 1000 bytes of the destination's data section"
        ),
        "{error}"
    );
    assert!(error.advice().unwrap().contains("data section as large as the source's"));
}

fn memory(pages: u64) -> DmaRegion {
    let file = File::from(memfd_create(c"test memory", MemfdFlags::empty()).unwrap());
    file.set_len(pages * 0x1000).unwrap();
    DmaRegion::from(Arc::new(
        MmapRegion::<()>::from_file(FileOffset::new(file, 0), pages as usize * 0x1000).unwrap(),
    ))
}

fn dirty(device: &mut dyn Device) -> u64 {
    let mut words = [0; 1];
    let mut report = DirtyReport::new(0, 0x8000, 0x1000, &mut words).unwrap();
    device.dma_logging_report(&mut report).unwrap();
    words[0]
}

#[test]
fn dirty_pages_are_told_from_the_start_of_the_log_whoever_keeps_it() {
    for model in ["accel?state=1K&protocol=v1", "accel?state=1K&protocol=draft"] {
        let opened = model.parse::<Model>().unwrap().open(model).unwrap();
        let bus = opened.bus().clone();
        let mut device = adapted(model, Local::new(opened.into_device()));
        device.dma_map().unwrap().map_dma(0, DmaMapFlags::READ | DmaMapFlags::WRITE, memory(8)).unwrap();
        let range = IovaRange::new(0, 0x8000).unwrap();
        assert_eq!(device.dma_logging_start(0x1000, &[range]).unwrap(), 0x1000);
        assert_eq!(device.state().unwrap(), State::Running, "{model}: whatever the log takes");
        bus.dma().write(0x1800, b"x").unwrap();
        let _data = device.set_state(State::PreCopy).unwrap().unwrap();
        bus.dma().write(0x3fff, b"xy").unwrap();
        assert_eq!(dirty(&mut *device), 0b1_1010, "{model}");
        bus.dma().write(0x5000, b"x").unwrap();
        device.set_state(State::StopCopy).unwrap();
        assert_eq!(dirty(&mut *device), 0b10_0000, "{model}");
        device.set_state(State::Stop).unwrap();
        device.dma_logging_stop().unwrap();
        device.set_state(State::Running).unwrap();
        assert_eq!(device.state().unwrap(), State::Running, "{model}");
    }
}

#[test]
fn the_drafts_log_says_all_once_it_was_off_in_between() {
    let mut device = open("accel?state=1K&protocol=draft");
    device.dma_map().unwrap().map_dma(0, DmaMapFlags::READ | DmaMapFlags::WRITE, memory(8)).unwrap();
    let range = IovaRange::new(0, 0x8000).unwrap();
    device.dma_logging_start(0x1000, &[range]).unwrap();
    let again = device.dma_logging_start(0x1000, &[range]).unwrap_err();
    assert_eq!(again.errno(), Some(Errno::EINVAL));
    assert_eq!(dirty(&mut *device), 0);
    let _data = device.set_state(State::PreCopy).unwrap();
    device.set_state(State::Running).unwrap();
    assert_eq!(dirty(&mut *device), 0xff, "nobody knows");
    device.dma_logging_stop().unwrap();

    device.dma_logging_start(0x1000, &[range]).unwrap();
    device.dma_logging_stop().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
    let mut report = [0; 1];
    let mut report = DirtyReport::new(0, 0x1000, 0x1000, &mut report).unwrap();
    assert_eq!(device.dma_logging_report(&mut report).unwrap_err().errno(), Some(Errno::EINVAL));
}

/// A vendor that says of each field what a test wants, and takes and refuses what it wants.
#[derive(Default)]
struct Vendor {
    region: bool,
    mapped: Option<MmapArea>,
    fields: BTreeMap<u64, Vec<u64>>,
    /// What a state write answers, by the value written.
    refused: BTreeMap<u32, Errno>,
    state: u32,
}

const SIZE: u64 = 0x3000;

impl Vendor {
    /// With pending, data_offset (each read the next of them, the last for ever) and data_size.
    fn saying(pending: u64, offsets: &[u64], size: u64) -> Vendor {
        let fields = BTreeMap::from([(8, vec![pending]), (16, offsets.to_vec()), (24, vec![size])]);
        Vendor { region: true, state: 1, fields, ..Vendor::default() }
    }

    fn open(self) -> Box<dyn Device> {
        region::adapt(Box::new(Local::new(DeviceFile::new("vendor", |_| self)))).unwrap()
    }
}

impl Driver for Vendor {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET).num_regions(2)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let mut region = Region::absent(0).size(SIZE);
        region.flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        if index == 0 || !self.region {
            return Err(Errno::EINVAL);
        }
        if let Some(area) = self.mapped {
            region.flags |= RegionInfoFlags::MMAP;
            region.capabilities.push(Capability::SparseMmap(vec![area]));
        }
        region.capabilities.push(Capability::Type { region_type: 3, subtype: 1 });
        Ok(region)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        self.state = 1;
        Ok(())
    }

    fn read_region(&mut self, _: &Context, _: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        if offset == 0 {
            data.copy_from_slice(&self.state.to_ne_bytes());
        } else if let Some(values) = self.fields.get_mut(&offset) {
            let value = if values.len() > 1 { values.remove(0) } else { values[0] };
            data.copy_from_slice(&value.to_ne_bytes());
        } else {
            data.fill(7);
        }
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        if offset == 0 {
            let state = u32::from_ne_bytes(data.try_into().unwrap());
            if let Some(errno) = self.refused.get(&state) {
                return Err(*errno);
            }
            self.state = state;
        }
        Ok(data.len())
    }
}

#[test]
fn a_vendor_that_tells_what_cannot_be_is_an_error_that_says_what() {
    let cases: [(&str, Vendor, &str); 7] = [
        ("a size past the end", Vendor::saying(1, &[32], SIZE), "0x3000 bytes"),
        ("any size", Vendor::saying(1, &[32], u64::MAX), "migration region of 0x3000 bytes"),
        ("an offset in the structure", Vendor::saying(1, &[31], 8), "at 0x1f,"),
        ("an offset past the end", Vendor::saying(1, &[SIZE], 8), "at 0x3000,"),
        ("an offset past everything", Vendor::saying(1, &[u64::MAX], 8), "at 0xffff"),
        ("an offset that moves", Vendor::saying(1, &[32, 64], 8), "moved its data from 0x20 to 0x40"),
        ("data that never come", Vendor::saying(9, &[32], 0), "9 pending bytes in stop-and-copy"),
    ];
    for (what, vendor, expected) in cases {
        let mut device = vendor.open();
        let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
        let read = data.read(&mut [0; 64]);
        let error = read.unwrap_err();
        assert!(matches!(error, Error::Region { .. }), "{what}: {error}");
        assert!(error.to_string().starts_with("vendor: "), "{what}: {error}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
}

#[test]
fn a_part_that_cannot_be_mapped_after_all_is_read() {
    let mapped = Some(MmapArea::new(0x1000, 0x1000));
    let mut device = Vendor { mapped, ..Vendor::saying(1, &[0x1000], 11) }.open();
    let mut data = device.set_state(State::StopCopy).unwrap().unwrap();
    let mut buffer = [0; 64];
    assert_eq!(data.read(&mut buffer).unwrap(), SavingRead::Data(11));
    assert_eq!(buffer[..12], [7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 0]);
}

#[test]
fn a_state_that_is_none_and_a_region_that_cannot_be_are_errors() {
    let mut device = Vendor { state: 5, ..Vendor::saying(0, &[32], 0) }.open();
    let error = device.state().unwrap_err().to_string();
    assert_eq!(error, "vendor: the device reports an invalid device_state: 0x5");
    assert!(device.set_state(State::Stop).is_err());

    let area = Some(MmapArea::new(0, 0x1000));
    let vendor = Vendor { mapped: area, ..Vendor::saying(0, &[32], 0) };
    let local = Local::new(DeviceFile::new("vendor", |_| vendor));
    let error = region::adapt(Box::new(local)).err().unwrap().to_string();
    assert!(error.contains("mappable part of the migration region: 0x1000 bytes at 0x0"), "{error}");

    let vendor = Vendor::saying(0, &[32], 0);
    let local = Local::new(DeviceFile::new("vendor", |_| vendor));
    let error = region::adapt_as(Box::new(local), Version::Draft).err().unwrap().to_string();
    assert!(error.contains("the device follows v1, not the draft"), "{error}");
}

#[test]
fn the_error_state_is_error_and_only_a_reset_leads_out() {
    let mut device = Vendor { state: 6, ..Vendor::saying(0, &[32], 0) }.open();
    assert_eq!(device.state().unwrap(), State::Error);
    let error = device.set_state(State::Running).unwrap_err();
    assert!(error.to_string().contains("reset it to recover"), "{error}");
    assert!(error.advice().is_some());
    device.reset().unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
    device.set_state(State::StopCopy).unwrap().unwrap();
}

#[test]
fn a_state_write_that_fails_is_told_with_where_the_device_is() {
    let refused = BTreeMap::from([(2, Errno::EBUSY)]);
    let mut device = Vendor { refused, ..Vendor::saying(0, &[32], 0) }.open();
    let error = device.set_state(State::StopCopy).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY));
    assert!(
        error.to_string().starts_with("vendor: changing the device to stop-and-copy failed: EBUSY")
            && error.to_string().ends_with("it is in running"),
        "{error}"
    );
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn a_device_that_goes_from_resuming_to_running_only_stands_in_resuming_until_then() {
    for (version, offset) in [(Version::V1, 32), (Version::Draft, 64)] {
        let refused = BTreeMap::from([(0, Errno::EINVAL)]);
        let vendor = Vendor { refused, ..Vendor::saying(0, &[offset], 0) };
        let local = Local::new(DeviceFile::new("vendor", |_| vendor));
        stands_in_resuming(&mut *region::adapt_as(Box::new(local), version).unwrap());
    }
}

fn stands_in_resuming(device: &mut dyn Device) {
    let mut data = device.set_state(State::Resuming).unwrap().unwrap();
    data.write_all(b"state").unwrap();
    assert!(device.set_state(State::Stop).unwrap().is_none());
    assert_eq!(device.state().unwrap(), State::Stop);
    assert_eq!(data.write_all(b"more").unwrap_err().errno(), Some(Errno::ENODEV), "the session is over");
    let error = device.set_state(State::Resuming).unwrap_err().to_string();
    assert!(error.contains("run or reset it"), "{error}");
    device.set_state(State::Running).unwrap();
    assert_eq!(device.state().unwrap(), State::Running);
}

#[test]
fn memory_is_unmapped_with_the_pages_that_a_driver_in_this_process_wrote() {
    for (model, is_adapted) in [("accel?state=1K", false), ("accel?state=1K&protocol=v1", true)] {
        let opened = model.parse::<Model>().unwrap().open(model).unwrap();
        let bus = opened.bus().clone();
        let local = Local::new(opened.into_device());
        let mut device: Box<dyn Device> = if is_adapted { adapted(model, local) } else { Box::new(local) };
        let space = device.dma_map().unwrap();
        for iova in [0, 0x8000] {
            space.map_dma(iova, DmaMapFlags::READ | DmaMapFlags::WRITE, memory(8)).unwrap();
        }
        let mut words = [0];
        let unmap = |space: &mut dyn DmaMap, words: &mut [u64]| {
            space.unmap_dma_dirty(&mut DirtyReport::new(0, 0x8000, 0x1000, words).unwrap())
        };
        assert_eq!(unmap(space, &mut words).unwrap_err().errno(), Some(Errno::EINVAL), "{model}");
        let mut log = space.dirty_log().unwrap();
        log.start(0x1000, &[IovaRange::new(0, 0x10000).unwrap()]).unwrap();
        bus.dma().write(0x1800, b"x").unwrap();
        bus.dma().write(0x9000, b"x").unwrap();
        assert_eq!(unmap(space, &mut words).unwrap(), 0x8000, "{model}");
        assert_eq!(words, [0b10], "{model}");
        assert!(bus.dma().write(0x1800, b"x").is_err(), "{model}");
        log.report(&mut DirtyReport::new(0, 0x10000, 0x1000, &mut words).unwrap()).unwrap();
        assert_eq!(words, [0b10_0000_0010], "{model}: the other mapping is still logged");
    }
}
