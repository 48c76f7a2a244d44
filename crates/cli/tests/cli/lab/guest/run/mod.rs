//! Guests whose QEMU runs under `whimbrel run`: to it our models are devices of the host, which it has by its vfio-pci.

mod counters;
mod disk;
mod downtime;
mod faults;
mod kvm;
mod migration;
mod requests;
mod traces;
mod users;
mod work;

use std::io::Write;
use std::process::Command;

use super::{ECHO, Guest, UIO, returned};
use crate::lab::machine::{is_ready, succeeded};
use crate::run::can_run;

/// Which QEMU a guest has, and how that opens devices.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The lab's newest QEMU, by groups and a container.
    Group,
    /// The same by the devices' own files and an iommufd.
    Iommufd,
    /// The lab's QEMU 10, by groups and a container.
    Group10,
    /// The same by the devices' own files and an iommufd.
    Iommufd10,
    /// The system's QEMU, by groups: 7.2 on Debian 12, the last that migrates by v1.
    System,
}

impl Way {
    const ALL: [Way; 5] = [Way::Group, Way::Iommufd, Way::Group10, Way::Iommufd10, Way::System];
    /// Those by which devices migrate by v2.
    const BY_V2: [Way; 4] = [Way::Group, Way::Iommufd, Way::Group10, Way::Iommufd10];

    fn is_v1(self) -> bool {
        matches!(self, Way::System)
    }

    /// A guest without devices; `None` where there can be none.
    fn guest(self) -> Option<Guest> {
        let options: &[&str] = match self {
            Way::Group => &[],
            Way::Iommufd => &["--iommufd"],
            Way::Group10 => &["--qemu", "10"],
            Way::Iommufd10 => &["--qemu", "10", "--iommufd"],
            Way::System => &["--qemu", "system"],
        };
        if !can_run("guests of QEMU under run") {
            return None;
        }
        if matches!(self, Way::Group10 | Way::Iommufd10) && !is_ready("qemu-10") {
            return None;
        }
        Some(Guest::new()?.with(&["--memory", "256"]).with(options))
    }
}

/// Whether the system's QEMU migrates by v1, as all before 8.0. If not, it is said what is unproven then.
fn has_v1() -> bool {
    let version = Command::new("qemu-system-x86_64").arg("--version").output();
    let version =
        version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let major =
        version.split("version ").nth(1).and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if major.is_some_and(|major| major >= 8) {
        let line = format!(
            "UNPROVEN: guests that migrate by v1: the system has {}\n",
            version.lines().next().unwrap_or_default()
        );
        // Past the test harness, which shows what a test prints only when it fails.
        let _ = std::io::stderr().write_all(line.as_bytes());
        return false;
    }
    true
}

#[test]
#[ignore = "long"]
fn a_guest_uses_a_serial_card_by_its_stock_driver_and_an_engine_by_uio() {
    for way in Way::ALL {
        for options in [&[][..], &["--no-descriptors"]] {
            let Some(guest) = way.guest() else { return };
            let guest =
                guest.with(options).with_jobs().give("serial?ports=2", "").give("accel?state=1MiB", "");
            let lines = format!(
                "{ECHO} {UIO} echo_all 0000:00:10.0 8192; uio 0000:00:11.0; ./jobs uio 0000:00:11.0 intx 2000"
            );
            let text = succeeded(&guest.script(&lines));
            assert!(text.starts_with(&returned(8192)), "{way:?} {options:?}: {text}");
            assert!(text.contains("2000 jobs done, "), "{way:?} {options:?}: {text}");
        }
    }
}

#[test]
#[ignore = "long"]
fn an_engine_works_for_the_guests_own_vfio_pci_behind_its_iommu() {
    for way in Way::ALL {
        for (kernel, opens) in [("debian", &["group"][..]), ("iommufd", &["group", "cdev"])] {
            if !is_ready(kernel) {
                return;
            }
            let Some(guest) = way.guest() else { return };
            let lines: String = opens
                .iter()
                .flat_map(|open| {
                    ["msi", "intx"].map(|line| format!("./jobs {open} 0000:00:10.0 {line} 1000\n"))
                })
                .collect();
            let guest = guest.with_jobs().with(&["--pci", "--kernel", kernel]).give("accel?state=1MiB", "");
            let text = succeeded(&guest.script(&lines));
            assert_eq!(text.matches("1000 jobs done, ").count(), opens.len() * 2, "{way:?} {kernel}: {text}");
        }
    }
}
