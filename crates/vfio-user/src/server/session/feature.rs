//! VFIO_USER_DEVICE_FEATURE. The device itself checks requests, in its own order: a request is passed on as the
//! kernel's raw one. Only the dirty log has another format here, because a message has no addresses.

use whimbrel_device::Errno;
use whimbrel_protocol::dirty::{DirtyReport, MAX_LOGGING_RANGES};
use whimbrel_uapi::dma_logging::DeviceFeatureDmaLoggingControl;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_uapi::ioctl::VFIO_DEVICE_FEATURE;

use super::client::Client;
use super::dirty_log::{Log, report};
use super::mappings::Mappings;
use super::plain;
use super::process::{Caller, SECOND};
use crate::message::{Command, DeviceFeature, Kind, LoggingReport, LoggingStart, Reply};
use crate::server::hidden_precopy::Meaning;

const HEAD: usize = DeviceFeature::FIXED as usize;
/// Maximum bytes of a GET: more than any feature has.
const ROOM: usize = 4096;
/// An invalid feature index, in place of a feature that this client must not reach.
const NO_FEATURE: u16 = u16::MAX;

impl Client {
    pub(super) fn device_feature(&mut self, id: u16, request: &DeviceFeature<'_>) -> Result<(), Errno> {
        let action = request.flags & (FeatureFlags::GET | FeatureFlags::SET | FeatureFlags::PROBE);
        match (Feature::try_from(request.feature), action) {
            (Ok(Feature::DmaLoggingStart), FeatureFlags::SET) => self.logging_start(id, request),
            (Ok(Feature::DmaLoggingReport), FeatureFlags::GET) => self.logging_report(id, request),
            _ => self.raw_feature(id, request),
        }
    }

    /// Returns whether a feature belongs to the specification, or to the agreed extensions.
    fn is_known(&self, feature: u16) -> bool {
        match Feature::try_from(feature) {
            Ok(
                Feature::Migration
                | Feature::MigDeviceState
                | Feature::DmaLoggingStart
                | Feature::DmaLoggingStop
                | Feature::DmaLoggingReport,
            ) => true,
            Ok(Feature::MigDataSize) => self.extensions().data_size,
            Ok(Feature::MigPrecopyInfoV2) => self.extensions().precopy_info,
            _ => self.extensions().device_features,
        }
    }

    fn raw_feature(&mut self, id: u16, request: &DeviceFeature<'_>) -> Result<(), Errno> {
        let is_get = request.flags.contains(FeatureFlags::GET);
        let is_probe = request.flags.contains(FeatureFlags::PROBE);
        let sent = u32::try_from(HEAD + request.data.len()).map_err(|_| Errno::EINVAL)?;
        // What a SET has not sent it cannot mean.
        let argsz = if is_get || is_probe { request.argsz } else { request.argsz.min(sent) };
        let feature = if self.is_known(request.feature) { request.feature } else { NO_FEATURE };
        let mut memory = head(argsz, &DeviceFeature { feature, ..*request });
        memory.extend_from_slice(request.data);
        let is_state = feature == Feature::MigDeviceState.number();
        let hides_p2p = !self.extensions().p2p;
        if is_state && hides_p2p {
            plain::hide_request(&mut memory[HEAD..]);
        }
        let room = if is_get { (argsz as usize).min(ROOM) } else { 0 };
        memory.resize(memory.len().max(room), 0);
        let mut caller = Caller { memory, ..Caller::default() };
        let hidden = self.backend.hidden_precopy.clone();
        let shown = (Meaning::of_feature(feature, request.flags) == Meaning::Shows).then(|| hidden.shown());
        self.device().ioctl(VFIO_DEVICE_FEATURE.number(), 0, &mut caller)?;
        if let Some(shown) = shown {
            shown.show(feature, &mut caller.memory[HEAD..]);
        }
        if let Some(data_file) = caller.data_file {
            self.begin_session(data_file);
        }
        if !is_probe && request.feature == Feature::DmaLoggingStop.number() {
            self.log = None;
        }
        if is_get && !is_probe {
            let size = match Feature::try_from(request.feature) {
                Ok(Feature::Migration | Feature::MigDeviceState | Feature::MigDataSize) => 8,
                _ => request.data.len(),
            };
            let data = caller.memory.get_mut(HEAD..HEAD + size).ok_or(Errno::EINVAL)?;
            match Feature::try_from(feature) {
                Ok(Feature::Migration) if hides_p2p => plain::hide_flag(data),
                Ok(Feature::MigDeviceState) if hides_p2p => plain::hide_state(data),
                _ => {}
            }
            let argsz = (HEAD + size) as u32;
            let data = &*data;
            self.out.reply(id, &Reply::DeviceFeature(DeviceFeature { argsz, data, ..*request }));
        } else if is_state && !is_probe && self.extensions().data_channel {
            // The descriptor of the session is the only one there is.
            let data_fd = if self.descriptors.is_empty() { -1_i32 } else { 0 };
            let mut data = [0; 8];
            data[..4].copy_from_slice(&caller.memory[HEAD..HEAD + 4]);
            data[4..].copy_from_slice(&data_fd.to_ne_bytes());
            self.out.reply(id, &Reply::DeviceFeature(DeviceFeature { data: &data, ..*request }));
        } else {
            self.out.reply(id, &Reply::DeviceFeature(*request));
        }
        Ok(())
    }

    fn logging_start(&mut self, id: u16, request: &DeviceFeature<'_>) -> Result<(), Errno> {
        if !self.device().has_dma_logging() {
            return Err(Errno::ENOTTY);
        }
        let start = LoggingStart::parse(request.data).map_err(|error| error.errno())?;
        let mut ranges: Vec<(u64, u64)> = start.ranges().collect();
        let is_everything = ranges.is_empty();
        if is_everything {
            ranges = self.everything(start.page_size)?;
        }
        let size = HEAD + size_of::<DeviceFeatureDmaLoggingControl>();
        let mut memory = head(size as u32, request);
        memory.extend_from_slice(&start.page_size.to_ne_bytes());
        memory.extend_from_slice(&(ranges.len() as u32).to_ne_bytes());
        memory.extend_from_slice(&[0; 4]);
        memory.extend_from_slice(&SECOND.to_ne_bytes());
        let second = ranges.iter().flat_map(|(iova, length)| [iova.to_ne_bytes(), length.to_ne_bytes()]);
        let second: Vec<u8> = second.flatten().collect();
        let mut caller = Caller { memory, second, ..Caller::default() };
        self.device().ioctl(VFIO_DEVICE_FEATURE.number(), 0, &mut caller)?;
        self.log = Some(Log { page_size: start.page_size, ranges, is_everything, earlier: None });
        // The same again, with the page size that the log has.
        let mut data = request.data.to_vec();
        data[..8].copy_from_slice(&caller.memory[HEAD..HEAD + 8]);
        let reply = DeviceFeature { argsz: (HEAD + data.len()) as u32, data: &data, ..*request };
        self.out.reply(id, &Reply::DeviceFeature(reply));
        Ok(())
    }

    /// Returns ranges that cover all mappings, in whole pages.
    fn everything(&self, page_size: u64) -> Result<Vec<(u64, u64)>, Errno> {
        if !page_size.is_power_of_two() {
            return Err(Errno::EINVAL);
        }
        let mask = page_size - 1;
        // Ends are exclusive, so the last page of all cannot be logged: it counts as written.
        let most = !mask;
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (iova, size) in self.mappings.iter().flat_map(Mappings::ranges) {
            let start = iova & !mask;
            let end = iova.saturating_add(size).checked_next_multiple_of(page_size).unwrap_or(most).min(most);
            match ranges.last_mut() {
                Some((first, length)) if *first + *length >= start => *length = end.max(*first) - *first,
                _ if start < end => ranges.push((start, end - start)),
                _ => {}
            }
        }
        if let (true, [(first, _), .., (last, length)]) =
            (ranges.len() > MAX_LOGGING_RANGES as usize, &ranges[..])
        {
            ranges = vec![(*first, last + length - first)];
        }
        if ranges.is_empty() {
            // A log has to have a range.
            ranges.push((0, page_size.min(most)));
        }
        Ok(ranges)
    }

    fn logging_report(&mut self, id: u16, request: &DeviceFeature<'_>) -> Result<(), Errno> {
        if !self.device().has_dma_logging() {
            return Err(Errno::ENOTTY);
        }
        let (asked, _) = LoggingReport::parse(request.data).map_err(|error| error.errno())?;
        let range = DirtyReport::check(asked.iova, asked.length, asked.page_size)?;
        // "Only valid if logging of dirty pages has been previously started", whatever the driver makes of it.
        if self.log.is_none() {
            return Err(Errno::EINVAL);
        }
        let bits = DirtyReport::words_needed(range.length(), asked.page_size).saturating_mul(8);
        if bits > u64::from(self.limits().max_data_xfer_size) {
            return Err(Errno::EINVAL);
        }
        // The log forgets what it tells: it is asked only if the answer can be sent.
        let needed = (HEAD + LoggingReport::SIZE) as u32 + bits as u32;
        let head = DeviceFeature { argsz: needed, data: &asked.to_bytes(), ..*request };
        let message = self.out.begin(id, Command::DeviceFeature.number(), Kind::Reply);
        head.put(&mut self.out);
        if request.argsz >= needed {
            let log = self.log.as_ref();
            let mapped: Vec<(u64, u64)> = match log {
                Some(log) if log.is_everything => self.mappings.iter().flat_map(Mappings::ranges).collect(),
                _ => Vec::new(),
            };
            let words = self.out.grow_words(bits as usize / 8);
            report(&self.backend.device, log, asked, &mapped, words)?;
        }
        self.out.finish(message);
        Ok(())
    }
}

fn head(argsz: u32, request: &DeviceFeature<'_>) -> Vec<u8> {
    let flags = u32::from(request.feature) | request.flags.bits();
    [argsz.to_ne_bytes(), flags.to_ne_bytes()].concat()
}
