//! What the engine asks of the program around the device: to hold its CPUs, and to let them go.

/// Why a program could not do its part: an error of its own.
pub type GuestError = Box<dyn std::error::Error + Send + Sync>;

/// The program that owns the device: a VMM, or anything else that works with it.
///
/// Errors are the program's own, and end the migration as its cause ([`Error::Guest`](crate::Error::Guest)).
pub trait Guest: Send {
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
