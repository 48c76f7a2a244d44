//! Second sources, beside the device's own answers, for damage that a case has done to its host.

mod kmsg;

pub use self::kmsg::KernelLog;

/// Watches the host while cases run: whatever it finds fails the case that ran.
pub trait Witness {
    /// Returns what has happened since the last call.
    fn found(&mut self) -> Vec<String>;

    /// Returns what the reader of the report must know about the witness, such as that it sees nothing.
    fn notice(&self) -> Option<String> {
        None
    }
}
