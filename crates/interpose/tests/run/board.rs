//! A board whose regions can be mapped or not, each in another way, and the program in C that maps them.
//!
//! | region | memory |
//! |---|---|
//! | 0 | 4 pages that begin with 0xa0 to 0xa3, all mappable |
//! | 1 | 4 pages in another file that begin with 0xb0 to 0xb3; the first and third are mappable |
//! | 2 | a page at the start of its file |
//! | 3 | a page in a file that its user can truncate |
//! | 4 | a page that can only be read |
//! | 5 | registers: a write of an address makes the device write 0x5a there |
//! | 7 | a configuration space |

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::process::Stdio;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use whimbrel_device::{
    Capability, Context, DeviceFile, DeviceInfoFlags, Driver, Errno, FileOffset, Info, MmapArea,
    REGION_MEMORY_START, Region, RegionInfoFlags, RegionMemory, region_offset,
};
use whimbrel_interpose::run::Command;
use whimbrel_interpose::trace::Options;

use crate::support::{ADDRESS, act, has_no_held_pages, mapper, said, spawn, wait};
use crate::trace::trace;

const PAGE: u64 = 4096;
const ELSEWHERE: u32 = 2;
const UNSEALED: u32 = 3;
const READ_ONLY: u32 = 4;
const REGISTERS: u32 = 5;
const CONFIG: u32 = 7;

struct Board {
    /// Regions 0 and 1.
    memory: [RegionMemory; 2],
    elsewhere: File,
    unsealed: File,
    read_only: File,
}

impl Board {
    fn new() -> Board {
        let memory = [0, 1].map(|index| RegionMemory::for_programs(index, 4 * PAGE).unwrap());
        for (first, memory) in [0xa0, 0xb0].into_iter().zip(&memory) {
            for page in 0..4 {
                memory.write(page * PAGE, &[first + page as u8]).unwrap();
            }
        }
        let writable = file(READ_ONLY, true);
        let path = format!("/proc/self/fd/{}", writable.as_raw_fd());
        let read_only = OpenOptions::new().read(true).open(path).unwrap();
        let elsewhere =
            RegionMemory::for_programs(0, PAGE).unwrap().file(0).unwrap().file().try_clone().unwrap();
        Board { memory, elsewhere, unsealed: file(UNSEALED, false), read_only }
    }
}

/// Returns a file with a page where this region is.
fn file(index: u32, is_sealed: bool) -> File {
    let file = File::from(memfd_create(c"page", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap());
    file.set_len(start(index) + PAGE).unwrap();
    if is_sealed {
        fcntl_add_seals(&file, SealFlags::SHRINK).unwrap();
    }
    file
}

fn start(index: u32) -> u64 {
    REGION_MEMORY_START + region_offset(index)
}

impl Driver for Board {
    fn info(&self) -> Info {
        Info::new(DeviceInfoFlags::PCI).num_regions(CONFIG + 1)
    }

    fn region(&self, index: u32) -> Result<Region, Errno> {
        let both = RegionInfoFlags::READ | RegionInfoFlags::WRITE;
        let mapped = both | RegionInfoFlags::MMAP;
        let areas = vec![MmapArea::new(0, PAGE), MmapArea::new(2 * PAGE, PAGE)];
        Ok(match index {
            0 => Region::new(mapped, 4 * PAGE),
            1 => Region::new(mapped, 4 * PAGE).capabilities(vec![Capability::SparseMmap(areas)]),
            ELSEWHERE | UNSEALED => Region::new(mapped, PAGE),
            READ_ONLY => Region::new(RegionInfoFlags::READ | RegionInfoFlags::MMAP, PAGE),
            REGISTERS => Region::new(both, PAGE),
            CONFIG => Region::new(both, 256),
            _ => Region::absent(0),
        })
    }

    fn read_region(&mut self, _: &Context, index: u32, offset: u64, data: &mut [u8]) -> Result<usize, Errno> {
        match index {
            0 | 1 => self.memory[index as usize].read(offset, data)?,
            CONFIG => {
                let config = [0x34, 0x12, 0x78, 0x56];
                let byte = |at| config.get(at).copied().unwrap_or(0);
                data.iter_mut().enumerate().for_each(|(at, to)| *to = byte(offset as usize + at));
            }
            _ => data.fill(0),
        }
        Ok(data.len())
    }

    fn write_region(
        &mut self,
        context: &Context,
        index: u32,
        offset: u64,
        data: &[u8],
    ) -> Result<usize, Errno> {
        match index {
            0 | 1 => self.memory[index as usize].write(offset, data)?,
            REGISTERS => {
                let address = u64::from_le_bytes(data.try_into().map_err(|_| Errno::EINVAL)?);
                context.bus().dma().write(address, &[0x5a]).map_err(|_| Errno::EFAULT)?;
            }
            _ => {}
        }
        Ok(data.len())
    }

    fn mmap(&mut self, _: &Context, index: u32, offset: u64, _length: u64) -> Result<FileOffset, Errno> {
        let page = |file: &File, start| Ok(FileOffset::new(file.try_clone().unwrap(), start));
        match index {
            0 | 1 => self.memory[index as usize].file(offset),
            ELSEWHERE => page(&self.elsewhere, start(0)),
            UNSEALED => page(&self.unsealed, start(index)),
            READ_ONLY => page(&self.read_only, start(index)),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// Returns a command that does one thing with a board. `None` where it cannot be built.
fn command(act: &str) -> Option<Command> {
    let mut command = Command::new(mapper()?);
    command.args([ADDRESS, act]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.device(DeviceFile::new(ADDRESS, |_| Board::new())).unwrap();
    Some(command)
}

/// Lets the program do one thing with a board, to its end.
#[track_caller]
fn on_board(act: &str) {
    let Some(command) = command(act) else { return };
    let Some(mut child) = spawn(command) else { return };
    let status = wait(&mut child);
    assert!(status.success(), "{act}: {status}; {}", said(&mut child));
    child.wait_until_unused();
}

#[test]
fn the_memory_of_a_region_is_mapped() {
    on_board("maps");
}

#[test]
fn the_regions_that_can_be_mapped_are_offered() {
    on_board("offers");
}

#[test]
fn all_else_is_refused_with_the_errno_of_the_kernel() {
    on_board("refusals");
}

#[test]
fn a_mapping_holds_the_device() {
    on_board("holds");
}

#[test]
fn each_of_two_opens_is_closed_by_itself() {
    on_board("opens");
}

#[test]
fn children_and_other_programs_inherit_mapped_files() {
    on_board("forks");
}

#[test]
fn a_mapped_file_is_passed_by_a_socket() {
    on_board("passes");
}

#[test]
fn threads_map_regions_of_two_files_at_a_time() {
    on_board("threads");
}

#[test]
fn a_mapped_region_is_mapped_for_dma() {
    on_board("dma");
}

#[test]
fn a_device_waits_for_a_page_that_the_program_has_yet_to_fill_but_not_forever() {
    for act in ["late", "never"] {
        let Some(mut child) = command(act).and_then(spawn) else { return };
        if has_no_held_pages(&mut child) {
            return;
        }
        let status = wait(&mut child);
        assert!(status.success(), "{act}: {status}; {}", said(&mut child));
    }
}

#[test]
fn a_program_harms_only_itself() {
    on_board("harms");
}

#[test]
fn a_device_of_an_iommufd_is_mapped() {
    on_board("cdev");
}

#[test]
fn each_mapping_of_a_region_is_traced_and_a_refusal_with_its_errno() {
    for (act, expected) in [
        (
            "maps",
            &[
                "mmap(16384 bytes at region 0+0x0) = ? answered by the kernel",
                "mmap(1 bytes at region 0+0x3000) = ? answered by the kernel",
                "mmap(4096 bytes at region 1+0x0) = ? answered by the kernel",
                "mmap(4096 bytes at region 0+0x3000) = ? answered by the kernel",
            ][..],
        ),
        ("refusals", &["at region 3+0x0) = -1 EINVAL"]),
    ] {
        let Some(mut command) = command(act) else { return };
        let records = trace(&mut command, Options::default());
        let Some(mut child) = spawn(command) else { return };
        let status = wait(&mut child);
        assert!(status.success(), "{act}: {status}; {}", said(&mut child));
        drop(child);
        let maps: Vec<String> = records
            .iter()
            .filter(|record| record.name() == "mmap")
            .map(|record| record.to_string())
            .collect();
        let mut rest = maps.iter();
        for line in expected {
            assert!(rest.any(|map| map.contains(line)), "{act}: {line} is not, or not there, in {maps:#?}");
        }
    }
}

#[test]
fn the_data_of_a_migration_region_is_mapped() {
    act(mapper(), "migrates", "accel?state=1MiB&protocol=v1");
}
