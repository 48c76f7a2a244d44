//! Single requests, each with its reply.

use std::os::fd::{BorrowedFd, OwnedFd};

use whimbrel_protocol::Errno;
use whimbrel_uapi::feature::{Feature, FeatureFlags};
use whimbrel_user::Result;

use super::outgoing::Outgoing;
use super::{Answer, Connection, Features, Step, malformed};
use crate::client::deviations::Deviation;
use crate::descriptors::DescriptorError;
use crate::message::{Command, DeviceFeature, HEADER, Reply, Request};

/// Bytes before the data of VFIO_USER_MIG_DATA_READ.
const DATA_HEAD: usize = 8;

impl Connection {
    /// Sends a request and waits for the reply; errors name the request by `what`.
    pub(in crate::client) fn ask(
        &mut self,
        what: impl Fn() -> String,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answer<'_>> {
        let descriptors = self.reply_to(&what, request, descriptors)?;
        self.answer(&what, request.command(), descriptors)
    }

    /// As [`Connection::ask`], for a reply that only repeats the request. Returns `None` if the server omits the
    /// payload, which means that it did all that was requested.
    pub(in crate::client) fn ask_repeating(
        &mut self,
        what: impl Fn() -> String,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Option<Answer<'_>>> {
        let descriptors = self.reply_to(&what, request, descriptors)?;
        if self.payload.is_empty() {
            self.deviations.tolerate(Deviation::EmptyReply, request.command());
            return Ok(None);
        }
        self.answer(&what, request.command(), descriptors).map(Some)
    }

    /// Returns whether the server supports VFIO_USER_DEVICE_FEATURE. A server of version 0.0 may not, and may parse
    /// the payload of an unknown command as its next message (rust-vmm's server does): the first request therefore
    /// has a payload as long as a header, so that the misparsed part ends where the next message begins.
    pub(in crate::client) fn knows_features(&mut self, what: impl Fn() -> String) -> Result<bool> {
        if self.features == Features::Doubtful {
            let flags = FeatureFlags::PROBE | FeatureFlags::GET;
            // Nobody looks at the data of a PROBE.
            let data = &[0; HEADER - DeviceFeature::FIXED as usize];
            let request =
                DeviceFeature { argsz: HEADER as u32, feature: Feature::Migration.number(), flags, data };
            let step = self.exchange_one(what, &Request::DeviceFeature(request), &[])?;
            self.features = if let Step::Refused(0) = step {
                self.deviations.tolerate(Deviation::NoErrno, Command::DeviceFeature);
                Features::Unknown
            } else {
                Features::Known
            };
        }
        Ok(self.features == Features::Known)
    }

    /// Sends a request, waits for its reply and keeps the reply's payload. Returns the descriptors.
    fn reply_to(
        &mut self,
        what: impl Fn() -> String,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<std::result::Result<Vec<OwnedFd>, DescriptorError>> {
        match self.exchange_one(&what, request, descriptors)? {
            Step::Reply(descriptors) => Ok(descriptors),
            Step::Refused(errno) => {
                Err(self.refusal(what(), request.command(), errno, without_errno(request)))
            }
            Step::Served => Ok(Ok(Vec::new())),
        }
    }

    fn exchange_one(
        &mut self,
        what: impl Fn() -> String,
        request: &Request<'_>,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Step> {
        self.check(&what)?;
        let deadline = self.deadline();
        let id = self.new_id();
        let mut out = Outgoing::new(std::mem::take(&mut self.out));
        out.buffer().request(id, false, request);
        out.attach(descriptors);
        let size = out.len();
        let step = self.converse((id, request.command()), deadline, &mut out);
        self.out = out.into_buffer();
        let step = step.map_err(|failed| self.failed(what(), failed))?;
        if let Step::Refused(0) = step {
            // As many headers as a server finds in a payload that it has not read.
            self.strays = (size - HEADER).div_ceil(HEADER);
        }
        self.serve_read_ahead();
        Ok(step)
    }

    fn answer(
        &self,
        what: impl Fn() -> String,
        command: Command,
        descriptors: std::result::Result<Vec<OwnedFd>, DescriptorError>,
    ) -> Result<Answer<'_>> {
        let reply = Reply::parse(command, &self.payload, self.limits());
        let reply = reply.map_err(|error| malformed(&self.name, what(), &error))?;
        if let Reply::MigDataRead { data } = &reply
            && self.payload.len() > DATA_HEAD + data.len()
        {
            self.deviations.tolerate(Deviation::PaddedData, command);
        }
        Ok(Answer { reply, descriptors })
    }
}

/// Returns the errno to assume for an error without one: for a question whether something exists, that it does not.
fn without_errno(request: &Request<'_>) -> Errno {
    match request {
        Request::DeviceFeature(DeviceFeature { feature, flags, .. })
            if flags.contains(FeatureFlags::PROBE) || *feature == Feature::Migration.number() =>
        {
            Errno::ENOTTY
        }
        _ => Errno::EIO,
    }
}
