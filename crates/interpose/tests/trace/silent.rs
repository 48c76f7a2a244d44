//! A file whose pages never come: its file system, in this process, answers no read.
#![allow(unsafe_code, reason = "a mapping of the file is made")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Requests of a file system (`linux/fuse.h`).
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// Maps a page that never comes, and returns its address. Fails if no file system can be mounted here.
pub(crate) fn page() -> std::io::Result<u64> {
    let fuse = File::options().read(true).write(true).open("/dev/fuse")?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let place = tempfile::NamedTempFile::new()?;
    // Its root is the file.
    let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
    mount(
        Some("silent"),
        place.path(),
        Some("fuse"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some(&*options),
    )?;
    std::thread::spawn(move || serve(fuse));
    let file = File::open(place.path())?;
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let page = unsafe {
        libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    // The mount remains, and with it the file.
    std::mem::forget(place);
    if page == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(page as u64) }
}

fn serve(mut fuse: File) {
    let mut request = vec![0; 1 << 17];
    while let Ok(length) = fuse.read(&mut request) {
        assert!(length >= 40, "a request has a head of 40 bytes");
        let opcode = u32::from_ne_bytes(request[4..8].try_into().unwrap());
        let (error, data) = match opcode {
            FORGET | INTERRUPT | READ => continue,
            INIT => (0, numbers(&[7, 31, 0, 0, 0, 4096, 1], 64)),
            GETATTR => (0, attributes()),
            OPEN => (0, vec![0; 16]),
            _ => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = numbers(&[16 + data.len() as u32, error.cast_unsigned()], 8);
        reply.extend_from_slice(&request[8..16]);
        reply.extend(data);
        // Of a request that was interrupted, nobody wants the answer.
        let _ = fuse.write(&reply);
    }
}

/// Numbers of 32 bits, filled up with zeros.
fn numbers(numbers: &[u32], length: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
    bytes.resize(length, 0);
    bytes
}

/// The attributes of a file of one page.
fn attributes() -> Vec<u8> {
    let mut bytes = vec![0; 104];
    let mut put = |at: usize, number: u32| bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    // The number of the root, size, mode, links.
    put(16, 1);
    put(24, 4096);
    put(16 + 60, 0o100_600);
    put(16 + 64, 1);
    bytes
}
