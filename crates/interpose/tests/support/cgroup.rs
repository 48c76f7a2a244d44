//! A control group of version 2, whose processes can be frozen.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// A group with a process, until it is dropped. The process must have ended by then.
pub(crate) struct Group(PathBuf);

impl Group {
    /// Moves a process into a new group below that of this process. Fails where groups cannot be made.
    pub(crate) fn with(process: u32) -> io::Result<Group> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no cgroup2 is mounted");
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).ok_or_else(missing)?;
        let mount = mount.split(' ').nth(4).ok_or_else(missing)?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or_else(missing)?;
        let name = format!("whimbrel-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let group = Group(Path::new(mount).join(own).join(name));
        fs::create_dir(&group.0)?;
        fs::write(group.0.join("cgroup.procs"), process.to_string())?;
        // A kernel before 5.2 has no such file.
        fs::write(group.0.join("cgroup.freeze"), "0")?;
        Ok(group)
    }

    /// Freezes the processes, and returns once they stand still.
    pub(crate) fn freeze(&self) {
        self.set("1");
        let deadline = Instant::now() + Duration::from_mins(1);
        while !fs::read_to_string(self.0.join("cgroup.events")).unwrap().contains("frozen 1") {
            assert!(Instant::now() < deadline, "the processes do not freeze");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets the processes go on.
    pub(crate) fn thaw(&self) {
        self.set("0");
    }

    fn set(&self, value: &str) {
        fs::write(self.0.join("cgroup.freeze"), value).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
        // A process that has just ended may still be in it.
        let deadline = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && self.0.exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
