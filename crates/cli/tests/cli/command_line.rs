//! What holds for every command: exit statuses, where results go, help.

use std::fs::File;
use std::process::Stdio;

use crate::support::{command, finish, keys, whimbrel};

const COMMANDS: [&str; 20] = [
    "demo",
    "devices",
    "probe",
    "save",
    "restore",
    "send",
    "receive",
    "resolve",
    "state",
    "reset",
    "serve",
    "conform",
    "fsm",
    "inspect",
    "abi",
    "check",
    "run",
    "trace",
    "completions",
    "man",
];

/// Wrong usage: the arguments, what the error says, and what the hint says.
const WRONG: [(&[&str], &str, &str); 94] = [
    (&["fly"], "unrecognized subcommand 'fly'", "Usage: whimbrel"),
    (&["devices", "extra"], "unexpected argument 'extra'", "Usage: whimbrel devices"),
    (&["devices", "--no-opne"], "unexpected argument '--no-opne'", "'--no-open'"),
    (&["probe"], "<TARGET>", "Usage: whimbrel probe"),
    (&["save", "model:serial"], "--output <FILE>", "Usage: whimbrel save"),
    (&["restore", "model:serial"], "--input <FILE>", "Usage: whimbrel restore"),
    (&["send", "model:serial"], "--to <ADDR>", "Usage: whimbrel send"),
    (&["send", "--to", "a:1"], "<TARGET>...", "Usage: whimbrel send"),
    (
        &["send", "vfio-user:a", "vfio-user:a", "--to", "127.0.0.1:1"],
        "vfio-user:a is given twice",
        "each device once",
    ),
    (&["save", "model:serial", "model:accel", "--raw", "-o", "x"], "of a single device", "omit --raw"),
    (&["restore", "model:serial", "model:accel", "--raw", "-i", "x"], "of a single device", "omit --raw"),
    (&["receive", "model:serial"], "--listen <ADDR>", "Usage: whimbrel receive"),
    (&["resolve"], "--journal <FILE>", "Usage: whimbrel resolve"),
    (&["state"], "<TARGET>", "Usage: whimbrel state"),
    (&["reset"], "<TARGET>", "Usage: whimbrel reset"),
    (&["serve", "serial"], "--socket <PATH>", "Usage: whimbrel serve"),
    (&["abi"], "--check <HEADER>", "Usage: whimbrel abi"),
    (&["trace", "--summary"], "<PROGRAM>...", "Usage: whimbrel trace"),
    (&["conform"], "<TARGET>", "Usage: whimbrel conform"),
    (&["conform", "vfio-user:a", "vfio-user:a"], "vfio-user:a is given twice", "each device once"),
    (&["conform", "program:"], "the command is missing", "program:'./driver --option'"),
    (&["conform", "model:serial", "--only", "v3/*"], "no case matches 'v3/*'", "conform --list"),
    (&["conform", "model:serial", "--only", "***"], "invalid pattern '***'", "--help"),
    (
        &["conform", "model:serial", "--level", "may"],
        "expected one of must, should, kernel, robust",
        "--help",
    ),
    (&["conform", "model:serial", "--repeat", "0"], "'--repeat <N>'", "--help"),
    (&["conform", "model:serial", "--allow", "all"], "possible values: reset, hang", "--help"),
    (&["conform", "model:serial", "--dry-run", "--format", "ktap"], "either text or JSON", "omit --format"),
    (&["conform", "--list", "model:serial"], "cannot be used with", "Usage: whimbrel conform"),
    // Targets, wherever one stands.
    (&["probe", ""], "the name of the device is missing", "a TARGET is"),
    (&["probe", "vfio0"], "neither a PCI address nor a UUID", "a TARGET is"),
    (&["probe", "group:12"], "invalid value 'group:12' for '<TARGET>'", "a TARGET is"),
    (&["probe", "cdev:"], "the path is missing", "a TARGET is"),
    (&["probe", "vfio-user:"], "the socket is missing", "a TARGET is"),
    (&["save", "nothing", "-o", "/dev/null"], "invalid value 'nothing'", "a TARGET is"),
    (&["restore", "nothing", "-i", "/dev/null"], "invalid value 'nothing'", "a TARGET is"),
    (&["send", "nothing", "--to", "127.0.0.1:1"], "invalid value 'nothing'", "a TARGET is"),
    (&["receive", "nothing", "--listen", "127.0.0.1:0"], "invalid value 'nothing'", "a TARGET is"),
    (&["state", "nothing"], "invalid value 'nothing' for '<TARGET>'", "a TARGET is"),
    (&["reset", "nothing"], "invalid value 'nothing' for '<TARGET>'", "a TARGET is"),
    (&["fsm", "--walk", "nothing"], "invalid value 'nothing' for '--walk <TARGET>'", "a TARGET is"),
    (&["demo", "--device", "nothing"], "invalid value 'nothing'", "a TARGET is"),
    (&["demo", "--destination", "nothing"], "invalid value 'nothing'", "a TARGET is"),
    // Models and their settings.
    (
        &["probe", "model:toaster"],
        "unknown model 'toaster': expected one of serial, accel",
        "models are serial",
    ),
    (
        &["probe", "model:serial?ports=9"],
        "'9' for ports (model serial): expected 1 or 2",
        "models are serial",
    ),
    (&["probe", "model:accel?state=1"], "'1' for state (model accel): expected 1KiB", "models are serial"),
    (&["probe", "model:accel?state=lots"], "expected a number of bytes", "models are serial"),
    (&["probe", "model:accel?rate=x"], "'x' for rate (model accel)", "models are serial"),
    (&["probe", "model:accel?colour=red"], "unknown setting colour", "models are serial"),
    (&["probe", "model:legacy?section=1"], "'1' for section (model legacy)", "models are serial"),
    (&["serve", "card", "--socket", "s"], "unknown model 'card'", "models are serial"),
    (&["serve", "accel?state=1", "--socket", "s"], "'1' for state (model accel)", "models are serial"),
    // Addresses.
    (&["send", "model:serial", "--to", "nowhere"], "'--to <ADDR>': expected HOST:PORT", "--help"),
    (&["send", "model:serial", "--to", "::1:80"], "[IPV6]:PORT", "--help"),
    (&["send", "model:serial", "--to", "unix:"], "unix:PATH", "--help"),
    (&["receive", "model:serial", "--listen", "host:99999"], "'--listen <ADDR>'", "--help"),
    // Connections that others on the network could read and change.
    (&["send", "model:serial", "--to", "other:1"], "other:1 is on a network", "--insecure"),
    (&["receive", "model:serial", "--listen", "[::]:1"], "[::]:1 is on a network", "--tls-cert"),
    (&["send", "model:serial", "--to", "other:1", "--tls-cert", "a"], "--tls-key <FILE>", "Usage:"),
    (
        &[
            "send",
            "model:serial",
            "--to",
            "other:1",
            "--tls-cert=a",
            "--tls-key=b",
            "--tls-ca=c",
            "--insecure",
        ],
        "cannot be used with",
        "Usage:",
    ),
    (
        &[
            "send",
            "model:serial",
            "--to",
            "other:1",
            "--tls-cert=a",
            "--tls-key=b",
            "--tls-ca=c",
            "--tls-peer=a b",
        ],
        "'a b' is neither a DNS name nor an IP address",
        "certificate",
    ),
    // Sizes, rates, counts and times.
    (&["demo", "--memory", "lots"], "expected a number of bytes", "--help"),
    (&["demo", "--memory", "1MiB"], "expected at least 16.00 MiB", "--help"),
    (&["demo", "--memory", "300000GiB"], "both hosts of the demo allocate it", "--help"),
    (&["demo", "--dirty-rate", "5"], "expected at least 1MiB", "--help"),
    (&["serve", "serial", "--socket", "s", "--client-memory", "1T"], "expected a number of bytes", "--help"),
    (
        &["serve", "serial", "--socket", "s", "--reset-rule", "keeps"],
        "expected ends-migration or keeps-precopy",
        "--help",
    ),
    (&["send", "model:serial", "--to", "a:1", "--timeout", "0"], "'--timeout <SECONDS>'", "--help"),
    (&["send", "model:serial", "--to", "a:1", "--downtime-limit", "1s"], "'--downtime-limit <MS>'", "--help"),
    (&["send", "model:serial", "--to", "a:1", "--patience", "-1"], "unexpected argument '-1'", "Usage:"),
    (&["receive", "model:serial", "--listen", "a:1", "--timeout", "soon"], "'--timeout <SECONDS>'", "--help"),
    (&["send", "model:serial", "--to", "unix:a", "--bandwidth", "1"], "expected at least 64KiB", "--help"),
    (&["send", "model:serial", "--to", "unix:a", "--channels", "17"], "'--channels <N>'", "--help"),
    (&["receive", "model:serial", "--listen", "a:1", "--channels", "0"], "'--channels <N>'", "--help"),
    (
        &["receive", "model:serial", "--listen", "unix:a", "--receive-memory", "1MiB"],
        "expected at least 4MiB",
        "--help",
    ),
    (
        &["send", "model:serial", "--to", "unix:a", "--on-timeout", "never"],
        "possible values: cancel, switch, ignore",
        "--help",
    ),
    // Faults.
    (&["serve", "serial", "--socket", "s", "--fault", "explode"], "invalid fault 'explode'", "--help"),
    // States.
    (&["fsm"], "<FROM>", "Usage: whimbrel fsm"),
    (&["fsm", "RUNNING"], "<TO>", "Usage: whimbrel fsm"),
    (&["fsm", "RUNNING", "FLYING"], "RUNNING_P2P, PRE_COPY, PRE_COPY_P2P", "--help"),
    (&["save", "model:serial", "-o", "f", "--timeout", "0"], "'--timeout <SECONDS>'", "--help"),
    (&["restore", "model:serial", "-i", "f", "--timeout", "soon"], "'--timeout <SECONDS>'", "--help"),
    (&["state", "model:serial", "--timeout", "86401"], "'--timeout <SECONDS>'", "--help"),
    (&["reset", "model:serial", "--timeout", "-1"], "unexpected argument '-1'", "Usage:"),
    (&["state", "model:serial", "FLYING"], "RUNNING_P2P, PRE_COPY, PRE_COPY_P2P", "--help"),
    (&["reset", "model:serial", "RUNNING"], "unexpected argument 'RUNNING'", "Usage: whimbrel reset"),
    (&["fsm", "--table", "--features", "warp"], "possible values: stop-copy, p2p, pre-copy", "--help"),
    (&["fsm", "--walk", "model:serial", "--timeout", "0"], "'--timeout <SECONDS>'", "--help"),
    (&["completions", "tcsh"], "possible values: bash, elvish, fish", "tip: a similar value exists"),
    (&["man", "fly"], "no manual page whimbrel-fly", "the commands are demo, devices"),
    // Arguments that do not fit together.
    (&["fsm", "--table", "--force"], "cannot be used with", "Usage: whimbrel fsm"),
    (&["fsm", "--force", "--walk"], "a value is required for '--walk <TARGET>'", "--help"),
    (&["man", "send", "--dir", "d"], "cannot be used with", "Usage: whimbrel man"),
    (&["demo", "--device", "vfio-user:a"], "is a single device", "give --destination"),
    (
        &["send", "model:serial", "--to", "unix:a", "--downtime-max", "299"],
        "--downtime-max is less than --downtime-limit (300 ms)",
        "omit --downtime-max",
    ),
];

#[test]
fn wrong_usage_is_status_2_with_the_reason_on_stderr_and_nothing_on_stdout() {
    for (arguments, said, _) in WRONG {
        let run = whimbrel(arguments).misused();
        let told = run.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(told.contains(said), "{arguments:?}: {}", run.stderr);
        assert!(run.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn wrong_usage_with_json_is_an_object_on_stdout_too() {
    for (arguments, said, hint) in WRONG {
        let run = whimbrel(arguments.iter().chain(&["--json"])).misused();
        let value = run.json();
        assert_eq!(keys(&value), ["error", "hint"], "{arguments:?}");
        assert!(value["error"].as_str().unwrap().contains(said), "{arguments:?}: {value}");
        assert!(value["hint"].as_str().unwrap().contains(hint), "{arguments:?}: {value}");
    }
}

#[test]
fn without_a_command_the_help_is_shown_and_the_status_is_2() {
    let run = whimbrel::<&str>([]);
    assert_eq!(run.status, 2);
    assert!(run.stderr.contains("Usage: whimbrel") && run.stdout.is_empty(), "{run:?}");
    let run = whimbrel(["--json"]).misused();
    assert_eq!(run.json()["error"], "no command is given");
}

#[test]
fn every_command_has_help_with_an_example() {
    for name in COMMANDS {
        let run = whimbrel([name, "--help"]).succeeded();
        assert!(run.text().contains("Usage: whimbrel"), "{name}");
        assert!(
            run.text().contains(&format!("  whimbrel {name} ")) || name == "devices",
            "{name}: {}",
            run.text()
        );
    }
    assert!(whimbrel(["--help"]).succeeded().text().contains("A TARGET names a device:"));
}

#[test]
fn wrong_usage_names_argument_and_value_and_gives_a_hint() {
    let run = whimbrel(["probe", "model:toaster"]).misused();
    assert_eq!(
        run.stderr,
        "error: invalid value 'model:toaster' for '<TARGET>': unknown model 'toaster': expected one of serial, accel, \
         legacy, nvme\n\
         hint: models are serial[?ports=1|2&answers=vfio-pci|mtty], \
         accel[?state=SIZE&rate=SIZE&features=LIST&config=optional|required], both of them with \
         protocol=v2|v1|draft, legacy[?state=SIZE&rate=SIZE&section=SIZE], and \
         nvme?image=PATH[&size=SIZE&readonly=yes|no&queues=N]\n"
    );
}

#[test]
fn a_failure_is_status_1_with_its_reason_on_stderr_and_nothing_on_stdout() {
    let run = whimbrel(["inspect", "/no/such/file"]).failed();
    assert!(run.stdout.is_empty());
    assert_eq!(run.stderr, "error: cannot open /no/such/file: ENOENT: No such file or directory\n");
}

#[test]
fn with_json_a_failure_is_an_object_on_stdout_too() {
    let run = whimbrel(["probe", "cdev:/no/such/file", "--json"]).failed().says(&["error: "]);
    let value = run.json();
    assert_eq!(keys(&value), ["error", "hint"]);
    assert!(value["error"].as_str().unwrap().contains("/no/such/file"));
    assert!(value["hint"].is_string());
}

#[test]
fn the_option_json_may_stand_before_the_command() {
    whimbrel(["--json", "probe", "model:serial"]).succeeded().json();
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = command(["fsm", "--table"]);
    command.stdout(writer);
    let run = finish(command).succeeded();
    assert_eq!(run.stderr, "");
}

#[test]
fn a_result_that_cannot_be_written_is_a_failure() {
    let mut command = command(["fsm", "--table"]);
    command.stdout(File::options().write(true).open("/dev/full").unwrap());
    finish(command).failed().says(&["cannot write the result to stdout: ENOSPC"]);
}

#[test]
fn a_closed_stderr_stops_nothing() {
    let mut child = command(["save", "model:serial", "-o", "-"])
        .stdout(Stdio::null())
        .stderr({
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            writer
        })
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_log_goes_to_stderr_and_only_when_asked_for() {
    let quiet = whimbrel(["probe", "model:serial"]).succeeded();
    assert_eq!(quiet.stderr, "");
    let verbose = whimbrel(["probe", "model:serial", "-vvv"]).succeeded();
    assert_eq!(verbose.stdout, quiet.stdout);
}

#[test]
fn a_wrong_log_filter_is_told() {
    for filter in ["whimbrel=loud", "debgu", "debug,", "[span]=info", ",,"] {
        let mut command = command(["fsm", "--table"]);
        command.env("WHIMBREL_LOG", filter);
        let invalid = format!("invalid value '{filter}' for WHIMBREL_LOG: ");
        finish(command).misused().says(&[&invalid, "hint: "]);
    }
    for filter in ["", "debug", "off", "whimbrel_engine=trace", "info, whimbrel_user=trace"] {
        let mut command = command(["fsm", "--table"]);
        command.env("WHIMBREL_LOG", filter);
        finish(command).succeeded();
    }
}

#[test]
fn completions_know_every_command_in_each_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let run = whimbrel(["completions", shell]).succeeded();
        for name in COMMANDS {
            assert!(run.text().contains(name), "{shell}: {name}");
        }
        let value = whimbrel(["completions", shell, "--json"]).succeeded().json();
        assert_eq!(keys(&value), ["script", "shell"]);
        assert_eq!(value["script"].as_str().unwrap().trim_end(), run.text().trim_end());
    }
}

#[test]
fn bash_completes_commands_and_options() {
    let script = r#"
        eval "$("$0" completions bash)"
        COMP_WORDS=(whimbrel "$@"); COMP_CWORD=$#
        _whimbrel whimbrel "${@: -1}" "${@: -2:1}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    for (words, completed) in
        [(&["pro"][..], "probe"), (&["send", "--down"], "--downtime-limit\n--downtime-max")]
    {
        let mut bash = std::process::Command::new("bash");
        bash.args(["-c", script, env!("CARGO_BIN_EXE_whimbrel")]).args(words);
        assert_eq!(finish(bash).succeeded().text().trim(), completed, "{words:?}");
    }
}

#[test]
fn there_is_a_manual_page_for_each_command_and_none_for_hidden_ones() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("man1").to_str().unwrap().to_string();
    let value = whimbrel(["man", "--dir", &at, "--json"]).succeeded().json();
    assert_eq!(keys(&value), ["dir", "files"]);
    let mut expected: Vec<String> = COMMANDS.iter().map(|name| format!("whimbrel-{name}.1")).collect();
    expected.push("whimbrel.1".into());
    expected.sort_unstable();
    let mut written: Vec<String> = std::fs::read_dir(&at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort_unstable();
    assert_eq!(written, expected);
    for name in COMMANDS {
        let page = whimbrel(["man", name]).succeeded();
        let file = std::fs::read_to_string(format!("{at}/whimbrel-{name}.1")).unwrap();
        assert_eq!(page.text().trim_end(), file.trim_end());
        assert!(file.contains(".SH SYNOPSIS") && file.contains("Examples:"), "{file}");
    }
    assert!(whimbrel(["man"]).succeeded().text().contains("A TARGET names a device:"));
}

#[test]
fn the_version_has_the_commit_where_it_is_known() {
    let run = whimbrel(["--version"]).succeeded();
    let version = run.text().trim_end().strip_prefix("whimbrel ").unwrap();
    let (version, commit) = version.split_once(' ').unwrap_or((version, ""));
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
    let git = std::process::Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let known = match (option_env!("WHIMBREL_COMMIT"), git) {
        (Some(given), _) => format!("({given})"),
        (None, Ok(git)) if git.status.success() => {
            format!("({})", String::from_utf8(git.stdout).unwrap().trim_end())
        }
        (None, _) => String::new(),
    };
    assert_eq!(commit, known);
}
