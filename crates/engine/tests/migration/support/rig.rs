//! Two devices with what belongs to them, a migration between them, and what must hold after every one.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use whimbrel_device::DeviceFile;
use whimbrel_engine::{
    Destination, Error, Link, Outcome, Received, Report, SendError, Source, SourceOptions,
};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DmaRegion, State};

use super::{Control, Program, Shape, open_any};

pub(crate) type Memory = GuestMemoryMmap<AtomicBitmap>;

/// Memory that a device can reach, of regions of (address, bytes).
pub(crate) fn memory(regions: &[(u64, usize)]) -> Memory {
    let ranges = regions.iter().map(|(start, size)| {
        let file = File::from(memfd_create(c"test memory", MemfdFlags::empty()).unwrap());
        file.set_len(*size as u64).unwrap();
        (GuestAddress(*start), *size, Some(FileOffset::new(file, 0)))
    });
    Memory::from_ranges_with_files(ranges).unwrap()
}

/// Lets a device reach all of it, each address as the same IOVA.
pub(crate) fn to_device(memory: &Memory, device: &mut dyn Device) {
    let space = device.dma_map().expect("an address space of its own");
    for region in memory.iter() {
        let start = vm_memory::GuestMemoryRegion::start_addr(region).0;
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        space.map_dma(start, rights, DmaRegion::from(region.get_mmap())).unwrap();
    }
}

/// A migration about to be tried.
pub(crate) struct Rig {
    pub(crate) here: Box<dyn Device>,
    pub(crate) there: Box<dyn Device>,
    /// The driver side.
    pub(crate) here_file: DeviceFile,
    pub(crate) here_control: Control,
    pub(crate) there_control: Control,
    pub(crate) here_program: Program,
    pub(crate) there_program: Program,
    pub(crate) memory: Option<(Memory, Memory)>,
    pub(crate) options: SourceOptions,
}

/// A migration that has ended, well or not.
pub(crate) struct Ended {
    pub(crate) sent: Result<Report, SendError>,
    pub(crate) received: Result<Received, Error>,
    pub(crate) rig: Rig,
}

impl Rig {
    pub(crate) fn new(shape: &Shape) -> Rig {
        Rig::of(shape, shape)
    }

    /// Between devices of two shapes.
    pub(crate) fn of(shape: &Shape, there: &Shape) -> Rig {
        let (here, here_file, here_control) = open_any("here", shape);
        let (there, _, there_control) = open_any("there", there);
        here_control.set_state(&(1..=shape.size).map(|index| index as u8).collect::<Vec<_>>());
        Rig {
            here,
            there,
            here_file,
            here_control,
            there_control,
            here_program: Program::default(),
            there_program: Program::default(),
            memory: None,
            options: SourceOptions::default()
                .downtime_limit(Duration::from_secs(20))
                .max_rounds(5)
                .timeout(Duration::from_secs(30)),
        }
    }

    pub(crate) fn with_memory(mut self, regions: &[(u64, usize)]) -> Rig {
        let both = (memory(regions), memory(regions));
        to_device(&both.0, &mut *self.here);
        to_device(&both.1, &mut *self.there);
        self.memory = Some(both);
        self
    }

    pub(crate) fn migrate(self) -> Ended {
        let (left, right) = UnixStream::pair().unwrap();
        self.migrate_over(left.into(), right.into())
    }

    pub(crate) fn migrate_over(mut self, left: Link, right: Link) -> Ended {
        let (sent, received) = std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                let mut destination = Destination::new(&mut *self.there)
                    .guest(self.there_program.clone())
                    .timeout(self.options.timeout);
                if let Some((_, memory)) = &self.memory {
                    destination = destination.memory(memory);
                }
                destination.receive(right)
            });
            let mut source =
                Source::new(&mut *self.here).guest(self.here_program.clone()).options(self.options);
            if let Some((memory, _)) = &self.memory {
                source = source.memory(memory, memory);
            }
            (source.send(left), receiver.join().unwrap())
        });
        Ended { sent, received, rig: self }
    }

    /// Sends alone, to whoever is at the other end.
    pub(crate) fn send_to(&mut self, link: Link) -> Result<Report, SendError> {
        let mut source = Source::new(&mut *self.here).guest(self.here_program.clone()).options(self.options);
        if let Some((memory, _)) = &self.memory {
            source = source.memory(memory, memory);
        }
        source.send(link)
    }

    pub(crate) fn states(&mut self) -> (State, State) {
        (self.here.state().unwrap(), self.there.state().unwrap())
    }

    /// The source is as if nothing had been tried.
    pub(crate) fn assert_source_runs(&mut self, what: &str) {
        assert_eq!(self.here.state().unwrap(), State::Running, "{what}");
        assert!(!self.here_program.calls.is_paused(), "{what}: the program was left paused");
        assert!(!self.here_control.is_logging(), "{what}: the log was left running");
        assert!(!self.here_control.is_fresh(), "{what}: the source lost its state");
    }

    /// The source has given the device away, or cannot know whether it has.
    pub(crate) fn assert_source_stands(&mut self, what: &str) {
        assert_eq!(self.here.state().unwrap(), State::Stop, "{what}");
        assert!(self.here_program.calls.is_paused(), "{what}: the program was let go");
        assert!(!self.here_control.is_logging(), "{what}: the log was left running");
    }

    /// The destination's device holds nothing of the state, and is not stuck on the way to it.
    pub(crate) fn assert_destination_is_fresh(&mut self, what: &str) {
        assert_eq!(self.there.state().unwrap(), State::Running, "{what}");
        assert!(self.there_control.is_fresh(), "{what}: a refused state was kept");
    }

    pub(crate) fn assert_destination_has_it(&mut self, what: &str) {
        assert_eq!(self.there.state().unwrap(), State::Running, "{what}");
        assert_eq!(self.there_control.state(), self.here_control.state(), "{what}");
    }
}

impl Ended {
    /// What holds whatever was cut, lost or damaged on the way: the state runs in one place at most, and both sides
    /// tell the truth about it.
    pub(crate) fn assert_sane(&mut self, what: &str) {
        match &self.sent {
            Ok(_) | Err(SendError { outcome: Outcome::Unknown, .. }) => self.rig.assert_source_stands(what),
            Err(SendError { outcome: Outcome::RunsOn, .. }) => self.rig.assert_source_runs(what),
            Err(error) => panic!("{what}: {error}"),
        }
        match &self.received {
            Ok(_) => {
                self.rig.assert_destination_has_it(what);
                assert!(
                    matches!(&self.sent, Ok(_) | Err(SendError { outcome: Outcome::Unknown, .. })),
                    "{what}: it runs on both sides"
                );
            }
            Err(_) => self.rig.assert_destination_is_fresh(what),
        }
    }

    /// Both errors, of a migration that failed and left the source running.
    pub(crate) fn refused(&mut self, what: &str) -> (String, String) {
        self.assert_sane(what);
        let sent = self.sent.as_ref().expect_err(what);
        assert!(matches!(sent.outcome, Outcome::RunsOn), "{what}: {sent}");
        (sent.to_string(), self.received.as_ref().expect_err(what).to_string())
    }
}
