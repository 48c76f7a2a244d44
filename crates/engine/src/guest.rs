//! What the engine asks of the program around the device: to hold its CPUs, and to let them go.

pub use crate::proto::control::BlobName;

/// Why a program could not do its part: an error of its own.
pub type GuestError = Box<dyn std::error::Error + Send + Sync>;

/// A piece of the owner's own state, which travels with the devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blob {
    /// Name and version.
    pub name: BlobName,
    /// The contents, which mean nothing to the engine.
    pub data: Vec<u8>,
}

impl Blob {
    /// Returns a blob; `name` has 1 to 255 bytes and is unique within a migration.
    pub fn new(name: impl Into<String>, version: u32, data: Vec<u8>) -> Blob {
        Blob { name: BlobName { name: name.into(), version }, data }
    }
}

/// The program that owns the device: a VMM, or anything else that works with it.
///
/// Errors are the program's own, and end the migration as its cause ([`Error::Guest`](crate::Error::Guest)).
pub trait Guest: Send {
    /// Source: the names of the blobs that [`Guest::save`] gives, in their order. The destination is asked before anything
    /// moves whether it can load them.
    fn blobs(&self) -> Vec<BlobName> {
        Vec::new()
    }

    /// Destination: the names of the blobs that [`Guest::load`] takes, each with the highest version.
    fn loads(&self) -> Vec<BlobName> {
        Vec::new()
    }

    /// Source, right after [`Guest::pause`]: your own state, such as that of your CPUs, in the order of [`Guest::blobs`].
    fn save(&mut self) -> Result<Vec<Blob>, GuestError> {
        Ok(Vec::new())
    }

    /// Destination, right before [`Guest::inspect`]: the source's blobs, each once and in the order in which they ended.
    fn load(&mut self, blobs: Vec<Blob>) -> Result<(), GuestError> {
        let _ = blobs;
        Ok(())
    }

    /// Source, at the switchover: stop everything of your own that writes memory or touches the device. The device
    /// still runs, and stops next. An error calls the migration off, and [`Guest::resume`] follows.
    fn pause(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Source, after a migration that failed since [`Guest::pause`]: the device runs here again, go on. Not called where
    /// the device cannot be brought back, nor where it may run at the destination.
    fn resume(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Destination: memory and device are loaded, the device stands in STOP. An error refuses the migration, and the
    /// source runs on.
    fn inspect(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    /// Destination: the device runs here now, go on.
    fn run(&mut self) -> Result<(), GuestError> {
        Ok(())
    }
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

/// For a device that nobody works with.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to set")]
pub struct NoGuest;

impl Guest for NoGuest {}
