//! The program in C does what programs do with VFIO, on a serial card and on a DMA engine: each act checks every answer.

use std::io::Read;

use crate::support::{Linked, act, program, said, spawn_act, wait};

/// A test for each act, for a program linked either way.
macro_rules! acts {
    ($($test:ident: $name:literal on $model:literal;)*) => {
        mod dynamically_linked {
            $(#[test]
            fn $test() {
                super::act(super::program(super::Linked::Dynamically), $name, $model);
            })*
        }

        mod statically_linked {
            $(#[test]
            fn $test() {
                super::act(super::program(super::Linked::Statically), $name, $model);
            })*
        }
    };
}

acts! {
    a_device_is_used_by_group_and_container: "group" on "serial";
    a_device_is_used_by_its_own_file_and_iommufd: "cdev" on "serial";
    a_dma_engine_is_used_by_group_and_container: "group" on "accel?state=1MiB";
    a_dma_engine_is_used_by_its_own_file_and_iommufd: "cdev" on "accel?state=1MiB";
    memory_of_each_kind_is_mapped: "memory" on "serial";
    arguments_out_of_memory_are_faults: "faults" on "serial";
    lengths_and_flags_of_transfers_are_checked: "transfers" on "serial";
    a_descriptor_of_a_path_takes_no_requests: "paths" on "serial";
    a_duplicate_is_the_same_open_file: "dups" on "serial";
    what_is_closed_can_be_opened_at_once: "reopens" on "serial";
    a_number_is_that_of_the_file_which_has_it_now: "reuses" on "serial";
    threads_make_requests_at_a_time: "threads" on "serial";
    a_device_is_used_in_a_chroot: "jail" on "serial";
    a_program_that_cannot_be_looked_into_is_served: "undumpable" on "serial";
    duplicates_from_before_the_first_request_are_the_same_file: "early_dups" on "serial";
    threads_make_the_first_request_at_a_time: "firsts" on "serial";
    a_thread_with_descriptors_of_its_own_is_served_by_them: "own_table" on "serial";
    threads_are_served_when_the_first_one_has_ended: "orphans" on "serial";
    children_and_other_programs_inherit_open_files: "forks" on "serial";
    an_open_file_is_passed_by_a_socket: "passes" on "serial";
    signals_do_not_disturb_requests: "signals" on "serial";
    other_files_are_left_alone_and_a_ring_is_refused: "others" on "serial";
    a_serial_card_is_saved_and_loaded: "migrates" on "serial";
    a_dma_engine_is_saved_and_loaded: "migrates" on "accel?state=1MiB";
    an_interrupt_is_signalled: "interrupts" on "serial";
}

#[test]
fn kvm_is_told_of_the_programs_files() {
    let Some((mut child, _)) = spawn_act(program(Linked::Dynamically), "kvm", "serial") else { return };
    let mut text = String::new();
    child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
    let status = wait(&mut child);
    assert!(status.success(), "{status}; {}", said(&mut child));
    if !text.is_empty() {
        // A machine may lack it: the one thing here that may be left out.
        eprintln!("SKIPPED: KVM's attribute for VFIO files: {text}");
    }
}
