//! The descriptors of a program, and the VFIO file behind each. This module reads none: it is given the links in `/proc`.

use std::collections::HashMap;
use std::sync::Arc;

use super::described::{Described, What};

/// The descriptors of one table, which the threads of a process share.
#[derive(Clone, Debug, Default)]
pub(super) struct Descriptors {
    known: HashMap<i32, Known>,
}

/// A descriptor that has been seen.
#[derive(Clone, Debug)]
struct Known {
    /// Its link in `/proc`: once that has changed, the descriptor is another file.
    link: String,
    file: Arc<Described>,
}

impl Descriptors {
    /// Returns the file at a descriptor with this link.
    pub(super) fn identify(&mut self, fd: i32, link: &str) -> Arc<Described> {
        if let Some(known) = self.known.get(&fd)
            && known.link == link
        {
            return Arc::clone(&known.file);
        }
        let file = Arc::new(Described::of_link(link));
        if file.is_vfio() {
            self.insert(fd, link, Arc::clone(&file));
        } else {
            self.known.remove(&fd);
        }
        file
    }

    /// Notes which file is at a descriptor.
    pub(super) fn insert(&mut self, fd: i32, link: &str, file: Arc<Described>) {
        self.known.insert(fd, Known { link: link.to_string(), file });
    }

    /// Forgets a closed descriptor.
    pub(super) fn remove(&mut self, fd: i32) {
        self.known.remove(&fd);
    }

    /// Returns the known descriptors that a range of closed ones covers.
    pub(super) fn within(&self, first: u64, last: u64) -> Vec<i32> {
        let is_within = |fd: &i32| u64::try_from(*fd).is_ok_and(|fd| (first..=last).contains(&fd));
        let mut found: Vec<i32> = self.known.keys().copied().filter(is_within).collect();
        found.sort_unstable();
        found
    }

    /// Returns the devices and data files that were told by an answer and have this link, for a comparison with a file that
    /// is [ambiguous](Described::is_ambiguous).
    pub(super) fn told(&self, link: &str) -> Vec<(i32, Arc<Described>)> {
        let told = |known: &Known| {
            let is_named = known.file.what == What::Device && !known.file.is_unnamed();
            known.link == link && (is_named || known.file.is_data())
        };
        let found = self.known.iter().filter(|(_, known)| told(known));
        found.map(|(fd, known)| (*fd, Arc::clone(&known.file))).collect()
    }

    /// Returns whether a data file is open, as far as is known.
    pub(super) fn has_session(&self) -> bool {
        self.known.values().any(|known| known.file.is_data())
    }

    /// Returns the data files: descriptor, link and file.
    pub(super) fn sessions(&self) -> Vec<(i32, String, Arc<Described>)> {
        let data = self.known.iter().filter(|(_, known)| known.file.is_data());
        let mut found: Vec<_> =
            data.map(|(fd, known)| (*fd, known.link.clone(), Arc::clone(&known.file))).collect();
        found.sort_unstable_by_key(|(fd, ..)| *fd);
        found
    }
}

#[cfg(test)]
mod tests {
    use whimbrel_uapi::Errno;
    use whimbrel_uapi::decode::File;
    use whimbrel_uapi::ioctl;

    use super::super::described::learn;
    use super::super::record::{Outcome, Request};
    use super::*;

    const DEVICE: &str = "anon_inode:[vfio-device]";

    fn name(table: &mut Descriptors, fd: i32, link: &str) -> String {
        let on = table.identify(fd, link).on(fd);
        format!("{} {}", on.kind, on.name)
    }

    #[test]
    fn a_link_tells_the_file() {
        let cases = [
            ("/dev/vfio/vfio", "container container"),
            ("/dev/vfio/12", "group group 12"),
            ("/dev/vfio/noiommu-3", "group group noiommu-3"),
            ("/dev/vfio/devices/vfio0", "device device vfio0"),
            ("/dev/iommu", "iommufd iommufd"),
            (DEVICE, "device device"),
            ("/dev/vfio/a/b", "other /dev/vfio/a/b"),
            ("anon_inode:[eventfd]", "other anon_inode:[eventfd]"),
            ("", "other not an open file"),
        ];
        for (link, expected) in cases {
            assert_eq!(name(&mut Descriptors::default(), 3, link), expected);
        }
    }

    #[test]
    fn a_device_has_the_name_by_which_its_group_opened_it() {
        let mut table = Descriptors::default();
        let group = table.identify(5, "/dev/vfio/12");
        let asked = Request::new(
            File::Group,
            ioctl::VFIO_GROUP_GET_DEVICE_FD.number(),
            0,
            b"0000:3b:00.2\0junk".to_vec(),
        );
        let (fd, device) = learn(&group, &asked, Outcome::Returned(7)).unwrap();
        table.insert(fd, DEVICE, Arc::new(device));
        assert_eq!(name(&mut table, 7, DEVICE), "device device 0000:3b:00.2 of group 12");
        assert!(learn(&group, &asked, Outcome::Failed(Errno::ENODEV)).is_none());
    }

    #[test]
    fn control_characters_in_a_link_are_escaped() {
        let mut table = Descriptors::default();
        for (link, expected) in [
            ("/tmp/x\n   0.000001 1 fd 3\u{1b}[31m", "other /tmp/x\\n   0.000001 1 fd 3\\u{1b}[31m"),
            ("/dev/vfio/7\n", "group group 7\\n"),
            ("/dev/vfio/devices/vfio0\r", "device device vfio0\\r"),
            ("/tmp/ä", "other /tmp/ä"),
        ] {
            assert_eq!(name(&mut table, 3, link), expected);
        }
    }

    #[test]
    fn a_descriptor_whose_link_has_changed_is_another_file() {
        let mut table = Descriptors::default();
        table.insert(7, DEVICE, Arc::new(Described::new(What::Device, "device x of group 1")));
        assert_eq!(name(&mut table, 7, "/tmp/file"), "other /tmp/file");
        assert_eq!(name(&mut table, 7, DEVICE), "device device", "the name has been forgotten");
    }

    #[test]
    fn what_a_link_does_not_tell_is_compared_with_what_answers_told() {
        let mut table = Descriptors::default();
        let data = "anon_inode:[mtty]";
        table.insert(5, DEVICE, Arc::new(Described::new(What::Device, "device x of group 1")));
        table.insert(6, data, Arc::new(Described::new(What::Data, "data of x")));
        let _ = table.identify(7, DEVICE);
        let candidates = |link: &str, table: &Descriptors| -> Vec<i32> {
            table.told(link).into_iter().map(|(fd, _)| fd).collect()
        };
        assert_eq!(candidates(DEVICE, &table), [5]);
        assert_eq!(candidates(data, &table), [6]);
        assert_eq!(candidates("anon_inode:[eventfd]", &table), [0; 0]);
        for (link, is_ambiguous) in [(DEVICE, true), (data, true), ("/dev/vfio/3", false), ("/tmp/x", false)]
        {
            assert_eq!(Described::of_link(link).is_ambiguous(), is_ambiguous, "{link}");
        }
    }

    #[test]
    fn a_range_of_closed_descriptors_covers_the_known_ones_in_it() {
        let mut table = Descriptors::default();
        for fd in [3, 5, 9] {
            table.insert(fd, DEVICE, Arc::new(Described::of_link(DEVICE)));
        }
        assert_eq!(table.within(4, u64::from(u32::MAX)), [5, 9]);
        table.remove(9);
        assert_eq!(table.within(0, 100), [3, 5]);
    }
}
