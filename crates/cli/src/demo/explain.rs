//! The cause of a demo's failure, from the reports of all its processes.

use std::time::{Duration, Instant};

use super::error::{DemoError, Part};
use super::messages::{Failed, NotSent, Role};
use super::processes::Processes;
use crate::failure::Failure;

/// Time to wait for the reports of other processes after a failure.
const SETTLING: Duration = Duration::from_secs(3);

/// All that is known of a failure.
#[derive(Default)]
struct Known {
    died: Option<Part>,
    failed: Vec<(Role, Failed)>,
    not_sent: Option<NotSent>,
}

impl Known {
    /// Adds a report. Returns an error that is its own explanation.
    fn learn(&mut self, error: DemoError) -> Result<(), Failure> {
        match error {
            DemoError::Died(part) => self.died = self.died.or(Some(part)),
            DemoError::Failed(role, failed) => self.failed.push((role, failed)),
            DemoError::NotSent(not_sent) => self.not_sent = Some(not_sent),
            DemoError::Other(failure) => return Err(failure),
        }
        Ok(())
    }
}

impl Processes {
    /// Finds the cause of a failure. The first process to report need not have caused it, so this waits briefly for the
    /// others.
    pub(super) fn explain(&mut self, first: DemoError) -> Failure {
        let mut known = Known::default();
        if let Err(failure) = known.learn(first) {
            return failure;
        }
        let deadline = Instant::now() + SETTLING;
        while self.lacks(&known) && Instant::now() < deadline {
            // Good news does not change the failure.
            if let Err(error) = self.listen(Some(deadline))
                && let Err(failure) = known.learn(error)
            {
                return failure;
            }
        }
        let migration = known.not_sent.map(|NotSent { error, works_on, .. }| {
            let after = if works_on { "its work continues at the source" } else { "its work has stopped" };
            format!("the migration failed: {error} ({after})")
        });
        match (known.died, migration) {
            (Some(part), None) => Failure::new(self.death(part)),
            (Some(part), Some(migration)) => Failure::new(format!("{}; {migration}", self.death(part))),
            (None, Some(migration)) => Failure::new(migration),
            (None, None) => {
                let Some((role, failed)) = known.failed.into_iter().next() else {
                    return Failure::new("the demo failed");
                };
                Failure::new(format!("{}: {}", Part::Host(role), failed.error)).hint_if(failed.hint)
            }
        }
    }

    /// Returns whether another report is to be expected.
    fn lacks(&self, known: &Known) -> bool {
        let has_failed = |role| known.failed.iter().any(|(other, _)| *other == role);
        let source_is_over = known.not_sent.is_some() || has_failed(Role::Source);
        match known.died {
            Some(Part::Host(Role::Source)) => false,
            // The source reports whether the device continues there, if it can.
            Some(part) => self.moving && part.served() != Some(Role::Source) && !source_is_over,
            None => {
                let lost = |role| match role {
                    Role::Source if known.not_sent.as_ref().is_some_and(|told| told.device_lost) => true,
                    _ => known.failed.iter().any(|(other, failed)| *other == role && failed.device_lost),
                };
                // Its server, if it is the demo's own, is dead or dying.
                let is_dying = |role| lost(role) && self.has_server(role);
                let server_died = is_dying(Role::Source) || is_dying(Role::Destination);
                server_died || self.moving && !(source_is_over && has_failed(Role::Destination))
            }
        }
    }
}
