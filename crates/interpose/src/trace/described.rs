//! A VFIO file as records name it: what its link in `/proc` says, and what the answers of earlier requests told.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use whimbrel_uapi::decode::{Call, File};
use whimbrel_uapi::device::RegionInfo;
use whimbrel_uapi::feature::{DeviceFeature, FEATURE_MASK, Feature, FeatureFlags};
use whimbrel_uapi::group::{VFIO_SPAPR_TCE_IOMMU, VFIO_SPAPR_TCE_V2_IOMMU};
use whimbrel_uapi::ioctl::{
    VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_GFX_DMABUF, VFIO_DEVICE_GET_REGION_INFO, VFIO_GROUP_GET_DEVICE_FD,
    VFIO_SET_IOMMU,
};
use whimbrel_uapi::migration::{DeviceFeatureMigState, VFIO_DEVICE_STATE_RESUMING};
use zerocopy::FromBytes;

use super::record::{Action, On, Outcome, Place, Record, Request};

/// The most regions that are remembered of a device: more than any has.
const MAX_REGIONS: usize = 256;

/// A file.
#[derive(Debug)]
pub(crate) struct Described {
    pub(super) what: What,
    name: Arc<str>,
    /// Of a container: its IOMMU is that of POWER.
    spapr: AtomicBool,
    /// Of a device: its regions, as far as the program has asked for them.
    regions: Mutex<Vec<RegionInfo>>,
    /// Of a data file: the bytes that have passed.
    passed: AtomicU64,
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Container,
    Group,
    Device,
    Data,
    Iommufd,
    DmaBuf,
    /// Not known as a VFIO file.
    Other,
}

impl Described {
    pub(super) fn new(what: What, name: impl Into<Arc<str>>) -> Described {
        Described {
            what,
            name: name.into(),
            spapr: AtomicBool::new(false),
            regions: Mutex::default(),
            passed: AtomicU64::new(0),
        }
    }

    /// Returns a device that `parent` opened by this name.
    pub(crate) fn device(name: &str, parent: &Described) -> Described {
        Described::new(What::Device, format!("device {name} of {}", parent.name))
    }

    /// Returns a data file of `device`.
    pub(crate) fn data(device: &Described, resuming: bool) -> Described {
        let way = if resuming { "resuming" } else { "saving" };
        Described::new(What::Data, format!("data of {}, {way}", device.name))
    }

    /// Returns a file that nobody has looked at.
    pub(crate) fn not_looked_at() -> Described {
        Described::new(What::Other, "file not looked at")
    }

    /// Returns the file that the link of a descriptor tells.
    pub(crate) fn of_link(link: &str) -> Described {
        match link {
            "/dev/vfio/vfio" => return Described::new(What::Container, "container"),
            "" => return Described::new(What::Other, "not an open file"),
            "/dev/iommu" => return Described::new(What::Iommufd, "iommufd"),
            // A device that the trace has not seen being opened.
            "anon_inode:[vfio-device]" => return Described::new(What::Device, "device"),
            _ => {}
        }
        // A name of the program's choice must not look like a line of the trace.
        let link = &*link.escape_debug().to_string();
        if let Some(name) = link.strip_prefix("/dev/vfio/devices/") {
            return Described::new(What::Device, format!("device {name}"));
        }
        match link.strip_prefix("/dev/vfio/") {
            Some(number) if !number.contains('/') => Described::new(What::Group, format!("group {number}")),
            _ => Described::new(What::Other, link),
        }
    }

    /// Returns whether this is a VFIO file.
    pub(super) fn is_vfio(&self) -> bool {
        self.what != What::Other
    }

    /// Returns whether this may be a file that is known at another descriptor, and that its link does not tell: a device
    /// without a name, or a file without a path.
    pub(super) fn is_ambiguous(&self) -> bool {
        match self.what {
            What::Device => self.is_unnamed(),
            What::Other => self.name.starts_with("anon_inode:"),
            _ => false,
        }
    }

    /// Returns whether this is a device whose opener was not seen.
    pub(super) fn is_unnamed(&self) -> bool {
        self.what == What::Device && *self.name == *"device"
    }

    /// Returns whether this is a data file.
    pub(super) fn is_data(&self) -> bool {
        self.what == What::Data
    }

    /// Returns the file at a descriptor, for a record.
    pub(crate) fn on(&self, fd: i32) -> On {
        let kind = match self.what {
            What::Container => "container",
            What::Group => "group",
            What::Device => "device",
            What::Data => "data",
            What::Iommufd => "iommufd",
            What::DmaBuf => "dma_buf",
            What::Other => "other",
        };
        On::new(fd, kind, Arc::clone(&self.name))
    }

    /// Returns the kind of file that gives the number of a request its meaning. For a file that is not known it is the
    /// first kind that has such a request.
    pub(crate) fn decoded_as(&self, number: u32) -> File {
        match self.what {
            What::Container if self.spapr.load(Ordering::Relaxed) => File::SpaprContainer,
            What::Container => File::Container,
            What::Group => File::Group,
            What::Device => File::Device,
            What::Data => File::Data,
            What::Iommufd => File::Iommufd,
            What::DmaBuf | What::Other => {
                let kinds = [File::Device, File::Container, File::Group, File::Iommufd, File::Data];
                kinds.into_iter().find(|file| Call::passing(*file, number).is_some()).unwrap_or(File::Device)
            }
        }
    }

    /// Returns the place in a region at an offset in the file of a device.
    pub(super) fn place(&self, offset: u64) -> Option<Place> {
        let regions = self.regions.lock();
        let region = regions
            .iter()
            .find(|region| offset.checked_sub(region.offset).is_some_and(|at| at < region.size))?;
        Some(Place::new(region.index, offset - region.offset))
    }

    fn learn_region(&self, region: RegionInfo) {
        let mut regions = self.regions.lock();
        regions.retain(|known| known.index != region.index);
        if regions.len() < MAX_REGIONS {
            regions.push(region);
        }
    }

    /// Notes bytes that passed through a data file in a call that was seen.
    pub(super) fn pass(&self, bytes: u64) {
        self.passed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Compares the position of a data file with the bytes that were seen passing, and returns the difference.
    pub(super) fn catch_up(&self, position: u64) -> Option<u64> {
        let missed =
            position.checked_sub(self.passed.load(Ordering::Relaxed)).filter(|missed| *missed != 0)?;
        self.passed.store(position, Ordering::Relaxed);
        Some(missed)
    }
}

/// Learns from the answer of a request on `file`. Returns the new descriptor that the answer opened, and its file.
pub(super) fn learn(file: &Described, request: &Request, outcome: Outcome) -> Option<(i32, Described)> {
    let name = request.call().request()?;
    let returned = outcome.returned()?;
    let opened = i32::try_from(returned).ok();
    if name == VFIO_GROUP_GET_DEVICE_FD {
        let end = request.argument.iter().position(|byte| *byte == 0).unwrap_or(request.argument.len());
        let device = request.argument[..end].escape_ascii().to_string();
        return Some((opened?, Described::device(&device, file)));
    }
    if name == VFIO_SET_IOMMU {
        let spapr = [VFIO_SPAPR_TCE_IOMMU, VFIO_SPAPR_TCE_V2_IOMMU].map(u64::from).contains(&request.value);
        file.spapr.store(spapr, Ordering::Relaxed);
        return None;
    }
    if name == VFIO_DEVICE_GET_REGION_INFO {
        if let Ok((region, _)) = RegionInfo::read_from_prefix(&request.answer) {
            file.learn_region(region);
        }
        return None;
    }
    if name == VFIO_DEVICE_GET_GFX_DMABUF {
        return Some((opened?, Described::new(What::DmaBuf, format!("dma-buf of {}", file.name))));
    }
    if name != VFIO_DEVICE_FEATURE {
        return None;
    }
    let (head, data) = DeviceFeature::read_from_prefix(&request.answer).ok()?;
    let verbs = FeatureFlags::from_bits_retain(head.flags);
    if verbs.contains(FeatureFlags::PROBE) {
        return None;
    }
    match Feature::from_number((head.flags & FEATURE_MASK) as u16)? {
        Feature::MigDeviceState if verbs.contains(FeatureFlags::SET) => {
            let (state, _) = DeviceFeatureMigState::read_from_prefix(data).ok()?;
            let named = Described::data(file, state.device_state == VFIO_DEVICE_STATE_RESUMING);
            (state.data_fd >= 0).then_some((state.data_fd, named))
        }
        Feature::DmaBuf => Some((opened?, Described::new(What::DmaBuf, format!("dma-buf of {}", file.name)))),
        _ => None,
    }
}

/// Notes what a finished call says about its own file: the bytes that passed.
pub(super) fn note(file: &Described, record: &Record) {
    if file.is_data() && matches!(record.action, Action::Transfer(_)) {
        file.pass(record.bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use whimbrel_uapi::Errno;
    use whimbrel_uapi::ioctl::{self, Request as Name};
    use whimbrel_uapi::migration::VFIO_DEVICE_STATE_STOP_COPY;
    use zerocopy::IntoBytes;

    use super::super::record::Transfer;
    use super::*;

    fn request(file: File, name: Name, answer: &[u8]) -> Request {
        Request::new(file, name.number(), 0, answer.to_vec())
    }

    /// The file that an answer opened on a device that a group has opened.
    fn opened_on_device(answer: &Request, outcome: Outcome) -> Option<(i32, Described)> {
        learn(&Described::new(What::Device, "device x of group 7"), answer, outcome)
    }

    fn state_change(state: u32, data_fd: i32) -> Request {
        let head = DeviceFeature { argsz: 16, flags: FeatureFlags::SET.bits() | 2 };
        let data = DeviceFeatureMigState { device_state: state, data_fd };
        request(File::Device, ioctl::VFIO_DEVICE_FEATURE, &[head.as_bytes(), data.as_bytes()].concat())
    }

    #[test]
    fn a_state_request_opens_a_session_unless_it_returns_no_descriptor() {
        let cases = [
            (VFIO_DEVICE_STATE_STOP_COPY, 9, Some("data of device x of group 7, saving")),
            (VFIO_DEVICE_STATE_RESUMING, 9, Some("data of device x of group 7, resuming")),
            (VFIO_DEVICE_STATE_STOP_COPY, -1, None),
        ];
        for (state, data_fd, expected) in cases {
            let opened = opened_on_device(&state_change(state, data_fd), Outcome::Returned(0));
            assert_eq!(opened.as_ref().map(|(_, file)| &*file.name), expected);
            assert!(opened.is_none_or(|(fd, file)| fd == 9 && file.is_data()));
        }
        let refused = state_change(VFIO_DEVICE_STATE_STOP_COPY, 9);
        assert!(opened_on_device(&refused, Outcome::Failed(Errno::EINVAL)).is_none());
    }

    #[test]
    fn regions_give_offsets_a_meaning() {
        let device = Described::new(What::Device, "device");
        for (index, size) in [(0, 0x1000), (7, 0x100), (7, 0x1000)] {
            let info = RegionInfo { index, size, offset: u64::from(index) << 40, ..RegionInfo::default() };
            let asked = request(File::Device, ioctl::VFIO_DEVICE_GET_REGION_INFO, info.as_bytes());
            assert!(learn(&device, &asked, Outcome::Returned(0)).is_none());
        }
        assert_eq!(device.place((7 << 40) + 0x800), Some(Place::new(7, 0x800)));
        assert_eq!(device.place(0xfff), Some(Place::new(0, 0xfff)));
        assert_eq!(device.place(0x1000), None);
        assert_eq!(device.place(u64::MAX), None);
    }

    #[test]
    fn a_container_on_power_takes_the_requests_of_power() {
        let container = Described::of_link("/dev/vfio/vfio");
        assert_eq!(container.decoded_as(0x3b75), File::Container);
        let set = |iommu| Request::new(File::Container, ioctl::VFIO_SET_IOMMU.number(), iommu, Vec::new());
        learn(&container, &set(7), Outcome::Failed(Errno::ENODEV));
        assert_eq!(container.decoded_as(0x3b75), File::Container);
        learn(&container, &set(7), Outcome::Returned(0));
        assert_eq!(container.decoded_as(0x3b75), File::SpaprContainer);
    }

    #[test]
    fn a_request_on_a_file_that_is_not_known_is_decoded_by_its_number() {
        let other = Described::of_link("/dev/null");
        for (name, file) in [
            (ioctl::VFIO_DEVICE_FEATURE, File::Device),
            (ioctl::VFIO_GET_API_VERSION, File::Container),
            (ioctl::VFIO_GROUP_GET_STATUS, File::Group),
            (ioctl::IOMMU_IOAS_MAP, File::Iommufd),
            (ioctl::VFIO_MIG_GET_PRECOPY_INFO, File::Data),
        ] {
            assert_eq!(other.decoded_as(name.number()), file, "{name}");
        }
        assert_eq!(other.decoded_as(0x3bff), File::Device);
    }

    #[test]
    fn the_position_of_a_data_file_tells_what_passed_unseen() {
        let data = Described::new(What::Data, "data");
        let on = data.on(9);
        let read = |count| {
            let action = Action::Transfer(Transfer::new("read", 100));
            Record::new(Duration::ZERO, on.clone(), action, Outcome::Returned(count))
        };
        note(&data, &read(96));
        assert_eq!(data.catch_up(96), None);
        assert_eq!(data.catch_up(1096), Some(1000));
        assert_eq!(data.catch_up(1096), None);
        // A driver that does not keep the position.
        assert_eq!(data.catch_up(0), None);
    }
}
