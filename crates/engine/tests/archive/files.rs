//! Saved devices: what a save leaves behind, in the device and on disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use whimbrel_device::{ArcError, Errno};
use whimbrel_engine::Error;
use whimbrel_engine::archive::{self, Form};
use whimbrel_user::{Migratable, State};

use crate::control::{At, Control};
use crate::device::{Shape, open};

const STATE: [u8; 5] = [5, 4, 3, 2, 1];

fn device(name: &str) -> (whimbrel_user::Local, Control) {
    let (device, control) = open(name, &Shape { size: STATE.len(), ..Shape::default() });
    control.set_state(&STATE);
    (device, control)
}

/// The driver's own bytes of [`STATE`].
fn image() -> Vec<u8> {
    let sum = STATE.iter().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(*byte));
    [&[0xcc, 5, 0, 0, 0], &STATE[..], &[sum]].concat()
}

#[test]
fn a_saved_state_comes_back_in_both_forms_and_raw_is_the_drivers_own_bytes() {
    for form in [Form::Stream, Form::Raw] {
        let (mut from, _) = device("from");
        let mut file = Vec::new();
        let saved = archive::save(&mut from, &mut file, form).unwrap();
        if form == Form::Raw {
            assert_eq!(file, image());
        }
        let (mut to, control) = open("to", &Shape { size: STATE.len(), ..Shape::default() });
        let restored = archive::restore(&mut to, &file[..], form).unwrap();
        assert_eq!(control.state(), STATE);
        assert_eq!(to.state().unwrap(), State::Running);
        assert_eq!((saved.device_bytes, restored.device_bytes), (11, 11));
        assert_eq!((saved.state.as_str(), restored.state.as_str()), ("RUNNING", "RUNNING"));
    }
}

#[test]
fn inspect_tells_what_a_file_holds() {
    let (mut from, _) = device("from");
    let mut file = Vec::new();
    archive::save(&mut from, &mut file, Form::Stream).unwrap();
    let contents = archive::inspect(&file[..]);
    assert!(contents.complete, "{:?}", contents.problem);
    assert_eq!(contents.version, "2.0");
    assert_eq!((contents.frames, contents.device_bytes()), (5, 11));
    assert_eq!(contents.file_bytes, file.len() as u64);
    let [device] = &contents.devices[..] else { panic!("{contents:?}") };
    assert_eq!((device.identity.name.as_str(), device.device_bytes), ("from", 11));
    assert_eq!(device.head, image());
}

#[test]
fn a_save_leaves_the_device_in_the_state_it_was_in() {
    for state in [State::Running, State::RunningP2p, State::Stop] {
        let (mut from, _) = device("from");
        from.set_state(state).unwrap();
        let summary = archive::save(&mut from, io::sink(), Form::Stream).unwrap();
        assert_eq!((from.state().unwrap(), summary.state.as_str()), (state, state.name()));
    }
}

#[test]
fn a_device_in_the_middle_of_something_else_is_not_saved_and_goes_on_with_it() {
    for state in [State::PreCopy, State::PreCopyP2p, State::StopCopy, State::Resuming] {
        let (mut from, _) = device("from");
        let _session = from.set_state(state).unwrap();
        let error = archive::save(&mut from, io::sink(), Form::Raw).unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{state}: {error}");
        assert_eq!(from.state().unwrap(), state);
    }
}

/// Takes so many bytes and no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let count = data.len().min(self.0);
        self.0 -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_is_full_after_any_byte_fails_the_save_and_the_device_goes_on() {
    for form in [Form::Stream, Form::Raw] {
        let mut whole = Vec::new();
        archive::save(&mut device("from").0, &mut whole, form).unwrap();
        for room in 0..whole.len() {
            let (mut from, control) = device("from");
            let error = archive::save(&mut from, Full(room), form).unwrap_err().to_string();
            assert!(error.starts_with("writing the saved state: "), "{room}: {error}");
            assert_eq!((from.state().unwrap(), control.state()), (State::Running, STATE.to_vec()), "{room}");
        }
        archive::save(&mut device("from").0, Full(whole.len()), form).unwrap();
    }
}

#[test]
fn a_save_that_fails_leaves_no_file_and_what_was_there_before_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("saved");
    for before in [None, Some(&b"an earlier save"[..])] {
        if let Some(before) = before {
            std::fs::write(&path, before).unwrap();
        }
        let (mut from, control) = device("from");
        control.fail(At::Read(State::StopCopy), 1, ArcError::Stays(Errno::EIO));
        let error = archive::save_to_path(&mut from, &path, Form::Raw).unwrap_err();
        assert!(error.to_string().starts_with("from: read of data_fd: EIO"), "{error}");
        assert_eq!(std::fs::read(&path).ok().as_deref(), before);
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, before.iter().len(), "something else was left behind");
        assert_eq!(from.state().unwrap(), State::Running);
    }
    archive::save_to_path(&mut device("from").0, &path, Form::Raw).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), image());
}

#[test]
fn a_folder_that_is_not_there_is_named_and_the_device_was_never_stopped() {
    let (mut from, control) = device("from");
    let path = std::path::Path::new("/nowhere/at/all");
    let error = archive::save_to_path(&mut from, path, Form::Stream).unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all"), "{error}");
    assert!(control.requests().is_empty());
}

#[test]
fn a_pipe_and_a_device_node_are_written_to_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RWXU, 0).unwrap();
    let mut pipe = File::options().read(true).write(true).open(at("pipe")).unwrap();
    archive::save_to_path(&mut device("from").0, &at("pipe"), Form::Raw).unwrap();
    assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    let mut written = vec![0; image().len()];
    pipe.read_exact(&mut written).unwrap();
    assert_eq!(written, image());

    // Over a link, so that a failure of this test leaves the system's own node alone.
    symlink("/dev/full", at("full")).unwrap();
    let (mut from, _) = device("from");
    let error = archive::save_to_path(&mut from, &at("full"), Form::Raw).unwrap_err().to_string();
    assert!(error.starts_with("writing ") && error.contains("/full: ENOSPC"), "{error}");
    assert_eq!(from.state().unwrap(), State::Running);
    assert!(fs::symlink_metadata(at("full")).unwrap().is_symlink());
    symlink("/dev/null", at("null")).unwrap();
    archive::save_to_path(&mut device("from").0, &at("null"), Form::Stream).unwrap();
    assert!(fs::symlink_metadata(at("null")).unwrap().is_symlink());
}

#[test]
fn a_socket_and_a_folder_are_refused_by_name_and_the_device_was_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, inner) = (folder.path().join("socket"), folder.path().join("folder"));
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::create_dir(&inner).unwrap();
    for (path, said) in [(&socket, "socket is a socket"), (&inner, "folder is a folder")] {
        let (mut from, control) = device("from");
        let error = archive::save_to_path(&mut from, path, Form::Stream).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
        assert!(control.requests().is_empty());
    }
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
}

#[test]
fn a_link_stays_and_the_file_it_leads_to_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (file, link) = (folder.path().join("file"), folder.path().join("link"));
    fs::write(&file, "an earlier save").unwrap();
    symlink(&file, &link).unwrap();
    archive::save_to_path(&mut device("from").0, &link, Form::Raw).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap(), image());
}

#[test]
fn each_request_that_fails_in_a_save_is_told_and_the_device_goes_on() {
    use State::{Running, RunningP2p, Stop, StopCopy};
    for at in
        [At::Arc(Running, RunningP2p), At::Arc(RunningP2p, Stop), At::Arc(Stop, StopCopy), At::Read(StopCopy)]
    {
        let (mut from, control) = device("from");
        control.fail(at, 0, ArcError::Stays(Errno::EIO));
        let error = archive::save(&mut from, io::sink(), Form::Stream).unwrap_err().to_string();
        assert!(error.starts_with("from: ") && error.contains("EIO"), "{at:?}: {error}");
        assert_eq!(from.state().unwrap(), Running, "{at:?}");
    }
}

#[test]
fn a_device_that_does_not_come_back_after_a_save_is_told_with_both_causes() {
    use State::{RunningP2p, Stop, StopCopy};
    let (mut from, control) = device("from");
    control.fail(At::Arc(Stop, RunningP2p), 0, ArcError::Stays(Errno::EBUSY));
    let error = archive::save(&mut from, io::sink(), Form::Stream).unwrap_err().to_string();
    let expected = "completed, but the device could not be returned to RUNNING, and is in STOP: ";
    assert!(error.starts_with(expected), "{error}");

    let (mut from, control) = device("from");
    control.fail(At::Arc(StopCopy, Stop), 0, ArcError::Stays(Errno::EBUSY));
    let error = archive::save(&mut from, Full(3), Form::Stream).unwrap_err().to_string();
    assert!(error.starts_with("writing the saved state") && error.contains("to RUNNING: EBUSY"), "{error}");

    let (mut from, control) = device("from");
    control.fail(At::Arc(Stop, StopCopy), 0, ArcError::Broken(Errno::EIO));
    let error = archive::save(&mut from, io::sink(), Form::Stream).unwrap_err().to_string();
    assert!(error.contains("EIO") && error.contains("only a reset"), "{error}");
}

#[test]
fn each_request_that_fails_in_a_restore_is_told_and_the_device_is_fresh() {
    use State::{Resuming, Running, RunningP2p, Stop};
    for at in [
        At::Arc(Running, RunningP2p),
        At::Arc(Stop, Resuming),
        At::Write,
        At::Arc(Resuming, Stop),
        At::Arc(RunningP2p, Running),
    ] {
        let (mut to, control) = device("to");
        control.fail(at, 0, ArcError::Stays(Errno::EIO));
        let error = archive::restore(&mut to, &image()[..], Form::Raw).unwrap_err().to_string();
        assert!(error.starts_with("to: ") && error.contains("EIO"), "{at:?}: {error}");
        assert!(control.is_fresh(), "{at:?}");
        assert_eq!(to.state().unwrap(), Running, "{at:?}");
    }
    let (mut to, control) = device("to");
    control.fail(At::Reset, 0, ArcError::Stays(Errno::EBUSY));
    let error = archive::restore(&mut to, &b"rubbish"[..], Form::Raw).unwrap_err();
    assert!(matches!(error, Error::NotReset { .. }), "{error}");
    assert!(error.to_string().contains("do not use it before it is"), "{error}");
}
