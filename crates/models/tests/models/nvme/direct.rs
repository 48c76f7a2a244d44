//! Reads and writes between the image and the host's memory, beside those that go through a buffer.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use whimbrel_device::DeviceFile;
use whimbrel_memory::{DirtyLog, SharedBytes, read_file_now};
use whimbrel_models::Nvme;
use whimbrel_models::nvme::EngineKind;
use whimbrel_models::nvme::guest::{Command, FUA};
use whimbrel_protocol::dirty::{DirtyReport, LoggingRanges};

use super::host::{BLOCK, Bench, DATA, Memory, pattern};

/// The engines that this machine has.
fn engines(bench: &Bench) -> Vec<EngineKind> {
    let config = bench.config().engine(EngineKind::IoUring);
    match config
        .open_image()
        .and_then(|image| DeviceFile::try_new("disk", |bus| Nvme::new(config, image, bus)))
    {
        Ok(_) => vec![EngineKind::Threads, EngineKind::IoUring],
        Err(error) => {
            println!("SKIPPED: the engine on io_uring: {error}");
            vec![EngineKind::Threads]
        }
    }
}

#[test]
fn data_is_the_same_whichever_way_and_engine_it_goes_by() {
    let bytes = 64 << 10;
    for memory in [Memory::new(), Memory::with_remote_data(), Memory::remote()] {
        let bench = Bench::with(memory);
        for engine in engines(&bench) {
            let mut host = bench.host_on(bench.device_of(bench.config().engine(engine), ""), 32);
            for (seed, bits) in [0, FUA].into_iter().enumerate() {
                let data = pattern(seed as u64, bytes);
                host.memory.write(DATA + 0x1004, &data);
                let write = Command::write(100, 128).with(bits);
                assert!(host.io(write, DATA + 0x1004, bytes).is_success(), "{engine:?}");
                assert!(bench.image()[100 * BLOCK as usize..][..bytes as usize] == data, "{engine:?}");
                for bits in [0, FUA] {
                    host.memory.write(DATA, &vec![0; 0x20000]);
                    assert!(host.io(Command::read(100, 128).with(bits), DATA + 0xe00, bytes).is_success());
                    assert!(host.memory.read(DATA + 0xe00, bytes) == data, "{engine:?}");
                }
            }
            host.driver.shut_down().unwrap();
            host.device().reset().unwrap();
        }
    }
}

#[test]
fn a_read_of_blocks_in_the_page_cache_ends_within_one_call() {
    let bench = Bench::new();
    let mut host = bench.host();
    host.write(0, &pattern(1, 65536));
    let image = File::open(bench.path()).unwrap();
    if let Err(error) = read_file_now(&image, 0, &[SharedBytes::from(&mut [0; 512][..])]) {
        println!("SKIPPED: the file system of the temporary folder cannot answer at once: {error}");
        return;
    }
    let before = host.device().bus().dma().faults();
    host.driver.submit(1, Command::read(0, 128), DATA + 0x40000, 65536).unwrap();
    host.device().advance(Duration::ZERO);
    assert!(host.driver.take_completion(1).unwrap().expect("it has ended").is_success());
    assert!(host.memory.read(DATA + 0x40000, 65536) == pattern(1, 65536));
    assert_eq!(host.device().bus().dma().faults(), before);
}

#[test]
fn pages_that_a_read_fills_are_in_the_dirty_log_whichever_way_it_goes() {
    for memory in [Memory::new(), Memory::with_remote_data()] {
        let bench = Bench::with(memory);
        let mut host = bench.host();
        host.write(0, &pattern(1, 16384));
        let mut ranges = LoggingRanges::new(4096, 1).unwrap();
        ranges.push(DATA, 64 << 12).unwrap();
        let log = Arc::new(DirtyLog::new(&ranges).unwrap());
        host.device().bus().dma().set_log(Some(log.clone()));
        let dirty = || {
            let mut words = [0];
            log.report(&mut DirtyReport::new(DATA, 64 << 12, 4096, &mut words).unwrap());
            words[0]
        };
        assert!(host.io(Command::read(0, 32), DATA + 0x3800, 16384).is_success());
        assert_eq!(dirty(), 0b1111_1000);
        assert!(host.io(Command::write(0, 8), DATA, 4096).is_success());
        assert_eq!(dirty(), 0, "a write leaves memory as it is");
    }
}
