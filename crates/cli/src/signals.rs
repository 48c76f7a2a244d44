//! SIGINT and SIGTERM while a device is at stake: they cancel the work instead of ending the process, so that the device
//! is brought back first. And which signals are ignored.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Incoming;
use whimbrel_engine::Cancel;
use whimbrel_engine::channel::{Interrupt, Readiness, Until, WaitError};

use crate::failure::Failure;
use crate::output::note;

/// The caught signals of a command. Once created, they no longer end the process.
#[derive(Debug)]
pub(crate) struct Signals {
    cancel: Cancel,
    interrupt: Interrupt,
}

impl Signals {
    /// Catches the signals from now on.
    pub(crate) fn catch() -> Result<Signals, Failure> {
        let failed = |error| Failure::from_io("cannot catch SIGINT and SIGTERM", &error);
        let signals = Signals { cancel: Cancel::new(), interrupt: Interrupt::new().map_err(failed)? };
        let (cancel, interrupt) = (signals.cancel.clone(), signals.interrupt.clone());
        let mut incoming = Incoming::new([SIGINT, SIGTERM]).map_err(failed)?;
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in incoming.forever() {
                    let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
                    if cancel.reason().is_none() {
                        note(format_args!("{name}: cancelling"));
                    }
                    cancel.cancel(name);
                    interrupt.set();
                }
            })
            .map_err(failed)?;
        Ok(signals)
    }

    /// The handle that a signal cancels a migration with.
    pub(crate) fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// The interrupt that a signal sets, for waits.
    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Returns the name of the signal that has arrived, if any.
    pub(crate) fn arrived(&self) -> Option<String> {
        self.cancel.reason()
    }
}

/// Returns whether a signal was ignored when this process began, as under nohup(1): so a program that it starts must ignore
/// the signal too.
pub(crate) fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

/// A file, such as a pipe, that is only used when that does not wait: its reads and writes fail with
/// [`Interrupted`](io::ErrorKind::Interrupted) once a signal has arrived.
pub(crate) struct Waiting<'a, F> {
    file: F,
    signals: &'a Signals,
}

/// The most that is written to a pipe at a time: one that is ready takes so many bytes without a wait.
const PIECE: usize = 4096;

impl<'a, F: AsFd> Waiting<'a, F> {
    /// A file with the signals that end a wait for it.
    pub(crate) fn new(file: F, signals: &'a Signals) -> Self {
        Waiting { file, signals }
    }

    fn wait(&self, readiness: Readiness) -> io::Result<()> {
        Until::interrupted(self.signals.interrupt()).wait(self.file.as_fd(), readiness).map_err(|error| {
            match error {
                WaitError::Failed(error) => error,
                _ => io::ErrorKind::Interrupted.into(),
            }
        })
    }
}

impl<F: AsFd + Read> Read for Waiting<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.wait(Readiness::Readable)?;
        self.file.read(buffer)
    }
}

impl<F: AsFd + Write> Write for Waiting<'_, F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.wait(Readiness::Writable)?;
        self.file.write(&data[..data.len().min(PIECE)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
