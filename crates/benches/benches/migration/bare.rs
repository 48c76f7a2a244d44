//! The bare loop: writes of 1 MiB from the memory to a socket, and reads from it into the memory.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, ReadVolatile, WriteVolatile};

use super::memory::{MIB, MemoryFile};
use super::{DEVICE_STATE, Move, Result, processor};

pub(super) fn send(noise: &MemoryFile, devices: u64, address: &str) -> Result<Move> {
    let memory = noise.map(true)?;
    let state = vec![1; (devices * DEVICE_STATE) as usize];
    let mut socket = TcpStream::connect(address)?;
    let (start, used) = (Instant::now(), processor::own()?);
    for at in (0..noise.size()).step_by(MIB as usize) {
        socket.write_all_volatile(&memory.get_slice(GuestAddress(at), MIB as usize)?)?;
    }
    for piece in state.chunks(MIB as usize) {
        socket.write_all(piece)?;
    }
    socket.read_exact(&mut [0])?;
    Ok(Move { took: start.elapsed(), downtime: None, processor: processor::own_since(used)? })
}

pub(super) fn receive(memory: &GuestMemoryMmap, devices: u64, told: impl FnOnce(&str)) -> Result<()> {
    // Zeros, so that there are no pages before: a device at the destination has no state yet.
    let mut state = vec![0; (devices * DEVICE_STATE) as usize];
    let listener = TcpListener::bind("127.0.0.1:0")?;
    told(&listener.local_addr()?.to_string());
    let (mut socket, _) = listener.accept()?;
    for at in (0..=memory.last_addr().0).step_by(MIB as usize) {
        socket.read_exact_volatile(&mut memory.get_slice(GuestAddress(at), MIB as usize)?)?;
    }
    for piece in state.chunks_mut(MIB as usize) {
        socket.read_exact(piece)?;
    }
    socket.write_all(b"!")?;
    Ok(())
}
