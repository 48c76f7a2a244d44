//! Both directions of a migration, held against each other by the document's table of rows.

use serde_json::Value;

use super::account::{Account, account_start};
use super::{Said, decode_start};

/// What both sides wrote. A side that the test plays by hand wrote nothing that counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Streams<'a> {
    pub(crate) from_source: Option<&'a [u8]>,
    pub(crate) from_destination: Option<&'a [u8]>,
}

/// Checks whatever was written, up to wherever it ended, and returns what came from the source.
pub(crate) fn check(streams: Streams<'_>) -> Result<Account, String> {
    let read = |stream: Option<&[u8]>, side: &str| match stream {
        // Nothing at all, from a side that failed before it spoke.
        Some(stream) if !stream.is_empty() => decode_start(stream)
            .map(|(said, _)| Some(said))
            .map_err(|what| format!("the {side}'s stream: {what}")),
        other => Ok(other.map(|_| Vec::new())),
    };
    let asked = read(streams.from_source, "source")?;
    let answers = read(streams.from_destination, "destination")?;
    let accepted = answers.iter().flatten().find_map(|said| match said {
        Said::Accept(accept) => Some(accept["features"].clone()),
        _ => None,
    });
    let account = account_start(asked.as_deref().unwrap_or_default(), accepted.as_ref())
        .map_err(|what| format!("from the source: {what}"))?;
    if let Some(answers) = answers {
        check_answers(&answers, asked.as_deref(), &account)
            .map_err(|what| format!("from the destination: {what}"))?;
    }
    Ok(account)
}

fn check_answers(answers: &[Said], asked: Option<&[Said]>, account: &Account) -> Result<(), String> {
    // How far the rows have come, by what was answered.
    let (mut row, mut round) = (0, 0);
    for (index, answer) in answers.iter().enumerate() {
        let (from, to) = match answer {
            Said::Accept(_) => (0, 1),
            Said::Fits(_) => (1, 2),
            Said::RoundDone { number } if *number == round + 1 => {
                round = *number;
                (2, 2)
            }
            Said::Pong { .. } => (2, 2),
            Said::Ready(_) => (2, 3),
            Said::Running(_) => (3, 4),
            Said::Failed(_) if row < 4 && index + 1 == answers.len() => (row, 5),
            other => return Err(format!("{} is no answer here", other.name())),
        };
        if row != from {
            return Err(format!("{} out of order", answer.name()));
        }
        row = to;
    }
    let Some(asked) = asked else { return Ok(()) };
    let has = |is: fn(&Said) -> bool| asked.iter().any(is);
    let is_asked = |answer: &Said| match answer {
        Said::Accept(_) => has(|said| matches!(said, Said::Hello(_))),
        Said::Fits(_) => account.table != Value::Null,
        Said::RoundDone { number } => *number <= account.rounds,
        Said::Pong { id } => account.pings.contains(id),
        Said::Ready(_) => account.is_ended,
        Said::Running(_) => account.is_handed_over,
        _ => true,
    };
    match answers.iter().find(|answer| !is_asked(answer)) {
        Some(answer) => Err(format!("{} without a request", answer.name())),
        None => Ok(()),
    }
}
