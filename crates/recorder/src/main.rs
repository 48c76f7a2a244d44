//! Asks the running kernel a list of requests and prints its answers, a request a line. README.md says how.

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use whimbrel_recorder::{RECORDINGS, Recording};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (Some(name), None) = (arguments.next(), arguments.next()) else {
        let names: Vec<&str> = RECORDINGS.iter().map(|recording| recording.name).collect();
        eprintln!("usage: record {}", names.join("|"));
        return ExitCode::from(2);
    };
    let Some(recording) = Recording::named(&name) else {
        eprintln!("unknown recording {name}");
        return ExitCode::from(2);
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    recording.ask(|line| {
        if written.is_ok() {
            written = writeln!(out, "{line}");
        }
    });
    match written.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot write the answers: {error}");
            ExitCode::FAILURE
        }
    }
}
