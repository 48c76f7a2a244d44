//! Migration of a served device: its state, sessions and features, by messages.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use whimbrel_protocol::dirty::{DirtyReport, IovaRange, MAX_LOGGING_RANGES};
use whimbrel_protocol::{Errno, MigrationFlags, State, session};
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::{DataFile, DeviceSetup, Error, Identity, Info, Migratable, Operation, ResetRule, Result};

use super::connection::Connection;
use super::deviations::Deviation;
use super::device::ROOM;
use super::migration_state::{is_p2p, state};
use super::reconnect::{Migration, RunningLog};
use super::reset::reset;
use super::state_channel::StateChannel;
use super::state_file::RemoteFile;
use super::{Client, data_size, feature, feature_with, feature_with_descriptors, get};
use crate::message::{Command, LoggingReport, LoggingStart, Reply, Request};

/// The P2P states are available if they were agreed on, whatever the flag of the plain protocol says.
fn migration_flags(connection: &mut Connection) -> Result<MigrationFlags> {
    let data = get(connection, Feature::Migration)?;
    let hidden =
        if connection.agreed.extensions().p2p { MigrationFlags::empty() } else { MigrationFlags::P2P };
    Ok(MigrationFlags::from_bits_retain(u64::from_ne_bytes(data)).difference(hidden))
}

/// Returns the channel in the reply to a state change; `data_fd` is the index of its descriptor. Fails with the
/// reason if it is invalid.
fn channel(
    connection: &Connection,
    reply: &[u8],
    mut descriptors: Vec<OwnedFd>,
) -> std::result::Result<Option<StateChannel>, &'static str> {
    if !connection.agreed.extensions().data_channel {
        return Ok(None);
    }
    let data_fd = reply.get(4..).and_then(|data_fd| data_fd.first_chunk()).copied().map(i32::from_ne_bytes);
    match (data_fd, descriptors.pop(), descriptors.is_empty()) {
        (Some(-1), None, _) => Ok(None),
        (Some(0), Some(socket), true) => {
            let name = connection.name().to_owned();
            let (limits, request_timeout) = (connection.limits(), connection.request_timeout);
            let channel =
                StateChannel::new(name, socket, limits, request_timeout, connection.deviations.clone());
            channel.map(Some).map_err(|_| "the session's descriptor is not a stream socket")
        }
        _ => Err("data_fd does not match the descriptors"),
    }
}

/// Names the change of the state in its own error as for any other device: users tell it from other requests.
fn of_state_change(error: Error, to: State) -> Error {
    let change = Operation::SetState(to);
    let is_it = |request: &Operation| request.to_string() == change.to_string();
    match error {
        Error::Request { device, request, errno } if is_it(&request) => {
            Error::request(&device, change, errno)
        }
        Error::Answer { device, request, what } if is_it(&request) => Error::answer(&device, change, what),
        error => error,
    }
}

impl Client {
    /// The device's previous state determines whether a session begins: a reply with a channel confirms it, one
    /// without does not deny it.
    fn change_state(&mut self, to: State) -> Result<Option<DataFile>> {
        let connection = &mut *self.connection();
        let extensions = connection.agreed.extensions();
        let what = || Operation::SetState(to).to_string();
        if is_p2p(to) && !extensions.p2p {
            return Err(connection.refused(what(), Errno::EINVAL));
        }
        connection.check_migration(&what())?;
        let flags = migration_flags(connection)?;
        let from = state(connection)?;
        if let Some(kept) = &mut connection.kept {
            kept.migration.requested(to);
        }
        let data = [to.number().to_ne_bytes(), (-1_i32).to_ne_bytes()].concat();
        let (asked, set) = (Feature::MigDeviceState, FeatureFlags::SET);
        let (reply, descriptors) = feature_with_descriptors(connection, what, asked, set, &data, 0)?;
        if reply.first_chunk() != Some(&to.number().to_ne_bytes()) {
            return Err(connection.invalid_reply(what(), "the reply has a different state"));
        }
        self.state.set(to);
        if let Some(kept) = &mut connection.kept {
            kept.migration.confirmed(to);
        }
        let opened = session::opened_by(flags, from, to);
        let channel = match channel(connection, &reply, descriptors) {
            Ok(channel) if channel.is_none() || opened.is_some() => channel,
            Ok(_) => {
                return Err(
                    connection.invalid_reply(what(), "a data channel for an arc that opens no session")
                );
            }
            Err(why) => return Err(connection.invalid_reply(what(), why)),
        };
        // A request needs the connection in the handle.
        Ok(opened.zip(connection.handle()).map(|(direction, handle)| {
            connection.sessions.fetch_add(1, Ordering::AcqRel);
            let (sessions, state) = (connection.sessions.clone(), self.state.clone());
            let file = RemoteFile::new(handle, channel, extensions, direction, state, sessions);
            DataFile::new(self.name.clone(), direction, self.state.clone(), Box::new(file))
        }))
    }
}

impl Migratable for Client {
    fn name(&self) -> &str {
        &self.name
    }

    fn holder(&self) -> Option<String> {
        Some(self.current.holder())
    }

    fn info(&mut self) -> Result<Info> {
        let connection = &mut *self.connection();
        let what = || Command::DeviceGetInfo.to_string();
        let mut argsz = ROOM;
        loop {
            let most = connection.limits().message() as u32;
            let answer = connection.ask(what, &Request::DeviceGetInfo { argsz }, &[])?;
            let Reply::DeviceGetInfo(reply) = answer.reply else {
                return Err(connection.invalid_reply(what(), "not a device info"));
            };
            if !reply.is_whole() && argsz < reply.needed() && reply.needed() <= most {
                argsz = reply.needed();
                continue;
            }
            return Ok(reply.info().clone());
        }
    }

    /// With the driver's description of its data from the server's VFIO_USER_VERSION, if it supports the extension.
    fn identity(&mut self) -> Result<Identity> {
        let told = self.connection().agreed.migration_compatibility.clone();
        Ok(Identity::of_device(self)?.compatibility(told))
    }

    /// Leaves the device in RUNNING without its previous contents. If the server does not reset the device itself,
    /// the client changes its state to discard them, and never lets a stopped device run with them.
    fn reset(&mut self) -> Result<()> {
        let connection = &mut *self.connection();
        reset(connection)?;
        if let Some(kept) = &mut connection.kept
            && std::mem::take(&mut kept.migration) == Migration::Lost
        {
            self.state.set(State::Running);
        }
        Ok(())
    }

    /// Returns what the server says, if it supports the extension.
    fn reset_rule(&self) -> Option<ResetRule> {
        self.connection().agreed.migration_reset_rule
    }

    fn probe_feature(&mut self, asked: Feature, directions: FeatureFlags) -> Result<bool> {
        let flags = FeatureFlags::PROBE | (directions & (FeatureFlags::GET | FeatureFlags::SET));
        let what = || format!("{} of {asked} with PROBE", Command::DeviceFeature);
        match feature(&mut self.connection(), what, asked, flags, &[], 0) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::ENOTTY | Errno::EINVAL)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn migration_flags(&mut self) -> Result<Option<MigrationFlags>> {
        let connection = &mut *self.connection();
        match migration_flags(connection) {
            Ok(flags) => {
                connection.has_migration = true;
                Ok(Some(flags))
            }
            Err(error) if error.errno() == Some(Errno::ENOTTY) => Ok(None),
            Err(error) if error.errno() == Some(Errno::EINVAL) => {
                connection.deviations.tolerate(Deviation::MigrationInvalid, Feature::Migration);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// ERROR after a migration that was lost with its server, until a reset.
    fn state(&mut self) -> Result<State> {
        let connection = &mut *self.connection();
        let state = match &mut connection.kept {
            Some(kept) if kept.migration == Migration::Lost => State::Error,
            _ => state(connection)?,
        };
        if let Some(kept) = &mut connection.kept {
            kept.migration.confirmed(state);
        }
        self.state.set(state);
        Ok(state)
    }

    fn set_state(&mut self, to: State) -> Result<Option<DataFile>> {
        self.change_state(to).map_err(|error| of_state_change(error, to))
    }

    fn data_size(&mut self) -> Result<u64> {
        data_size(&mut self.connection())
    }

    /// Without VFIO_USER_MIG_GET_PRECOPY_INFO, the server has no such info to opt in to.
    fn enable_precopy_info_v2(&mut self) -> Result<bool> {
        let connection = &mut *self.connection();
        if !connection.agreed.extensions().precopy_info {
            return Ok(false);
        }
        let asked = Feature::MigPrecopyInfoV2;
        match feature(connection, || asked.to_string(), asked, FeatureFlags::SET, &[], 0) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.errno(), Some(Errno::EINVAL | Errno::ENOTTY)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn dma_logging_start(&mut self, page_size: u64, logged: &[IovaRange]) -> Result<u64> {
        let connection = &mut *self.connection();
        let asked = Feature::DmaLoggingStart;
        let what = || asked.to_string();
        let ranges: Vec<(u64, u64)> = logged.iter().map(|range| (range.iova(), range.length())).collect();
        let mut room = vec![[0; 16]; ranges.len()];
        let data = LoggingStart::new(page_size, &ranges, &mut room).to_bytes();
        if ranges.len() > MAX_LOGGING_RANGES as usize {
            return Err(connection.refused(what(), Errno::E2BIG));
        }
        let reply = feature(connection, what, asked, FeatureFlags::SET, &data, 0)?;
        let kept = reply.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes)).unwrap_or_default();
        if kept.is_power_of_two() {
            if let Some(settings) = &mut connection.kept {
                settings.log = Some(RunningLog::new(page_size, kept, logged));
            }
            return Ok(kept);
        }
        Err(connection.invalid_reply(what(), format_args!("invalid page size {kept} of the log")))
    }

    fn dma_logging_stop(&mut self) -> Result<()> {
        let asked = Feature::DmaLoggingStop;
        let connection = &mut *self.connection();
        let stopped = feature(connection, || asked.to_string(), asked, FeatureFlags::SET, &[], 0).map(drop);
        // A log has ended with its server: the next one does not start it.
        let is_over = stopped.is_ok() || connection.is_away();
        match connection.kept.as_mut().filter(|_| is_over).and_then(|kept| kept.log.take()) {
            Some(_) => Ok(()),
            None => stopped,
        }
    }

    fn save_setup(&mut self) -> Result<Option<DeviceSetup>> {
        DeviceSetup::of_device(self)
    }

    fn restore_setup(&mut self, setup: &DeviceSetup) -> Result<()> {
        setup.restore_to(self)
    }

    fn dma_logging_report(&mut self, report: &mut DirtyReport<'_>) -> Result<()> {
        let connection = &mut *self.connection();
        let asked = Feature::DmaLoggingReport;
        let what = || asked.to_string();
        let (range, page_size) = (report.range(), report.page_size());
        // A bitmap as large as a message allows, in whole words.
        let words = (connection.agreed.max_data_xfer_size as usize / 8).max(1);
        let step = page_size.saturating_mul(64).saturating_mul(words as u64);
        let mut at = 0;
        let mut first = 0;
        // A range of nothing is asked about too: the server judges it.
        loop {
            let length = step.min(range.length() - at);
            let part = LoggingReport { iova: range.iova() + at, length, page_size };
            let count = DirtyReport::words_needed(length, page_size) as usize;
            let data = part.to_bytes();
            let room = LoggingReport::SIZE + count * 8;
            let merge = |reply: &[u8]| match LoggingReport::parse(reply) {
                Ok((told, bitmap)) if told == part && bitmap.len() == count * 8 => {
                    let words = report.words_mut().get_mut(first..).unwrap_or_default();
                    for (word, bits) in words.iter_mut().zip(bitmap.as_chunks::<8>().0) {
                        *word |= u64::from_le_bytes(*bits);
                    }
                    Ok(())
                }
                Ok(_) => Err("bitmap for a different range".to_string()),
                Err(error) => Err(error.to_string()),
            };
            let (merged, _) = feature_with(connection, what, asked, FeatureFlags::GET, &data, room, merge)?;
            merged.map_err(|why| connection.invalid_reply(what(), why))?;
            at += length;
            first += count;
            if at >= range.length() {
                break;
            }
        }
        if let Some(log) = connection.kept.as_mut().and_then(|kept| kept.log.as_mut()) {
            log.add_to(report);
        }
        Ok(())
    }
}
