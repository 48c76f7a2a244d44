//! Tests of the rules against a reference: the kernel's functions, one by one, over plain fields.

use proptest::prelude::*;
use whimbrel_protocol::Errno;

use super::*;

const INTERRUPTS: u32 = 4;

type Number = u8;

/// The interrupt state that the kernel keeps in `struct vfio_pci_core_device`.
#[derive(Debug, Default)]
struct Kernel {
    irq_type: Option<u32>,
    trigger: Option<Number>,
    masked: bool,
    unmask: Option<Number>,
    contexts: [Option<Number>; INTERRUPTS as usize],
    allocated: u32,
    err: Option<Number>,
    req: Option<Number>,
    asserted: bool,
    virq_disabled: bool,
    signalled: Vec<Number>,
}

fn first(data: &Data<Number>) -> Option<Slot<Number>> {
    match data {
        Data::Eventfds(slots) => slots.first().cloned(),
        _ => None,
    }
}

impl Kernel {
    fn signal(&mut self, eventfd: Option<Number>) {
        self.signalled.extend(eventfd);
    }

    fn intx_handler(&mut self) {
        if self.irq_type == Some(0) && !self.masked && self.asserted {
            self.masked = true;
            self.signal(self.trigger);
        }
    }

    fn intx_unmask(&mut self) {
        if self.irq_type == Some(0) && self.masked && !self.virq_disabled {
            if self.asserted {
                self.signal(self.trigger);
            } else {
                self.masked = false;
            }
        }
    }

    fn basic_config_write(&mut self, intx_disable: bool) {
        if intx_disable && !self.virq_disabled {
            self.virq_disabled = true;
            self.masked |= self.irq_type == Some(0);
        } else if !intx_disable && self.virq_disabled {
            self.virq_disabled = false;
            self.intx_unmask();
        }
    }

    fn message(&mut self, index: u32, interrupt: u32) {
        if self.irq_type == Some(index) && index > 0 {
            self.signal(self.contexts[interrupt as usize]);
        }
        if interrupt == 0 && index == 3 {
            self.signal(self.err);
        }
        if interrupt == 0 && index == 4 {
            self.signal(self.req);
        }
    }

    fn set_irqs(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        let action = change.action?;
        match (change.index, action) {
            (0, IrqAction::Mask) => self.set_intx_mask(change),
            (0, IrqAction::Unmask) => self.set_intx_unmask(change),
            (0, IrqAction::Trigger) => self.set_intx_trigger(change),
            (1 | 2, IrqAction::Trigger) => self.set_msi_trigger(change),
            (3 | 4, IrqAction::Trigger) => self.set_single(change),
            _ => Err(Errno::ENOTTY),
        }
    }

    fn set_intx_mask(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        if self.irq_type != Some(0) || change.start != 0 || change.data.count() != 1 {
            return Err(Errno::EINVAL);
        }
        match &change.data {
            Data::None(_) => self.masked = true,
            Data::Bool(items) => self.masked |= items[0],
            Data::Eventfds(_) => return Err(Errno::ENOTTY),
        }
        Ok(())
    }

    fn set_intx_unmask(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        if self.irq_type != Some(0) || change.start != 0 || change.data.count() != 1 {
            return Err(Errno::EINVAL);
        }
        match &change.data {
            Data::None(_) => self.intx_unmask(),
            Data::Bool(items) if items[0] => self.intx_unmask(),
            Data::Bool(_) => {}
            Data::Eventfds(slots) => match slots[0] {
                Slot::Refused(errno) => return Err(errno),
                Slot::Eventfd(number) => {
                    if self.unmask.is_some() {
                        return Err(Errno::EBUSY);
                    }
                    self.unmask = Some(number);
                }
                Slot::Empty | Slot::Negative => self.unmask = None,
            },
        }
        Ok(())
    }

    fn set_intx_trigger(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        let intx = self.irq_type == Some(0);
        let count = change.data.count();
        if intx && change.data == Data::None(0) {
            self.irq_type = None;
            (self.trigger, self.unmask) = (None, None);
            return Ok(());
        }
        if !(intx || self.irq_type.is_none()) || change.start != 0 || count != 1 {
            return Err(Errno::EINVAL);
        }
        if let Some(slot) = first(&change.data) {
            self.trigger = match slot {
                Slot::Refused(errno) => return Err(errno),
                Slot::Eventfd(number) => Some(number),
                Slot::Empty | Slot::Negative => None,
            };
            if !intx {
                self.irq_type = Some(0);
                self.masked = self.virq_disabled;
                self.intx_handler();
            }
            return Ok(());
        }
        if !intx {
            return Err(Errno::EINVAL);
        }
        if change.data != Data::Bool(vec![false]) {
            self.signal(self.trigger);
        }
        Ok(())
    }

    fn set_vector_signal(&mut self, vector: u32, slot: &Slot<Number>, grow: bool) -> Result<(), Errno> {
        self.contexts[vector as usize] = None;
        match slot {
            Slot::Empty | Slot::Negative => Ok(()),
            _ if vector >= self.allocated && !grow => Err(Errno::EINVAL),
            Slot::Refused(errno) => Err(*errno),
            Slot::Eventfd(number) => {
                self.contexts[vector as usize] = Some(*number);
                Ok(())
            }
        }
    }

    fn set_block(&mut self, start: u32, slots: &[Slot<Number>], grow: bool) -> Result<(), Errno> {
        for (at, slot) in slots.iter().enumerate() {
            if let Err(errno) = self.set_vector_signal(start + at as u32, slot, grow) {
                for vector in start..=start + at as u32 {
                    self.contexts[vector as usize] = None;
                }
                return Err(errno);
            }
        }
        Ok(())
    }

    fn msi_disable(&mut self) {
        self.contexts = Default::default();
        self.irq_type = None;
    }

    fn set_msi_trigger(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        let is = self.irq_type == Some(change.index);
        if is && change.data == Data::None(0) {
            self.msi_disable();
            return Ok(());
        }
        if !is && self.irq_type.is_some() {
            return Err(Errno::EINVAL);
        }
        let grow = change.kind == Kind::Messages { grow: true };
        if let Data::Eventfds(slots) = &change.data {
            if is {
                return self.set_block(change.start, slots, grow);
            }
            let vectors = change.start + slots.len() as u32;
            if vectors == 0 {
                return Err(Errno::ERANGE);
            }
            self.irq_type = Some(change.index);
            self.allocated = vectors;
            let result = self.set_block(change.start, slots, grow);
            if result.is_err() {
                self.msi_disable();
            }
            return result;
        }
        if !is {
            return Err(Errno::EINVAL);
        }
        for at in 0..change.data.count() {
            if !matches!(&change.data, Data::Bool(items) if !items[at]) {
                self.signal(self.contexts[change.start as usize + at]);
            }
        }
        Ok(())
    }

    fn set_single(&mut self, change: &Change<Number>) -> Result<(), Errno> {
        let count = change.data.count();
        if change.start != 0 || count > 1 {
            return Err(Errno::EINVAL);
        }
        let place = if change.index == 3 { &mut self.err } else { &mut self.req };
        match &change.data {
            Data::None(_) if place.is_none() => return Err(Errno::EINVAL),
            Data::None(0) => *place = None,
            _ if count == 0 => return Err(Errno::EINVAL),
            Data::Bool(items) if !items[0] => {}
            Data::None(_) | Data::Bool(_) => {
                let eventfd = *place;
                self.signal(eventfd);
            }
            Data::Eventfds(slots) => match &slots[0] {
                Slot::Empty => *place = None,
                Slot::Eventfd(number) => *place = Some(*number),
                Slot::Refused(errno) => return Err(*errno),
                Slot::Negative => return Err(Errno::EINVAL),
            },
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set(Change<Number>),
    Line(bool),
    Message(u32, u32),
    /// The user signals the eventfd that unmasks.
    Unmask,
    /// The user writes the INTx-disable bit.
    Disable(bool),
    /// Another device like this one takes it all over, which stands as this one does.
    HandOn,
}

fn slots() -> impl Strategy<Value = Slot<Number>> {
    prop_oneof![
        4 => any::<Number>().prop_map(Slot::Eventfd),
        2 => Just(Slot::Empty),
        1 => Just(Slot::Negative),
        1 => Just(Slot::Refused(Errno::EBADF)),
    ]
}

/// Requests for a range that the index has: INTx, ERR and REQ have one interrupt.
fn change(grow: bool) -> impl Strategy<Value = Change<Number>> {
    let action = prop_oneof![
        1 => Just(Ok(IrqAction::Mask)),
        2 => Just(Ok(IrqAction::Unmask)),
        4 => Just(Ok(IrqAction::Trigger)),
        1 => Just(Err(Errno::ENOTTY)),
    ];
    (0..5_u32, action, 0..INTERRUPTS, 0..=INTERRUPTS).prop_flat_map(move |(index, action, start, count)| {
        let has = if matches!(index, 1 | 2) { INTERRUPTS } else { 1 };
        let start = start % has;
        let count = count.min(has - start);
        let length = count as usize;
        prop_oneof![
            Just(Data::None(count)),
            prop::collection::vec(any::<bool>(), length).prop_map(Data::Bool),
            prop::collection::vec(slots(), length).prop_map(Data::Eventfds),
        ]
        .prop_map(move |data| {
            let flags = if grow { IrqInfoFlags::empty() } else { IrqInfoFlags::NORESIZE };
            let kind = Kind::of(true, index, Irq::new(flags, has));
            Change { kind, index, start, action, data }
        })
    })
}

fn kind_of(grow: bool, index: u32) -> Kind {
    let flags = if grow { IrqInfoFlags::empty() } else { IrqInfoFlags::NORESIZE };
    Kind::of(true, index, Irq::new(flags, INTERRUPTS))
}

fn copied(active: InUse<&Number>) -> InUse<Number> {
    match active {
        InUse::None => InUse::None,
        InUse::Line { trigger, masked, unmask } => {
            InUse::Line { trigger: trigger.copied(), masked, unmask: unmask.copied() }
        }
        InUse::Messages { index, allocated, eventfds } => {
            let eventfds = eventfds.into_iter().map(|(interrupt, number)| (interrupt, *number)).collect();
            InUse::Messages { index, allocated, eventfds }
        }
    }
}

fn steps() -> impl Strategy<Value = (bool, Vec<Step>)> {
    any::<bool>().prop_flat_map(|grow| {
        let step = prop_oneof![
            6 => change(grow).prop_map(Step::Set),
            2 => any::<bool>().prop_map(Step::Line),
            1 => (0..6_u32, 0..INTERRUPTS).prop_map(|(index, interrupt)| Step::Message(index, interrupt)),
            1 => Just(Step::Unmask),
            1 => any::<bool>().prop_map(Step::Disable),
            1 => Just(Step::HandOn),
        ];
        (Just(grow), prop::collection::vec(step, 1..60))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_sequence_is_answered_and_signalled_as_by_the_kernel((grow, steps) in steps()) {
        let (mut setup, mut kernel) = (Setup::default(), Kernel::default());
        for step in steps {
            let mut signalled = Vec::new();
            kernel.signalled.clear();
            match &step {
                Step::Set(change) => {
                    let got = setup.apply(change.clone(), &mut |number| signalled.push(*number));
                    prop_assert_eq!(got, kernel.set_irqs(change), "{:?}", &step);
                }
                Step::Line(asserted) => {
                    signalled.extend(setup.set_line(*asserted));
                    kernel.asserted = *asserted;
                    kernel.intx_handler();
                }
                Step::Message(index, interrupt) => {
                    signalled.extend(setup.message(*index, *interrupt));
                    kernel.message(*index, *interrupt);
                }
                Step::Disable(disabled) => {
                    signalled.extend(setup.set_disabled(*disabled));
                    kernel.basic_config_write(*disabled);
                }
                Step::HandOn => {
                    let mut other = Setup::default();
                    other.set_line(setup.asserted);
                    other.set_disabled(setup.disabled);
                    let singles = setup.singles().map(|(index, number)| (index, *number)).collect();
                    let irq = |index| Some((kind_of(grow, index), if matches!(index, 1 | 2) { INTERRUPTS } else { 1 }));
                    signalled.extend(other.restore(copied(setup.active()), singles, irq).unwrap());
                    setup = other;
                }
                Step::Unmask => {
                    if setup.unmask_eventfd().is_some() {
                        signalled.extend(setup.unmask());
                    }
                    if kernel.unmask.is_some() {
                        kernel.intx_unmask();
                    }
                }
            }
            prop_assert_eq!(&signalled, &kernel.signalled, "{:?}", &step);
            prop_assert_eq!(setup.unmask_eventfd(), kernel.unmask.as_ref(), "{:?}", &step);
        }
    }
}

#[test]
fn an_index_of_another_bus_is_told_by_its_number_of_interrupts() {
    let irq = |count| Irq::new(IrqInfoFlags::EVENTFD, count);
    assert_eq!(Kind::of(false, 0, irq(1)), Kind::Single);
    assert_eq!(Kind::of(false, 0, irq(2)), Kind::Messages { grow: false });
    assert_eq!(Kind::of(false, 9, irq(1)), Kind::Single);
    assert_eq!(Kind::of(true, 5, irq(1)), Kind::Unknown);
}

#[test]
fn what_a_device_cannot_have_is_not_taken_over() {
    type Singles = &'static [(u32, Number)];
    // INTx, two MSI that cannot grow, MSI-X that can, ERR.
    let irq = |index| match index {
        0 => Some((Kind::Line, 1)),
        1 => Some((Kind::Messages { grow: false }, 2)),
        2 => Some((Kind::Messages { grow: true }, 2)),
        3 => Some((Kind::Single, 1)),
        4 => Some((Kind::Single, 0)),
        _ => None,
    };
    let messages = |index, allocated, of: &[u32]| InUse::Messages {
        index,
        allocated,
        eventfds: of.iter().map(|of| (*of, 7)).collect(),
    };
    let line = InUse::Line { trigger: Some(1), masked: true, unmask: None };
    let cases: [(InUse<Number>, Singles, Result<(), Errno>); 13] = [
        (InUse::None, &[], Ok(())),
        (line, &[(3, 9)], Ok(())),
        (messages(1, 2, &[0, 1]), &[], Ok(())),
        (messages(2, 1, &[1]), &[], Ok(())),
        (messages(1, 1, &[1]), &[], Err(Errno::EINVAL)),
        (messages(2, 1, &[2]), &[], Err(Errno::EINVAL)),
        (messages(1, 0, &[]), &[], Err(Errno::EINVAL)),
        (messages(1, 3, &[]), &[], Err(Errno::EINVAL)),
        (messages(0, 1, &[0]), &[], Err(Errno::EINVAL)),
        (messages(9, 1, &[0]), &[], Err(Errno::EINVAL)),
        (InUse::None, &[(4, 9)], Err(Errno::EINVAL)),
        (InUse::None, &[(1, 9)], Err(Errno::EINVAL)),
        (InUse::None, &[(3, 9), (3, 8)], Err(Errno::EINVAL)),
    ];
    for (active, singles, expected) in cases {
        let mut setup = Setup::default();
        let got = setup.restore(active.clone(), singles.to_vec(), irq).map(drop);
        assert_eq!(got, expected, "{active:?} {singles:?}");
    }
    let mut used = Setup::default();
    used.restore(messages(1, 1, &[0]), Vec::new(), irq).unwrap();
    assert_eq!(used.restore(InUse::None, Vec::new(), irq).map(drop), Err(Errno::EBUSY));
}
