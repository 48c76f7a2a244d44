//! The tracing spans of a migration, as a subscriber of the whole program sees them.
//!
//! A program has one global subscriber, so these tests have a program of their own, and tell migrations apart by id.

// In tests a panic is how a failure is told, helpers included.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, Once};
use std::thread;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use whimbrel_engine::channel::Stream;
use whimbrel_engine::{Cancel, Destination, Phase, Progress, Source};
use whimbrel_models::Model;
use whimbrel_user::{Local, Migratable};

/// A span, with its fields as text.
#[derive(Clone, Debug, Default)]
struct Seen {
    name: &'static str,
    parent: Option<usize>,
    fields: BTreeMap<&'static str, String>,
    ended: bool,
}

impl Seen {
    fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}").trim_matches('"').to_string());
    }
}

/// All spans, in the order in which they began.
static SEEN: Mutex<Vec<Seen>> = Mutex::new(Vec::new());

/// The place of a span in [`SEEN`].
#[derive(Clone, Copy)]
struct Place(usize);

struct Keep;

fn place<S>(id: &Id, context: &Context<'_, S>) -> Option<usize>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    context.span(id)?.extensions().get::<Place>().map(|place| place.0)
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Keep {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let span = context.span(id).unwrap();
        let parent = span.parent().and_then(|parent| place(&parent.id(), &context));
        let mut seen = Seen { name: attributes.metadata().name(), parent, ..Seen::default() };
        attributes.record(&mut seen);
        let mut all = SEEN.lock().unwrap();
        span.extensions_mut().insert(Place(all.len()));
        all.push(seen);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(place) = place(id, &context) {
            values.record(&mut SEEN.lock().unwrap()[place]);
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        if let Some(place) = place(&id, &context) {
            SEEN.lock().unwrap()[place].ended = true;
        }
    }
}

fn devices(side: &str) -> Vec<Box<dyn Migratable>> {
    let open = |model: &str, name: &str| {
        let opened = model.parse::<Model>().unwrap().open(format!("{name} {side}")).unwrap();
        Box::new(Local::new(opened)) as Box<dyn Migratable>
    };
    vec![open("accel?state=1MiB", "accel"), open("serial", "serial")]
}

/// Migrates two devices, and returns the source's and the destination's spans.
fn migrate(observer: impl FnMut(&Progress) + Send + 'static, cancel: &Cancel) -> [Spans; 2] {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing_subscriber::registry().with(Keep).init());
    let (left, right) = UnixStream::pair().unwrap();
    let receiver = thread::spawn(move || Destination::new(devices("there")).receive(Stream::from(right)));
    let sent = Source::new(devices("here")).observer(observer).cancel(cancel).send(Stream::from(left));
    let arrived = receiver.join().unwrap();
    assert_eq!(sent.result.is_ok(), arrived.result.is_ok());
    let all = SEEN.lock().unwrap().clone();
    let id = sent.result.map_or_else(
        |_| {
            // The only migration of these tests that is cancelled.
            let is_settling = |span: &Seen| span.name == "phase" && span.field("name") == "Settle(Back)";
            let settling = all.iter().position(is_settling).unwrap();
            all[ancestors(&all, settling).last().unwrap()].field("id").to_string()
        },
        |report| report.migration,
    );
    assert_eq!(id.len(), 32, "{id}");
    ["source", "destination"].map(|side| {
        let is_it =
            |span: &Seen| span.name == "migration" && span.field("id") == id && span.field("side") == side;
        let roots: Vec<usize> = (0..all.len()).filter(|&index| is_it(&all[index])).collect();
        let [root] = roots[..] else { panic!("{side}: {roots:?}") };
        Spans { all: all.clone(), root }
    })
}

/// The spans around a span, from the innermost.
fn ancestors(all: &[Seen], index: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(all[index].parent, |parent| all[*parent].parent)
}

/// The spans of one side.
struct Spans {
    all: Vec<Seen>,
    root: usize,
}

impl Spans {
    /// The spans of this name, in their order.
    fn named(&self, name: &str) -> Vec<usize> {
        let is_within = |index: &usize| ancestors(&self.all, *index).any(|ancestor| ancestor == self.root);
        (0..self.all.len()).filter(|&index| self.all[index].name == name).filter(is_within).collect()
    }

    /// The phases, in their order.
    fn phases(&self) -> Vec<&str> {
        self.named("phase").into_iter().map(|index| self.all[index].field("name")).collect()
    }

    /// The transitions of a device as `FROM>TO in PHASE`, in their order.
    fn transitions(&self, device: &str) -> Vec<String> {
        let transitions = self.named("transition").into_iter().map(|index| (index, &self.all[index]));
        transitions
            .filter(|(_, span)| span.field("device") == device)
            .map(|(index, span)| {
                assert!(span.field("took_ms").parse::<f64>().unwrap() >= 0.0);
                let phase = ancestors(&self.all, index).next().unwrap();
                format!("{}>{} in {}", span.field("from"), span.field("to"), self.all[phase].field("name"))
            })
            .collect()
    }
}

#[test]
fn a_migration_has_a_span_and_in_it_rounds_phases_and_transitions_in_their_order() {
    let [source, destination] = migrate(|_: &Progress| {}, &Cancel::new());
    for side in [&source, &destination] {
        assert!(side.all[side.root].ended);
        let all_ended = ["round", "phase", "transition"].iter().flat_map(|name| side.named(name));
        assert!(all_ended.into_iter().all(|index| side.all[index].ended));
    }

    let round = ["RoundQuery", "RoundSend", "RoundEnd", "Ping", "RoundLeft", "RoundMemoryLeft"];
    let before = ["Hello", "Table", "Precopy"];
    let after = ["Record", "Pause", "Quiesce", "Stop", "Rest", "End", "Committed", "Release", "Over"];
    let rounds = source.named("round");
    let expected: Vec<&str> =
        before.into_iter().chain(rounds.iter().flat_map(|_| round)).chain(after).collect();
    assert_eq!(source.phases(), expected);
    for (number, index) in (1..).zip(&rounds) {
        assert_eq!(source.all[*index].field("number"), number.to_string());
        assert_eq!(source.all[*index].parent, Some(source.root));
    }
    assert_eq!(
        source.transitions("accel here"),
        [
            "RUNNING>PRE_COPY in Precopy",
            "PRE_COPY>PRE_COPY_P2P in Quiesce",
            "PRE_COPY_P2P>STOP_COPY in Stop",
            "STOP_COPY>STOP in Release"
        ]
    );
    assert_eq!(source.transitions("accel here"), source.transitions("serial here"));

    assert_eq!(destination.named("round").len(), rounds.len() + 1, "the last one ends with END");
    assert!(destination.phases().starts_with(&["Hello", "Table", "Resume", "Load", "RoundEnd", "Load"]));
    assert!(
        destination
            .phases()
            .ends_with(&["Load", "Finish", "Inspect", "Ready", "Quiesce", "Start", "Run", "Over"])
    );
    assert_eq!(
        destination.transitions("serial there"),
        [
            ">RESUMING in Resume",
            "RESUMING>STOP in Finish",
            "STOP>RUNNING_P2P in Quiesce",
            "RUNNING_P2P>RUNNING in Start"
        ]
    );
}

#[test]
fn a_cancelled_migration_shows_how_the_devices_come_back() {
    let cancel = Cancel::new();
    let canceller = cancel.clone();
    let observer = move |progress: &Progress| {
        if matches!(progress.phase, Phase::Round(1)) {
            canceller.cancel("a test");
        }
    };
    let [source, destination] = migrate(observer, &cancel);
    let phases = source.phases();
    let settle = phases.iter().position(|phase| *phase == "Settle(Back)").unwrap();
    assert!(
        phases[settle + 1..].iter().all(|phase| phase.starts_with("Back(") || *phase == "Over"),
        "{phases:?}"
    );
    let back = source.transitions("accel here");
    assert!(
        back.last().unwrap().starts_with("PRE_COPY") && back.last().unwrap().contains(">RUNNING in Back(")
    );
    let phases = destination.phases();
    let mut after_failure = phases.iter().skip_while(|phase| **phase != "Settle");
    assert!(
        ["Settle", "Reset", "Verify"].iter().all(|phase| after_failure.any(|next| next == phase)),
        "{phases:?}"
    );
    let resets = destination.named("reset");
    let devices: Vec<&str> = resets.iter().map(|index| destination.all[*index].field("device")).collect();
    assert_eq!(devices.len(), 2, "{devices:?}");
}
