//! The warnings that the log has shown, so that none of them is printed again with the result.

use std::collections::BTreeSet;
use std::fmt;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// The most warnings that are kept, each of which is shown at most twice beyond that.
const MAX_KEPT: usize = 1000;

static SHOWN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Returns whether the log has shown a warning.
pub(crate) fn is_shown(warning: &str) -> bool {
    SHOWN.lock().contains(warning)
}

/// Keeps the warnings of a log.
pub(crate) struct Shown;

impl<S: Subscriber> Layer<S> for Shown {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if *event.metadata().level() != Level::WARN {
            return;
        }
        let mut message = Message(None);
        event.record(&mut message);
        let mut shown = SHOWN.lock();
        if let Some(text) = message.0
            && shown.len() < MAX_KEPT
        {
            shown.insert(text);
        }
    }
}

/// The message of an event.
struct Message(Option<String>);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::filter::LevelFilter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn warnings_that_the_filter_lets_through_are_shown_and_nothing_else_is() {
        let log = |level: LevelFilter| tracing_subscriber::registry().with(level).with(Shown);
        tracing::subscriber::with_default(log(LevelFilter::WARN), || {
            tracing::warn!(device = "a", "shown {}", 1);
            tracing::error!("shown 2");
            tracing::info!("shown 3");
        });
        tracing::subscriber::with_default(log(LevelFilter::ERROR), || tracing::warn!("shown 4"));
        assert_eq!(
            [1, 2, 3, 4].map(|number| is_shown(&format!("shown {number}"))),
            [true, false, false, false]
        );
    }
}
