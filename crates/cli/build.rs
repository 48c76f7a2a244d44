//! Tells the compiler the version that `whimbrel --version` prints: the package's, with the commit it was built from.
//!
//! The commit comes from the variable `WHIMBREL_COMMIT`, for packagers; else from the file that `cargo package` puts
//! into a published crate; else from git, if this folder is in a checkout of Whimbrel. Without any of them the version
//! stands alone.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Digits of a commit that are shown.
const DIGITS: usize = 12;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=WHIMBREL_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    let version = match given().or_else(packaged).or_else(checked_out) {
        Some(commit) => format!("{version} ({commit})"),
        None => version.to_string(),
    };
    println!("cargo:rustc-env=WHIMBREL_VERSION={version}");
}

fn given() -> Option<String> {
    let commit = std::env::var("WHIMBREL_COMMIT").ok()?;
    let commit = commit.trim();
    (!commit.is_empty() && !commit.contains(char::is_control)).then(|| commit.to_string())
}

fn packaged() -> Option<String> {
    // Watched only where it exists: a file that is missing would run this at every build.
    let text = fs::read_to_string(".cargo_vcs_info.json").ok()?;
    println!("cargo:rerun-if-changed=.cargo_vcs_info.json");
    let (_, rest) = text.split_once("\"sha1\"")?;
    shortened(rest.split('"').nth(1)?)
}

fn checked_out() -> Option<String> {
    // A crate that was unpacked into somebody else's repository is not of that repository's commit.
    (git(&["rev-parse", "--show-prefix"])? == "crates/cli/").then_some(())?;
    let commit = shortened(&git(&["rev-parse", "HEAD"])?);
    let branch = git(&["symbolic-ref", "-q", "HEAD"]);
    // HEAD changes with the branch, the branch's own file or the packed ones with its commit, and git's log with both.
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        if let Some(path) = git(&["rev-parse", "--git-path", name])
            && Path::new(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    commit
}

fn shortened(commit: &str) -> Option<String> {
    let is_commit = commit.len() >= DIGITS && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_commit.then(|| commit[..DIGITS].to_string())
}

/// The one line that git prints, if it succeeds.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end().to_string())
}
