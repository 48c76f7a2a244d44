//! `whimbrel fsm`: the state machine as paths, as a table, as a drawing, and walked on a device.

mod walk;
mod watch;

use std::fmt::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use whimbrel_protocol::session::{self, Direction, Effect};
use whimbrel_protocol::{MigrationFlags, State, fsm};

use crate::failure::Failure;
use crate::output::{self, Output};
use crate::target::Target;

pub(crate) use self::walk::{Arguments as WalkArguments, run as run_walk};

/// Show the arcs a driver executes on the way from one state to another
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The state the device is in, such as RUNNING; case and hyphens do not matter
    #[arg(value_name = "FROM", value_parser = parse_state, requires = "to", required_unless_present = "other")]
    from: Option<State>,
    /// The requested state
    #[arg(value_name = "TO", value_parser = parse_state)]
    to: Option<State>,
    /// The device's migration features, separated by commas
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "stop-copy,p2p,pre-copy",
        conflicts_with = "walk"
    )]
    features: Vec<FeatureName>,
    /// Print the next step for each pair of states
    #[arg(long, group = "other", conflicts_with_all = ["from", "to"])]
    table: bool,
    /// Print the arcs a driver implements as a graph for Graphviz
    #[arg(long, group = "other", conflicts_with_all = ["from", "to"])]
    dot: bool,
    /// Request each pair of states from a device and compare its answers with the table. This resets the device
    ///
    /// The device is reset before each request: use a device that is not in use. STOP_COPY -> PRE_COPY and STOP_COPY
    /// -> PRE_COPY_P2P hang in many kernels. They are requested last, and skipped unless the kernel is known to have
    /// the fix.
    #[arg(long, value_name = "TARGET", group = "other", conflicts_with_all = ["from", "to"])]
    walk: Option<Target>,
    /// Walk a device in STOP, STOP_COPY or RESUMING too, although it may hold the only copy of a migrated device
    #[arg(long, requires = "walk", conflicts_with_all = ["from", "to", "table", "dot"])]
    force: bool,
    /// Timeout for each request of the walk, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, requires = "walk")]
    #[arg(conflicts_with_all = ["from", "to", "table", "dot"])]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    timeout: u64,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel fsm RUNNING STOP_COPY
  whimbrel fsm running stop-copy --features stop-copy
  whimbrel fsm --table --features stop-copy,p2p
  whimbrel fsm --dot | dot -Tsvg > arcs.svg
  whimbrel fsm --walk model:serial";

/// A migration flag by the name the command line gives it.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FeatureName {
    /// STOP, STOP_COPY and RESUMING: the least a device that migrates supports.
    #[value(alias = "stop_copy")]
    StopCopy,
    /// RUNNING_P2P.
    P2p,
    /// PRE_COPY, and with p2p PRE_COPY_P2P.
    #[value(alias = "pre_copy")]
    PreCopy,
}

/// Parses the name of a state, in any case, and with hyphens or underscores.
pub(crate) fn parse_state(text: &str) -> Result<State, String> {
    State::from_name(&text.replace('-', "_")).ok_or_else(|| {
        let names: Vec<&str> = State::ALL.iter().map(|state| state.name()).collect();
        format!("expected one of {}", names.join(", "))
    })
}

/// Runs the command.
pub(crate) fn run(arguments: &Arguments, output: Output) -> Result<(), Failure> {
    let flags = arguments.features.iter().fold(MigrationFlags::empty(), |flags, feature| {
        flags
            | match feature {
                FeatureName::StopCopy => MigrationFlags::STOP_COPY,
                FeatureName::P2p => MigrationFlags::P2P,
                FeatureName::PreCopy => MigrationFlags::PRE_COPY,
            }
    });
    match (arguments.from, arguments.to) {
        (Some(from), Some(to)) => path(flags, from, to, output),
        _ if arguments.table => table(flags, output),
        _ if arguments.dot => dot(flags, output),
        _ => match &arguments.walk {
            Some(target) => {
                let timeout = Duration::from_secs(arguments.timeout);
                let force = arguments.force;
                watch::run(&watch::Settings { target, force, timeout }, output)
            }
            // clap lets no other combination through.
            None => Err(Failure::usage("give FROM and TO, or one of --table, --dot and --walk")),
        },
    }
}

/// The names of migration flags, as they are printed.
pub(crate) fn flag_names(flags: MigrationFlags) -> Vec<&'static str> {
    flags.iter_names().map(|(name, _)| name).collect()
}

/// The direction of a data session, for scripts.
pub(crate) fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Saving => "saving",
        Direction::Resuming => "resuming",
    }
}

/// One step, and its effect on the data session.
#[derive(Clone, Copy, Debug)]
struct Arc {
    from: State,
    to: State,
}

impl Arc {
    fn effect(self) -> Effect {
        session::effect(self.from, self.to)
    }

    fn session(self) -> &'static str {
        match self.effect() {
            Effect::None => "none",
            Effect::Opens(Direction::Saving) => "opens_saving",
            Effect::Opens(Direction::Resuming) => "opens_resuming",
            Effect::Continues => "continues",
            Effect::Ends => "ends",
        }
    }

    fn session_text(self) -> &'static str {
        match self.effect() {
            Effect::None => "",
            Effect::Opens(Direction::Saving) => "a saving session begins",
            Effect::Opens(Direction::Resuming) => "a resuming session begins",
            Effect::Continues => "the session continues",
            Effect::Ends => "the session ends",
        }
    }

    fn json(self) -> Value {
        json!({ "from": self.from.name(), "to": self.to.name(), "session": self.session() })
    }
}

fn path(flags: MigrationFlags, from: State, to: State, output: Output) -> Result<(), Failure> {
    let result = |path: Option<Vec<State>>, arcs: &[Arc], opens: Option<Direction>| {
        json!({
            "features": flag_names(flags),
            "from": from.name(),
            "to": to.name(),
            "path": path.map(|path| path.iter().map(|state| state.name()).collect::<Vec<_>>()),
            "arcs": arcs.iter().map(|arc| arc.json()).collect::<Vec<_>>(),
            "opens": opens.map(direction_name),
        })
    };
    let path: Vec<State> = match fsm::path(flags, from, to) {
        Ok(path) => path.collect(),
        Err(refused) => {
            return Err(Failure::new(format!(
                "{from} -> {to} is refused with EINVAL (features: {}): {refused}",
                output::names(flag_names(flags))
            ))
            .hint("`whimbrel fsm --table` with the same --features shows the next step of every pair")
            .result(&result(None, &[], None)));
        }
    };
    let mut at = from;
    let mut arcs = Vec::new();
    for &to in &path {
        arcs.push(Arc { from: at, to });
        at = to;
    }
    let opens = session::opened_by(flags, from, to);
    let text = PathText { flags, from, to, arcs: &arcs, opens };
    output.result(&result(Some(path), &arcs, opens), text)
}

struct PathText<'a> {
    flags: MigrationFlags,
    from: State,
    to: State,
    arcs: &'a [Arc],
    opens: Option<Direction>,
}

impl fmt::Display for PathText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = match self.arcs.len() {
            0 => "no arc: the device is already in that state".to_string(),
            1 => "1 arc".to_string(),
            count => format!("{count} arcs"),
        };
        writeln!(
            f,
            "{} -> {}: {count} (features: {})",
            self.from,
            self.to,
            output::names(flag_names(self.flags))
        )?;
        for arc in self.arcs {
            let line = format!("  {:<12} -> {:<12}  {}", arc.from, arc.to, arc.session_text());
            writeln!(f, "{}", line.trim_end())?;
        }
        f.write_str(match self.opens {
            Some(Direction::Saving) => "The request returns a new data_fd to read the device's state from.",
            Some(Direction::Resuming) => "The request returns a new data_fd to write a state to.",
            None => "The request returns no new data_fd (-1).",
        })
    }
}

fn table(flags: MigrationFlags, output: Output) -> Result<(), Failure> {
    let mut next = Map::new();
    let mut text = output::table(["FROM"]);
    let mut header = vec!["FROM \\ TO".to_string()];
    header.extend(State::ALL.iter().map(State::to_string));
    text.set_header(header);
    for from in State::ALL {
        let mut steps = Map::new();
        let mut row = vec![from.to_string()];
        for to in State::ALL {
            let step = fsm::next(flags, from, to).map(State::name);
            row.push(step.unwrap_or("-").to_string());
            steps.insert(to.name().into(), step.into());
        }
        text.add_row(row);
        next.insert(from.name().into(), steps.into());
    }
    let features = flag_names(flags);
    let value = json!({
        "features": features,
        "states": State::ALL.map(State::name),
        "next": next,
    });
    let text = format!(
        "{}\n\nThe next single step from a state (row) on the way to another (column); - is refused with EINVAL.\n\
         Features: {}",
        text.trim_fmt(),
        output::names(features)
    );
    output.result(&value, text)
}

/// The arcs that drivers with these flags implement: pairs whose next step is the requested state itself.
fn driver_arcs(flags: MigrationFlags) -> Vec<Arc> {
    let mut arcs = Vec::new();
    for from in State::ALL {
        for to in State::ALL {
            if from != to && fsm::next(flags, from, to) == Some(to) {
                arcs.push(Arc { from, to });
            }
        }
    }
    arcs
}

fn dot(flags: MigrationFlags, output: Output) -> Result<(), Failure> {
    let arcs = driver_arcs(flags);
    let mut text = String::from("digraph vfio_migration {\n");
    text.push_str("  rankdir=LR;\n  node [shape=box, fontname=\"monospace\"];\n");
    for state in State::ALL.into_iter().filter(|&state| fsm::supports(flags, state)) {
        let style = match state {
            State::Resuming => ", style=filled, fillcolor=\"#fde7c8\"",
            state if state.is_saving() => ", style=filled, fillcolor=\"#d6e8fa\"",
            _ => "",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {state} [label=\"{state}\"{style}];");
    }
    for arc in &arcs {
        let label = match arc.effect() {
            Effect::Opens(_) => " [label=\"data_fd\", style=bold]",
            Effect::Ends => " [style=dashed]",
            Effect::None | Effect::Continues => "",
        };
        let _ = writeln!(text, "  {} -> {}{label};", arc.from, arc.to);
    }
    text.push_str("}\n");
    let value = json!({
        "features": flag_names(flags),
        "arcs": arcs.iter().map(|arc| arc.json()).collect::<Vec<_>>(),
        "dot": text,
    });
    output.result(&value, &text)
}
