//! A script for a hostile host of an NVM Express controller: register writes, memory, time, migrations and resets.
//!
//! ```text
//! script = action*
//! action = 0 (modulo 6), width u8, offset u16, value u64        a write to BAR 0
//!        | 1, place u8, 64 bytes                                bytes in memory
//!        | 2, steps u8                                          the device works
//!        | 3                                                    it migrates
//!        | 4                                                    it is reset
//!        | 5                                                    it works until it has nothing to do
//! ```

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_device::{DeviceFile, Next, State};
use whimbrel_memory::FileOffset;
use whimbrel_models::nvme::{Nvme, NvmeConfig};
use whimbrel_uapi::type1::DmaMapFlags;

const IMAGE: u64 = 1 << 20;
const MEMORY: u64 = 256 << 10;
/// Bytes between two places in memory.
const PLACE: u64 = 1 << 10;

struct Bench {
    config: NvmeConfig,
    memory: Arc<File>,
    device: DeviceFile,
    now: Duration,
}

impl Bench {
    fn device(config: &NvmeConfig, memory: &Arc<File>) -> DeviceFile {
        let device = DeviceFile::try_new("disk", |bus| {
            config.open_image().and_then(|image| Nvme::new(config.clone(), image, bus))
        })
        .expect("a device");
        let (rights, file) =
            (DmaMapFlags::READ | DmaMapFlags::WRITE, FileOffset::from_arc(memory.clone(), 0));
        device.bus().dma().map(0, MEMORY, rights, file).expect("a mapping");
        device
    }

    /// Lets the device work for a moment.
    fn advance(&mut self) -> Next {
        self.now += Duration::from_micros(1);
        self.device.advance(self.now)
    }

    /// Works until nothing is left to do but to wait for the host's keep-alive.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            match self.advance() {
                Next::Idle => return,
                Next::At(time) if time > self.now + Duration::from_millis(5) => return,
                _ => std::thread::yield_now(),
            }
        }
        panic!("the device does not come to an end");
    }

    fn migrate(&mut self) {
        let stream = saved(&self.device);
        let destination = Bench::device(&self.config, &self.memory);
        let data = destination.set_mig_state(State::Resuming).expect("an arc").expect("a session");
        assert_eq!(data.write(&stream), Ok(stream.len()), "a state that was saved loads");
        destination.set_mig_state(State::Stop).expect("a valid state");
        assert!(saved(&destination) == stream, "and is the same");
        destination.set_mig_state(State::Running).expect("the image is free");
        self.device = destination;
    }
}

fn saved(device: &DeviceFile) -> Vec<u8> {
    let data = device.set_mig_state(State::StopCopy).expect("an arc").expect("a session");
    let mut stream = vec![0; 64 << 10];
    let mut length = 0;
    loop {
        match data.read(&mut stream[length..]).expect("data") {
            0 => break,
            count => length += count,
        }
    }
    stream.truncate(length);
    device.set_mig_state(State::Stop).expect("an arc");
    stream
}

/// Runs a script. It panics if the controller does something that it must not.
pub(crate) fn run(script: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = File::from(memfd_create(c"memory", MemfdFlags::empty()).expect("memory"));
    memory.set_len(MEMORY).expect("memory");
    let memory = Arc::new(memory);
    let config = NvmeConfig::new(folder.path().join("image")).size(IMAGE).queues(3);
    let device = Bench::device(&config, &memory);
    let mut bench = Bench { config, memory, device, now: Duration::ZERO };
    let mut rest = script;
    let mut migrations = 0;
    while let Some((action, left)) = rest.split_first() {
        rest = left;
        match action % 6 {
            0 => {
                let Some(([width, low, high, value @ ..], left)) = rest.split_first_chunk::<11>() else {
                    break;
                };
                rest = left;
                let offset = u64::from(u16::from_le_bytes([*low, *high]) % 0x4000);
                let width: usize = [4, 8, 4, 1][usize::from(width % 4)];
                let _ = bench.device.write_region(0, offset, &value[..width]);
            }
            1 => {
                let Some(([place, bytes @ ..], left)) = rest.split_first_chunk::<65>() else { break };
                rest = left;
                let address = u64::from(*place) * PLACE;
                bench.device.bus().dma().write(address, bytes).expect("mapped memory");
            }
            2 => {
                let Some((steps, left)) = rest.split_first() else { break };
                rest = left;
                for _ in 0..*steps {
                    bench.advance();
                }
            }
            3 if migrations < 4 => {
                migrations += 1;
                bench.migrate();
            }
            3 => {}
            4 => bench.device.reset().expect("a reset"),
            _ => bench.settle(),
        }
    }
    bench.settle();
    bench.migrate();
    bench.settle();
    let length = std::fs::metadata(&bench.config.image).expect("the image").len();
    assert_eq!(length, IMAGE, "the image keeps its size");
}
