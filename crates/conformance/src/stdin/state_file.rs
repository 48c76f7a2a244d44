//! A data session of a program.

use std::sync::Arc;

use whimbrel_protocol::Errno;
use whimbrel_protocol::precopy::PrecopyReport;
use whimbrel_uapi::migration::{PrecopyInfo, PrecopyInfoFlags};
use whimbrel_user::{RawData, StateFile};

use super::codec::Request;
use super::connection::{Connection, Failure};

/// `argsz` and flags of a request that asks for all.
const ARGSZ: u32 = size_of::<PrecopyInfo>() as u32;

/// Bytes of a single request: a larger one is cut, as by a pipe.
const MAX_BYTES: usize = 64 << 20;

/// A handle to an open session, which the last one closes.
pub(super) struct ProgramFile(Arc<Session>);

struct Session {
    connection: Connection,
    fd: i32,
}

impl Drop for Session {
    fn drop(&mut self) {
        // A failure counts as a complaint.
        let _ = self.connection.ask(&Request::Close { fd: self.fd });
    }
}

impl ProgramFile {
    pub(super) fn new(connection: Connection, fd: i32) -> ProgramFile {
        ProgramFile(Arc::new(Session { connection, fd }))
    }

    fn info(&self, argsz: u32, flags: u32) -> Result<PrecopyInfo, Failure> {
        let Session { connection, fd } = &*self.0;
        let reply = connection.ask(&Request::PrecopyInfo { fd: *fd, argsz, flags })?;
        Ok(PrecopyInfo {
            argsz,
            flags: connection.number(&reply, 0)?,
            initial_bytes: connection.number(&reply, 1)?,
            dirty_bytes: connection.number(&reply, 2)?,
        })
    }
}

impl StateFile for ProgramFile {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let Session { connection, fd } = &*self.0;
        let count = buffer.len().min(MAX_BYTES);
        let reply = connection.ask(&Request::Read { fd: *fd, count }).map_err(|failure| failure.errno())?;
        // The codec has checked that there are no more than asked for.
        buffer[..reply.bytes.len()].copy_from_slice(&reply.bytes);
        Ok(reply.bytes.len())
    }

    fn write(&mut self, data: &[u8]) -> Result<usize, Errno> {
        let Session { connection, fd } = &*self.0;
        let data = &data[..data.len().min(MAX_BYTES)];
        let written =
            connection.ask(&Request::Write { fd: *fd, data }).and_then(|reply| connection.number(&reply, 0));
        written.map_err(|failure| failure.errno())
    }

    fn precopy_info(&mut self) -> Result<PrecopyReport, Errno> {
        let info = self.info(ARGSZ, 0).map_err(|failure| failure.errno())?;
        let reinit = PrecopyInfoFlags::from_bits_retain(info.flags).contains(PrecopyInfoFlags::REINIT);
        Ok(PrecopyReport::new(info.initial_bytes, info.dirty_bytes).reinit(reinit))
    }

    fn raw(&mut self) -> Option<&mut dyn RawData> {
        Some(self)
    }
}

impl RawData for ProgramFile {
    fn precopy_info(&mut self, info: &mut PrecopyInfo) -> Result<(), Errno> {
        *info = self.info(info.argsz, info.flags).map_err(|failure| failure.errno())?;
        Ok(())
    }

    fn duplicate(&self) -> Result<Box<dyn StateFile>, Errno> {
        Ok(Box::new(ProgramFile(self.0.clone())))
    }
}
