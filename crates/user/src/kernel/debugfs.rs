//! A device's migration state in the kernel's debugfs: a second source, besides the device fd.

use std::fs;
use std::path::Path;

use super::sysfs::HostDevice;

/// Mount point of debugfs.
const DEBUGFS: &str = "/sys/kernel/debug";

/// The migration of a device, as debugfs reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MigrationDebug {
    /// The state, as the kernel writes it: `RUNNING`, `STOP_COPY` and so on.
    pub state: String,
    /// The supported features, as the kernel writes them, such as `pre-copy`; `None` for a kernel that does not report
    /// them.
    pub features: Option<Vec<String>>,
}

impl HostDevice {
    /// Returns the device's migration from debugfs.
    ///
    /// `None` without debugfs, without permission to read it, and for a device or a kernel (before 6.9, or without
    /// CONFIG_VFIO_DEBUGFS) without an entry.
    pub fn migration_debug(&self) -> Option<MigrationDebug> {
        read(Path::new(DEBUGFS), &self.name)
    }
}

fn read(debugfs: &Path, name: &str) -> Option<MigrationDebug> {
    let folder = debugfs.join("vfio").join(name).join("migration");
    let state = fs::read_to_string(folder.join("state")).ok()?.trim().to_string();
    let features = fs::read_to_string(folder.join("features")).ok();
    let features = features.map(|text| text.split_whitespace().map(str::to_string).collect());
    Some(MigrationDebug { state, features })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "0000:3b:00.2";

    #[test]
    fn state_and_features_are_read_where_the_kernel_has_them() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("vfio").join(NAME).join("migration");
        assert_eq!(read(root.path(), NAME), None);
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(read(root.path(), NAME), None);
        fs::write(folder.join("state"), "PRE_COPY_P2P\n").unwrap();
        let mut told = MigrationDebug { state: "PRE_COPY_P2P".into(), features: None };
        assert_eq!(read(root.path(), NAME).as_ref(), Some(&told));
        fs::write(folder.join("features"), "stop-copy\np2p\npre-copy\n").unwrap();
        told.features = Some(vec!["stop-copy".into(), "p2p".into(), "pre-copy".into()]);
        assert_eq!(read(root.path(), NAME), Some(told));
    }
}
