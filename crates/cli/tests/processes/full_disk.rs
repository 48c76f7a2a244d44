//! A file system without room for what is written.

use std::process::Command;

use crate::host::Host;
use crate::root::is_allowed;
use crate::seed::trials;
use crate::started::{Started, started_by};
use crate::support::{argument, command};

/// A command that finds a new file system of 64 KiB at a folder, in a mount namespace of its own, and says what is in the
/// folder afterwards.
fn on_a_small_disk(folder: &str, command: &Command) -> Command {
    let script = "mount -t tmpfs -o size=64k none \"$0\" || exit 99; \"$@\"; status=$?; \
                  echo \"left: $(ls -A \"$0\")\" >&2; exit $status";
    started_by(&["unshare", "--mount", "sh", "-c", script, folder], command)
}

#[test]
fn a_save_to_a_full_disk_says_so_leaves_no_file_and_the_devices_run_on() {
    if !is_allowed("a full disk", "unshare --mount sh -c 'mount -t tmpfs -o size=64k none /mnt'") {
        return;
    }
    trials("a_save_to_a_full_disk", 1, 1, |_, rng| {
        let host = Host::start();
        host.work(rng);
        let contents = host.contents();
        let folder = tempfile::tempdir().unwrap();
        let at = argument(folder.path());
        let path = argument(&folder.path().join("state"));
        let mut both = command(["save", "-o", &path]);
        both.args(host.targets());
        let raw = command(["save", "--raw", &host.devices[1].target, "-o", &path]);
        for save in [both, raw] {
            let run = Started::plain(on_a_small_disk(&at, &save)).end().failed();
            let run = run.says(&["ENOSPC", &path, "no partial file remains", "left: \n"]);
            host.assert_runs_with(&contents, &run.stderr);
        }
    });
}
