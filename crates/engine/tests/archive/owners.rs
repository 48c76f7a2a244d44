//! The state of the program that owns the devices, in their file; and what becomes of the devices when that program fails.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_engine::archive;
use whimbrel_engine::{Blob, BlobName, Error, Guest, GuestError};

use crate::trio::{Trio, decoded};

/// A program that counts its calls, with state of its own.
#[derive(Clone, Default)]
pub(crate) struct Program {
    pub(crate) calls: Arc<Mutex<Vec<String>>>,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) loads: Vec<BlobName>,
    pub(crate) loaded: Arc<Mutex<Vec<Blob>>>,
    pub(crate) fails: Option<&'static str>,
}

impl Program {
    pub(crate) fn call(&self, name: &'static str) -> Result<(), GuestError> {
        self.calls.lock().push(name.to_string());
        if self.fails == Some(name) { Err(format!("{name} failed").into()) } else { Ok(()) }
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().clone()
    }
}

impl Guest for Program {
    fn blobs(&self) -> Vec<BlobName> {
        self.blobs.iter().map(|blob| blob.name.clone()).collect()
    }

    fn loads(&self) -> Vec<BlobName> {
        self.loads.clone()
    }

    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        self.call("save").map(|()| self.blobs.clone())
    }

    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        *self.loaded.lock() = blobs;
        self.call("load")
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.call("pause")
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.call("resume")
    }

    fn inspect(&mut self) -> Result<(), GuestError> {
        self.call("inspect")
    }

    fn run(&mut self) -> Result<(), GuestError> {
        self.call("run")
    }
}

pub(crate) fn with_state() -> Program {
    let blobs = vec![
        Blob::new("cpu", 3, (0..3_000_000_u32).map(|byte| byte as u8).collect()),
        Blob::new("empty", 0, Vec::new()),
    ];
    Program { blobs, ..Program::default() }
}

#[test]
fn the_owners_state_is_saved_while_it_is_paused_and_loaded_before_the_devices_run() {
    let (mut trio, program) = (Trio::new(), with_state());
    let mut file = Vec::new();
    trio.save().guest(program.clone()).write_to(&mut file).unwrap();
    assert_eq!(program.calls(), ["pause", "save", "resume"]);
    let account = decoded(&file);
    assert_eq!(account.blobs["cpu"], (3, program.blobs[0].data.clone()));
    assert_eq!(account.blobs["empty"], (0, Vec::new()));
    let contents = archive::inspect(&file[..]);
    let blobs: Vec<(&str, u32, u64)> =
        contents.blobs.iter().map(|blob| (blob.name.as_str(), blob.version, blob.bytes)).collect();
    assert_eq!(blobs, [("cpu", 3, 3_000_000), ("empty", 0, 0)]);

    let loads = ["cpu", "empty", "more"].map(|name| BlobName { name: name.into(), version: 3 });
    let there = Program { loads: loads.to_vec(), ..Program::default() };
    trio.restore().guest(there.clone()).read_from(&file[..]).unwrap();
    assert_eq!(there.calls(), ["load", "inspect", "run"]);
    assert_eq!(*there.loaded.lock(), program.blobs);

    // Without a program, or with an older one, it is refused.
    trio.log();
    for loads in [Vec::new(), vec![BlobName { name: "cpu".into(), version: 2 }]] {
        let there = Program { loads, ..Program::default() };
        let error = trio.restore().guest(there.clone()).read_from(&file[..]).unwrap_err().to_string();
        assert!(error.contains("'cpu' version 3"), "{error}");
        assert!(there.calls().is_empty());
    }
    assert_eq!(trio.log(), [""; 0]);
}

#[test]
fn a_program_that_fails_ends_the_work_and_the_devices_are_as_they_should() {
    for (fails, calls) in [
        ("pause", &["pause", "resume"][..]),
        ("save", &["pause", "save", "resume"]),
        ("resume", &["pause", "save", "resume"]),
    ] {
        let (mut trio, program) = (Trio::new(), Program { fails: Some(fails), ..with_state() });
        let error = trio.save().guest(program.clone()).write_to(io::sink()).unwrap_err().to_string();
        assert!(error.contains(&format!("{fails} failed")), "{error}");
        assert_eq!(program.calls(), calls);
        trio.assert_works(fails);
    }
    let file = Trio::new().saved();
    for fails in ["load", "inspect"] {
        let (mut trio, program) = (Trio::new(), Program { fails: Some(fails), ..Program::default() });
        let error = trio.restore().guest(program).read_from(&file[..]).unwrap_err().to_string();
        assert!(error.contains(&format!("{fails} failed")), "{error}");
        trio.assert_fresh(fails);
    }
    let (mut trio, program) = (Trio::new(), Program { fails: Some("run"), ..Program::default() });
    let error = trio.restore().guest(program).read_from(&file[..]).unwrap_err();
    assert!(matches!(error, Error::GuestAfterHandover(_)), "{error}");
    trio.assert_works("they run");
}
