//! Loading of accel's state without a server, beside a copy of the same bytes into fresh memory.

use std::time::Instant;

use whimbrel_device::{DeviceFile, State};
use whimbrel_models::accel::{Accel, AccelConfig};

use crate::devices::Fresh;
use crate::rounds::{Subject, alternate};

const ROUNDS: usize = 15;

fn accel() -> DeviceFile {
    DeviceFile::try_new("accel", |bus| Accel::new(AccelConfig::default(), bus)).unwrap()
}

/// The whole stream of an accel with its default state, 64 MiB in which no block is zero.
pub(crate) fn stream() -> Vec<u8> {
    let device = accel();
    let session = device.set_mig_state(State::StopCopy).unwrap().unwrap();
    let mut stream = vec![0; device.mig_data_size().unwrap() as usize];
    let mut filled = 0;
    loop {
        match session.read(&mut stream[filled..]).unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    assert_eq!(filled, stream.len());
    stream
}

pub(crate) fn run() {
    let stream = stream();
    for size in [32 << 10, 128 << 10, 1 << 20] {
        let speed = |before: Instant| stream.len() as f64 / before.elapsed().as_secs_f64() / 1e9;
        let device = accel();
        let subjects = vec![
            Subject::new("copy into fresh memory", || {
                let mut memory = Fresh::new(stream.len());
                let before = Instant::now();
                stream.chunks(size).for_each(|data| memory.append(data));
                speed(before)
            }),
            Subject::new("accel", || {
                let session = device.set_mig_state(State::Resuming).unwrap().unwrap();
                let before = Instant::now();
                for data in stream.chunks(size) {
                    assert_eq!(session.write(data).unwrap(), data.len());
                }
                let speed = speed(before);
                device.set_mig_state(State::Stop).unwrap();
                speed
            }),
        ];
        println!("loading of {} MiB, {} KiB at a time", stream.len() >> 20, size >> 10);
        alternate(ROUNDS, subjects).print("GB/s", "copy into fresh memory");
    }
}
