//! What the engine asks of the program around the device: to hold its CPUs, and to let them go.

/// The program that owns the device: a VMM, or anything else that works with it.
///
/// Errors are for people, in the program's own words.
pub trait Guest: Send {
    /// Source, at the switchover: stop everything of your own that writes memory or touches the device. The device
    /// still runs, and stops next. An error calls the migration off, and [`Guest::resume`] follows.
    fn pause(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Source, after a migration that failed since [`Guest::pause`]: the device runs here again, go on. Not called where
    /// the device cannot be brought back, nor where it may run at the destination.
    fn resume(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Destination: memory and device are loaded, the device stands in STOP. An error refuses the migration, and the
    /// source runs on.
    fn inspect(&mut self) -> Result<(), String> {
        Ok(())
    }

    /// Destination: the device runs here now, go on.
    fn run(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// For a device that nobody works with.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoGuest;

impl Guest for NoGuest {}
