//! A program that runs, and the service of its devices.

use std::io;
use std::process::ExitStatus;

use super::device::Placed;
use super::supervisor::{self, Supervisor};

/// A program that runs. Its devices are served until this is dropped.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    supervisor: Supervisor,
    /// The devices, whose workers run until here.
    _devices: Vec<Placed>,
}

impl Child {
    pub(super) fn new(process: std::process::Child, supervisor: Supervisor, devices: Vec<Placed>) -> Child {
        Child { process, supervisor, _devices: devices }
    }

    /// Returns the number of the program's process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Kills the program's process.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process.kill()
    }

    /// Waits for the program's process, not for its descendants.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait()
    }

    /// Returns the exit status of the program's process if it has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.process.try_wait()
    }

    /// Waits until neither the program nor a descendant of it has a VFIO file open, or until [`Stopper::stop`].
    pub fn wait_until_unused(&self) {
        self.supervisor.wait_until_unused();
    }

    /// Returns a handle that ends [`Child::wait_until_unused`], from any thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.supervisor.stopper())
    }

    /// Takes the program's standard input, if it is piped.
    pub fn take_stdin(&mut self) -> Option<std::process::ChildStdin> {
        self.process.stdin.take()
    }

    /// Takes the program's standard output, if it is piped.
    pub fn take_stdout(&mut self) -> Option<std::process::ChildStdout> {
        self.process.stdout.take()
    }

    /// Takes the program's standard error, if it is piped.
    pub fn take_stderr(&mut self) -> Option<std::process::ChildStderr> {
        self.process.stderr.take()
    }
}

/// Ends the service of a program.
#[derive(Clone, Debug)]
pub struct Stopper(supervisor::Stopper);

impl Stopper {
    /// Ends [`Child::wait_until_unused`], and the service of what remains of the program: its requests fail with ENOSYS
    /// once the [`Child`] is dropped.
    pub fn stop(&self) {
        self.0.stop();
    }
}
