//! `whimbrel completions`: a script that completes the command line in a shell.

use clap::{Args, Command};
use clap_complete::Shell;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;

/// Print a script that completes this command line in a shell
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel completions bash > ~/.local/share/bash-completion/completions/whimbrel
  whimbrel completions zsh > ~/.zfunc/_whimbrel
  whimbrel completions fish > ~/.config/fish/completions/whimbrel.fish";

/// The result, for scripts.
#[derive(Debug, Serialize)]
struct Completions {
    shell: String,
    script: String,
}

/// Runs the command on the definitions of the whole command line.
pub(crate) fn run(arguments: &Arguments, mut command_line: Command, output: Output) -> Result<(), Failure> {
    let name = command_line.get_name().to_string();
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command_line, name, &mut script);
    let script = String::from_utf8(script).map_err(|error| Failure::from_error(&error))?;
    let completions = Completions { shell: arguments.shell.to_string(), script };
    output.result(&completions, &completions.script)
}
