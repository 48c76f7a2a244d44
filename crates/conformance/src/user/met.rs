//! Conditions that a user meets before a case can judge it.

use whimbrel_protocol::{Errno, State};

use super::request::Request;
use super::user_case::Role;
use super::view::{View, is_temporary_end};

/// A condition that a user meets before a case can judge it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    /// Save or load a state.
    Always,
    /// A SET that fails.
    FailedSet,
    /// A SET that succeeds, with the device in another state.
    Elsewhere,
    /// A device in ERROR.
    InError,
    /// A read or write of the state that fails.
    FailedData,
    /// The same in STOP_COPY, of a user that can tell it from the end.
    ToldFailedRead,
    /// PRE_COPY.
    PreCopy,
    /// The temporary end of pre-copy.
    TemporaryEnd,
    /// VFIO_MIG_GET_PRECOPY_INFO.
    PrecopyInfo,
    /// REINIT.
    Reinit,
    /// VFIO_DEVICE_FEATURE_MIG_DATA_SIZE.
    DataSize,
    /// DMA logging.
    Logging,
    /// A report of dirty pages that fails.
    FailedReport,
}

impl Met {
    /// Returns why a user cannot be judged, if so.
    pub(crate) fn lacks(self, view: &View<'_>) -> Option<&'static str> {
        let any = |is: &dyn Fn(&Request) -> bool| view.requests().any(is);
        let fails = |request: &Request| match request {
            Request::Read { state, result: Err(errno), .. } => {
                !(state.is_precopy() && *errno == Errno::ENOMSG)
            }
            Request::Write { result: Err(_), .. } => true,
            _ => false,
        };
        let (holds, why) = match self {
            Met::Always => (
                any(&|request| matches!(request, Request::SetState { .. })),
                match view.role() {
                    Role::Source => "the program saves no state",
                    Role::Destination => "the program loads no state",
                },
            ),
            Met::FailedSet => (
                any(&|request| matches!(request, Request::SetState { result: Err(_), .. })),
                "no state change of the program fails",
            ),
            Met::Elsewhere => (
                any(
                    &|request| matches!(request, Request::SetState { to, result: Ok(_), now, .. } if to != now),
                ),
                "no state change of the program leaves the device in another state without an error",
            ),
            Met::InError => (
                any(&|request| matches!(request, Request::SetState { now: State::Error, .. })),
                "no state change of the program leads to ERROR",
            ),
            Met::FailedData => (any(&fails), "no read or write of the state fails"),
            Met::ToldFailedRead => (
                any(&fails) && view.tells_errors_from_the_end(),
                "plain vfio-user tells neither ENOMSG nor an error after some bytes from the end",
            ),
            Met::PreCopy => (
                any(&|request| matches!(request, Request::SetState { now, .. } if now.is_precopy())),
                "the program does not use PRE_COPY",
            ),
            Met::TemporaryEnd => {
                (any(&is_temporary_end), "the program does not read up to the temporary end of PRE_COPY")
            }
            Met::PrecopyInfo => (
                any(&|request| matches!(request, Request::PrecopyInfo { .. })),
                "the program does not use VFIO_MIG_GET_PRECOPY_INFO",
            ),
            Met::Reinit => (
                any(
                    &|request| matches!(request, Request::PrecopyInfo { result: Ok(report), .. } if report.reinit),
                ),
                "the program does not opt into VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2",
            ),
            Met::DataSize => (
                any(&|request| matches!(request, Request::DataSize(_))),
                "the program does not use VFIO_DEVICE_FEATURE_MIG_DATA_SIZE",
            ),
            Met::Logging => (
                any(&|request| matches!(request, Request::LoggingStart(_))),
                "the program does not use DMA logging",
            ),
            Met::FailedReport => (
                any(&|request| matches!(request, Request::LoggingReport(Err(_)))),
                "no report of dirty pages fails",
            ),
        };
        (!holds).then_some(why)
    }
}
