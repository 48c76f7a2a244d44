//! Memory from one thread to another over loopback TCP, as a migration carries it, compared with a bare loop of 1 MiB
//! writes and reads. The destination's memory is fresh, or was touched before. The contenders take turns. Then a whole
//! migration of sparse memory.
//!
//! Prints the median throughput in GB/s. MIB sets the size in MiB, RUNS the number of runs.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use whimbrel_engine::channel::{Channel, Received, Receiver, Sender, Stream, Until};
use whimbrel_engine::proto::message::Message;
use whimbrel_engine::set::{Arrival, Batch, Ledger, MappedRam, Pagemap, Population, Scan, Stretch};
use whimbrel_engine::{Destination, NoCpuLog, Ram, Source};
use whimbrel_memory::{FileOffset, Memory};
use whimbrel_models::Model;
use whimbrel_user::Local;

const MIB: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Bare,
    InPlace,
    Populated,
}

fn memory(size: u64) -> (MappedRam, File) {
    let file = File::from(memfd_create("memory", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let mapped = Memory::of_file(FileOffset::new(file.try_clone().unwrap(), 0), size, true).unwrap();
    (MappedRam::new([(0, mapped)]).unwrap(), file)
}

fn fill(ram: &dyn Ram, from: u64, size: u64) {
    let mut seed = 1_u64;
    let mut block = vec![0; MIB as usize];
    for at in (from..from + size).step_by(MIB as usize) {
        for word in block.chunks_exact_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&seed.to_le_bytes());
        }
        ram.write(at, &block).unwrap();
    }
}

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let left = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (left, listener.accept().unwrap().0)
}

fn channel(socket: TcpStream) -> Arc<dyn Channel> {
    Arc::new(Stream::try_from(OwnedFd::from(socket)).unwrap())
}

fn send(ram: &dyn Ram, sender: &mut Sender) {
    let until = Until::timeout(Duration::from_mins(2));
    let pagemap = Pagemap::new();
    let mut scan = Scan::new(ram, &pagemap, Ledger::new(ram.regions()).take());
    let mut batch = Batch::default();
    while scan.fill(&mut batch).unwrap() {
        for stretch in batch.stretches() {
            let message = match stretch {
                Stretch::Zero { address, length } => Message::MemoryZero { address, length },
                Stretch::Data { address, data } => Message::Memory { address, data },
            };
            sender.send(&message, until).unwrap();
        }
    }
    sender.finish(until).unwrap();
}

fn receive(arrival: &mut Arrival<'_>, receiver: &mut Receiver, size: u64) {
    let until = Until::timeout(Duration::from_mins(2));
    let mut done = 0;
    while done < size {
        match receiver.next(until).unwrap() {
            Received::Memory(mut data) => {
                let (address, length) = (data.address(), data.len() as u64);
                let mut fill = |place: &mut [u8]| {
                    data.read_into(place, until).unwrap();
                    std::ops::ControlFlow::Continue(())
                };
                arrival.receive(address, length, &mut fill).unwrap();
                data.finish(until).unwrap();
                done += length;
            }
            Received::Message(Message::MemoryZero { address, length }) => {
                arrival.clear(address, length).unwrap();
                done += length;
            }
            Received::Message(Message::Memory { address, data }) => {
                arrival.write(address, data).unwrap();
                done += data.len() as u64;
            }
            Received::Message(other) => panic!("{other:?}"),
        }
    }
}

fn run(way: Way, source: &MappedRam, destination: &MappedRam, size: u64) -> Duration {
    let (left, right) = sockets();
    let started = Instant::now();
    std::thread::scope(|scope| match way {
        Way::Bare => {
            scope.spawn(move || {
                let (mut left, mut block) = (left, vec![0; MIB as usize]);
                for at in (0..size).step_by(MIB as usize) {
                    source.read(at, &mut block).unwrap();
                    left.write_all(&block).unwrap();
                }
            });
            let mut right = right;
            for at in (0..size).step_by(MIB as usize) {
                let mut fill = |place: &mut [u8]| {
                    right.read_exact(place).unwrap();
                    std::ops::ControlFlow::Continue(())
                };
                destination.receive_into(at, MIB, &mut fill).unwrap();
            }
        }
        Way::InPlace | Way::Populated => {
            scope.spawn(move || send(source, &mut Sender::new(channel(left))));
            let population = Population::new();
            std::thread::scope(|scope| {
                let mut arrival = Arrival::new(destination);
                if way == Way::Populated {
                    scope.spawn(|| population.run(destination));
                    arrival = arrival.populated_by(&population);
                }
                receive(&mut arrival, &mut Receiver::new(channel(right)), size);
            });
        }
    });
    started.elapsed()
}

/// Migrates the memory with an idle device, until that runs at the destination.
fn migrate(source: MappedRam, destination: MappedRam) -> Duration {
    let device = || Local::new("accel?state=64KiB".parse::<Model>().unwrap().open("accel").unwrap());
    let (left, right) = sockets();
    let (here, there) = (device(), device());
    let started = Instant::now();
    let receiver = std::thread::spawn(move || {
        let destination = Destination::new(vec![Box::new(there)]).memory(Arc::new(destination));
        destination.receive(Stream::from(right)).result.unwrap();
    });
    let source = Source::new(vec![Box::new(here)]).memory(Arc::new(source), NoCpuLog);
    source.send(Stream::from(left)).result.unwrap();
    let took = started.elapsed();
    receiver.join().unwrap();
    took
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn main() {
    let (size, runs) = (setting("MIB", 2048) * MIB, setting("RUNS", 5));
    let (source, _) = memory(size);
    fill(&source, 0, size);
    let ways = [(Way::Bare, "bare loop"), (Way::InPlace, "engine"), (Way::Populated, "engine, populated")];
    let (touched, _) = memory(size);
    fill(&touched, 0, size);
    for (fresh, state) in [(false, "touched before"), (true, "fresh")] {
        let mut speeds = ways.map(|_| Vec::new());
        for _ in 0..runs {
            for ((way, _), speeds) in ways.iter().zip(&mut speeds) {
                let new = fresh.then(|| memory(size).0);
                let took = run(*way, &source, new.as_ref().unwrap_or(&touched), size);
                speeds.push(size as f64 / took.as_secs_f64() / 1e9);
            }
        }
        for ((_, name), speeds) in ways.iter().zip(speeds) {
            println!("{state}, {name}: {:.2} GB/s", median(speeds));
        }
    }
    drop((source, touched));

    let size = 65_536 * MIB;
    let ((source, source_file), (destination, file)) = (memory(size), memory(size));
    fill(&source, 1000 * MIB, 64 * MIB);
    let took = migrate(source, destination);
    let [held, room] = [source_file, file].map(|file| file.metadata().unwrap().blocks() * 512 / MIB);
    println!(
        "a migration of 64 GiB with 64 MiB of data: {:.0} ms, {held} MiB at the source, {room} MiB at the destination",
        took.as_secs_f64() * 1e3
    );
}
