//! The signals that `whimbrel run` takes in place of its program, and passes on to it.

use std::io;
use std::sync::Arc;

use libc::siginfo_t;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;
use whimbrel_engine::channel::Interrupt;
use whimbrel_interpose::run::Stopper;

use crate::signals::is_ignored;

/// The signals that are passed on.
const PASSED_ON: [i32; 6] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2];

/// The caught signals. Once created, they no longer end this process.
pub(super) struct Signals {
    /// Those of processes that came before there was a program.
    early: Vec<i32>,
    caught: SignalsInfo<WithRawSiginfo>,
}

impl Signals {
    /// Catches the signals to pass on, but for those that are ignored.
    pub(super) fn catch() -> io::Result<Signals> {
        let caught = PASSED_ON.iter().filter(|signal| !is_ignored(**signal));
        Ok(Signals { early: Vec::new(), caught: SignalsInfo::new(caught)? })
    }

    /// Returns a signal that has come from the terminal while there was no program, which it would have killed. Those of
    /// processes are kept for the program.
    pub(super) fn fatal_before_program(&mut self) -> Option<i32> {
        let mut fatal = None;
        for info in self.caught.pending() {
            if is_of_process(&info) {
                self.early.push(info.si_signo);
            } else {
                fatal = fatal.or(Some(info.si_signo));
            }
        }
        fatal
    }

    /// Passes on the signals that processes send, as long as the program is `running`. Those of the terminal reach it by
    /// themselves.
    ///
    /// After its end they end the wait for its descendants, and that for a reader of the trace.
    ///
    /// Nothing tells a signal for the whole process group, which reaches the program too, from one for this process alone.
    /// Twice is better than never.
    pub(super) fn pass_on(
        self,
        running: Arc<Mutex<Option<Pid>>>,
        stopper: Stopper,
        interrupt: Interrupt,
    ) -> io::Result<()> {
        let Signals { early, mut caught } = self;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let early = early.into_iter().map(|signal| (signal, true));
            let later = caught.forever().map(|info| (info.si_signo, is_of_process(&info)));
            for (signal, is_of_process) in early.chain(later) {
                let running = running.lock();
                match (*running, Signal::from_named_raw(signal)) {
                    (Some(pid), Some(signal)) if is_of_process => {
                        // It may be another user's by now.
                        let _ = kill_process(pid, signal);
                    }
                    (Some(_), _) => {}
                    (None, _) => {
                        interrupt.set();
                        stopper.stop();
                    }
                }
            }
        })?;
        Ok(())
    }
}

/// Returns whether a process has sent a signal, and not the terminal.
fn is_of_process(info: &siginfo_t) -> bool {
    info.si_code <= 0
}
