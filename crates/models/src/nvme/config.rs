//! The settings of a controller, its image, and its configuration space.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use crc_fast::{CrcAlgorithm, checksum};
use whimbrel_device::pci::config::{Bar, Express, InterruptPin, LinkSpeed, MsiX, PciConfig, PowerManagement};

use super::admin::{VENDOR, padded};
use super::image::{BLOCK_BYTES, EngineKind, ImageError, ImageFile};
use super::limits::Limits;
use super::registers::{BAR_BYTES, MSIX_PENDING, MSIX_TABLE};

/// The settings of an [`Nvme`](super::Nvme).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NvmeConfig {
    /// The image: a file or a block device that contains the namespace's blocks.
    pub image: PathBuf,
    /// The image's size in bytes, which a missing or empty file gets. `None` uses the image as it is.
    pub size: Option<u64>,
    /// The namespace is write-protected, and the image is opened for reading.
    pub is_read_only: bool,
    /// Pairs of I/O queues, 1 to [`NvmeConfig::MAX_QUEUES`].
    pub queues: u16,
    /// Serial number, of at most 20 printable ASCII characters. `None` makes one from the image's file name.
    pub serial: Option<String>,
    /// Time that the stop of a migration waits for operations on the image, and for its flush.
    pub drain_timeout: Duration,
    /// The engine that executes operations on the image.
    pub engine: EngineKind,
}

impl NvmeConfig {
    /// Maximum number of pairs of I/O queues.
    pub const MAX_QUEUES: u16 = 64;

    /// Returns the settings of a controller with this image, 16 pairs of I/O queues, and 4 s to drain.
    pub fn new(image: impl Into<PathBuf>) -> NvmeConfig {
        NvmeConfig {
            image: image.into(),
            size: None,
            is_read_only: false,
            queues: 16,
            serial: None,
            drain_timeout: Duration::from_secs(4),
            engine: EngineKind::default(),
        }
    }

    /// Sets [`NvmeConfig::size`].
    #[must_use]
    pub fn size(self, bytes: u64) -> NvmeConfig {
        NvmeConfig { size: Some(bytes), ..self }
    }

    /// Sets [`NvmeConfig::is_read_only`].
    #[must_use]
    pub fn read_only(self, is_read_only: bool) -> NvmeConfig {
        NvmeConfig { is_read_only, ..self }
    }

    /// Sets [`NvmeConfig::queues`].
    #[must_use]
    pub fn queues(self, queues: u16) -> NvmeConfig {
        NvmeConfig { queues, ..self }
    }

    /// Sets [`NvmeConfig::serial`].
    #[must_use]
    pub fn serial(self, serial: impl Into<String>) -> NvmeConfig {
        NvmeConfig { serial: Some(serial.into()), ..self }
    }

    /// Sets [`NvmeConfig::drain_timeout`].
    #[must_use]
    pub fn drain_timeout(self, drain_timeout: Duration) -> NvmeConfig {
        NvmeConfig { drain_timeout, ..self }
    }

    /// Sets [`NvmeConfig::engine`].
    #[must_use]
    pub fn engine(self, engine: EngineKind) -> NvmeConfig {
        NvmeConfig { engine, ..self }
    }

    /// Opens the image. A server that confines itself does so before that.
    pub fn open_image(&self) -> Result<NvmeImage, NvmeError> {
        self.check()?;
        let file = ImageFile::open(&self.image, self.size, self.is_read_only)?;
        Ok(NvmeImage { file })
    }

    /// Returns whether an image can have this many bytes.
    pub(crate) fn size_fits(bytes: u64) -> bool {
        bytes > 0 && bytes.is_multiple_of(BLOCK_BYTES) && i64::try_from(bytes).is_ok()
    }

    /// Returns whether a controller can have this many pairs of I/O queues.
    pub(crate) fn queues_fit(queues: u16) -> bool {
        (1..=NvmeConfig::MAX_QUEUES).contains(&queues)
    }

    fn check(&self) -> Result<(), NvmeError> {
        if !NvmeConfig::queues_fit(self.queues) {
            return Err(NvmeError::Queues(self.queues));
        }
        if let Some(size) = self.size.filter(|size| !NvmeConfig::size_fits(*size)) {
            return Err(NvmeError::Size(size));
        }
        match &self.serial {
            Some(serial) if !is_serial(serial) => Err(NvmeError::Serial(serial.clone())),
            _ => Ok(()),
        }
    }

    /// Returns the limits of a controller with an image of this many blocks.
    pub(super) fn limits(&self, blocks: u64) -> Limits {
        let serial = self.serial.clone().unwrap_or_else(|| {
            let name = self.image.file_name().unwrap_or(OsStr::new("image"));
            format!("WHIM{:016X}", checksum(CrcAlgorithm::Crc64Nvme, name.as_encoded_bytes()))
        });
        Limits { serial: padded(&serial), queues: self.queues, blocks, is_read_only: self.is_read_only }
    }
}

fn is_serial(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}

/// An open image, for [`Nvme::new`](super::Nvme::new).
#[derive(Debug)]
pub struct NvmeImage {
    pub(super) file: ImageFile,
}

/// Invalid settings of a controller, or an image that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The number of queues is out of range.
    #[error("invalid number of queues {0}: expected 1 to {most}", most = NvmeConfig::MAX_QUEUES)]
    Queues(u16),
    /// The size is out of range.
    #[error("invalid size of {0} bytes: expected a multiple of {BLOCK_BYTES} above 0")]
    Size(u64),
    /// The serial number is empty, too long, or not printable.
    #[error("invalid serial number '{0}': expected 1 to 20 printable ASCII characters")]
    Serial(String),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Returns the configuration space of an NVM Express controller.
pub(super) fn pci_config(queues: u16) -> PciConfig {
    const DEVICE: u16 = 0x4e56;
    const MEMORY_SPACE: u16 = 0x0002;
    let messages = MsiX::new(queues + 1, 0).table_offset(MSIX_TABLE).pending_offset(MSIX_PENDING);
    PciConfig::builder(VENDOR, DEVICE)
        .subsystem(VENDOR, DEVICE)
        .class(0x01, 0x08, 0x02)
        .revision(0x01)
        .command(MEMORY_SPACE)
        .interrupt_pin(InterruptPin::A)
        .bar(0, Bar::Memory64 { size: BAR_BYTES.into(), prefetchable: false })
        .capability(messages)
        .capability(PowerManagement::default().no_soft_reset(true))
        // No function-level reset: a reset must also end the migration, and the core sees VFIO_DEVICE_RESET only.
        .capability(Express::new(LinkSpeed::Gt16, 4).extended_tag(true).max_payload(256))
        .build()
        .expect("sizes that are powers of two and capabilities that fit")
}
