//! fio on the image itself.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::load::Load;
use super::{IMAGE, Result};

pub(crate) fn is_installed() -> bool {
    let is_installed = Command::new("fio")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !is_installed {
        println!("fio is missing (apt-get install fio): the image itself is skipped");
    }
    is_installed
}

/// Runs a load through io_uring and the page cache, as the model does, and returns its rate of operations in a second.
pub(crate) fn run(load: &Load, image: &Path, time: Duration) -> Result<f64> {
    let kind = match (load.is_random, load.is_write) {
        (true, false) => "randread",
        (true, true) => "randwrite",
        (false, false) => "read",
        (false, true) => "write",
    };
    let output = Command::new("fio")
        .args(["--name=image", "--ioengine=io_uring", "--direct=0", "--invalidate=0", "--time_based"])
        .args(["--norandommap", "--randrepeat=0", "--output-format=json", "--fallocate=none"])
        .arg(format!("--filename={}", image.display()))
        .arg(format!("--rw={kind}"))
        .arg(format!("--size={IMAGE}"))
        .arg(format!("--bs={}", load.bytes))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--runtime={}ms", time.as_millis()))
        .stderr(Stdio::inherit())
        .output()?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let side = if load.is_write { "write" } else { "read" };
    Ok(report["jobs"][0][side]["iops"].as_f64().ok_or("fio has reported no rate")?)
}
