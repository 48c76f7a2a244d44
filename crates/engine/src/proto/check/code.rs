//! The reason codes of a check. A name is never changed or given to another reason; `docs/check.md` lists them all.

use std::fmt;

use serde::{Serialize, Serializer};

/// The effect of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// The devices cannot migrate like this, or it is unknown whether they can.
    Blocks,
    /// They can migrate, but it may take longer or fail.
    Warns,
}

impl Severity {
    /// Returns the name for scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Blocks => "blocks",
            Severity::Warns => "warns",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

macro_rules! codes {
    ($($variant:ident = $name:literal $severity:ident $meaning:literal, $remedy:literal;)+) => {
        /// A reason code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] $variant,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant),+];

            /// Returns the name, which never changes.
            pub const fn name(self) -> &'static str {
                match self { $(Code::$variant => $name,)+ }
            }

            /// Returns the severity that a finding with this code has by default.
            pub const fn severity(self) -> Severity {
                match self { $(Code::$variant => Severity::$severity,)+ }
            }

            /// Returns the meaning, as one sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Code::$variant => $meaning,)+ }
            }

            /// Returns what the operator can do.
            pub const fn remedy(self) -> &'static str {
                match self { $(Code::$variant => $remedy,)+ }
            }
        }
    };
}

codes! {
    CannotOpen = "cannot-open" Blocks
        "The device cannot be opened.",
        "check the name with `whimbrel devices`, and that this user may open the device";
    InUse = "in-use" Blocks
        "Another process uses the device.",
        "check from within the program that has the device, or end that program";
    NotMigratable = "not-migratable" Blocks
        "The driver or server of the device does not support migration.",
        "bind the device to a driver that supports migration (a variant driver such as mlx5_vfio_pci)";
    NoStopCopy = "no-stop-copy" Blocks
        "The device does not report VFIO_MIGRATION_STOP_COPY, so that its state cannot be read.",
        "report the driver: the kernel's header requires that flag";
    ErrorState = "error-state" Blocks
        "The device is in ERROR.",
        "reset the device; its state is lost then";
    NotRunning = "not-running" Blocks
        "The device is in a state that no live migration can begin in.",
        "bring the device to RUNNING, unless it runs on another host";
    LeftInPreCopy = "left-in-pre-copy" Blocks
        "The device is in a pre-copy state: another migration is in progress, or was left unfinished.",
        "wait for that migration, or bring the device to RUNNING";
    NoAnswer = "no-answer" Blocks
        "A call into the driver of the device has not returned.",
        "check the driver's or the server's log; the process that made the call may have to end";
    RequestRefused = "request-refused" Blocks
        "The device refuses a request that a migration needs.",
        "check the driver's or the server's log";
    SetupUnreadable = "setup-unreadable" Blocks
        "The configuration space of the device cannot be read.",
        "check the driver's or the server's log";
    StateSizeMissing = "state-size-missing" Blocks
        "The device has no pre-copy and does not tell the size of its state, which a prediction of the downtime needs.",
        "use a kernel of 6.2 or later, or a driver with VFIO_DEVICE_FEATURE_MIG_DATA_SIZE";
    StateSizeUnknown = "state-size-unknown" Warns
        "The device does not tell the size of its state, so that the downtime has no bound.",
        "use a kernel of 6.2 or later, or a driver with VFIO_DEVICE_FEATURE_MIG_DATA_SIZE";
    NoPreCopy = "no-pre-copy" Warns
        "The device has no pre-copy: all of its state is sent while it is stopped.",
        "allow a downtime for its whole state, or use a driver with VFIO_MIGRATION_PRE_COPY";
    NoP2p = "no-p2p" Warns
        "One of several devices has no P2P states: it cannot be quiesced together with the others.",
        "make sure that the devices do not access each other directly";
    NoDirtyLog = "no-dirty-log" Warns
        "Neither the device nor its address space has a dirty log: all memory is resent after the stop.",
        "use a driver with DMA logging, or an IOMMU with dirty tracking";
    InvalidTable = "invalid-table" Blocks
        "The devices, memory and blobs together cannot be described to a destination.",
        "migrate fewer devices at a time, or correct what the program says of its memory and blobs";
    Unreachable = "unreachable" Blocks
        "Nothing accepts connections at the address, or the connection fails.",
        "start `whimbrel receive` there, and check the address and the firewall";
    TlsRefused = "tls-refused" Blocks
        "One of the two sides does not accept the other's TLS.",
        "give the options of TLS on both sides, and check the certificates with `openssl x509 -noout -text`";
    DestinationBusy = "destination-busy" Blocks
        "The destination is receiving another migration, or answers other checks.",
        "wait until that has ended, or use another destination";
    CheckUnsupported = "check-unsupported" Blocks
        "The destination does not answer checks, so that nothing is known of its devices.",
        "update the destination; a migration may work nevertheless";
    NoCommonVersion = "no-common-version" Blocks
        "The two sides have no protocol version in common.",
        "use releases that follow each other";
    FeatureMissing = "feature-missing" Blocks
        "The destination lacks a feature that this migration needs.",
        "update the destination";
    DestinationRefused = "destination-refused" Blocks
        "The destination refuses for a reason without a code of its own.",
        "read the reason, and the destination's log";
    DestinationSilent = "destination-silent" Blocks
        "The destination does not answer in time.",
        "check that `whimbrel receive` runs there and that the network works";
    ConnectionLost = "connection-lost" Blocks
        "The connection ended before the check was complete.",
        "read the destination's log";
    InvalidAnswer = "invalid-answer" Blocks
        "The answer is not one of a destination.",
        "check that `whimbrel receive` listens at the address, and not another program";
    DeviceCount = "device-count" Blocks
        "The two sides have different numbers of devices.",
        "name the same devices on both sides, in the same order";
    DeviceKind = "device-kind" Blocks
        "The devices are of different kinds, such as PCI and platform.",
        "name devices of the same kind, in the same order";
    DeviceModel = "device-model" Blocks
        "The drivers implement different models.",
        "name devices of the same model, in the same order";
    PciId = "pci-id" Blocks
        "Vendor or device ID differ.",
        "use the same PCI device on both sides";
    PciSubsystemId = "pci-subsystem-id" Blocks
        "Subsystem vendor or subsystem ID differ.",
        "use the same PCI device on both sides";
    PciClass = "pci-class" Blocks
        "The PCI classes differ.",
        "use the same PCI device on both sides";
    RegionCount = "region-count" Blocks
        "The devices have different numbers of regions.",
        "use the same device, driver and driver version on both sides";
    InterruptCount = "interrupt-count" Blocks
        "The devices have different numbers of interrupt indexes.",
        "use the same device, driver and driver version on both sides";
    StateVersion = "state-version" Blocks
        "The state of the source's device has a newer version than the destination's can load.",
        "update the driver or server at the destination";
    CompatibilityData = "compatibility-data" Blocks
        "The devices have different settings.",
        "configure both devices alike";
    MemoryLayout = "memory-layout" Blocks
        "The memory of the two sides differs.",
        "give both virtual machines the same memory at the same addresses";
    BlobUnknown = "blob-unknown" Blocks
        "The destination's owner does not know a part of the source's own state.",
        "use the same VMM on both sides, or a newer one at the destination";
    BlobVersion = "blob-version" Blocks
        "A part of the source's own state has a newer version than the destination's owner can load.",
        "update the VMM at the destination";
    DowntimeExceedsLimit = "downtime-exceeds-limit" Blocks
        "The data that must be sent after the stop already takes longer than the downtime limit.",
        "raise the limit (--downtime-limit MS), use a faster link, or stop regardless (--on-timeout switch)";
    DowntimeMayExceedLimit = "downtime-may-exceed-limit" Warns
        "The downtime may exceed the limit: the migration then sends more rounds, or does not converge.",
        "raise the limit (--downtime-limit MS), or reduce the load of the devices";
    ThroughputUnknown = "throughput-unknown" Warns
        "The throughput of the link could not be measured.",
        "check the link: it is very slow, or the destination is busy";
    HistoryOfOthers = "history-of-others" Warns
        "The earlier reports have no transitions of a device of this kind.",
        "give the report of a migration of the same kind of device, from `whimbrel send --json` of this release";
}

impl Code {
    /// Returns the code with that name, if this release has it.
    pub fn from_name(name: &str) -> Option<Code> {
        Code::ALL.iter().copied().find(|code| code.name() == name)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = include_str!("../../../../../docs/check.md");

    #[test]
    fn the_document_has_every_code_once_as_it_is_here_and_no_other() {
        let rows: Vec<&str> = DOCUMENT.lines().filter(|line| line.starts_with("| `")).collect();
        let expected: Vec<String> = Code::ALL
            .iter()
            .map(|code| {
                format!("| `{code}` | {} | {} | {} |", code.severity(), code.meaning(), code.remedy())
            })
            .collect();
        assert_eq!(rows, expected);
    }

    /// The codes of the first release with checks. One that is missing here was added later; none may ever go.
    const FIRST: &str = "cannot-open in-use not-migratable no-stop-copy error-state not-running left-in-pre-copy no-answer \
        request-refused setup-unreadable state-size-missing state-size-unknown no-pre-copy no-p2p no-dirty-log \
        invalid-table unreachable tls-refused destination-busy check-unsupported no-common-version feature-missing \
        destination-refused destination-silent connection-lost invalid-answer device-count device-kind device-model \
        pci-id pci-subsystem-id pci-class region-count interrupt-count state-version compatibility-data memory-layout \
        blob-unknown blob-version downtime-exceeds-limit downtime-may-exceed-limit throughput-unknown history-of-others";

    #[test]
    fn no_code_is_renamed_or_removed() {
        for name in FIRST.split_whitespace() {
            assert!(Code::from_name(name).is_some_and(|code| code.name() == name), "{name}");
        }
    }

    #[test]
    fn a_name_is_words_with_hyphens_and_belongs_to_one_code() {
        for (at, code) in Code::ALL.iter().enumerate() {
            let name = code.name();
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            );
            assert!(!Code::ALL[..at].iter().any(|other| other.name() == name), "{name}");
            assert_eq!(Code::from_name(name), Some(*code));
        }
    }
}
