//! Access to the program's memory that outlives the request that began it: one `/proc/PID/mem` for all mappings of a program.
//!
//! Such a file stays that of the memory that the process had when it was opened. After exec it is stale: a new one is opened
//! then, and mappings made before keep the old one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::Mutex;
use whimbrel_device::{Errno, RemoteMemory};

use super::held_pages;
use super::shared_files::SharedFiles;
use super::task::{ProcessId, Task};

/// `AT_RANDOM` of `/proc/PID/auxv` (`include/uapi/linux/auxvec.h`).
const AT_RANDOM: u64 = 25;

/// Bytes that the kernel makes up at each exec, for the program to find at `AT_RANDOM`.
type Random = [u8; 16];

/// Memory of a process that is accessed by requests to the kernel. It is that of the program that the process ran when
/// this was opened: after exec, or the process's end, every access fails with EFAULT.
#[derive(Debug)]
pub(super) struct ProgramMemory {
    file: File,
    process: u32,
}

/// The memories that mappings have.
#[derive(Debug, Default)]
pub(super) struct Memories {
    open: Mutex<Vec<(ProcessId, Weak<ProgramMemory>)>>,
    pub(super) files: SharedFiles,
}

impl Memories {
    /// Returns access to the memory of a task, which it shares with other mappings of the same program.
    ///
    /// Nothing is locked while memory is read: the program may keep that waiting.
    pub(super) fn get(&self, task: &Task<'_>) -> Result<Arc<ProgramMemory>, Errno> {
        let process = task.process_id()?;
        let known: Vec<Arc<ProgramMemory>> = {
            let mut open = self.open.lock();
            open.retain(|(_, memory)| memory.strong_count() > 0);
            let its = open.iter().rev().filter(|(other, _)| *other == process);
            its.filter_map(|(_, memory)| memory.upgrade()).collect()
        };
        if let Some(memory) = known.into_iter().find(|memory| memory.is_of(task)) {
            return Ok(memory);
        }
        let memory = Arc::new(ProgramMemory { file: task.memory()?, process: process.number() });
        self.open.lock().push((process, Arc::downgrade(&memory)));
        Ok(memory)
    }
}

impl ProgramMemory {
    /// Returns whether it is the memory that its process has now, and not that before an exec.
    ///
    /// After exec a file of the old memory has no bytes, unless another process shares that memory (vfork). It has other ones
    /// then: those at `AT_RANDOM` are new at each exec.
    fn is_of(&self, task: &Task<'_>) -> bool {
        let Some(address) = std::fs::read(task.proc_path("auxv")).ok().and_then(|auxv| random_at(&auxv))
        else {
            return false;
        };
        let (mut here, mut now): (Random, Random) = Default::default();
        self.file.read_exact_at(&mut here, address).is_ok()
            && task.read(address, &mut now).is_ok()
            && here == now
    }
}

/// A page that a userfaultfd fills is waited for. Of a file system that does not reply it may keep an access waiting past its
/// deadline, and the program's changes of its mappings with it; the end of the program ends that.
impl RemoteMemory for ProgramMemory {
    fn read(&self, address: u64, data: &mut [u8], deadline: Instant) -> Result<(), Errno> {
        let length = data.len();
        self.access(address, length, deadline, || self.file.read_exact_at(data, address))
    }

    fn write(&self, address: u64, data: &[u8], deadline: Instant) -> Result<(), Errno> {
        self.access(address, data.len(), deadline, || self.file.write_all_at(data, address))
    }
}

impl ProgramMemory {
    /// Makes an access, once more after a wait for its pages if the kernel finds one of them missing.
    fn access(
        &self,
        address: u64,
        length: usize,
        deadline: Instant,
        mut access: impl FnMut() -> io::Result<()>,
    ) -> Result<(), Errno> {
        let is_missing = |error: &io::Error| Errno::from_io_error(error) == Some(Errno::EIO);
        match access() {
            Err(error) if is_missing(&error) => {
                held_pages::wait_for(self.process, address, length, deadline)?;
                access()
            }
            made => made,
        }
        .map_err(|error| errno(&error))
    }
}

/// The kernel answers EIO for memory that is gone, and no bytes for a process that is.
fn errno(error: &io::Error) -> Errno {
    match Errno::from_io_error(error) {
        None | Some(Errno::EIO) => Errno::EFAULT,
        Some(errno) => errno,
    }
}

/// Returns the address of the program's random bytes, from its `/proc/PID/auxv`: pairs of a type and a value.
fn random_at(auxv: &[u8]) -> Option<u64> {
    let (words, _) = auxv.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    let (_, value) = pairs
        .iter()
        .map(|[kind, value]| (u64::from_ne_bytes(*kind), value))
        .find(|(kind, _)| *kind == AT_RANDOM)?;
    Some(u64::from_ne_bytes(*value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_random_bytes_of_a_program_are_found() {
        let words = [6u64, 4096, AT_RANDOM, 0x7ffd_1234, 0, 0];
        let auxv: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        assert_eq!(random_at(&auxv), Some(0x7ffd_1234));
        assert_eq!(random_at(&auxv[..24]), None);
        assert_eq!(random_at(&[]), None);
    }
}
