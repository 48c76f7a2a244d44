//! Many requests of one kind at once, in about the time of one.

use std::os::fd::AsFd;

use whimbrel_protocol::Errno;
use whimbrel_uapi::type1::DmaMapFlags;
use whimbrel_user::{DmaRegion, Error, FileOffset, Result};

use super::Client;
use super::connection::{Batch, Connection};
use super::device::{ANOTHER_PLACE, wrong_access};
use crate::message::{Command, DmaAccessModes, DmaMap, DmaUnmap, RegionAccess, Reply, Request};

/// A part of a region to read.
#[derive(Debug)]
#[non_exhaustive]
pub struct RegionRead<'a> {
    /// Index of the region.
    pub region: u32,
    /// Offset in bytes within it.
    pub offset: u64,
    /// The buffer, whose length is the number of bytes to read.
    pub data: &'a mut [u8],
}

impl<'a> RegionRead<'a> {
    /// Returns a read of all of `data` from `offset` on.
    pub fn new(region: u32, offset: u64, data: &'a mut [u8]) -> RegionRead<'a> {
        RegionRead { region, offset, data }
    }
}

/// Memory to map for a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DmaMapping {
    /// First IOVA.
    pub iova: u64,
    /// The device's access rights: READ, WRITE or both.
    pub rights: DmaMapFlags,
    /// The memory.
    pub memory: DmaRegion,
}

impl DmaMapping {
    /// Returns a mapping of all of `memory` at `iova`.
    pub fn new(iova: u64, rights: DmaMapFlags, memory: DmaRegion) -> DmaMapping {
        DmaMapping { iova, rights, memory }
    }
}

impl Client {
    /// Reads many parts of regions, in order. Reads after a failed one are still executed; the first error is
    /// returned.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// # use whimbrel_models::{Model, accel};
    /// # use whimbrel_vfio_user::{Backend, Client, ClientOptions};
    /// use whimbrel_vfio_user::RegionRead;
    ///
    /// # let model = "accel?state=4K".parse::<Model>()?.open("accel")?;
    /// # let (server, stream) = UnixStream::pair()?;
    /// # std::thread::spawn(move || Backend::new(model).serve(server));
    /// # let client = Client::new("accel", stream, &ClientOptions::default())?;
    /// let (mut id, mut state_bytes) = ([0; 4], [0; 8]);
    /// client.read_regions(&mut [
    ///     RegionRead::new(0, accel::REGISTER_ID, &mut id),
    ///     RegionRead::new(0, accel::REGISTER_STATE_BYTES, &mut state_bytes),
    /// ])?;
    /// assert_eq!(u32::from_le_bytes(id), accel::ID);
    /// assert_eq!(u64::from_le_bytes(state_bytes), 4096);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_regions(&self, reads: &mut [RegionRead<'_>]) -> Result<()> {
        let connection = &mut *self.connection();
        let most = connection.agreed.max_data_xfer_size as usize;
        // Each message, with the read that it is part of and where in that it begins.
        let mut pieces: Vec<(usize, usize, RegionAccess)> = Vec::with_capacity(reads.len());
        for (number, read) in reads.iter().enumerate() {
            for start in (0..read.data.len()).step_by(most) {
                let count = (read.data.len() - start).min(most) as u32;
                let offset = read.offset.wrapping_add(start as u64);
                pieces.push((number, start, RegionAccess { offset, region: read.region, count }));
            }
        }
        connection.ask_all(Batch {
            count: pieces.len(),
            what: |at: usize| {
                let RegionAccess { offset, region, .. } = pieces[at].2;
                format!("{} of region {region} at {offset:#x}", Command::RegionRead)
            },
            request: |at: usize| (Request::RegionRead(pieces[at].2), None),
            take: |at: usize, reply: Reply<'_>| {
                let (number, start, asked) = pieces[at];
                let room = &mut reads[number].data[start..][..asked.count as usize];
                match reply {
                    Reply::RegionRead(access, bytes) if access == asked && bytes.len() == room.len() => {
                        room.copy_from_slice(bytes);
                        Ok(())
                    }
                    Reply::RegionRead(access, _) => Err(wrong_access(asked, access)),
                    _ => Err(ANOTHER_PLACE.to_string()),
                }
            },
        })
    }

    /// Maps all of this memory for the device, or none of it: if one mapping fails, the others of this call are
    /// unmapped again, and the first error is returned.
    ///
    /// ```
    /// # use std::os::unix::net::UnixStream;
    /// # use rustix::fs::{MemfdFlags, memfd_create};
    /// # use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
    /// # use whimbrel_models::Model;
    /// # use whimbrel_vfio_user::{Backend, Client, ClientOptions};
    /// use whimbrel_uapi::type1::DmaMapFlags;
    /// use whimbrel_user::DmaRegion;
    /// use whimbrel_vfio_user::DmaMapping;
    ///
    /// # let model = "accel?state=4K".parse::<Model>()?.open("accel")?;
    /// # let (server, stream) = UnixStream::pair()?;
    /// # std::thread::spawn(move || Backend::new(model).serve(server));
    /// # let client = Client::new("accel", stream, &ClientOptions::default())?;
    /// # let file = std::fs::File::from(memfd_create("guest", MemfdFlags::CLOEXEC)?);
    /// # file.set_len(0x4000)?;
    /// # let range = |at| (GuestAddress(at), 0x1000, Some(FileOffset::new(file.try_clone().unwrap(), at)));
    /// # let guest_memory = GuestMemoryMmap::<()>::from_ranges_with_files((0..3).map(|at| range(at << 12)))?;
    /// // Memory of a file (memfd_create), which the server maps too.
    /// let rights = DmaMapFlags::READ | DmaMapFlags::WRITE;
    /// let mappings = guest_memory.iter().map(|region| {
    ///     DmaMapping::new(region.start_addr().0, rights, DmaRegion::from(region.get_mmap()))
    /// });
    /// client.map_dma_all(mappings.collect())?;
    /// assert_eq!(client.unmap_all_dma()?, 0x3000);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn map_dma_all(&self, mappings: Vec<DmaMapping>) -> Result<()> {
        let connection = &mut *self.connection();
        if connection.is_away() {
            return map_all_while_away(connection, mappings);
        }
        let takes_files = connection.agreed.max_msg_fds > 0;
        let requests: Vec<(DmaMap, Option<FileOffset>)> = mappings
            .iter()
            .map(|DmaMapping { iova, rights, memory }| {
                let file = memory.file().cloned().filter(|_| takes_files);
                let offset = file.as_ref().map_or(0, FileOffset::start);
                (
                    DmaMap {
                        rights: *rights,
                        modes: DmaAccessModes::empty(),
                        offset,
                        iova: *iova,
                        size: memory.size(),
                    },
                    file,
                )
            })
            .collect();
        let what = |at: usize| format!("{} at {:#x}", Command::DmaMap, requests[at].0.iova);
        if let Some(at) = requests.iter().position(|(_, file)| file.is_none()) {
            connection.attend().map_err(|error| {
                let why =
                    format!("{}: cannot start a thread for the server's memory accesses: {error}", what(at));
                Error::unusable(&self.name, why)
            })?;
        }
        // The device may ask for it before the server says that it is mapped.
        let is_new: Vec<bool> = mappings
            .into_iter()
            .map(|DmaMapping { iova, rights, memory }| connection.memory.insert(iova, rights, memory))
            .collect();
        let mut is_mapped = vec![false; requests.len()];
        let mapped = connection.ask_all(Batch {
            count: requests.len(),
            what,
            request: |at: usize| {
                let (map, file) = &requests[at];
                (Request::DmaMap(*map), file.as_ref().map(|file| file.file().as_fd()))
            },
            take: |at: usize, _: Reply<'_>| {
                is_mapped[at] = is_new[at];
                if is_new[at] {
                    Ok(())
                } else {
                    Err("accepted a mapping that overlaps an earlier one".to_string())
                }
            },
        });
        // The server has gone with the mappings, and the next one is told of them.
        if mapped.is_err() && connection.is_away() && is_new.iter().all(|is_new| *is_new) {
            return Ok(());
        }
        if mapped.is_err() {
            for (at, (DmaMap { iova, size, .. }, _)) in requests.iter().enumerate() {
                if is_mapped[at] {
                    // What the server still has mapped then, it loses with the connection.
                    let unmap = DmaUnmap::Range { iova: *iova, size: *size, bitmap: None };
                    let what = || format!("{} at {iova:#x}", Command::DmaUnmap);
                    let _ = connection.ask(what, &Request::DmaUnmap(unmap), &[]);
                }
                if is_new[at] {
                    connection.memory.remove(*iova, *size);
                }
            }
        }
        mapped
    }
}

/// Maps all of this memory for the next server, or none of it: the previous server is gone.
fn map_all_while_away(connection: &Connection, mappings: Vec<DmaMapping>) -> Result<()> {
    let mut added: Vec<(u64, u64)> = Vec::with_capacity(mappings.len());
    for DmaMapping { iova, rights, memory } in mappings {
        let size = memory.size();
        if !connection.memory.insert(iova, rights, memory) {
            for (iova, size) in added {
                connection.memory.remove(iova, size);
            }
            return Err(connection.refused(format!("{} at {iova:#x}", Command::DmaMap), Errno::EEXIST));
        }
        added.push((iova, size));
    }
    Ok(())
}
