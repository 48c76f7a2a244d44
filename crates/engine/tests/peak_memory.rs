//! A migration holds a chunk at a time, however large the state is.
//!
//! Alone in its file, because the peak that is measured is the whole process's.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

use std::os::unix::net::UnixStream;

use whimbrel_device::{
    ArcError, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, Info, Migration, MigrationFlags,
};
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Destination, Source};
use whimbrel_user::{Local, State};

const MIB: u64 = 1 << 20;
/// Many times what may be held. Building for speed makes room for a state as large as a real one.
const SIZE: u64 = if cfg!(debug_assertions) { 512 * MIB } else { 4096 * MIB };
const MOST: u64 = 32 * MIB;

/// A device whose state is as long as said, made up while it is read and checked while it is written.
struct Endless {
    at: u64,
}

fn byte_at(at: u64) -> u8 {
    (at / 4096 % 251) as u8
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

    fn arc(&mut self, _: &Context, from: State, to: State) -> Result<(), ArcError> {
        if (from, to) == (State::Resuming, State::Stop) && self.at != SIZE {
            return Err(Errno::EINVAL.into());
        }
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
        for (index, piece) in buffer[..count].chunks_mut(4096).enumerate() {
            piece.fill(byte_at(self.at + index as u64 * 4096));
        }
        self.at += count as u64;
        Ok(count)
    }

    fn write(&mut self, _: &Context, data: &[u8]) -> Result<usize, Errno> {
        let right = data.chunks(4096).enumerate().all(|(index, piece)| {
            let expected = byte_at(self.at + index as u64 * 4096);
            piece[0] == expected && piece[piece.len() - 1] == expected
        });
        if !right {
            return Err(Errno::EINVAL);
        }
        self.at += data.len() as u64;
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
fn a_large_state_moves_through_little_memory() {
    let open = |name| Local::new(DeviceFile::new(name, |_| Endless { at: 0 }));
    let (here, there) = (open("here"), open("there"));
    let (left, right) = UnixStream::pair().unwrap();
    let options =
        whimbrel_engine::SourceOptions::default().downtime_limit(std::time::Duration::from_hours(1));

    // Writing 5 sets the peak back to what is held now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = status("VmRSS:");
    let report = std::thread::scope(|scope| {
        let receiver = scope
            .spawn(|| Destination::new(vec![Box::new(there)]).receive(Stream::from(right)).result.unwrap());
        let report =
            Source::new(vec![Box::new(here)]).options(options).send(Stream::from(left)).result.unwrap();
        assert_eq!(receiver.join().unwrap().device_bytes, SIZE);
        report
    });
    let held = status("VmHWM:").saturating_sub(before);

    assert_eq!(report.device_bytes, SIZE);
    assert!(held <= MOST, "{held} bytes were held at the peak, {MOST} are allowed");
    println!(
        "{} MiB held at the peak, {:.0} MiB/s",
        held / MIB,
        (SIZE / MIB) as f64 * 1000.0 / report.total_ms
    );
}
