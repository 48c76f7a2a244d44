//! The client of the recorded servers, and the work that it gives its device.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use whimbrel_models::accel::guest::{GuestDriver, Platform, Progress, Rings};
use whimbrel_models::accel::{self, Descriptor};
use whimbrel_uapi::device::IrqSetFlags;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_vfio_user::Backend;
use whimbrel_vfio_user::message::{
    DeviceFeature, DmaAccessModes, DmaMap, LoggingReport, Reply, Request, SetIrqs,
};

use super::said::Made;
use crate::support::{BOTH, MSI, PAGE, Peer, Signal, memory};

const MEMORY: u64 = 0x1_0000;
const IOVA: u64 = 0x10_0000;
const COMPLETIONS: u64 = 0x1000;
const DATA: u64 = 0x8000;
const LENGTH: u64 = 0x1000;
const STATE: u64 = 4096;
/// Jobs before the takeover.
const JOBS: u64 = 3;

/// A client, its memory and its interrupt.
pub(super) struct Seat {
    peer: Peer,
    memory: File,
    interrupt: Signal,
}

/// What drives the device.
pub(super) struct Owner(GuestDriver<Seat>);

impl Platform for Seat {
    type Error = Infallible;

    fn read_register(&mut self, offset: u64, data: &mut [u8]) -> Result<(), Infallible> {
        data.copy_from_slice(&self.peer.read(0, offset, data.len() as u32).unwrap());
        Ok(())
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        self.peer.write(0, offset, data).unwrap();
        Ok(())
    }

    fn read_memory(&mut self, address: u64, data: &mut [u8]) -> Result<(), Infallible> {
        self.memory.read_exact_at(data, address - IOVA).unwrap();
        Ok(())
    }

    fn write_memory(&mut self, address: u64, data: &[u8]) -> Result<(), Infallible> {
        self.memory.write_all_at(data, address - IOVA).unwrap();
        Ok(())
    }
}

impl Seat {
    fn at(path: &Path) -> Seat {
        let mut peer = Peer::new(UnixStream::connect(path).unwrap(), None);
        peer.agree(Backend::capabilities().twin_socket(None));
        let (memory, interrupt) = (memory(MEMORY), Signal::new());
        peer.map(IOVA, MEMORY, &memory).unwrap();
        // Memory that the client is asked for, of which nothing is needed.
        let modes = DmaAccessModes::empty();
        let asked = DmaMap { rights: BOTH, modes, offset: 0, iova: 2 * IOVA, size: MEMORY };
        peer.ask(&Request::DmaMap(asked)).unwrap();
        let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
        let set = SetIrqs { flags, index: MSI, start: 0, count: 1, data: &[] };
        peer.ask_with(&Request::DeviceSetIrqs(set), &[interrupt.as_fd()]).unwrap();
        // Everything that is mapped.
        let start = [PAGE.to_ne_bytes(), [0; 8]].concat();
        feature(&mut peer, Feature::DmaLoggingStart, FeatureFlags::SET, &start);
        Seat { peer, memory, interrupt }
    }

    /// The client at the other ends of what was given to a server.
    pub(super) fn resumed(mut made: Made) -> Seat {
        let peer = Peer::new(made.sockets.pop().unwrap(), None);
        Seat { peer, memory: made.memory.pop().unwrap(), interrupt: made.eventfds.pop().unwrap() }
    }
}

fn feature(peer: &mut Peer, feature: Feature, flags: FeatureFlags, data: &[u8]) -> Vec<u8> {
    let request = DeviceFeature { argsz: 4096, feature: feature.number(), flags, data };
    let answer = peer.ask(&Request::DeviceFeature(request)).unwrap();
    let Reply::DeviceFeature(feature) = answer.reply() else { panic!("{answer:?}") };
    feature.data.to_vec()
}

fn rings() -> Rings {
    Rings::new(IOVA, IOVA + COMPLETIONS, 16)
}

impl Owner {
    /// A new client of the server at a path, whose device has done its first jobs.
    pub(super) fn at(path: &Path) -> Owner {
        let mut driver = GuestDriver::start(Seat::at(path), rings()).unwrap();
        driver.enable_interrupts(accel::INTERRUPT_COMPLETION).unwrap();
        let mut owner = Owner(driver);
        owner.do_job(Descriptor::scramble(1, 0, STATE, 1));
        (1..JOBS).for_each(|_| owner.job());
        owner
    }

    /// A client whose device has done them behind another server.
    pub(super) fn of(seat: Seat) -> Owner {
        let mut progress = Progress::default();
        (progress.submitted, progress.completed) = (JOBS, JOBS);
        Owner(GuestDriver::resume(seat, rings(), progress))
    }

    pub(super) fn job(&mut self) {
        let tag = self.0.progress().submitted + 1;
        self.do_job(Descriptor::fill(tag, IOVA + DATA, LENGTH, tag));
    }

    fn do_job(&mut self, job: Descriptor) {
        self.0.submit(&job).unwrap();
        let done = loop {
            self.0.platform().interrupt.wait();
            self.0.acknowledge(accel::INTERRUPT_COMPLETION).unwrap();
            if let Some(done) = self.0.take_completion().unwrap() {
                break done;
            }
        };
        assert!(self.0.verify(&job, &done).unwrap(), "{done:?} of {job:?}");
    }

    /// The jobs done, the errors among them, and the digest of all results.
    pub(super) fn registers(&mut self) -> [u64; 3] {
        [accel::REGISTER_COMPLETED, accel::REGISTER_ERRORS, accel::REGISTER_DIGEST]
            .map(|register| self.0.read_u64(register).unwrap())
    }

    /// The log of the pages that the device has written since the last call.
    pub(super) fn dirty(&mut self) -> Vec<u8> {
        let asked = LoggingReport { iova: IOVA, length: MEMORY, page_size: PAGE }.to_bytes();
        let peer = &mut self.0.platform().peer;
        feature(peer, Feature::DmaLoggingReport, FeatureFlags::GET, &asked)[LoggingReport::SIZE..].to_vec()
    }

    pub(super) fn own_state(&mut self) -> Vec<u8> {
        self.0.platform().peer.read(accel::STATE_REGION_INDEX, 0, STATE as u32).unwrap()
    }
}
