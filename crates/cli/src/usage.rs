//! Wrong usage: command lines that clap rejects, as text for people and as one JSON object for scripts.

use std::error::Error;
use std::ffi::OsStr;
use std::fmt;

use clap::error::ErrorKind;

use crate::failure::Failure;

/// The reason to reject an argument's value, with a hint. Value parsers return it; clap names argument and value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WrongValue {
    why: String,
    hint: &'static str,
}

impl WrongValue {
    /// A reason, which follows the name of the argument and its value, and what to write instead.
    pub(crate) fn new(why: impl Into<String>, hint: &'static str) -> WrongValue {
        WrongValue { why: why.into(), hint }
    }
}

impl fmt::Display for WrongValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

impl Error for WrongValue {}

/// Returns the option `--json` of a command whose program has stdout to itself, in place of the general one.
pub(crate) fn json_beside(help: &'static str) -> clap::Arg {
    let json = clap::Arg::new("json").long("json").action(clap::ArgAction::SetTrue);
    json.help(help).help_heading("General options").display_order(1000)
}

/// Returns whether `--json` is among the arguments. clap cannot tell for a command line that it rejects.
pub(crate) fn wants_json<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> bool {
    let mut arguments = arguments.into_iter();
    arguments
        .by_ref()
        .take_while(|argument| argument.as_ref() != "--")
        .any(|argument| argument.as_ref() == "--json")
}

/// Returns whether clap's error is requested help or a requested version.
pub(crate) fn is_answer(error: &clap::Error) -> bool {
    matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion)
}

/// Returns whether the command is missing. clap's own text for that names hidden commands.
fn lacks_command(error: &clap::Error) -> bool {
    let kinds = [ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, ErrorKind::MissingSubcommand];
    kinds.contains(&error.kind())
}

/// Returns whether people see clap's own text instead of the failure's.
pub(crate) fn is_shown_by_clap(error: &clap::Error) -> bool {
    error.kind() != ErrorKind::MissingSubcommand && hint(error).is_none()
}

/// The hint of a value parser, if the error comes from one that gives a hint.
fn hint(error: &clap::Error) -> Option<&'static str> {
    error.source()?.downcast_ref::<WrongValue>().map(|wrong| wrong.hint)
}

/// clap's error as a failure: its first paragraph is the message, tips and the usage line are the hint.
pub(crate) fn failure(error: &clap::Error) -> Failure {
    if lacks_command(error) {
        return Failure::usage("no command is given").hint("`whimbrel --help` lists the commands");
    }
    let text = error.render().to_string();
    let mut paragraphs = text.trim().split("\n\n").map(one_line);
    let message = paragraphs.next().unwrap_or_default();
    let rest: Vec<String> = paragraphs.filter(|line| !line.starts_with("For more information")).collect();
    let failure = Failure::usage(message.strip_prefix("error: ").unwrap_or(&message));
    match (hint(error), &rest[..]) {
        (Some(hint), _) => failure.hint(hint),
        (None, []) => failure.hint("`whimbrel --help` and `whimbrel COMMAND --help` say what is expected"),
        (None, rest) => failure.hint(rest.join("; ")),
    }
}

fn one_line(paragraph: &str) -> String {
    paragraph.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_by_the_option_and_not_by_what_follows_two_hyphens() {
        assert!(wants_json(["whimbrel", "probe", "--json"]));
        assert!(!wants_json(["whimbrel", "probe", "--jsonx"]));
        assert!(!wants_json(["whimbrel", "probe", "--", "--json"]));
    }
}
