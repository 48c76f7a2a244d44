//! Opening a further connection to the destination: connecting, and the first frame, which says what the connection is for.

use crate::channel::{Connect, Receiver, Sender, Until, WaitError};
use crate::error::Error;
use crate::proto::DESTINATION;
use crate::proto::control::Control;
use crate::proto::join::Join;

/// Opens a connection, and sends JOIN on it. The answer is to be received. `timeout` is the time to name in an error.
pub(super) fn join(
    connector: &mut dyn Connect,
    join: Join,
    timeout: std::time::Duration,
    until: Until<'_>,
) -> Result<(Sender, Receiver), Error> {
    let channel = connector.connect(until).map_err(|error| match until.check() {
        Err(WaitError::Interrupted) => Error::Interrupted,
        _ => Error::Connect(error),
    })?;
    let mut sender = Sender::new(channel.clone());
    let sent = sender.send_now(&Control::Join(join).into(), until);
    sent.map_err(|error| Error::of_channel(DESTINATION, timeout, error))?;
    Ok((sender, Receiver::new(channel)))
}
