//! A device of a real kernel beside the model of it: the sample driver `mtty` and `model:serial`.

use std::os::fd::AsFd;

use super::mtty::*;
use nix::sys::eventfd::{EfdFlags, EventFd};
use whimbrel_device::DeviceFile;
use whimbrel_models::{Answers, Serial, SerialConfig};
use whimbrel_user::kernel::Group;
use whimbrel_user::{Device, Errno, Error, IrqAction, IrqData, Local, Migratable, State};

fn kernel(uuid: &str) -> Group {
    let mut device = Group::find(uuid).unwrap();
    make_fresh(&mut device);
    device
}

fn model() -> Local {
    let config = SerialConfig::default().answers(Answers::Mtty);
    Local::new(DeviceFile::new("model", |bus| Serial::new(config, bus)))
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_of_the_kernel_loads_into_the_model() {
    let (mut kernel, mut model) = (kernel(FIRST), model());
    fill(&mut kernel, b"hello mtty", 0x42);
    let stream = save(&mut kernel);
    assert_eq!(stream, RECORDED);
    restore(&mut model, &stream);
    assert_eq!(empty(&mut model), (b"hello mtty".to_vec(), 0x42));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn a_state_of_the_model_loads_into_the_kernel() {
    let (mut model, mut kernel) = (model(), kernel(SECOND));
    fill(&mut model, b"from a model", 0x5a);
    restore(&mut kernel, &save(&mut model));
    assert_eq!(empty(&mut kernel), (b"from a model".to_vec(), 0x5a));
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn both_end_their_precopy_in_their_own_way_and_give_the_same_bytes() {
    // The kernel's driver says 0, the model says ENOMSG as the header wants.
    let (mut kernel, mut model) = (kernel(FIRST), model());
    fill(&mut kernel, b"hello mtty", 0x42);
    fill(&mut model, b"hello mtty", 0x42);
    for before in [State::PreCopy, State::PreCopyP2p] {
        let expected = (RECORDED[..HEAD].to_vec(), RECORDED[HEAD..].to_vec());
        assert_eq!(save_through(&mut kernel, before), expected, "{before}");
        assert_eq!(save_through(&mut model, before), expected, "{before}");
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn both_say_the_same_of_themselves() {
    let (mut kernel, mut model) = (kernel(FIRST), model());
    assert_eq!(kernel.migration_flags().unwrap(), model.migration_flags().unwrap());
    assert_eq!(kernel.data_size().unwrap(), model.data_size().unwrap());
    let (theirs, ours) = (kernel.info().unwrap(), model.info().unwrap());
    assert_eq!((theirs.num_regions, theirs.num_irqs), (ours.num_regions, ours.num_irqs));
    for index in 0..theirs.num_regions {
        let (theirs, ours) = (kernel.region_info(index).unwrap(), model.region_info(index).unwrap());
        assert_eq!((theirs.size, theirs.offset), (ours.size, ours.offset), "region {index}");
    }
    let mut spaces = [[0; 0xff]; 2];
    kernel.read_region(7, 0, &mut spaces[0]).unwrap();
    model.read_region(7, 0, &mut spaces[1]).unwrap();
    assert_eq!(spaces[0], spaces[1], "configuration space");
}

/// Numbers without a pattern, the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u8 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 56) as u8
    }
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn registers_and_saved_bytes_of_both_go_the_same_way() {
    let (mut kernel, mut model) = (kernel(FIRST), model());
    let mut numbers = Numbers(1);
    let mut compared = [0; 8];
    for step in 0..1000 {
        let stream = save(&mut kernel);
        assert_eq!(save(&mut model), stream, "step {step}");
        let waiting = stream[HEAD + 26];
        let register = numbers.next() % 8;
        let value = numbers.next();
        if !numbers.next().is_multiple_of(3) {
            // A full FIFO is the one state in which the model does better: the kernel's driver takes it for
            // empty.
            if register != 0 || waiting < 15 {
                write_register(&mut kernel, register.into(), value);
                write_register(&mut model, register.into(), value);
            }
            continue;
        }
        // The kernel's driver returns whatever its buffer held from an empty FIFO, and mixes the causes of
        // interrupts into one number; the model names the most urgent one.
        if (register == 0 && waiting == 0) || register == 2 {
            continue;
        }
        let theirs = read_register(&mut kernel, register.into());
        assert_eq!(read_register(&mut model, register.into()), theirs, "step {step}: register {register}");
        compared[usize::from(register)] += 1;
    }
    assert!(compared.iter().filter(|count| **count > 0).count() == 7, "{compared:?}");
}

/// What a device answers to a request, by the errno.
fn answer(result: Result<(), Error>) -> Result<(), Errno> {
    result.map_err(|error| error.errno().expect("the device was asked"))
}

#[test]
#[ignore = "needs the lab's kernel: lab/run"]
fn both_answer_the_same_to_an_irq_set_for_an_interrupt_that_is_there() {
    let eventfd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let data = [
        IrqData::None(0),
        IrqData::None(1),
        IrqData::Bool(&[]),
        IrqData::Bool(&[false]),
        IrqData::Bool(&[true]),
        IrqData::Eventfd(&[Some(eventfd.as_fd())]),
        IrqData::Eventfd(&[None]),
    ];
    let mut compared = 0;
    for before in [None, Some(0), Some(1)] {
        for index in [0, 1, 5] {
            for action in [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger] {
                for data in data {
                    // The sample driver has no eventfd that unmasks, and refuses to do nothing to MSI.
                    let unknown = match (before, index, action, data) {
                        (Some(0), 0, IrqAction::Unmask, IrqData::Eventfd(_)) => true,
                        (Some(1), 1, IrqAction::Trigger, IrqData::Bool(items)) => items.is_empty(),
                        _ => false,
                    };
                    if unknown {
                        continue;
                    }
                    let (mut kernel, mut model) = (kernel(FIRST), model());
                    // Before it has been asked for its info, the sample driver has no interrupts.
                    kernel.info().unwrap();
                    let mut answers = Vec::new();
                    for device in [&mut kernel as &mut dyn Device, &mut model] {
                        if let Some(index) = before {
                            device.set_irq_triggers(index, 0, &[Some(eventfd.as_fd())]).unwrap();
                        }
                        let first = answer(device.set_irqs(index, 0, action, data));
                        let signals = eventfd.read().unwrap_or(0);
                        // Leave nothing for the next.
                        for index in [0, 1] {
                            let _ = device.set_irqs(index, 0, IrqAction::Trigger, IrqData::None(0));
                        }
                        answers.push((first, signals));
                    }
                    let what = format!("index {index} with {before:?} set up: {action:?} {data:?}");
                    assert_eq!(answers[0], answers[1], "{what}");
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(compared, 186);
}
