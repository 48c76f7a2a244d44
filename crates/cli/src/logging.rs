//! The log of the crates below, with their spans, on stderr. Warnings are shown, since they accompany the result, unless the variable's
//! filter sets another level.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt, registry};

use crate::failure::Failure;
use crate::shown::Shown;

/// The filter's environment variable.
const VARIABLE: &str = "WHIMBREL_LOG";

/// Starts logging: warnings, more with `verbose`, or what the variable's filter selects. An invalid filter is wrong
/// usage.
pub(crate) fn start(verbose: u8) -> Result<(), Failure> {
    let selected = match std::env::var(VARIABLE) {
        Ok(filter) if !filter.is_empty() => parse(&filter).map_err(|error| {
            Failure::usage(format!("invalid value '{filter}' for {VARIABLE}: {error}"))
                .hint("write a level, such as `debug`, or `target=level`, such as `whimbrel_engine=trace`")
        })?,
        _ => by_default(verbose),
    };
    let log = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let log = match verbose {
        0 => log.without_time().with_target(false).boxed(),
        // The message comes first, and the fields of its spans last.
        1 => log.compact().with_target(false).boxed(),
        _ => log.compact().boxed(),
    };
    registry().with(selected).with(log).with(Shown).init();
    Ok(())
}

/// Parses a list of levels and `target=level`. Targets that it does not name are logged from warnings on.
fn parse(filter: &str) -> Result<Targets, String> {
    for directive in filter.split(',').map(str::trim) {
        // `Targets` takes a word that is no level for a target, and an empty one for the level of errors.
        let is_known = directive.contains('=') || directive.parse::<LevelFilter>().is_ok();
        if directive.is_empty() || !is_known || directive.contains(['[', '{']) {
            return Err(format!("'{directive}' is neither a level nor target=level"));
        }
    }
    let targets: Targets = filter.parse().map_err(|error| format!("{error}"))?;
    Ok(match targets.default_level() {
        Some(_) => targets,
        None => targets.with_default(LevelFilter::WARN),
    })
}

/// The filter without the variable.
fn by_default(verbose: u8) -> Targets {
    let targets = Targets::new().with_default(match verbose {
        0..=2 => LevelFilter::WARN,
        3.. => LevelFilter::TRACE,
    });
    match verbose {
        1 => targets.with_target("whimbrel", LevelFilter::INFO),
        2 => targets.with_target("whimbrel", LevelFilter::DEBUG),
        _ => targets,
    }
}
