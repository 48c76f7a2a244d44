//! What a destination holds is bounded, however slowly one of its devices takes its state while the others' lanes are fast.
//!
//! Alone in its file, because the peak that is measured is the whole process's.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration, MigrationFlags,
};
use whimbrel_engine::channel::{Connector, Listener, Until, connect};
use whimbrel_engine::{Destination, DestinationOptions, Source, SourceOptions};
use whimbrel_user::{Local, Migratable, State};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 96 * MIB;
const DEVICES: u64 = 4;
/// Far less than the states.
const MEMORY: u64 = 24 * MIB;
/// What the source holds besides, and the threads and their stacks.
const OTHERS: u64 = 40 * MIB;
/// The time that the slow device takes for each write.
const SLOWNESS: Duration = Duration::from_millis(15);

/// A device whose state is as long as said. The first one takes its state slowly.
struct Endless {
    at: u64,
    is_slow: bool,
    taken: Arc<AtomicU64>,
}

impl Driver for Endless {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::RESET)
    }

    fn reset(&mut self, _: &Context) -> Result<(), Errno> {
        Ok(())
    }

    fn migration(&mut self) -> Option<&mut dyn Migration> {
        Some(self)
    }
}

impl Migration for Endless {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags::STOP_COPY
    }

    fn arc(&mut self, _: &Context, _: State, to: State) -> Result<(), ArcError> {
        if matches!(to, State::StopCopy | State::Resuming) {
            self.at = 0;
        }
        Ok(())
    }

    fn data_size(&mut self, _: &Context) -> Result<u64, Errno> {
        Ok(SIZE)
    }

    fn read(&mut self, _: &Context, buffer: &mut [u8]) -> Result<usize, Errno> {
        let count = (SIZE - self.at).min(buffer.len() as u64) as usize;
        buffer[..count].fill(7);
        self.at += count as u64;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        if self.is_slow {
            std::thread::sleep(SLOWNESS);
        }
        self.taken.fetch_add(data.len() as u64, Ordering::Relaxed);
        Ok(data.len())
    }
}

/// A figure of /proc/self/status, in bytes.
fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_slow_device_and_fast_lanes_do_not_fill_the_memory() {
    let taken = Arc::new(AtomicU64::new(0));
    let open = |side: &str| -> Vec<Box<dyn Migratable>> {
        let device = |number: u64| {
            let taken = taken.clone();
            let file = DeviceFile::new(format!("{side}{number}"), move |_| Endless {
                at: 0,
                is_slow: number == 0,
                taken,
            });
            Box::new(Local::new(file)) as Box<dyn Migratable>
        };
        (0..DEVICES).map(device).collect()
    };
    let (here, there) = (open("here"), open("there"));
    let mut listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.address().clone();
    let until = || Until::timeout(Duration::from_mins(1));
    let options = SourceOptions::default().downtime_limit(Duration::from_hours(1)).channels(4);

    // Writing 5 sets the peak back to what is held now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let report = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let destination =
                Destination::new(there).options(DestinationOptions::default().receive_memory(MEMORY));
            let accepted = destination.accept(&mut listener, until()).unwrap();
            destination.receive_accepted(accepted).result.unwrap()
        });
        let control = connect(&address, until()).unwrap();
        let source = Source::new(here).options(options).connector(Connector::new(address.clone()));
        let report = source.send(control).result.unwrap();
        assert_eq!(receiver.join().unwrap().lane_bytes, [SIZE; DEVICES as usize]);
        report
    });
    let held = status("VmHWM:").saturating_sub(before);

    assert_eq!(report.lanes.len(), 4);
    assert_eq!(taken.load(Ordering::Relaxed), DEVICES * SIZE);
    let most = MEMORY + OTHERS;
    assert!(held <= most, "{} MiB were held at the peak, {} are allowed", held / MIB, most / MIB);
    println!("{} MiB held at the peak", held / MIB);
}
