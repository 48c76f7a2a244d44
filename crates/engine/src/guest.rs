//! The engine's interface to the program that owns the devices: to pause and resume its CPUs, and to transfer its
//! state.

pub use crate::proto::control::BlobName;

/// An error of the owner's program.
pub type GuestError = Box<dyn std::error::Error + Send + Sync>;

/// A piece of the owner's own state, which travels with the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blob {
    /// Name and version.
    pub name: BlobName,
    /// The contents, opaque to the engine.
    pub data: Vec<u8>,
}

impl Blob {
    /// Returns a blob; `name` has 1 to 255 bytes and is unique within a migration.
    pub fn new(name: impl Into<String>, version: u32, data: Vec<u8>) -> Blob {
        Blob { name: BlobName { name: name.into(), version }, data }
    }
}

/// The program that owns the devices: a VMM, or any other program that uses them.
///
/// Errors are the program's own. They end the migration and are reported as its cause
/// ([`Error::Guest`](crate::Error::Guest)).
pub trait Guest: Send {
    /// Returns the names of the blobs that [`Guest::save`] returns, in their order. Source only. Before any data moves,
    /// the destination is asked whether it can load them.
    fn blobs(&self) -> Vec<BlobName> {
        Vec::new()
    }

    /// Returns the names of the blobs that [`Guest::load`] accepts, each with the highest version. Destination only.
    fn loads(&self) -> Vec<BlobName> {
        Vec::new()
    }

    /// Returns the program's own state, such as that of its CPUs, in the order of [`Guest::blobs`]. Called at the
    /// source, right after [`Guest::pause`].
    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        Ok(Vec::new())
    }

    /// Loads the source's blobs, each once and in the order in which they ended. Called at the destination, right
    /// before [`Guest::inspect`].
    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        let _ = blobs;
        Ok(())
    }

    /// Makes the program write less memory, because the rounds of a migration get no better: more so with each step, from 1.
    /// Returns whether it is slower than before; the migration then goes on with another round. Otherwise it is not asked
    /// again, and the downtime limit is raised, if that is allowed. That is also so while the devices have more state than the
    /// limit allows, without any memory, and if some writes to memory are not logged. Called at the source.
    ///
    /// Step 0 ends it: after a migration that failed, before [`Guest::resume`]. It is not called if the outcome is unknown.
    ///
    /// By default the program cannot be slowed down.
    fn slow_down(&mut self, step: u32) -> Result<bool, GuestError> {
        let _ = step;
        Ok(false)
    }

    /// Stops everything of the program that writes memory or touches the devices. Called at the source, at the
    /// switchover; the devices still run, and stop next. An error aborts the migration, and [`Guest::resume`] follows.
    fn pause(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Resumes the program: the devices run here again. Called at the source, after a migration that failed after
    /// [`Guest::pause`]. Not called if a device cannot be returned to RUNNING, or may run at the destination.
    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Inspects the loaded memory and devices, which are in STOP. Called at the destination. An error refuses the
    /// migration, and the source continues to run the devices.
    fn inspect(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Starts the program: the devices run here now. Called at the destination.
    fn run(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
}

/// Saves the program's state, and checks that it is what was listed before: the destination was asked for that.
pub(crate) fn save_listed(guest: &mut dyn Guest, listed: &[BlobName]) -> Result<Vec<Blob>, GuestError> {
    let blobs = guest.save()?;
    if blobs.iter().map(|blob| &blob.name).ne(listed) {
        return Err("it saved other blobs than it had listed".into());
    }
    Ok(blobs)
}

impl<G: Guest + ?Sized> Guest for &mut G {
    fn blobs(&self) -> Vec<BlobName> {
        (**self).blobs()
    }

    fn loads(&self) -> Vec<BlobName> {
        (**self).loads()
    }

    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        (**self).save()
    }

    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        (**self).load(blobs)
    }

    fn slow_down(&mut self, step: u32) -> Result<bool, GuestError> {
        (**self).slow_down(step)
    }

    fn pause(&mut self) -> Result<(), GuestError> {
        (**self).pause()
    }

    fn resume(&mut self) -> Result<(), GuestError> {
        (**self).resume()
    }

    fn inspect(&mut self) -> Result<(), GuestError> {
        (**self).inspect()
    }

    fn run(&mut self) -> Result<(), GuestError> {
        (**self).run()
    }
}

/// A guest that does nothing, for devices without an owner's program.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct NoGuest;

impl Guest for NoGuest {}
