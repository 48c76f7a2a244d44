//! Setups of devices that take some of them: read-only registers, refused writes, and writes of MSI enable that count
//! only once the owner has armed MSI, as vfio-pci has it.

use std::os::fd::AsFd;

use rustix::event::{EventfdFlags, eventfd};
use whimbrel_device::{Context, DeviceFile, DeviceInfoFlags, Driver, IrqInfoFlags, RegionInfoFlags};
use whimbrel_device::{Info, Irq, Region};
use whimbrel_user::{Device, DeviceSetup, Errno, Local, Migratable};

const CONFIG: u32 = 7;
const MSI: usize = 0x40;

/// A card whose configuration space follows a rule of its own.
struct Card {
    space: [u8; 256],
    rule: Rule,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    TakesAll,
    Fixed(usize),
    Refuses(usize, Errno),
    /// As vfio-pci without armed interrupts.
    NoMsi,
}

impl Card {
    fn open(rule: Rule) -> Local {
        let mut space = [0; 256];
        space[..4].copy_from_slice(&[0x34, 0x12, 0x01, 0x00]);
        space[0x06] = 0x10;
        space[0x34] = MSI as u8;
        space[MSI] = 0x05;
        space[MSI + 2] = 0x80;
        Local::new(DeviceFile::new("card", |_| Card { space, rule }))
    }

    /// One with everything set up, and its setup.
    fn source() -> DeviceSetup {
        let mut source = Card::open(Rule::TakesAll);
        for (offset, data) in [
            (0x10, &[0x00, 0x00, 0xbf, 0xfe][..]),
            (0x0d, &[0x40]),
            (0x3c, &[10]),
            (MSI + 4, &[0x00, 0x00, 0xe0, 0xfe]),
            (MSI + 2, &[0x81]),
            (0x04, &[0x06, 0x04]),
        ] {
            source.write_region(CONFIG, offset as u64, data).unwrap();
        }
        source.save_setup().unwrap().unwrap()
    }
}

impl Driver for Card {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(9).num_irqs(5)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let flags = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        Ok(if index == CONFIG { Region::new(flags, 256) } else { Region::absent(0) })
    }

    fn irq(&self, _index: u32) -> Result<Irq, Errno> {
        Ok(Irq::new(IrqInfoFlags::EVENTFD, 1))
    }

    fn read_region(&mut self, _: &Context, _: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        let at = offset as usize;
        data.copy_from_slice(&self.space[at..at + data.len()]);
        Ok(data.len())
    }

    fn write_region(&mut self, _: &Context, _: u32, offset: u64, data: &[u8]) -> Result<usize, Errno> {
        let at = offset as usize;
        match self.rule {
            Rule::Fixed(fixed) if fixed == at => return Ok(data.len()),
            Rule::Refuses(refused, errno) if refused == at => return Err(errno),
            _ => self.space[at..at + data.len()].copy_from_slice(data),
        }
        if self.rule == Rule::NoMsi {
            self.space[MSI + 2] &= !1;
        }
        Ok(data.len())
    }
}

#[test]
fn a_register_that_a_device_does_not_have_is_left_alone() {
    let setup = Card::source();
    for rule in [Rule::Fixed(0x0d), Rule::Refuses(0x0d, Errno::EINVAL), Rule::Refuses(MSI + 2, Errno::EPERM)]
    {
        let mut device = Card::open(rule);
        device.restore_setup(&setup).unwrap();
        let mut command = [0; 2];
        device.read_region(CONFIG, 0x04, &mut command).unwrap();
        assert_eq!(command, [0x06, 0x04], "{rule:?}: the others are restored");
    }
}

#[test]
fn a_device_that_does_not_take_what_it_depends_on_is_an_error() {
    let setup = Card::source();
    let cases = [
        (
            Rule::Fixed(0x10),
            "write to region 7 at 0x10: invalid reply from the device: the register reads 0x0",
        ),
        (
            Rule::Fixed(0x04),
            "write to region 7 at 0x4: invalid reply from the device: the register reads 0x0",
        ),
        (Rule::Refuses(0x04, Errno::EINVAL), "write to region 7 at 0x4: EINVAL"),
        (Rule::Refuses(0x0d, Errno::EIO), "write to region 7 at 0xd: EIO"),
    ];
    for (rule, why) in cases {
        let error = Card::open(rule).restore_setup(&setup).unwrap_err().to_string();
        assert!(error.contains(why), "{rule:?}: {error}");
    }
}

#[test]
fn msi_that_is_not_armed_stays_disabled_and_an_armed_interrupt_stays() {
    let setup = Card::source();
    let mut device = Card::open(Rule::NoMsi);
    let eventfd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    device.set_irq_triggers(1, 0, &[Some(eventfd.as_fd())]).unwrap();
    device.restore_setup(&setup).unwrap();
    let after = device.save_setup().unwrap().unwrap();
    assert_eq!(after.config_space()[MSI + 2], 0x80);
    assert_eq!(after.interrupts().len(), 1, "restoring disarms nothing");
    assert!(setup.interrupts().is_empty());
}

#[test]
fn only_a_device_with_a_configuration_space_has_a_setup() {
    struct Platform;
    impl Driver for Platform {
        fn info(&self) -> Info {
            Info::new(DeviceInfoFlags::PLATFORM)
        }
    }
    let mut device = Local::new(DeviceFile::new("platform", |_| Platform));
    assert_eq!(device.save_setup().unwrap(), None);
    let error = device.restore_setup(&Card::source()).unwrap_err().to_string();
    assert_eq!(error, "platform: the device has no configuration space for the source's setup");
}
