//! `whimbrel man`: manual pages, from the same definitions as the help.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, Command};
use clap_mangen::Man;
use serde::Serialize;

use crate::failure::Failure;
use crate::output::{self, Output};

/// Print a manual page, or write all of them to a folder
///
/// The pages say what `--help` says. Without a COMMAND the page is that of whimbrel itself.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    /// The command whose page is printed, such as send
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Option<String>,
    /// Write the pages of whimbrel and all its commands to this folder, as whimbrel.1, whimbrel-send.1 and so on
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

const AFTER_HELP: &str = "\
Examples:
  whimbrel man send | man -l -
  whimbrel man --dir /usr/local/share/man/man1";

/// A page, for scripts.
#[derive(Debug, Serialize)]
struct Page {
    name: String,
    text: String,
}

/// The files written, for scripts.
#[derive(Debug, Serialize)]
struct Written {
    dir: String,
    files: Vec<String>,
}

/// Runs the command on the definitions of the whole command line.
pub(crate) fn run(arguments: &Arguments, command_line: Command, output: Output) -> Result<(), Failure> {
    let pages = pages(command_line)?;
    if let Some(dir) = &arguments.dir {
        let cannot_write = |error: io::Error, path: &std::path::Path| {
            Failure::from_io(format!("cannot write {}", path.display()), &error)
        };
        fs::create_dir_all(dir).map_err(|error| cannot_write(error, dir))?;
        let mut files = Vec::new();
        for Page { name, text } in pages {
            let file = format!("{name}.1");
            let path = dir.join(&file);
            fs::write(&path, text).map_err(|error| cannot_write(error, &path))?;
            files.push(file);
        }
        let written = Written { dir: dir.display().to_string(), files };
        let text = format!("wrote {} to {}", output::names(&written.files), written.dir);
        return output.result(&written, text);
    }
    let name = match &arguments.command {
        Some(command) => format!("whimbrel-{command}"),
        None => "whimbrel".to_string(),
    };
    let commands: Vec<String> =
        pages.iter().filter_map(|page| page.name.strip_prefix("whimbrel-")).map(str::to_string).collect();
    let Some(page) = pages.into_iter().find(|page| page.name == name) else {
        return Err(Failure::usage(format!("no manual page {name}"))
            .hint(format!("the commands are {}", output::names(commands))));
    };
    output.result(&page, &page.text)
}

/// The page of the program, then those of its commands.
fn pages(mut command_line: Command) -> Result<Vec<Page>, Failure> {
    // Gives commands their full names, and options of all commands to each of them.
    command_line.build();
    let shown = command_line.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    let shown: Vec<Command> = shown.filter(|command| command.get_name() != "help").collect();
    std::iter::once(command_line).chain(shown).map(page).collect()
}

fn page(command: Command) -> Result<Page, Failure> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_string();
    let mut text = Vec::new();
    Man::new(command)
        .render(&mut text)
        .map_err(|error| Failure::from_io(format!("cannot write the page {name}"), &error))?;
    let text = String::from_utf8(text).map_err(|error| Failure::from_error(&error))?;
    Ok(Page { name, text })
}
