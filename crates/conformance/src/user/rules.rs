//! The rules: what a user may do with what the device has answered.

use whimbrel_protocol::precopy::Progress;
use whimbrel_protocol::session::Direction;
use whimbrel_protocol::{Errno, State, fsm};
use whimbrel_uapi::pci::VFIO_PCI_CONFIG_REGION_INDEX;

use super::request::Request;
use super::user_case::Role;
use super::view::{Session, View, is_temporary_end};
use crate::outcome::{Outcome, check, equal_bytes, fail, inconclusive, skip};

/// Attempts of a request that fails each time. More are taken for a retry without end.
pub(super) const MAX_ATTEMPTS: u64 = 16;

/// A success is reported only for a state that is whole: read to its end in STOP_COPY, or taken by the device.
pub(super) fn success_means_whole(view: &View<'_>) -> Outcome {
    if !view.exit().is_success() {
        return Ok(());
    }
    let sessions = view.sessions();
    let (what, verb) = match view.role() {
        Role::Source => ("success only after the state was read to its end in STOP_COPY", "read"),
        Role::Destination => ("success only after the device has taken the state", "written"),
    };
    match sessions.last() {
        None => fail(what, format_args!("{}, and no data_fd was opened", view.exit())),
        Some(session) if session.is_whole => Ok(()),
        Some(Session { number, bytes, failed, .. }) => {
            let then = failed.map(|errno| format!(", then {errno:?}")).unwrap_or_default();
            let count = bytes.len();
            fail(
                what,
                format_args!("{}, after {count} bytes were {verb} (data_fd {number}){then}", view.exit()),
            )
        }
    }
}

/// The device does nothing unusual: the program succeeds.
pub(super) fn succeeds(view: &View<'_>) -> Outcome {
    success_means_whole(view)?;
    check(
        view.exit().is_success(),
        "success: each answer of the device is one that the header allows",
        view.exit(),
    )
}

/// A source's device runs again after a failure, or the program says in which state it is.
pub(super) fn failure_leaves_it_running(view: &View<'_>) -> Outcome {
    success_means_whole(view)?;
    let state = view.last_state();
    let is_told = view.exit().is_success() || view.tells(state);
    check(
        state == State::Running || is_told,
        "after a failure the device is in RUNNING, or the program names its state, or says that it has to be reset",
        format_args!("{}, with the device in {state}", view.exit()),
    )
}

/// A failed state change is not reported as a success.
pub(super) fn failure_is_reported(view: &View<'_>) -> Outcome {
    success_means_whole(view)?;
    let recovers = view.sessions().last().is_some_and(|session| session.is_whole);
    check(recovers || !view.exit().is_success(), "an exit status other than 0", view.exit())
}

/// A destination's device that does not run is not reported as running.
pub(super) fn success_means_running(view: &View<'_>) -> Outcome {
    let state = view.last_state();
    check(
        !view.exit().is_success() || state == State::Running,
        "an exit status other than 0",
        format_args!("{}, with the device in {state}", view.exit()),
    )
}

/// After a failed SET no data is transferred before the state is known again.
pub(super) fn failed_set_is_not_taken_as_done(view: &View<'_>) -> Outcome {
    let mut failed = None;
    for request in view.requests() {
        match request {
            Request::SetState { to, result: Err(errno), .. } => failed = Some((*to, *errno)),
            Request::SetState { .. } | Request::GetState(_) => failed = None,
            request if request.has_reset() => failed = None,
            Request::Read { .. } | Request::Write { .. } => {
                if let Some((to, errno)) = failed {
                    return fail(
                        "GET, another SET, or RESET after a failed SET, before data is transferred",
                        format_args!("after SET {to} = {errno:?}: {request}"),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// A request that fails each time is not repeated without end.
pub(super) fn does_not_retry_without_end(view: &View<'_>) -> Outcome {
    let mut counts: Vec<(&Request, u64)> = Vec::new();
    for step in view.steps() {
        let is_failure = match &step.request {
            Request::SetState { result, .. } => result.is_err(),
            Request::Read { result, .. } => result.is_err() && !is_temporary_end(&step.request),
            Request::Write { result, .. } => result.is_err(),
            Request::Reset { result, .. } | Request::LoggingReport(result) => result.is_err(),
            _ => false,
        };
        if !is_failure {
            continue;
        }
        match counts.iter_mut().find(|(request, _)| *request == &step.request) {
            Some((_, count)) => *count += step.times,
            None => counts.push((&step.request, step.times)),
        }
    }
    match counts.into_iter().find(|(_, count)| *count > MAX_ATTEMPTS) {
        Some((request, count)) => fail(
            format_args!("at most {MAX_ATTEMPTS} attempts of a request"),
            format_args!("{request}, {count} times"),
        ),
        None => Ok(()),
    }
}

/// A device that is known to be in ERROR is reset, not driven.
pub(super) fn error_is_reset(view: &View<'_>) -> Outcome {
    let mut is_known = false;
    for request in view.requests() {
        match request {
            Request::GetState(state) => is_known = *state == State::Error,
            request if request.has_reset() => is_known = false,
            // Configuration space may be kept, to be restored after the reset.
            Request::Region { index: VFIO_PCI_CONFIG_REGION_INDEX, .. } => {}
            Request::SetState { from: State::Error, .. } | Request::Region { state: State::Error, .. }
                if is_known =>
            {
                return fail("RESET of a device in ERROR, before anything else", request);
            }
            _ => {}
        }
    }
    let state = view.last_state();
    check(
        state != State::Error || view.tells(State::Error),
        "RESET of a device in ERROR, or the program says that it is in ERROR or has to be reset",
        format_args!("{}, with the device in ERROR", view.exit()),
    )
}

/// A device that cannot be reset is given up: with a failure, and with its state.
pub(super) fn lost_device_is_told(view: &View<'_>) -> Outcome {
    does_not_retry_without_end(view)?;
    let is_lost = view.last_state() == State::Error;
    check(!view.exit().is_success(), "an exit status other than 0", view.exit())?;
    check(
        !is_lost || view.tells(State::Error),
        "the program says that the device is in ERROR, or has to be reset",
        format_args!("{}, and no word of ERROR or of a reset", view.exit()),
    )
}

/// After a failed write, or a rejected state, RESUMING is left by a reset only.
pub(super) fn resuming_is_aborted_by_reset(view: &View<'_>) -> Outcome {
    let mut failed: Option<String> = None;
    let mut last_write_failed = false;
    for request in view.requests() {
        match request {
            // To be tried again.
            Request::Write { result: Err(Errno::EAGAIN | Errno::EINTR), .. } => {}
            Request::Write { result, .. } => {
                last_write_failed = result.is_err();
                if last_write_failed {
                    failed = Some(request.to_string());
                }
            }
            request if request.has_reset() => (failed, last_write_failed) = (None, false),
            Request::SetState { from: State::Resuming, result, .. } => {
                // A device may refuse what a failed write has left, but need not.
                if let Some(first) = failed.as_ref().filter(|_| last_write_failed || result.is_ok()) {
                    return fail("RESET, to abort the session", format_args!("after {first}: {request}"));
                }
                if result.is_err() {
                    failed = Some(request.to_string());
                }
            }
            _ => {}
        }
    }
    failure_is_reported(view)?;
    let state = view.last_state();
    check(
        failed.is_none() || view.tells(state),
        "RESET, or the program names the device's state, or says that it has to be reset",
        format_args!("{}, with the device in {state}", view.exit()),
    )
}

/// PRE_COPY is left for STOP_COPY only after the initial data was read.
pub(super) fn initial_data_is_read_first(view: &View<'_>) -> Outcome {
    let mut progress: Option<Progress> = None;
    for request in view.requests() {
        match request {
            Request::SetState { result: Ok(Some((_, Direction::Saving))), .. } => progress = None,
            Request::SetState { from, result: Ok(_), now: State::StopCopy, .. } if from.is_precopy() => {
                let left = progress.map_or(0, |progress| progress.remaining().initial);
                check(
                    left == 0,
                    "all initial data is read before STOP_COPY",
                    format_args!("STOP_COPY with {left} bytes of initial data left"),
                )?;
            }
            Request::PrecopyInfo { result: Ok(report), .. } => {
                progress.get_or_insert_default().report(report.bytes, report.reinit);
            }
            // Whatever was counted, there is no more.
            _ if is_temporary_end(request) => progress = None,
            Request::Read { result: Ok(bytes), .. } => {
                if let Some(progress) = &mut progress {
                    progress.read(bytes.len() as u64);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// New initial data is read like the first, and the migration succeeds.
pub(super) fn reinit_is_followed(view: &View<'_>) -> Outcome {
    succeeds(view)?;
    initial_data_is_read_first(view)
}

/// Regions are left alone in STOP and STOP_COPY, but for configuration space.
pub(super) fn regions_rest_while_stopped(view: &View<'_>) -> Outcome {
    regions_rest(view, &[State::Stop, State::StopCopy])
}

/// Regions are left alone in STOP_COPY, but for configuration space.
pub(super) fn regions_rest_in_stop_copy(view: &View<'_>) -> Outcome {
    regions_rest(view, &[State::StopCopy])
}

/// Regions are left alone in RESUMING.
pub(super) fn regions_rest_in_resuming(view: &View<'_>) -> Outcome {
    regions_rest(view, &[State::Resuming])
}

fn regions_rest(view: &View<'_>, states: &[State]) -> Outcome {
    let touches = |request: &&Request| match request {
        Request::Region { state, index, .. } => {
            states.contains(state) && *index != VFIO_PCI_CONFIG_REGION_INDEX
        }
        _ => false,
    };
    match view.requests().find(touches) {
        Some(request) => fail("no access to regions other than configuration space", request),
        None => Ok(()),
    }
}

/// Only states that the device supports are requested.
pub(super) fn requests_supported_states_only(view: &View<'_>) -> Outcome {
    let unsupported = |request: &&Request| matches!(request, Request::SetState { to, .. } if *to != State::Error && !fsm::supports(view.flags(), *to));
    match view.requests().find(unsupported) {
        Some(request) => fail("requests for states that the device supports", request),
        None => Ok(()),
    }
}

/// ERROR is not requested.
pub(super) fn does_not_request_error(view: &View<'_>) -> Outcome {
    match view.requests().find(|request| matches!(request, Request::SetState { to: State::Error, .. })) {
        Some(request) => fail("no request for ERROR", request),
        None => Ok(()),
    }
}

/// STOP_COPY is not left for a state of pre-copy.
pub(super) fn does_not_return_to_pre_copy(view: &View<'_>) -> Outcome {
    let is_blocked = |request: &&Request| matches!(request, Request::SetState { from: State::StopCopy, to, .. } if to.is_precopy());
    match view.requests().find(is_blocked) {
        Some(request) => fail("no request for a state of pre-copy in STOP_COPY", request),
        None => Ok(()),
    }
}

/// The destination gets the bytes of one session of the source, in order.
pub(super) fn destination_gets_the_same_bytes(view: &View<'_>) -> Outcome {
    let Some(source) = view.other() else {
        return skip("the program has one device");
    };
    if view.is_cut() || source.is_cut() {
        return inconclusive("the state is too large to be kept");
    }
    success_means_whole(view)?;
    let (saved, loaded) = (source.sessions(), view.sessions());
    let Some(loaded) = loaded.last() else {
        return skip("the program loads no state");
    };
    let fits = |session: &Session| {
        if loaded.is_offered {
            session.is_whole && session.bytes == loaded.bytes
        } else {
            session.bytes.starts_with(&loaded.bytes)
        }
    };
    if saved.iter().any(fits) {
        return Ok(());
    }
    match saved.last() {
        Some(saved) => equal_bytes("the bytes of one data_fd of the source", &saved.bytes, &loaded.bytes),
        None => fail("bytes of the source", "none were read, and the device was given others"),
    }?;
    fail("a state that was read to its end", "the device was given one that was not")
}

/// A source that starts over sends the bytes of one session. Its destination tells.
pub(super) fn source_sends_one_session(view: &View<'_>) -> Outcome {
    match view.other() {
        Some(destination) => destination_gets_the_same_bytes(&destination),
        None => skip("the program has one device"),
    }
}

/// DMA logging is started once, until it is stopped.
pub(super) fn logging_is_started_once(view: &View<'_>) -> Outcome {
    let mut is_started = false;
    for request in view.requests() {
        match request {
            Request::LoggingStart(_) if is_started => {
                return fail("DMA_LOGGING_STOP before the next DMA_LOGGING_START", request);
            }
            Request::LoggingStart(result) => is_started = result.is_ok(),
            Request::LoggingStop(Ok(())) | Request::Close { .. } => is_started = false,
            request if request.has_reset() => is_started = false,
            _ => {}
        }
    }
    Ok(())
}

/// After a failed report the log is restarted before it is used again, or the migration fails.
pub(super) fn corrupted_log_is_not_used(view: &View<'_>) -> Outcome {
    let mut failed = None;
    for request in view.requests() {
        match request {
            Request::LoggingReport(Err(errno)) => failed = failed.or(Some(*errno)),
            Request::LoggingStart(Ok(())) => failed = None,
            Request::LoggingReport(Ok(())) if view.exit().is_success() => {
                if let Some(errno) = failed {
                    return fail(
                        "DMA_LOGGING_START before the next report, or a failure",
                        format_args!("after DMA_LOGGING_REPORT = {errno:?}: {request}, and {}", view.exit()),
                    );
                }
            }
            _ => {}
        }
    }
    Ok(())
}
