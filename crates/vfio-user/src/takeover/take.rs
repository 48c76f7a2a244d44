//! The new server: receives the state from the old one, checks it, and holds a stopped device and a client that
//! waits, until the old server hands both over.

use std::os::unix::net::UnixListener;
use std::time::Duration;

use whimbrel_device::DeviceFile;
use whimbrel_protocol::handover::{self, Destination, DestinationAction};

use super::TakeoverError;
use super::arrival::{self, Loaded, discard, wrong};
use super::describe::{Description, adapted};
use super::link::Link;
use super::peer_text::short;
use super::stopped::sleep_again;
use super::wire::{Message, TIMEOUT};
use crate::server::backend::{Backend, Turn};
use crate::server::session::serving::Serving;

/// The terms that both servers have agreed on.
pub(super) struct Terms<'a> {
    pub(super) version: u32,
    /// The device's maximum downtime.
    pub(super) pause: Duration,
    pub(super) offered: &'a Description,
    pub(super) own: &'a Description,
    /// True if there is a socket for takeovers only.
    pub(super) has_takeovers: bool,
}

/// The state that was taken, with a stopped device.
pub(super) struct Taken {
    pub(super) socket: UnixListener,
    /// The socket for takeovers only, if there is one.
    pub(super) takeovers: Option<UnixListener>,
    pub(super) serving: Option<Serving>,
    /// True if the old server was told that the device runs here.
    pub(super) is_told: bool,
}

/// Takes the device, and its resources, into the backend's.
pub(super) fn take(link: &mut Link, terms: Terms<'_>, backend: &Backend) -> Result<Taken, TakeoverError> {
    let mut destination = Destination::new();
    let turn = match check(terms.offered, terms.own, backend) {
        Ok(turn) => turn,
        // The device was not touched, and another client may be using it.
        Err(error) => return Err(give_up(link, &mut destination, None, error)),
    };
    // No other client is served before the device is reset after a failure.
    let _turn = turn.clone();
    let loaded = link
        .send(&Message::Accept)
        .map_err(TakeoverError::from)
        .and_then(|()| arrival::receive(link, &terms, backend))
        .and_then(|arrival| arrival.load(backend, turn, terms.has_takeovers));
    let taken = loaded.and_then(|loaded| commit(link, &mut destination, loaded, backend));
    taken.map_err(|error| give_up(link, &mut destination, Some(backend.device()), error))
}

/// Returns whether the backend's device can replace the one that is offered.
fn check(offered: &Description, own: &Description, backend: &Backend) -> Result<Turn, TakeoverError> {
    let turn = Turn::take(backend).ok_or_else(|| wrong("the new server's device is already in use"))?;
    match offered.difference(own) {
        Some(what) => Err(TakeoverError::Mismatch { device: short(offered.name.clone()), what: short(what) }),
        None => Ok(turn),
    }
}

/// Handles a failure: the device discards the transferred state, and only once that is certain is the old server told
/// that it may run its own device.
fn give_up(
    link: &mut Link,
    destination: &mut Destination,
    touched: Option<&DeviceFile>,
    error: TakeoverError,
) -> TakeoverError {
    destination.fail();
    let discarded = touched.map_or(Ok(()), discard);
    match (destination.discarded(0, discarded.is_ok()), discarded) {
        (DestinationAction::CloseSilently, Err(why)) => {
            TakeoverError::Unsettled { cause: Box::new(error), why }
        }
        (DestinationAction::SendFailed, _) => {
            link.send_last(&Message::Failed { why: short(error.to_string()) });
            error
        }
        _ => error,
    }
}

/// Reports that everything is loaded, and runs the device once it belongs to this server.
fn commit(
    link: &mut Link,
    destination: &mut Destination,
    loaded: Loaded,
    backend: &Backend,
) -> Result<Taken, TakeoverError> {
    let Loaded { socket, takeovers, mut serving, begin, state, low_power } = loaded;
    let device = backend.device();
    if destination.loaded(0) == DestinationAction::SendReady {
        link.send(&Message::Ready)?;
    }
    let message = match link.receive()?.message {
        Message::Handover => handover::Message::Handover,
        Message::Abort { why, .. } => return Err(TakeoverError::Refused(why)),
        other => return Err(wrong(format!("unexpected {} message", other.kind()))),
    };
    destination.receive(message).map_err(|error| wrong(error.to_string()))?;
    let started = adapted(device).and_then(|mut adapted| adapted.go_to(state));
    if let Err(error) = started {
        // Some of it may run: it is reset before anybody is told.
        destination.started(0, false);
        return Err(error.into());
    }
    if begin.precopy_info_v2
        && let Err(errno) = device.enable_precopy_info_v2()
    {
        tracing::warn!(device = device.name(), %errno, "cannot enable VFIO_PRECOPY_INFO_REINIT again");
    }
    device.resume_signals();
    sleep_again(device, low_power);
    if let Some(serving) = &mut serving {
        serving.set_anothers(false);
    }
    destination.started(0, true);
    // This has to be said, however late it is.
    link.limit(TIMEOUT);
    let told = link.send(&Message::Running);
    if let Err(error) = &told {
        // It has said that the device is this server's, whatever became of it since.
        tracing::warn!(%error, "cannot tell the old server that the device runs here");
    }
    Ok(Taken { socket, takeovers, serving, is_told: told.is_ok() })
}
