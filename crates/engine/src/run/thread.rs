//! Starting threads that own a value. Where the system refuses a thread, the value comes back.

use std::io;
use std::sync::mpsc::{self, SendError};
use std::thread::Builder;

/// The stack of a thread that executes operations, of which there is one for each device.
const STACK: usize = 512 << 10;
/// The longest name of a thread that Linux shows.
const MAX_NAME: usize = 15;

/// Returns the settings of a thread, from the name of what it works for.
pub(super) type Settings<'a> = &'a mut dyn FnMut(&str) -> Builder;

/// Returns a thread with this name.
pub(super) fn named(name: &str) -> Builder {
    // A device may have any name; that of a thread has no null character.
    let name = name.chars().filter(|character| *character != '\0').take(MAX_NAME).collect();
    Builder::new().name(name).stack_size(STACK)
}

/// Starts a thread that works on a value. If the system refuses the thread, returns the value with the error.
pub(super) fn start<T: Send + 'static>(
    settings: Builder,
    value: T,
    work: impl FnOnce(T) + Send + 'static,
) -> Result<(), (T, io::Error)> {
    // A thread that does not start drops everything that its closure owns, so the value follows once it runs.
    let (give, given) = mpsc::sync_channel(1);
    let spawned = settings.spawn(move || {
        if let Ok(value) = given.recv() {
            work(value);
        }
    });
    match spawned {
        Ok(_) => give.send(value).map_err(|SendError(value)| (value, io::ErrorKind::BrokenPipe.into())),
        Err(error) => Err((value, error)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The settings of a thread that no system can start.
    pub(in crate::run) fn impossible() -> Builder {
        Builder::new().stack_size(usize::MAX >> 2)
    }

    #[test]
    fn a_value_comes_back_if_its_thread_cannot_be_started() {
        let (value, error) = start(impossible(), vec![7], |_| ()).unwrap_err();
        assert_eq!(value, [7]);
        assert!(error.raw_os_error().is_some(), "{error:?}");
    }

    #[test]
    fn a_thread_works_on_its_value_whatever_it_is_named() {
        let (answer, answered) = mpsc::channel();
        start(named("nic\0 with a name that is too long"), 7, move |value| answer.send(value).unwrap())
            .unwrap();
        assert_eq!(answered.recv(), Ok(7));
    }
}
