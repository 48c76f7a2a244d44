//! TARGETs of the command line, and how the devices are opened that they name.

mod opened;

use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use whimbrel_engine::channel::{Address, ConnectError, Until, connect_once};
use whimbrel_models::{Model, ModelError, Protocol};
use whimbrel_user::kernel::{self, Cdev, Group, HostDevice};
use whimbrel_user::{Device, Local, Version, region};
use whimbrel_vfio_user::{Client, ClientOptions};

use crate::failure::Failure;
use crate::output;
use crate::usage::WrongValue;

pub(crate) use opened::Opened;

/// The forms a TARGET has, for errors.
const FORMS: &str = "a TARGET is a device's name (0000:3b:00.2 or a UUID), group:NAME, cdev:PATH, \
                     vfio-user:SOCKET or model:NAME[?key=value&..]; `whimbrel devices` lists the names of this host";

/// The models, for errors.
const MODEL_FORMS: &str = "models are serial[?ports=1|2&answers=vfio-pci|mtty], \
                           accel[?state=SIZE&rate=SIZE&features=LIST&config=optional|required], both of them with \
                           protocol=v2|v1|draft, legacy[?state=SIZE&rate=SIZE&section=SIZE], and \
                           nvme?image=PATH[&size=SIZE&readonly=yes|no&queues=N]";

/// Timeout for a connection that only shows whether there is a server.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A device, by the way to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Target {
    /// `group:<name>`: through its IOMMU group.
    Group(String),
    /// `cdev:<path>`: through its own file.
    Cdev(PathBuf),
    /// `<name>`: through its own file if it has one, else through its group.
    Host(String),
    /// `vfio-user:<socket>`: served by another process.
    VfioUser(PathBuf),
    /// `model:<name>[?key=value&..]`: a model in this process, with its text.
    Model(Model, String),
}

/// Parses a model and its settings, with or without the `model:` that a target has.
pub(crate) fn parse_model(text: &str) -> Result<Model, WrongValue> {
    model_from(text.strip_prefix("model:").unwrap_or(text))
}

/// Parses a model and its settings, the part after `model:`.
pub(crate) fn model_from(text: &str) -> Result<Model, WrongValue> {
    Model::from_str(text).map_err(model_forms)
}

/// The error of a model's text, with the forms that it may have.
#[expect(clippy::needless_pass_by_value, reason = "it maps errors")]
pub(crate) fn model_forms(error: ModelError) -> WrongValue {
    WrongValue::new(error.to_string(), MODEL_FORMS)
}

impl FromStr for Target {
    type Err = WrongValue;

    fn from_str(text: &str) -> Result<Target, WrongValue> {
        let wrong = |why: &str| WrongValue::new(why, FORMS);
        let target = match text.split_once(':') {
            Some(("group", name)) => Target::Group(checked_name(name).map_err(wrong)?),
            Some(("cdev", "")) => return Err(wrong("the path is missing")),
            Some(("cdev", path)) => Target::Cdev(path.into()),
            Some(("vfio-user", "")) => return Err(wrong("the socket is missing")),
            Some(("vfio-user", socket)) => Target::VfioUser(socket.into()),
            Some(("model", model)) => Target::Model(model_from(model)?, model.to_string()),
            _ => Target::Host(checked_name(text).map_err(wrong)?),
        };
        Ok(target)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Group(name) => write!(f, "group:{name}"),
            Target::Cdev(path) => write!(f, "cdev:{}", path.display()),
            Target::Host(name) => f.write_str(name),
            Target::VfioUser(socket) => write!(f, "vfio-user:{}", socket.display()),
            Target::Model(_, text) => write!(f, "model:{text}"),
        }
    }
}

/// Checks a name as in sysfs: the address of a PCI device, with or without its domain, or a UUID.
fn checked_name(name: &str) -> Result<String, &'static str> {
    if is_pci_address(name) || is_uuid(name) {
        return Ok(name.to_string());
    }
    Err(match name {
        "" => "the name of the device is missing",
        _ => "neither a PCI address nor a UUID",
    })
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_pci_address(name: &str) -> bool {
    let Some((front, function)) = name.rsplit_once('.') else { return false };
    let parts: Vec<&str> = front.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [bus, device] => ("0000", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return false,
    };
    // A domain has four digits, or more behind some host bridges.
    (4..=8).contains(&domain.len())
        && is_hex(domain, domain.len())
        && is_hex(bus, 2)
        && is_hex(device, 2)
        && is_hex(function, 1)
}

fn is_uuid(name: &str) -> bool {
    let parts: Vec<&str> = name.split('-').collect();
    parts.len() == 5 && parts.iter().zip([8, 4, 4, 4, 12]).all(|(part, digits)| is_hex(part, digits))
}

/// The fate of a device's state when a command closes the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Closing {
    /// Another process serves the device, which keeps its state.
    Keeps,
    /// The kernel resets the device.
    Resets,
    /// The device is a model in this process.
    Ends,
}

impl fmt::Display for Closing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Closing::Keeps => "the device keeps its state when this command ends",
            Closing::Resets => {
                "most kernel drivers reset the device when this command opens it and when it closes it"
            }
            Closing::Ends => "the model ends with this command",
        })
    }
}

impl Target {
    /// Returns whether it is a device of the kernel.
    pub(crate) fn is_of_kernel(&self) -> bool {
        matches!(self, Target::Group(_) | Target::Cdev(_) | Target::Host(_))
    }

    /// Returns the fate of the device's state when this process closes the device.
    pub(crate) fn closing(&self) -> Closing {
        match self {
            Target::Group(_) | Target::Cdev(_) | Target::Host(_) => Closing::Resets,
            Target::VfioUser(_) => Closing::Keeps,
            Target::Model(..) => Closing::Ends,
        }
    }

    /// The same device, with an absolute path, for a journal that is read in another folder.
    pub(crate) fn absolute(&self) -> Result<Target, Failure> {
        let absolute = |path: &Path| {
            std::path::absolute(path)
                .map_err(|error| Failure::from_io(format!("cannot make {} absolute", path.display()), &error))
        };
        Ok(match self {
            Target::Cdev(path) => Target::Cdev(absolute(path)?),
            Target::VfioUser(path) => Target::VfioUser(absolute(path)?),
            Target::Group(_) | Target::Host(_) | Target::Model(..) => self.clone(),
        })
    }

    /// Returns whether nothing listens at the socket of a served device, so that its server has ended.
    pub(crate) fn has_no_server(&self) -> bool {
        let Target::VfioUser(path) = self else { return false };
        // A server that accepts nothing, because its process is stopped, is there all the same.
        let connected = connect_once(&Address::Unix(path.clone()), Until::timeout(ATTEMPT));
        let Err(ConnectError::Failed { error, .. }) = connected else { return false };
        let is_socket = || path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket());
        match error.kind() {
            io::ErrorKind::NotFound => true,
            io::ErrorKind::ConnectionRefused => is_socket(),
            _ => false,
        }
    }

    /// The device in this host's list, if it is a device of the kernel.
    pub(crate) fn host_device(&self) -> Option<HostDevice> {
        match self {
            Target::Group(name) | Target::Host(name) => kernel::find(name).ok(),
            Target::Cdev(path) => {
                let path = path.canonicalize().ok()?;
                kernel::list().ok()?.into_iter().find(|device| device.cdev_path.as_ref() == Some(&path))
            }
            Target::VfioUser(_) | Target::Model(..) => None,
        }
    }

    /// Opens the device. One that migrates through a region is adapted, and then used like any other.
    pub(crate) fn open(&self) -> Result<Opened, Failure> {
        self.open_with(&ClientOptions::default())
    }

    /// Opens the device like [`Target::open`], with these options if it is served.
    pub(crate) fn open_with(&self, options: &ClientOptions) -> Result<Opened, Failure> {
        match self.look_at_with(options)? {
            (opened, None) => Ok(opened),
            (_, Some(error)) => Err(error.into()),
        }
    }

    /// Opens the device for inspection, even if its migration region cannot be used; then also returns that error. A served
    /// device is reached with these options.
    pub(crate) fn look_at_with(
        &self,
        options: &ClientOptions,
    ) -> Result<(Opened, Option<whimbrel_user::Error>), Failure> {
        let is_served = matches!(self, Target::VfioUser(_));
        let (device, error) = self.device(options)?;
        Ok((Opened { device, is_served }, error))
    }

    /// Opens the device itself like [`Target::look_at_with`].
    pub(crate) fn device(
        &self,
        options: &ClientOptions,
    ) -> whimbrel_user::Result<(Box<dyn Device>, Option<whimbrel_user::Error>)> {
        let (device, version): (Box<dyn Device>, _) = match self {
            Target::Group(name) => (Box::new(Group::find(name)?), Version::V1),
            Target::Cdev(path) => (Box::new(Cdev::open(path)?), Version::V1),
            Target::Host(name) => match kernel::find(name)?.cdev_path {
                Some(_) => (Box::new(Cdev::find(name)?), Version::V1),
                None => (Box::new(Group::find(name)?), Version::V1),
            },
            Target::VfioUser(socket) => (Box::new(Client::connect(socket, options)?), Version::V1),
            Target::Model(model, _) => {
                let device = model.open(self.to_string()).map_err(|error| {
                    whimbrel_user::Error::unusable(&self.to_string(), format!("cannot be opened: {error}"))
                })?;
                (Box::new(Local::new(device)), region_version(model))
            }
        };
        Ok(region::adapt_or_keep(device, version))
    }
}

impl TryFrom<String> for Target {
    type Error = WrongValue;

    fn try_from(text: String) -> Result<Target, WrongValue> {
        text.parse()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> String {
        target.to_string()
    }
}

/// Returns the running kernel's release, such as `6.12.117+deb12-amd64`.
pub(crate) fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.trim().to_string()
}

/// The version of a model's migration region, if it has one. Other devices do not report it; every kernel had v1.
pub(crate) fn region_version(model: &Model) -> Version {
    match model {
        Model::Serial(_, Protocol::Draft) | Model::Accel(_, Protocol::Draft) => Version::Draft,
        _ => Version::V1,
    }
}

/// Refuses a device that is named twice.
pub(crate) fn check_distinct(targets: &[Target]) -> Result<(), Failure> {
    for (number, target) in targets.iter().enumerate() {
        if targets[..number].contains(target) && !matches!(target, Target::Model(..)) {
            return Err(Failure::usage(format!("{target} is given twice")).hint("name each device once"));
        }
    }
    Ok(())
}

/// TARGETs as a list for people.
pub(crate) fn list(targets: &[Target]) -> String {
    output::names(targets)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_model_that_migrates_through_a_region_is_opened_by_the_text_that_it_follows() {
        let cases = [
            ("model:serial", None),
            ("model:serial?protocol=v1", Some(Version::V1)),
            ("model:accel?state=1K&protocol=draft", Some(Version::Draft)),
            ("model:legacy?state=1K", Some(Version::V1)),
        ];
        for (text, version) in cases {
            let mut opened = text.parse::<Target>().unwrap().open().and_then(Opened::migratable).unwrap();
            assert_eq!(opened.region_version(), version, "{text}");
            assert!(opened.migration_flags().unwrap().is_some(), "{text}");
        }
    }

    #[test]
    fn a_server_that_accepts_no_connection_is_a_server_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let target = Target::VfioUser(path.clone());
        assert!(target.has_no_server(), "nothing was created there");
        let server = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&server, 0).unwrap();
        assert!(!target.has_no_server());
        let connect = || connect_once(&Address::Unix(path.clone()), Until::timeout(ATTEMPT));
        let waiting: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
        assert!(!target.has_no_server(), "{} connections wait", waiting.len());
        drop(server);
        assert!(target.has_no_server(), "its process has ended");
    }

    #[test]
    fn the_hint_about_models_has_every_setting_of_every_model() {
        for name in Model::names() {
            let error = parse_model(&format!("{name}?nothing=1")).unwrap_err();
            let (_, known) = error
                .to_string()
                .split_once("expected one of ")
                .map(|(a, b)| (a.to_string(), b.to_string()))
                .unwrap();
            for setting in known.split(", ") {
                assert!(MODEL_FORMS.contains(&format!("{setting}=")), "{setting} of {name}");
            }
        }
    }

    const UUID: &str = "c9de1dcb-1f0c-4f0e-9d5c-0a3d5f6f8a01";

    #[test]
    fn each_form_names_what_it_says() {
        let model = "serial?ports=2".parse().unwrap();
        let cases = [
            (format!("group:{UUID}"), Target::Group(UUID.into())),
            ("group:0000:3b:00.2".into(), Target::Group("0000:3b:00.2".into())),
            ("group:3b:00.2".into(), Target::Group("3b:00.2".into())),
            ("0000:3b:00.2".into(), Target::Host("0000:3b:00.2".into())),
            ("3b:00.2".into(), Target::Host("3b:00.2".into())),
            (UUID.into(), Target::Host(UUID.into())),
            ("cdev:/dev/vfio/devices/vfio0".into(), Target::Cdev("/dev/vfio/devices/vfio0".into())),
            ("vfio-user:/run/a.sock".into(), Target::VfioUser("/run/a.sock".into())),
            ("model:serial?ports=2".into(), Target::Model(model, "serial?ports=2".into())),
        ];
        for (text, target) in cases {
            assert_eq!(text.parse::<Target>().unwrap(), target, "{text}");
            assert_eq!(target.to_string(), text);
        }
    }

    #[test]
    fn a_model_may_be_named_as_a_target() {
        let serial: Model = "serial?ports=2".parse().unwrap();
        assert_eq!(parse_model("serial?ports=2").unwrap(), serial);
        assert_eq!(parse_model("model:serial?ports=2").unwrap(), serial);
        assert!(parse_model("model:model:serial").is_err());
    }

    #[test]
    fn what_names_no_device_is_refused() {
        let cases = [
            ("", "the name of the device is missing"),
            ("group:", "the name of the device is missing"),
            ("cdev:", "the path is missing"),
            ("vfio-user:", "the socket is missing"),
            ("model:", "unknown model"),
            ("model:toaster", "unknown model 'toaster'"),
            ("model:model:serial", "unknown model 'model:serial'"),
            ("model:serial?ports=3", "invalid value '3' for ports"),
            ("vfio0", "neither a PCI address nor a UUID"),
            ("../../etc", "neither a PCI address"),
            ("3b:00", "neither a PCI address"),
            ("3b:00.x", "neither a PCI address"),
            ("zz:00.0", "neither a PCI address"),
            ("0:3b:00.0", "neither a PCI address"),
            ("group:/dev/vfio/1", "neither a PCI address"),
            ("c9de1dcb-1f0c-4f0e-9d5c-0a3d5f6f8a0", "neither a PCI address"),
        ];
        for (text, why) in cases {
            let refused = text.parse::<Target>().unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
    }
}
