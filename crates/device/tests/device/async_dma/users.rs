//! Accesses of a device that is closed, and opened by another user.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use parking_lot::Mutex;
use whimbrel_device::{Container, DeviceFile, Driver, Group, Next, OpenDevice, State, Translation};
use whimbrel_uapi::group::VFIO_TYPE1V2_IOMMU;

use super::support::*;

/// A device in a group of its own, opened by a user through a container, and what its user sees of it.
struct Grouped {
    group: Group,
    rig: Rig,
    memory: Arc<Slow>,
}

impl Grouped {
    fn new(driver: impl FnOnce(Copier) -> Box<dyn Driver>) -> Grouped {
        let mut rig = Rig::of(true, driver);
        let ((asked, asks), (answer, answers)) = (channel(), channel());
        (rig.asked, rig.answer) = (asks, answer);
        let memory = Slow { asked, answers: Mutex::new(answers), may_outlive: true, max_bytes: usize::MAX };
        rig.device.bus().dma().unmap(0, PAGE).unwrap();
        let group = Group::new(Translation::Emulated, vec![DeviceFile::clone(&rig.device)]).unwrap();
        Grouped { group, rig, memory: Arc::new(memory) }
    }

    /// Opens the device for the next user, who has a page at 0 whose owner waits.
    fn open(&self) -> OpenDevice {
        let container = Container::default();
        let file = self.group.open().unwrap();
        file.set_container(&container).unwrap();
        container.set_iommu(VFIO_TYPE1V2_IOMMU.into()).unwrap();
        let user = file.device("copier").unwrap();
        self.rig.device.bus().dma().map_remote(0, PAGE, BOTH, self.memory.clone()).unwrap();
        user
    }

    fn close(&self, user: OpenDevice) {
        drop(user);
        self.rig.device.bus().dma().unmap(0, 2 * PAGE).unwrap();
    }
}

#[test]
fn a_closed_device_hears_nothing_of_its_access_and_the_next_user_need_not_wait_for_it() {
    let grouped = Grouped::new(|copier| Limited { copier, resets: false, migrates: true }.into());
    let rig = &grouped.rig;
    let first = grouped.open();
    rig.begin();
    grouped.close(first);
    assert_eq!(rig.next(), Seen::Close);
    let second = grouped.open();
    assert_eq!(second.set_mig_state(State::Stop).map(drop), Ok(()));
    rig.answer.send(()).unwrap();
    second.set_mig_state(State::Running).unwrap();
    rig.begin();
    rig.answer.send(()).unwrap();
    let arcs = [State::RunningP2p, State::Stop, State::RunningP2p, State::Running].map(Seen::Arc);
    assert_eq!([(); 4].map(|()| rig.next()), arcs);
    assert_eq!(rig.next(), Seen::Done(true), "of the second user's access alone");
}

#[test]
fn the_rest_of_an_access_does_not_reach_the_next_user() {
    let grouped = Grouped::new(|copier| Limited { copier, resets: false, migrates: true }.into());
    let rig = &grouped.rig;
    let dma = rig.device.bus().dma();
    let first = grouped.open();
    dma.map(PAGE, PAGE, BOTH, near()).unwrap();
    rig.device.write_region(0, 0, &(PAGE - 1).to_ne_bytes()).unwrap();
    assert_eq!(rig.asked.recv(), Ok(PAGE - 1));
    grouped.close(first);
    let _second = grouped.open();
    dma.map(PAGE, PAGE, BOTH, near()).unwrap();
    rig.answer.send(()).unwrap();
    // Once this one ends, so has that.
    rig.begin();
    let mut byte = [0];
    dma.read(PAGE, &mut byte).unwrap();
    assert_eq!(byte, [0], "a write of the former user");
    rig.answer.send(()).unwrap();
}

#[test]
fn a_closed_device_does_not_work_and_works_when_it_is_opened() {
    let grouped = Grouped::new(Into::into);
    let rig = &grouped.rig;
    // An access that ends at once: nothing is mapped there.
    rig.device.write_region(0, 0, &(2 * PAGE).to_ne_bytes()).unwrap();
    assert_eq!(rig.device.advance(Duration::ZERO), Next::Idle);
    assert!(rig.seen.try_recv().is_err(), "the driver of a closed device hears of an access");
    let _user = grouped.open();
    assert_eq!(rig.next(), Seen::Done(false));
}
