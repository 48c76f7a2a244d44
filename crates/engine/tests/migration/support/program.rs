//! A program around the devices, which notes what it is asked and refuses what a test says.

use std::sync::Arc;

use parking_lot::Mutex;
use whimbrel_engine::{Blob, BlobName, Guest, GuestError};

/// What a program was asked, in order. A clone is the same list.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<&'static str>>>);

impl Calls {
    pub(crate) fn list(&self) -> Vec<&'static str> {
        self.0.lock().clone()
    }

    /// Whether it stands still now.
    pub(crate) fn is_paused(&self) -> bool {
        let list = self.0.lock();
        list.iter().rev().find(|call| ["pause", "resume"].contains(call)) == Some(&"pause")
    }
}

/// What to do at a request.
type Action = (&'static str, Box<dyn FnOnce() + Send>);

/// The program. `refuses` names the request that it refuses.
#[derive(Clone, Default)]
pub(crate) struct Program {
    pub(crate) calls: Calls,
    pub(crate) refuses: &'static str,
    /// What it saves; its list is that of [`Guest::blobs`].
    pub(crate) blobs: Vec<Blob>,
    /// What it can load.
    pub(crate) loads: Vec<BlobName>,
    /// What it was given.
    pub(crate) loaded: Arc<Mutex<Vec<Blob>>>,
    actions: Arc<Mutex<Vec<Action>>>,
}

impl Program {
    pub(crate) fn refusing(what: &'static str) -> Program {
        Program { refuses: what, ..Program::default() }
    }

    /// Does something at the next such request, which then goes well.
    pub(crate) fn when(&self, what: &'static str, action: impl FnOnce() + Send + 'static) {
        self.actions.lock().push((what, Box::new(action)));
    }

    fn note(&self, what: &'static str) -> Result<(), GuestError> {
        self.calls.0.lock().push(what);
        let action = {
            let mut actions = self.actions.lock();
            actions.iter().position(|(of, _)| *of == what).map(|index| actions.remove(index).1)
        };
        if let Some(action) = action {
            action();
        }
        if self.refuses == what { Err(format!("it does not {what}").into()) } else { Ok(()) }
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
        if !self.blobs.is_empty() {
            self.note("save")?;
        }
        Ok(self.blobs.clone())
    }

    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        if !blobs.is_empty() {
            self.note("load")?;
        }
        *self.loaded.lock() = blobs;
        Ok(())
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        self.note("pause")
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        self.note("resume")
    }

    fn inspect(&mut self) -> Result<(), GuestError> {
        self.note("inspect")
    }

    fn run(&mut self) -> Result<(), GuestError> {
        self.note("run")
    }
}
