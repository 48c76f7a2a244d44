//! The lab's PCI devices, as `lab/README.md` lists them: what they are called, and what they look like.

/// A device as its vfio-pci shows it.
#[derive(Debug)]
pub struct Facts {
    /// The slot that a list opens it in.
    pub slot: usize,
    /// Its name in sysfs.
    pub name: &'static str,
    /// Where its group is in [`GROUPS`].
    pub group: usize,
    /// Size in bytes of each BAR.
    pub bars: [u64; 6],
    /// How many interrupts: INTx, MSI, MSI-X, errors, requests.
    pub irqs: [u32; 5],
    /// The MSI-X table: BAR, offset, bytes.
    pub table: Option<(u32, u64, u64)>,
}

/// A device of each group.
pub const GROUPS: [&str; 6] =
    ["0000:01:00.0", "0000:02:00.0", "0000:02:00.1", "0000:02:00.2", "0000:00:05.0", "0000:00:06.0"];

/// The network card, behind a root port.
pub const E1000E: Facts = Facts {
    slot: 0,
    name: "0000:01:00.0",
    group: 0,
    bars: [0x20000, 0x20000, 0x20, 0x4000, 0, 0],
    irqs: [1, 1, 5, 1, 1],
    table: Some((3, 0, 80)),
};
/// In the same slot, and so in the same group.
pub const BESIDE: Facts = Facts {
    slot: 1,
    name: "0000:01:00.1",
    group: 0,
    bars: [0x10_0000, 0, 0, 0, 0, 0],
    irqs: [1, 1, 0, 0, 1],
    table: None,
};
/// With two virtual functions.
pub const NVME: Facts = Facts {
    slot: 2,
    name: "0000:02:00.0",
    group: 1,
    bars: [0x4000, 0, 0, 0, 0, 0],
    irqs: [1, 0, 2, 1, 1],
    table: Some((0, 0x2000, 32)),
};
/// The first virtual function.
pub const VF1: Facts = Facts {
    slot: 3,
    name: "0000:02:00.1",
    group: 2,
    bars: [0x4000, 0, 0, 0, 0, 0],
    irqs: [0, 0, 1, 1, 1],
    table: Some((0, 0x2000, 16)),
};
/// The second virtual function.
pub const VF2: Facts = Facts { slot: 4, name: "0000:02:00.2", group: 3, ..VF1 };
/// The edu device alone.
pub const EDU: Facts = Facts { slot: 5, name: "0000:00:05.0", group: 4, ..BESIDE };
/// The pci-testdev.
pub const TESTDEV: Facts = Facts {
    slot: 6,
    name: "0000:00:06.0",
    group: 5,
    bars: [0x1000, 0x100, 0, 0, 0, 0],
    irqs: [0, 0, 0, 0, 1],
    table: None,
};

/// By slot.
pub const DEVICES: [&Facts; 7] = [&E1000E, &BESIDE, &NVME, &VF1, &VF2, &EDU, &TESTDEV];
