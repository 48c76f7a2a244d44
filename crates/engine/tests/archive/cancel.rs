//! A save or restore that is cancelled, at any moment.

use std::cell::Cell;
use std::io::{self, Read, Write};

use whimbrel_engine::Error;

use crate::owners::with_state;
use crate::trio::Trio;

/// Gives one byte at a time.
struct Single<'a>(&'a [u8]);

impl Read for Single<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(1);
        self.0.read(&mut buffer[..count])
    }
}

#[test]
fn a_save_that_is_cancelled_at_any_moment_brings_all_devices_back() {
    for after in 0.. {
        let mut trio = Trio::new();
        let asked = Cell::new(0);
        let cancel = || {
            asked.set(asked.get() + 1);
            (asked.get() > after).then(|| "SIGINT".to_string())
        };
        let folder = tempfile::tempdir().unwrap();
        let program = with_state();
        let result =
            trio.save().guest(program.clone()).cancel(&cancel).write_to_path(&folder.path().join("file"));
        trio.assert_works(&format!("{after}"));
        let files = std::fs::read_dir(folder.path()).unwrap().count();
        let calls = program.calls();
        assert!(calls.is_empty() || calls.last().is_some_and(|call| call == "resume"), "{calls:?}");
        match result {
            Ok(_) => {
                assert_eq!(files, 1);
                assert!(after > 12, "{after}");
                return;
            }
            Err(Error::Cancelled { reason }) => assert_eq!((reason.as_str(), files), ("SIGINT", 0)),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_restore_that_is_cancelled_at_any_moment_leaves_all_devices_fresh_or_untouched() {
    let file = Trio::new().saved();
    for after in 0.. {
        let mut trio = Trio::new();
        let asked = Cell::new(0);
        let cancel = || {
            asked.set(asked.get() + 1);
            (asked.get() > after).then(|| "SIGINT".to_string())
        };
        // One byte at a time: cancelled within each frame too.
        match trio.restore().cancel(&cancel).read_from(Single(&file)) {
            Ok(_) => {
                assert!(after > file.len());
                return trio.assert_works("restored");
            }
            Err(Error::Cancelled { .. }) if trio.log().is_empty() => trio.assert_works("untouched"),
            Err(Error::Cancelled { .. }) => trio.assert_fresh(&format!("{after}")),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A signal interrupts a write that waits: what was asked is asked again.
#[test]
fn a_write_that_a_signal_interrupts_is_cancelled() {
    struct Blocked<'a>(&'a Cell<bool>);
    impl Write for Blocked<'_> {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            self.0.set(true);
            Err(io::ErrorKind::Interrupted.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (mut trio, signalled) = (Trio::new(), Cell::new(false));
    let cancel = || signalled.get().then(|| "SIGINT".to_string());
    let error = trio.save().cancel(&cancel).write_to(Blocked(&signalled)).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    trio.assert_works("cancelled");
}
