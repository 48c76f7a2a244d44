//! What is no migration is the device's own, whoever stands before it.

use std::fs::File;
use std::time::Duration;

use whimbrel_device::wrap::migration_region::{Layout, Version};
use whimbrel_device::{
    ArcError, BusMaster, Context, DeviceFile, DeviceInfoFlags, DmaBuf, DmaLogging, Driver, Errno, Graphics,
    Info, IoeventfdWrite, Irq, IrqInfoFlags, LowPower, Migration, MigrationFlags, Next, Plane, PlaneKind,
    Region, RegionDmaRange, RegionInfoFlags, State, WriteWidth, ZpciErrors,
};
use whimbrel_memory::FileOffset;
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};
use whimbrel_uapi::feature::{Feature, FeatureFlags};

use super::support::{Offered, offer};

/// A device that has everything.
struct Everything;

impl Driver for Everything {
    fn info(&self) -> Info {
        let flags = DeviceInfoFlags::PCI | DeviceInfoFlags::RESET;
        Info::new(flags).num_regions(3).num_irqs(2)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE | RegionInfoFlags::MMAP;
        Ok(Region::new(flags, 0x1000 << index))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        Ok(Irq::new(IrqInfoFlags::EVENTFD, index + 1))
    }

    fn read_region(
        &mut self,
        _: &Context,
        index: u32,
        _offset: u64,
        data: &mut [u8],
    ) -> Result<usize, Errno> {
        data.fill(index as u8);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, index: u32, _offset: u64, _data: &[u8]) -> Result<usize, Errno> {
        Ok(index as usize)
    }

    fn doorbells(&self) -> Vec<IoeventfdWrite> {
        vec![IoeventfdWrite::new(1, 0x80, WriteWidth::Four, 9)]
    }

    fn mmap(&mut self, _: &Context, index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        let file = File::open("/dev/zero").map_err(|_| Errno::ENOENT)?;
        Ok(FileOffset::new(file, offset + (u64::from(index) << 20)))
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Err(Errno::EBUSY)
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }

    fn dma_logging(&mut self) -> Option<&mut dyn DmaLogging> {
        Some(self)
    }

    fn low_power(&mut self) -> Option<&mut dyn LowPower> {
        Some(self)
    }

    fn bus_master(&mut self) -> Option<&mut dyn BusMaster> {
        Some(self)
    }

    fn dma_buf(&mut self) -> Option<&mut dyn DmaBuf> {
        Some(self)
    }

    fn zpci_errors(&mut self) -> Option<&mut dyn ZpciErrors> {
        Some(self)
    }

    fn graphics(&mut self) -> Option<&mut dyn Graphics> {
        Some(self)
    }

    fn advance(&mut self, context: &Context) -> Next {
        Next::At(context.now() + Duration::from_secs(7))
    }
}

impl Migration for Everything {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::all()
    }

    fn arc(&mut self, _: &Context, _from: State, _to: State) -> Result<(), ArcError> {
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(0)
    }

    fn read(&mut self, _: &Context, _buffer: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        Ok(data.len())
    }
}

impl DmaLogging for Everything {
    fn start(&mut self, _: &Context, _ranges: &LoggingRanges) -> Result<u64, Errno> {
        Err(Errno::EBUSY)
    }

    fn stop(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn report(&mut self, _: &Context, _report: &mut DirtyReport<'_>) -> Result<(), Errno> {
        Err(Errno::EBUSY)
    }
}

impl LowPower for Everything {
    fn suspend(&mut self, _: &Context) {}

    fn resume(&mut self, _: &Context) {}
}

impl BusMaster for Everything {
    fn set(&mut self, _: &Context, _master: bool) -> Result<(), Errno> {
        Ok(())
    }
}

impl DmaBuf for Everything {
    fn export(&mut self, _: &Context, _region: u32, _ranges: &[RegionDmaRange]) -> Result<File, Errno> {
        Err(Errno::EBUSY)
    }

    fn revoke(&mut self, _: &Context) {}
}

impl ZpciErrors for Everything {
    fn take(&mut self, _: &Context) -> Result<Vec<u8>, Errno> {
        Ok(vec![1])
    }
}

impl Graphics for Everything {
    fn kind(&self) -> PlaneKind {
        PlaneKind::Region
    }

    fn plane(&mut self, _: &Context, _plane_type: u32) -> Result<Option<Plane>, Errno> {
        Ok(None)
    }
}

fn plain() -> DeviceFile {
    DeviceFile::new("plain", |_| Everything)
}

fn offered() -> [DeviceFile; 2] {
    [Offered::ByItsDriver, Offered::ByAVendor].map(|offered| {
        let layout = Layout::mapped(Version::Draft, 0x1000).unwrap();
        let device = offer(|_| Everything, &layout, offered);
        assert_eq!(device.info().num_regions, 4);
        device
    })
}

#[test]
fn every_feature_but_those_of_migration_stays() {
    let plain = plain();
    let hidden = |feature| {
        matches!(
            feature,
            Feature::Migration
                | Feature::MigDeviceState
                | Feature::MigDataSize
                | Feature::MigPrecopyInfoV2
                | Feature::DmaLoggingStart
                | Feature::DmaLoggingStop
                | Feature::DmaLoggingReport
        )
    };
    for device in offered() {
        for feature in Feature::ALL {
            for direction in [FeatureFlags::GET, FeatureFlags::SET] {
                let expected = plain.has_feature(feature, direction) && !hidden(feature);
                assert_eq!(device.has_feature(feature, direction), expected, "{feature}");
            }
        }
        assert_eq!(device.gfx_plane_kind(), Ok(PlaneKind::Region));
        assert_eq!(device.zpci_error(), Ok(vec![1]));
    }
    // What this test would not see if the device did not have it.
    for (feature, direction) in [
        (Feature::LowPowerEntry, FeatureFlags::SET),
        (Feature::BusMaster, FeatureFlags::SET),
        (Feature::DmaBuf, FeatureFlags::GET),
        (Feature::ZpciError, FeatureFlags::GET),
        (Feature::MigDeviceState, FeatureFlags::GET),
        (Feature::DmaLoggingStart, FeatureFlags::SET),
    ] {
        assert!(plain.has_feature(feature, direction), "{feature}");
    }
}

#[test]
fn regions_interrupts_resets_and_work_are_the_devices() {
    let plain = plain();
    for device in offered() {
        for index in 0..3 {
            assert_eq!(device.region_info(index), plain.region_info(index));
            let (mut byte, mut expected) = ([0xff], [0xfe]);
            device.read_region(index, 0, &mut byte).unwrap();
            plain.read_region(index, 0, &mut expected).unwrap();
            assert_eq!(byte, expected);
            assert_eq!(device.write_region(index, 0, &[0; 8]), plain.write_region(index, 0, &[0; 8]));
            let place = |device: &DeviceFile| device.mmap(index, 0, 0x1000).map(|file| file.start());
            assert_eq!(place(&device), place(&plain));
        }
        for index in 0..2 {
            assert_eq!(device.irq_info(index), plain.irq_info(index));
        }
        let doorbell = IoeventfdWrite::new(1, 0x80, WriteWidth::Four, 9);
        assert_eq!(device.doorbells(), [doorbell]);
        assert_eq!(device.reset(), Err(Errno::EBUSY));
        let now = Duration::from_secs(1);
        assert_eq!(device.advance(now), plain.advance(now));
    }
}
