//! The VF token, shared by the users of a physical function and its virtual functions, and its checks
//! (`vfio_pci_validate_vf_token()` and `vfio_pci_core_match()`).
//!
//! A physical function can inspect and remove its virtual functions, so the users of both must trust each other: both
//! know the token, the 16 bytes of a UUID.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use uuid::Uuid;
use whimbrel_protocol::Errno;

use crate::core::file::DeviceFile;

/// Characters of a UUID in text.
const UUID_LENGTH: usize = 36;

/// A device with SR-IOV, and its virtual functions.
///
/// A virtual function is opened with the token: VFIO_GROUP_GET_DEVICE_FD accepts it after the name (`0000:01:10.0
/// vf_token=UUID`), VFIO_DEVICE_BIND_IOMMUFD with VFIO_DEVICE_BIND_FLAG_TOKEN. The physical function needs it too while
/// a virtual function is open; otherwise a token given when it is opened becomes the token.
/// VFIO_DEVICE_FEATURE_PCI_VF_TOKEN on the physical function sets it at any time.
///
/// ```
/// use whimbrel_device::{
///     Container, DeviceFile, DeviceInfoFlags, Driver, Errno, Group, Info, PhysicalFunction,
///     Translation,
/// };
/// use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;
///
/// struct Function;
///
/// impl Driver for Function {
///     fn info(&self) -> Info {
///         Info::new(DeviceInfoFlags::PCI)
///     }
/// }
///
/// let [card, queue] = ["0000:01:00.0", "0000:01:10.0"].map(|name| {
///     DeviceFile::new(name, |_| Function)
/// });
/// PhysicalFunction::new(&card)?.add_virtual_function(&queue)?;
/// card.set_vf_token([0xab; 16])?;
///
/// let group = Group::new(Translation::Emulated, vec![queue])?.open()?;
/// let container = Container::default();
/// group.set_container(&container)?;
/// container.set_iommu(VFIO_TYPE1V2_IOMMU.into())?;
/// assert_eq!(group.device("0000:01:10.0").err(), Some(Errno::EACCES));
/// group.device("0000:01:10.0 vf_token=abababab-abab-abab-abab-abababababab")?;
/// # Ok::<(), Errno>(())
/// ```
#[derive(Clone, Debug)]
pub struct PhysicalFunction {
    token: Arc<VfToken>,
}

pub(crate) struct VfToken {
    state: Mutex<Token>,
}

struct Token {
    uuid: [u8; 16],
    /// Number of open virtual functions.
    users: u32,
}

/// A device's part in SR-IOV.
#[derive(Debug)]
pub(crate) enum Role {
    Physical(Arc<VfToken>),
    Virtual(Arc<VfToken>),
}

impl PhysicalFunction {
    /// Makes `device` a physical function for its lifetime. Its token is random until it is set.
    ///
    /// EINVAL for a device that is not PCI, EEXIST for one that is a physical or virtual function already.
    pub fn new(device: &DeviceFile) -> Result<PhysicalFunction, Errno> {
        let uuid = Uuid::new_v4().into_bytes();
        let token = Arc::new(VfToken { state: Mutex::new(Token { uuid, users: 0 }) });
        device.take_role(Role::Physical(Arc::clone(&token)))?;
        Ok(PhysicalFunction { token })
    }

    /// Makes `device` one of its virtual functions for its lifetime. EINVAL and EEXIST as in [`PhysicalFunction::new`].
    pub fn add_virtual_function(&self, device: &DeviceFile) -> Result<(), Errno> {
        device.take_role(Role::Virtual(Arc::clone(&self.token)))
    }
}

impl DeviceFile {
    /// VFIO_DEVICE_FEATURE_PCI_VF_TOKEN: sets the token, the bytes of the UUID in the order of its text. Open virtual
    /// functions stay open. ENOTTY for a device that is not a [`PhysicalFunction`].
    pub fn set_vf_token(&self, token: [u8; 16]) -> Result<(), Errno> {
        match self.opens().role() {
            Some(Role::Physical(shared)) => {
                shared.state.lock().uuid = token;
                Ok(())
            }
            _ => Err(Errno::ENOTTY),
        }
    }

    pub(crate) fn has_vf_token(&self) -> bool {
        matches!(self.opens().role(), Some(Role::Physical(_)))
    }

    pub(crate) fn is_virtual_function(&self) -> bool {
        matches!(self.opens().role(), Some(Role::Virtual(_)))
    }

    /// Checks whether the device may be opened with this token, or without one. EACCES for a missing or
    /// wrong token, EINVAL for one that does not apply.
    pub(crate) fn validate_vf_token(&self, given: Option<[u8; 16]>) -> Result<(), Errno> {
        let (mut token, is_physical) = match self.opens().role() {
            Some(Role::Physical(token)) => (token.state.lock(), true),
            Some(Role::Virtual(token)) => (token.state.lock(), false),
            None if given.is_some() => {
                tracing::info!(
                    device = self.name(),
                    "VF token given for a device that is neither a PF nor a VF"
                );
                return Err(Errno::EINVAL);
            }
            None => return Ok(()),
        };
        if is_physical && token.users == 0 {
            token.uuid = given.unwrap_or(token.uuid);
            return Ok(());
        }
        if given == Some(token.uuid) {
            return Ok(());
        }
        let wrong = given.is_some();
        tracing::info!(device = self.name(), wrong, "wrong or missing VF token");
        Err(Errno::EACCES)
    }

    /// Returns whether GET_DEVICE_FD names this device. A token may follow a PCI device's name, and is then
    /// checked.
    pub(crate) fn matches(&self, name: &[u8]) -> Result<bool, Errno> {
        if self.check_pci().is_err() {
            return Ok(self.name().as_bytes() == name);
        }
        match name.strip_prefix(self.name().as_bytes()) {
            Some(options @ ([] | [b' ', ..])) => self.validate_vf_token(token_in(options)?).map(|()| true),
            _ => Ok(false),
        }
    }

    /// Counts a virtual function's first open or last close.
    pub(crate) fn use_vf_token(&self, starts: bool) {
        if let Some(Role::Virtual(token)) = self.opens().role() {
            let users = &mut token.state.lock().users;
            *users = if starts { *users + 1 } else { *users - 1 };
        }
    }

    fn take_role(&self, role: Role) -> Result<(), Errno> {
        self.check_pci().map_err(|_| Errno::EINVAL)?;
        self.opens().set_role(role)
    }
}

/// Returns the token among the options after a name. EINVAL for any other option, a second token, and an invalid UUID.
fn token_in(mut options: &[u8]) -> Result<Option<[u8; 16]>, Errno> {
    let mut token = None;
    while let Some(first) = options.first() {
        if *first == b' ' {
            options = &options[1..];
            continue;
        }
        let value = options.strip_prefix(b"vf_token=").filter(|_| token.is_none()).ok_or(Errno::EINVAL)?;
        let (uuid, rest) = value.split_at_checked(UUID_LENGTH).ok_or(Errno::EINVAL)?;
        token = Some(Uuid::try_parse_ascii(uuid).map_err(|_| Errno::EINVAL)?.into_bytes());
        options = rest;
    }
    Ok(token)
}

impl fmt::Debug for VfToken {
    /// Formats the value without the token, which must not appear in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfToken").field("users", &self.state.lock().users).finish_non_exhaustive()
    }
}
