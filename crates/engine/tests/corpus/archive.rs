//! A file of any contents: inspected, verified, and restored into devices, as a file and in parts.

use std::sync::{Arc, Mutex};

use whimbrel_engine::archive::{self, Restore, Save};
use whimbrel_engine::embedded::{Loading, Part};
use whimbrel_engine::{Blob, BlobName, Guest, GuestError};
use whimbrel_user::{Migratable, State};

use super::destination::loads;
use super::devices::{assert_fresh, devices, state};
use super::stream::{assert_round_trips, sealed};

/// Reads a file of these bytes, and one with the same frames whose checksums are right.
pub(crate) fn run(bytes: &[u8]) {
    assert_round_trips(bytes);
    for file in [bytes.to_vec(), sealed(bytes)] {
        let _ = restore(&file);
        let _ = load(&file);
    }
}

/// Loads a file part by part, as a VMM does whose own stream holds it, and returns whether the devices have taken it.
pub(crate) fn load(file: &[u8]) -> bool {
    let mut loading = Loading::new(devices()).unwrap();
    let mut rest = file;
    let mut round = 0;
    let is_complete = loop {
        let before = rest.len();
        match loading.load_part(&mut rest) {
            Ok(Part::Complete) => break true,
            Ok(Part::Round { number, .. }) => {
                assert_eq!(number, round + 1);
                round = number;
            }
            Ok(_) => {}
            Err(_) => break false,
        }
        assert!(rest.len() < before, "a part without bytes");
    };
    if is_complete {
        // The same bytes are a file.
        assert!(archive::verify(&file[..file.len() - rest.len()]).is_ok());
        loading.run().unwrap();
    }
    let mut devices = loading.into_devices();
    if !is_complete {
        assert_fresh(&mut devices);
    }
    is_complete
}

/// Restores a file. Checks what holds whatever is in it, and returns whether the devices have taken it.
pub(crate) fn restore(file: &[u8]) -> bool {
    let verified = archive::verify(file);
    let contents = archive::inspect(file);
    assert_eq!(verified.is_ok(), contents.complete, "{verified:?}");
    assert_eq!(contents.problem, verified.as_ref().err().map(ToString::to_string));
    assert!(contents.file_bytes <= file.len() as u64 && contents.device_bytes() <= contents.file_bytes);

    let mut devices = devices();
    let loaded = Arc::new(Mutex::new(Vec::new()));
    let owner = Owner { loaded: loaded.clone() };
    let restored = Restore::new(borrowed(&mut devices)).guest(owner).read_from(file);
    if let Err(error) = restored {
        assert_fresh(&mut devices);
        assert!(!error.to_string().is_empty());
        return false;
    }
    assert!(contents.complete, "restored, but not complete: {contents:?}");
    for device in &mut devices {
        assert_eq!(device.state().unwrap(), State::Running);
    }
    // What was taken is the whole of it: saved once more, it is the same.
    let mut again = Vec::new();
    let owner = Owner { loaded };
    Save::new(borrowed(&mut devices)).guest(owner).write_to(&mut again).unwrap();
    let mut others = self::devices();
    let owner = Owner { loaded: Arc::default() };
    Restore::new(borrowed(&mut others)).guest(owner).read_from(&again[..]).unwrap();
    for (device, other) in devices.iter_mut().zip(&mut others) {
        assert!(state(&mut **device) == state(&mut **other), "{}", device.name());
    }
    true
}

fn borrowed(devices: &mut [Box<dyn Migratable>]) -> impl Iterator<Item = &mut dyn Migratable> {
    devices.iter_mut().map(|device| &mut **device as &mut dyn Migratable)
}

/// The program that owns the devices. It saves what it has loaded.
pub(crate) struct Owner {
    pub(crate) loaded: Arc<Mutex<Vec<Blob>>>,
}

impl Guest for Owner {
    fn blobs(&self) -> Vec<BlobName> {
        self.loaded.lock().unwrap().iter().map(|blob| blob.name.clone()).collect()
    }

    fn loads(&self) -> Vec<BlobName> {
        loads()
    }

    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        Ok(self.loaded.lock().unwrap().clone())
    }

    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        *self.loaded.lock().unwrap() = blobs;
        Ok(())
    }
}
