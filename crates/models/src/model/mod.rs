//! The models by name: a model with its settings, and opening its device. The text form is parsed in `parse` and written in
//! `display`.

mod display;
mod error;
mod parse;
mod settings;
#[cfg(test)]
mod tests;

use whimbrel_device::wrap::fault::{Faults, Faulty};
use whimbrel_device::{DeviceFile, WorkingDevice};

pub use self::error::{ModelError, OpenError};
pub use self::settings::parse_size;
use self::settings::{ACCEL, LEGACY, NVME, SERIAL};
use crate::accel::{Accel, AccelConfig};
use crate::legacy::{Legacy, LegacyConfig};
use crate::nvme::{Nvme, NvmeConfig, NvmeImage};
use crate::protocol::Protocol;
use crate::serial::{Serial, SerialConfig};

/// A model and its settings.
///
/// The text form is the model's name, then `?` and its settings separated by `&`:
///
/// | model | setting | meaning |
/// |---|---|---|
/// | `serial` | `ports` | 1 or 2 ports (1) |
/// | | `answers` | behaviour where they differ: `vfio-pci` or `mtty`, see [`Answers`](crate::Answers) (`vfio-pci`) |
/// | | `protocol` | as for `accel` (`v2`) |
/// | `accel` | `state` | bytes of own state, 1 KiB to 64 GiB (64MiB) |
/// | | `rate` | bytes of own state changed per second in the background (0) |
/// | | `features` | any of `stop-copy`, `p2p`, `pre-copy`, separated by commas (all) |
/// | | `config` | `required` if DMA and messages need a set-up configuration space, as in hardware (`optional`) |
/// | | `protocol` | `v2`, or a migration region: `v1`, as in Linux 5.8 to 5.17, or `draft`, as of 2019 (`v2`) |
/// | `legacy` | `state` | as for `accel` (4MiB) |
/// | | `rate` | as for `accel` |
/// | | `section` | size of its migration region's data section, 64 bytes to 64 MiB (1MiB) |
/// | `nvme` | `image` | path of the file or block device with its blocks; required, without `&` |
/// | | `size` | size of the image, which a missing or empty file gets (the size that it has) |
/// | | `readonly` | `yes`, or no value, if the namespace is write-protected (`no`) |
/// | | `queues` | pairs of I/O queues, 1 to 64 (16) |
///
/// Defaults are in parentheses. STOP_COPY is included even if `features` omits it. Sizes take a suffix: `K` or `KiB`,
/// `M` or `MiB`, `G` or `GiB`, all of them powers of 1024.
///
/// ```
/// use whimbrel_models::Model;
///
/// let model: Model = "accel?state=1MiB&features=stop-copy,p2p".parse()?;
/// let opened = model.open("engine 0")?;
/// assert!(opened.has_worker());
/// assert_eq!("accel?colour=red".parse::<Model>().unwrap_err().to_string(),
///     "unknown setting colour for model accel: expected one of state, rate, features, config, protocol");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Model {
    /// A card with 16550 ports.
    Serial(SerialConfig, Protocol),
    /// A DMA engine.
    Accel(AccelConfig, Protocol),
    /// A DMA engine with v1 migration only.
    Legacy(LegacyConfig),
    /// An NVM Express controller.
    Nvme(NvmeConfig),
}

/// A model whose files are open, as [`Model::prepare`] returns it.
#[derive(Debug)]
pub struct PreparedModel {
    model: Model,
    image: Option<NvmeImage>,
}
impl Model {
    /// Returns the names of all models.
    pub const fn names() -> &'static [&'static str] {
        &[SERIAL, ACCEL, LEGACY, NVME]
    }

    /// Opens a device of this kind on a bus of its own, and starts its worker thread if the model needs one. `name`
    /// appears in errors and traces.
    pub fn open(&self, name: impl Into<String>) -> Result<WorkingDevice, OpenError> {
        self.open_with_faults(name, Faults::default())
    }

    /// Opens a device of this kind with injected faults.
    ///
    /// ```
    /// use whimbrel_device::{Errno, State};
    /// use whimbrel_models::Model;
    ///
    /// let model: Model = "serial".parse()?;
    /// let opened = model.open_with_faults("serial 0", "arc *->STOP_COPY: EIO".parse()?)?;
    /// assert_eq!(opened.set_mig_state(State::StopCopy).err(), Some(Errno::EIO));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_with_faults(
        &self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, false)
    }

    /// Opens a device of this kind for a program under `whimbrel run`, which can map its migration region. Do not serve it to
    /// clients of a vfio-user server: see
    /// [`RegionMemory::for_programs`](whimbrel_device::RegionMemory::for_programs).
    pub fn open_for_programs(
        &self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, true)
    }

    /// Opens the files that the model needs, such as an image. A server that confines itself does so between this and
    /// [`PreparedModel::open_with_faults`].
    pub fn prepare(&self) -> Result<PreparedModel, OpenError> {
        let image = match self {
            Model::Nvme(config) => Some(config.open_image()?),
            _ => None,
        };
        Ok(PreparedModel { model: self.clone(), image })
    }

    fn open_as(
        &self,
        name: impl Into<String>,
        faults: Faults,
        for_programs: bool,
    ) -> Result<WorkingDevice, OpenError> {
        self.prepare()?.open_as(name, faults, for_programs)
    }
}

impl PreparedModel {
    /// Opens the device, with injected faults: as [`Model::open_with_faults`].
    pub fn open_with_faults(
        self,
        name: impl Into<String>,
        faults: Faults,
    ) -> Result<WorkingDevice, OpenError> {
        self.open_as(name, faults, false)
    }

    fn open_as(
        self,
        name: impl Into<String>,
        faults: Faults,
        for_programs: bool,
    ) -> Result<WorkingDevice, OpenError> {
        let PreparedModel { model, image } = self;
        let works = !matches!(model, Model::Serial(..));
        let device = DeviceFile::try_new(name, |bus| {
            Ok::<_, OpenError>(match model {
                Model::Serial(config, protocol) => protocol
                    .offer(Faulty::new(Serial::new(config, bus), faults), for_programs)
                    .map_err(OpenError::Region)?,
                Model::Accel(config, protocol) => protocol
                    .offer(Faulty::new(Accel::new(config, bus)?, faults), for_programs)
                    .map_err(OpenError::Region)?,
                Model::Legacy(config) => Faulty::new(Legacy::new(config, bus)?, faults).into(),
                Model::Nvme(config) => {
                    let image = image.map_or_else(|| config.open_image(), Ok)?;
                    Faulty::new(Nvme::new(config, image, bus)?, faults).into()
                }
            })
        })?;
        if works { WorkingDevice::start(device).map_err(OpenError::Worker) } else { Ok(device.into()) }
    }
}
