//! What the guest's driver does when the device or the rings are not as it expects.

use whimbrel_device::{DeviceFile, Errno};
use whimbrel_models::accel::guest::{GuestDriver, GuestError, Platform, Rings};
use whimbrel_models::accel::{
    self, Completion, Descriptor, INTERRUPT_COMPLETION, REGISTER_HEAD, REGISTER_INTERRUPT_STATUS, SLICE_BYTES,
};
use whimbrel_models::{Serial, SerialConfig};
use zerocopy::IntoBytes;

use super::guest::{COMPLETIONS, DATA, Memory, SUBMISSIONS, config, load, run, save};

const RINGS: Rings = Rings::new(SUBMISSIONS, COMPLETIONS, 4);

fn start(memory: &Memory) -> GuestDriver<DeviceFile> {
    GuestDriver::start(memory.device(config(1 << 20)), RINGS).unwrap()
}

fn execute(driver: &mut GuestDriver<DeviceFile>, job: &Descriptor) -> Completion {
    let work = |device: &mut DeviceFile| {
        run(device);
        Ok(())
    };
    driver.execute(job, work).unwrap()
}

#[test]
fn a_device_that_is_no_engine_is_refused() {
    let card = DeviceFile::new("card", |bus| Serial::new(SerialConfig::default(), bus));
    let started = GuestDriver::start(card, RINGS);
    assert!(matches!(started, Err(GuestError::NotAnEngine { .. })), "{started:?}");
}

#[test]
fn rings_that_the_engine_refuses_are_an_error() {
    let memory = Memory::new();
    for (submissions, entries) in
        [(SUBMISSIONS, 0), (SUBMISSIONS, 3), (SUBMISSIONS, 1 << 20), (SUBMISSIONS + 8, 4)]
    {
        let rings = Rings::new(submissions, COMPLETIONS, entries);
        let started = GuestDriver::start(memory.device(config(1 << 20)), rings);
        assert!(matches!(started, Err(GuestError::RingsRefused(refused)) if refused == rings), "{started:?}");
    }
}

#[test]
fn a_ring_takes_as_many_jobs_as_it_has_entries() {
    let mut driver = start(&Memory::new());
    let job = Descriptor::fill(1, DATA, 8, 1);
    for left in (0..4).rev() {
        driver.put(&job).unwrap();
        assert_eq!(driver.room(), left);
    }
    assert!(matches!(driver.put(&job), Err(GuestError::Full)));
    driver.ring().unwrap();
    run(driver.platform());
    assert!(driver.take_completion().unwrap().is_some());
    assert_eq!(driver.room(), 1);
}

/// A bus that delivers a write when something is read: as late as PCI allows.
struct Posting {
    device: DeviceFile,
    posted: Vec<(u64, Vec<u8>)>,
}

impl Platform for Posting {
    type Error = Errno;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        for (offset, data) in self.posted.drain(..) {
            self.device.write_register(offset, &data)?;
        }
        self.device.read_register(offset, data)
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Errno> {
        self.posted.push((offset, data.to_vec()));
        Ok(())
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Errno> {
        self.device.read_memory(address, data)
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.device.write_memory(address, data)
    }
}

#[test]
fn a_job_that_completes_once_its_causes_are_acknowledged_interrupts_also_where_writes_are_posted() {
    let device = Memory::new().device(config(1 << 20));
    let seat = Posting { device: device.clone(), posted: Vec::new() };
    let mut driver = GuestDriver::start(seat, RINGS).unwrap();
    driver.enable_interrupts(INTERRUPT_COMPLETION).unwrap();
    let status = |driver: &mut GuestDriver<Posting>| {
        let mut status = [0; 4];
        driver.platform().device.read_register(REGISTER_INTERRUPT_STATUS, &mut status).unwrap();
        u32::from_le_bytes(status)
    };
    for tag in 0..3 {
        driver.submit(&Descriptor::fill(tag, DATA, 8, tag)).unwrap();
        // This delivers the doorbell.
        driver.read_u32(REGISTER_HEAD).unwrap();
        run(&device);
        assert_eq!(status(&mut driver), INTERRUPT_COMPLETION);
        driver.acknowledge(INTERRUPT_COMPLETION).unwrap();
        assert_eq!(status(&mut driver), 0, "from here on the next job raises its cause anew");
        assert!(driver.take_completion().unwrap().is_some());
    }
}

#[test]
fn an_access_that_fails_is_told_with_its_cause() {
    let unmapped = Rings::new(SUBMISSIONS, 1 << 40, 4);
    let failed = GuestDriver::start(Memory::new().device(config(1 << 20)), unmapped).unwrap_err();
    assert!(matches!(failed, GuestError::Access(Errno::EFAULT)), "{failed}");
}

#[test]
fn a_completion_in_a_wrong_place_is_told_and_the_next_one_is_taken() {
    let memory = Memory::new();
    let mut driver = start(&memory);
    driver.put(&Descriptor::fill(1, DATA, 8, 1)).unwrap();
    driver.submit(&Descriptor::fill(2, DATA, 8, 1)).unwrap();
    run(driver.platform());
    let wrong = Completion { sequence: 9, ..Completion::default() };
    memory.write(COMPLETIONS, wrong.as_bytes());
    let found = driver.take_completion().unwrap_err();
    assert!(
        matches!(found, GuestError::Misplaced { expected: 1, completion } if completion == wrong),
        "{found}"
    );
    assert_eq!(driver.take_completion().unwrap().map(|next| next.tag), Some(2));
}

#[test]
fn completions_are_told_from_older_ones_in_every_round_and_after_the_queue_was_set_up_again() {
    let mut driver = start(&Memory::new());
    for _ in 0..2 {
        for tag in 1..=9 {
            assert!(driver.take_completion().unwrap().is_none(), "{tag}");
            assert_eq!(execute(&mut driver, &Descriptor::fill(tag, DATA, 8, 1)).tag, tag);
        }
        driver = GuestDriver::start(driver.into_platform(), RINGS).unwrap();
    }
    assert_eq!(driver.progress().earlier, 18);
}

#[test]
fn a_driver_continues_at_the_destination_from_its_progress() {
    let memory = Memory::new();
    let mut here = start(&memory);
    execute(&mut here, &Descriptor::fill(1, DATA, 8, 1));
    let job = Descriptor::fill(2, DATA, SLICE_BYTES, 5);
    here.submit(&job).unwrap();
    let progress = here.progress();
    let destination = memory.device(config(1 << 20));
    load(&destination, &save(here.platform()), 1 << 20);
    destination.set_mig_state(whimbrel_device::State::Running).unwrap();
    run(&destination);
    let mut there = GuestDriver::resume(destination, RINGS, progress);
    let done = there.take_completion().unwrap().unwrap();
    assert!(there.verify(&job, &done).unwrap());
    assert_eq!(there.progress().pending(), 0);
}

#[test]
fn a_job_is_verified_in_its_completion_and_in_memory() {
    let length = 200_001;
    let jobs = [
        (Descriptor::fill(1, DATA, length, 0x0102_0304_0506_0708), Some(DATA + length - 1)),
        (Descriptor::copy(2, DATA, DATA + (1 << 20), length), Some(DATA + (1 << 20) + 70_000)),
        (Descriptor::checksum(3, DATA, length), Some(DATA)),
        (Descriptor::scramble(4, 0, 4096, 5), None),
    ];
    let mut driver = start(&Memory::new());
    for (job, spoiled) in jobs {
        let done = execute(&mut driver, &job);
        assert!(driver.verify(&job, &done).unwrap(), "{job:?}");
        for wrong in [
            Completion { tag: 9, ..done },
            Completion { status: accel::STATUS_DATA_FAULT, ..done },
            Completion { result: done.result + 1, ..done },
        ] {
            assert!(!driver.verify(&job, &wrong).unwrap(), "{wrong:?} of {job:?}");
        }
        if let Some(at) = spoiled {
            let mut byte = [0];
            driver.platform().read_memory(at, &mut byte).unwrap();
            driver.platform().write_memory(at, &[byte[0] ^ 1]).unwrap();
            assert!(!driver.verify(&job, &done).unwrap(), "{job:?}");
            driver.platform().write_memory(at, &byte).unwrap();
        }
    }
}
