//! What the floors below log, on stderr. Warnings are always shown: they say what went wrong beside the result.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::failure::Failure;

/// The filter's environment variable.
const VARIABLE: &str = "WHIMBREL_LOG";

/// Starts logging: warnings, with `verbose` more, and with the variable set what it says.
pub(crate) fn start(verbose: u8) -> Result<(), Failure> {
    let filter = match std::env::var(VARIABLE) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(&filter).map_err(|error| {
            Failure::new(format!("{VARIABLE} is '{filter}', which is no filter: {error}"))
                .hint("write levels, such as `debug`, or `target=level`, such as `whimbrel_engine=trace`")
        })?,
        _ => EnvFilter::new(match verbose {
            0 => "warn",
            1 => "warn,whimbrel=info",
            2 => "warn,whimbrel=debug",
            _ => "trace",
        }),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if verbose == 0 {
        log.without_time().with_target(false).init();
    } else {
        log.init();
    }
    Ok(())
}
