//! The kernel's log: a new warning, bug or report of a sanitizer in it fails the case that ran.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use whimbrel_protocol::Errno;

use super::Witness;

/// The file.
const KMSG: &str = "/dev/kmsg";
/// The largest record that the kernel returns, and more.
const RECORD: usize = 8192;
/// Records read at once: a kernel that writes faster than this process reads must not keep it.
const MAX_RECORDS: usize = 100_000;
/// Lines returned at once. The first ones tell what has happened.
const MAX_LINES: usize = 20;

/// Beginnings of messages that tell of a defect. What stands before them, such as `rcu: `, is left aside.
const DEFECTS: [&str; 14] = [
    "WARNING: ",
    "BUG: ",
    "KASAN: ",
    "KCSAN: ",
    "KFENCE: ",
    "UBSAN: ",
    "Oops: ",
    "Kernel panic",
    "general protection fault",
    "kernel BUG at ",
    "Unable to handle kernel",
    "INFO: task ",
    "INFO: rcu",
    "refcount_t: ",
];

/// The kernel's log from now on, read through `/dev/kmsg`.
#[derive(Debug)]
pub struct KernelLog(Result<File, Errno>);

impl KernelLog {
    /// Opens the log at its end. Without the right to read it, [`Witness::notice`] says so.
    pub fn open() -> KernelLog {
        KernelLog::at(Path::new(KMSG))
    }

    fn at(path: &Path) -> KernelLog {
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let opened = File::options().read(true).custom_flags(nonblocking).open(path).and_then(|mut file| {
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        });
        KernelLog(opened.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::EIO)))
    }
}

impl Witness for KernelLog {
    fn found(&mut self) -> Vec<String> {
        let Ok(file) = &mut self.0 else { return Vec::new() };
        let mut found = Vec::new();
        let mut record = [0; RECORD];
        for _ in 0..MAX_RECORDS {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(count) => found.extend(defect(&String::from_utf8_lossy(&record[..count]))),
                // Records were overwritten before they were read. The next read returns the oldest one that is left.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::EPIPE) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        found.truncate(MAX_LINES);
        found
    }

    fn notice(&self) -> Option<String> {
        let errno = self.0.as_ref().err()?;
        Some(format!("the kernel's log is not watched: cannot open {KMSG}: {errno}"))
    }
}

/// Returns the message of a record that tells of a defect, as a line of the report. A record is
/// `priority,sequence,microseconds,flags;message`, with continuation lines of its dictionary.
fn defect(record: &str) -> Option<String> {
    let (head, message) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // Only the kernel itself has facility 0: another process may write what it likes.
    let is_kernels = priority >> 3 == 0;
    let message = message.lines().next()?.trim();
    let tells = DEFECTS.iter().any(|beginning| {
        message.match_indices(beginning).any(|(at, _)| at == 0 || message[..at].ends_with(": "))
    });
    (is_kernels && tells).then(|| format!("kernel log: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_defects_that_the_kernel_itself_reports_count() {
        for message in [
            "WARNING: CPU: 0 PID: 71 at drivers/vfio/vfio_main.c:1 vfio_x+0x1/0x2 [vfio]",
            "WARNING: possible circular locking dependency detected",
            "BUG: KASAN: slab-out-of-bounds in mtty_write+0x1/0x2",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 26s!",
            "INFO: task whimbrel:71 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "Oops: 0000 [#1] PREEMPT SMP",
            "Oops: general protection fault, probably for non-canonical address",
            "UBSAN: shift-out-of-bounds in x.c:1:2",
        ] {
            let record = format!("4,1234,5678,-;{message}\n SUBSYSTEM=pci\n");
            assert_eq!(defect(&record), Some(format!("kernel log: {message}")));
            let written = format!("12,1234,5678,-;{message}\n");
            assert_eq!(defect(&written), None, "another process wrote it");
        }
        for message in ["mtty: device opened", "usb 1-1: warning", "this is no WARNING: at all", ""] {
            assert_eq!(defect(&format!("6,1,2,-;{message}\n")), None, "{message}");
        }
        for record in ["", "x", "x;WARNING: y", ",;BUG: z"] {
            assert_eq!(defect(record), None, "{record}");
        }
    }

    #[test]
    fn a_log_that_cannot_be_read_is_told() {
        let mut log = KernelLog::at(Path::new("/no/such/file"));
        assert_eq!(log.found(), Vec::<String>::new());
        assert!(log.notice().is_some_and(|notice| notice.contains("ENOENT")), "{:?}", log.notice());
    }
}
