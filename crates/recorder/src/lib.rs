//! What real kernels answer to lists of raw VFIO and iommufd requests.
//!
//! Each [`Recording`] is a list with a kernel's answers, a request a line. The program `record` asks the running kernel the
//! same list; the tests of `whimbrel-device` ask our own side. The lab's tests run the program in the lab's machines and
//! compare.
#![allow(clippy::unwrap_used, reason = "a list that cannot go on is no recording")]
#![allow(
    clippy::exhaustive_enums,
    clippy::exhaustive_structs,
    reason = "only the tests of this repository use it"
)]
#![allow(clippy::wildcard_imports, reason = "a list takes most of what the header has")]

pub mod container;
pub mod gfx;
pub mod hwpt;
pub mod iommufd;
mod kernel;
pub mod pci;
pub mod vfio;

use std::fmt;

/// A kernel's answers to a list of requests.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Recording {
    /// The name that `record` takes.
    pub name: &'static str,
    /// The lab's kernel that has answered.
    pub kernel: &'static str,
    /// What `lab/run exec` is given beside the kernel.
    pub options: &'static [&'static str],
    /// The answers, a request a line.
    pub text: &'static str,
    ask: fn(&mut dyn FnMut(String)),
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.name, self.kernel)
    }
}

/// Containers, groups and the sample driver mtty, by Debian's Linux 6.12.
pub const VFIO: Recording = Recording {
    name: "vfio",
    kernel: "debian",
    options: &[],
    text: include_str!("../recordings/vfio.txt"),
    ask: |mut told| vfio::answers(&mut vfio::Real::new("/dev/vfio/vfio"), &mut told),
};

/// An iommufd in place of a container, by Linux 6.12.
pub const CONTAINER: Recording = Recording {
    name: "container",
    kernel: "iommufd",
    options: &[],
    text: include_str!("../recordings/container.txt"),
    ask: |mut told| container::answers(&mut vfio::Real::new("/dev/iommu"), &mut told),
};

/// An iommufd without devices, by Linux 6.12.
pub const IOMMUFD: Recording = Recording {
    name: "iommufd",
    kernel: "iommufd",
    options: &[],
    text: include_str!("../recordings/iommufd.txt"),
    ask: |mut told| iommufd::answers(&mut iommufd::Real::new(), &mut told),
};

/// Page tables of the kernel's mock device, by Linux 6.12.
pub const HWPT: Recording = Recording {
    name: "hwpt",
    kernel: "iommufd",
    options: &[],
    text: include_str!("../recordings/hwpt.txt"),
    ask: |mut told| hwpt::answers(&mut hwpt::Real::new(), &mut told),
};

/// PCI devices that are opened through groups, by Debian's Linux 6.12.
pub const PCI_GROUPS: Recording = Recording {
    name: "pci-groups",
    kernel: "debian",
    options: &["--pci", "--timeout", "300"],
    text: include_str!("../recordings/pci-groups.txt"),
    ask: |mut told| {
        let mode = pci::Mode::Groups;
        pci::answers(&mut pci::Real::new(mode), mode, &mut told);
    },
};

/// PCI devices that are opened by their own files, by Linux 6.12.
pub const PCI_OWN_FILES: Recording = Recording {
    name: "pci-own-files",
    kernel: "iommufd",
    options: &["--pci", "--timeout", "300"],
    text: include_str!("../recordings/pci-own-files.txt"),
    ask: |mut told| {
        let mode = pci::Mode::OwnFiles;
        pci::answers(&mut pci::Real::new(mode), mode, &mut told);
    },
};

/// The displays mbochs and mdpy, by Linux 6.12.
pub const GFX: Recording = Recording {
    name: "gfx",
    kernel: "iommufd",
    options: &["--displays"],
    text: include_str!("../recordings/gfx.txt"),
    ask: |mut told| gfx::answers(&mut gfx::Real::new(), &mut told),
};

/// Every recording.
pub const RECORDINGS: [Recording; 7] = [VFIO, CONTAINER, IOMMUFD, HWPT, PCI_GROUPS, PCI_OWN_FILES, GFX];

impl Recording {
    /// Returns the recording of that name.
    pub fn named(name: &str) -> Option<Recording> {
        RECORDINGS.into_iter().find(|recording| recording.name == name)
    }

    /// Asks the running kernel, and tells each request with its answer in a line. Only a machine of the lab has all that the
    /// list names.
    pub fn ask(&self, mut told: impl FnMut(String)) {
        (self.ask)(&mut told);
    }

    /// Panics, with every difference, unless these are the recorded answers.
    #[track_caller]
    pub fn check(&self, answers: &[impl AsRef<str>]) {
        self.check_with(answers, |_, _, _| false);
    }

    /// Panics like [`Recording::check`], but for differences that are explained: by the number of the line, the answer and
    /// the recorded one.
    #[track_caller]
    pub fn check_with(&self, answers: &[impl AsRef<str>], is_explained: impl Fn(usize, &str, &str) -> bool) {
        let recorded: Vec<&str> = self.text.lines().collect();
        assert!(recorded.len() > 1000, "{self:?}: {} answers", recorded.len());
        assert_eq!(answers.len(), recorded.len(), "{self:?}: the list has changed: record it anew");
        let answers = answers.iter().map(AsRef::as_ref);
        let different: Vec<String> = answers
            .zip(recorded)
            .enumerate()
            .filter(|(index, (answer, recorded))| {
                answer != recorded && !is_explained(*index, answer, recorded)
            })
            .map(|(index, (answer, recorded))| {
                format!("{}:\n  is       {answer}\n  recorded {recorded}", index + 1)
            })
            .collect();
        assert!(different.is_empty(), "{self:?}: {} differ:\n{}", different.len(), different.join("\n"));
    }
}
