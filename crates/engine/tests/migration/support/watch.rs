//! The phases of a side as they begin, from the spans in which the engine traces them.

use std::fmt::Debug;
use std::sync::OnceLock;

use parking_lot::Mutex;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Dispatch, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

struct Watch<F>(Mutex<F>);

/// The name of a phase.
#[derive(Default)]
struct Name(String);

impl Visit for Name {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "name" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: Subscriber, F: FnMut(&str) + Send + 'static> Layer<S> for Watch<F> {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        if attributes.metadata().name() == "phase" {
            let mut name = Name::default();
            attributes.record(&mut name);
            self.0.lock()(&name.0);
        }
    }
}

/// Has `act` called with the name of each phase that begins, on the thread that migrates.
pub(crate) fn on_phase(act: impl FnMut(&str) + Send + 'static) -> Dispatch {
    // While there are fewer than two, tracing asks the thread that comes by a span first, and that one may have none.
    static OTHERS: OnceLock<[Dispatch; 2]> = OnceLock::new();
    OTHERS.get_or_init(|| [(); 2].map(|()| Dispatch::new(tracing_subscriber::registry())));
    Dispatch::new(tracing_subscriber::registry().with(Watch(Mutex::new(act))))
}
