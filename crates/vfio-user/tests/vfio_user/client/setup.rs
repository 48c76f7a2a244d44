//! A PCI device continues at its destination with the configuration space of its source: DMA and interrupts, in this
//! process and behind a socket. Without it, the device does neither.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::DeviceFile;
use whimbrel_models::accel::{self, Accel, AccelConfig, Completion, Descriptor};
use whimbrel_models::{Serial, SerialConfig};
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{Device, DeviceSetup, DmaRegion, FileOffset, Local, Memory, State, region};
use whimbrel_vfio_user::{Backend, Client, ClientOptions};
use zerocopy::{FromBytes, IntoBytes};

const CONFIG: u32 = 7;
const COMMAND: u64 = 0x04;
pub(crate) const MSI: u32 = 1;
const MEMORY: u64 = 0x10000;
const COMPLETIONS: u64 = 0x1000;

/// A device, and its driver side, which the test advances by itself.
struct Machine {
    engine: DeviceFile,
    user: Box<dyn Device>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    InProcess,
    BehindSocket,
}

const PLACES: [Place; 2] = [Place::InProcess, Place::BehindSocket];

impl Place {
    fn open(self, engine: DeviceFile) -> Machine {
        let user: Box<dyn Device> = match self {
            Place::InProcess => Box::new(Local::new(engine.clone())),
            Place::BehindSocket => {
                let (server, stream) = UnixStream::pair().unwrap();
                let backend = Backend::new(engine.clone());
                std::thread::spawn(move || backend.serve(server));
                Box::new(Client::new("engine", stream, &ClientOptions::default()).unwrap())
            }
        };
        Machine { engine, user }
    }

    /// An engine that needs a set-up configuration space, with its memory mapped.
    fn engine(self, memory: &FileOffset) -> Machine {
        let config = AccelConfig::default().state_bytes(4096).needs_config(true);
        let engine = DeviceFile::try_new("engine", |bus| Accel::new(config, bus)).unwrap();
        let mut machine = self.open(engine);
        let region = DmaRegion::from(Memory::of_file(memory.clone(), MEMORY, true).unwrap());
        let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
        machine.user.dma_map().unwrap().map_dma(0, rights, region).unwrap();
        machine
    }
}

/// As a guest's driver sets up an engine's configuration space: BAR, MSI, memory space and bus master.
pub(crate) fn set_up(engine: &mut dyn Device) {
    let mut space = [0; 256];
    engine.read_region(CONFIG, 0, &mut space).unwrap();
    let mut msi = usize::from(space[0x34]);
    while space[msi] != 0x05 {
        msi = usize::from(space[msi + 1]);
    }
    let msi = msi as u64;
    let mut config = |offset, data: &[u8]| engine.write_region(CONFIG, offset, data).unwrap();
    config(0x10, &0xfebf_1000_u32.to_le_bytes());
    config(msi + 4, &0xfee0_0000_u32.to_le_bytes());
    config(msi + 12, &[0x42, 0]);
    config(msi + 2, &[0x81, 0]);
    config(0x3c, &[11]);
    config(COMMAND, &[0x06, 0x00]);
}

impl Machine {
    /// As a guest's driver does: its configuration space, then the rings.
    fn set_up(&mut self) {
        set_up(&mut *self.user);
        for (register, value) in [
            (accel::REGISTER_QUEUE_SIZE, 16),
            (accel::REGISTER_QUEUE_BASE, 0),
            (accel::REGISTER_COMPLETION_BASE, COMPLETIONS as u32),
            (accel::REGISTER_INTERRUPT_ENABLE, accel::INTERRUPT_COMPLETION),
            (accel::REGISTER_CONTROL, accel::CONTROL_ENABLE),
        ] {
            self.register(register, value);
        }
    }

    fn register(&mut self, register: u64, value: u32) {
        self.user.write_region(0, register, &value.to_le_bytes()).unwrap();
    }

    /// Lets the device do all the work that it can do.
    fn work(&self) {
        while self.engine.advance(Duration::ZERO) == whimbrel_device::Next::Now {}
    }

    /// Stops the device and returns its state and its setup.
    fn save(&mut self) -> (Vec<u8>, Vec<u8>) {
        let mut data = self.user.set_state(State::StopCopy).unwrap().unwrap();
        let mut state = Vec::new();
        let mut buffer = [0; 4096];
        while let whimbrel_user::SavingRead::Data(count) = data.read(&mut buffer).unwrap() {
            state.extend_from_slice(&buffer[..count]);
        }
        let setup = self.user.save_setup().unwrap().unwrap();
        assert_eq!(setup.interrupts().len(), 1);
        assert_eq!((setup.interrupts()[0].index, setup.interrupts()[0].vectors), (MSI, 1));
        (state, setup.to_bytes())
    }

    fn load(&mut self, state: &[u8]) {
        let mut data = self.user.set_state(State::Resuming).unwrap().unwrap();
        data.write_all(state).unwrap();
        drop(data);
        self.user.set_state(State::Stop).unwrap();
    }
}

fn memory() -> FileOffset {
    let file = File::from(memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(MEMORY).unwrap();
    FileOffset::new(file, 0)
}

fn put(memory: &FileOffset, at: u64, bytes: &[u8]) {
    std::os::unix::fs::FileExt::write_all_at(memory.file(), bytes, at).unwrap();
}

fn completion(memory: &FileOffset, slot: u64) -> Completion {
    let mut bytes = [0; size_of::<Completion>()];
    let at = COMPLETIONS + slot * size_of::<Completion>() as u64;
    std::os::unix::fs::FileExt::read_exact_at(memory.file(), &mut bytes, at).unwrap();
    Completion::read_from_bytes(&bytes).unwrap()
}

/// Submits a job, whose completion goes to this slot.
fn submit(machine: &mut Machine, memory: &FileOffset, slot: u32) {
    let job = Descriptor {
        operation: accel::OPERATION_CHECKSUM,
        source: 0x2000,
        length: 9,
        tag: u64::from(slot),
        ..Descriptor::default()
    };
    put(memory, u64::from(slot) * size_of::<Descriptor>() as u64, job.as_bytes());
    machine.register(accel::REGISTER_TAIL, slot + 1);
    machine.work();
}

fn signals(eventfd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(eventfd, &mut count) {
        Ok(_) => u64::from_ne_bytes(count),
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::AGAIN);
            0
        }
    }
}

/// A migration of a set-up engine that has done one job; returns the destination, in STOP, and its eventfd.
fn migrated(place: Place, memory: &FileOffset, restores: bool) -> (Machine, std::os::fd::OwnedFd, Vec<u8>) {
    put(memory, 0x2000, b"123456789");
    let mut source = place.engine(memory);
    let told = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    source.user.set_irq_triggers(MSI, 0, &[Some(told.as_fd())]).unwrap();
    source.set_up();
    submit(&mut source, memory, 0);
    assert_eq!((completion(memory, 0).sequence, signals(&told)), (1, 1), "{place:?}: the source works");
    source.register(accel::REGISTER_INTERRUPT_STATUS, accel::INTERRUPT_COMPLETION);
    let (state, setup) = source.save();

    let mut destination = place.engine(memory);
    let told = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    destination.user.set_irq_triggers(MSI, 0, &[Some(told.as_fd())]).unwrap();
    destination.load(&state);
    if restores {
        destination.user.restore_setup(&DeviceSetup::parse(&setup).unwrap()).unwrap();
    }
    (destination, told, setup)
}

#[test]
fn a_device_with_its_setup_does_dma_and_interrupts_at_the_destination() {
    for place in PLACES {
        let memory = memory();
        let (mut destination, told, setup) = migrated(place, &memory, true);
        assert_eq!(signals(&told), 0, "{place:?}: nothing before it runs");
        destination.user.set_state(State::Running).unwrap();
        submit(&mut destination, &memory, 1);
        let done = completion(&memory, 1);
        assert_eq!((done.sequence, done.result), (2, 0xcbf4_3926), "{place:?}: DMA");
        assert_eq!(signals(&told), 1, "{place:?}: the interrupt");
        let here = destination.user.save_setup().unwrap().unwrap();
        assert_eq!(here.to_bytes(), setup, "{place:?}: the same space, and the owner's interrupt");
    }
}

#[test]
fn a_device_without_its_setup_does_neither() {
    for place in PLACES {
        let memory = memory();
        let (mut destination, told, setup) = migrated(place, &memory, false);
        destination.user.set_state(State::Running).unwrap();
        submit(&mut destination, &memory, 1);
        assert_eq!(completion(&memory, 1).sequence, 0, "{place:?}: no DMA");
        assert_eq!(signals(&told), 0, "{place:?}: no interrupt");

        // It can still be restored: work that waits is done then.
        destination.user.restore_setup(&DeviceSetup::parse(&setup).unwrap()).unwrap();
        destination.work();
        assert_eq!((completion(&memory, 1).sequence, signals(&told)), (2, 1), "{place:?}");
    }
}

#[test]
fn a_source_that_was_reset_gets_its_setup_back() {
    for place in PLACES {
        let memory = memory();
        put(&memory, 0x2000, b"123456789");
        let mut machine = place.engine(&memory);
        let told = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        machine.user.set_irq_triggers(MSI, 0, &[Some(told.as_fd())]).unwrap();
        machine.set_up();
        let (state, setup) = machine.save();
        machine.user.reset().unwrap();
        machine.load(&state);
        machine.user.restore_setup(&DeviceSetup::parse(&setup).unwrap()).unwrap();
        machine.user.set_state(State::Running).unwrap();
        submit(&mut machine, &memory, 0);
        assert_eq!((completion(&memory, 0).sequence, signals(&told)), (1, 1), "{place:?}");
    }
}

#[test]
fn the_setup_of_another_device_is_refused_and_changes_nothing() {
    for place in PLACES {
        let serial = DeviceFile::new("serial", |bus| Serial::new(SerialConfig::default(), bus));
        let foreign = place.open(serial).user.save_setup().unwrap().unwrap();
        let mut machine = place.engine(&memory());
        let before = machine.user.save_setup().unwrap();
        let error = machine.user.restore_setup(&foreign).unwrap_err().to_string();
        let expected =
            "the setup is that of another device: its vendor and device ID are 4348:3253, expected 1234:acce";
        assert!(error.ends_with(expected), "{error}");
        assert_eq!(machine.user.save_setup().unwrap(), before);
    }
}

#[test]
fn models_of_every_kind_take_their_own_setup() {
    for model in ["serial", "serial?answers=mtty", "accel?state=4KiB&protocol=v1", "legacy?state=4KiB"] {
        let open = || {
            let opened = model.parse::<whimbrel_models::Model>().unwrap().open("device").unwrap();
            region::adapt(Box::new(Local::new(opened))).unwrap()
        };
        let mut source = open();
        source.write_region(CONFIG, 0x3c, &[9]).unwrap();
        source.write_region(CONFIG, COMMAND, &[0x07, 0x04]).unwrap();
        let setup = source.save_setup().unwrap().unwrap();
        let mut destination = open();
        destination.restore_setup(&setup).unwrap();
        assert_eq!(destination.save_setup().unwrap(), Some(setup), "{model}");
    }
}
