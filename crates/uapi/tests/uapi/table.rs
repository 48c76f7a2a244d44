//! The headers as data.

use whimbrel_uapi::table::{Value, constants, draft_constants, draft_structures, structure, structures};

#[test]
fn a_value_is_compared_modulo_its_width() {
    let narrow = Value::Number { value: 0xffff_ffff, bits: 32 };
    let wide = Value::Number { value: 0xffff_ffff, bits: 64 };
    assert!(narrow.is(-1) && narrow.is(0xffff_ffff) && !narrow.is(0xffff_fffe));
    assert!(wide.is(0xffff_ffff) && !wide.is(-1));
}

#[test]
fn a_structure_that_ends_earlier_is_smaller_and_one_with_a_gap_is_not() {
    let info = structure("vfio_device_info").expect("it is there");
    assert_eq!(info.size_without(|_| false), 24);
    assert_eq!(info.size_without(|field| field.name == "pad"), 20);
    assert_eq!(info.size_without(|field| ["cap_offset", "pad"].contains(&field.name)), 16);
    assert_eq!(info.size_without(|field| field.name == "num_irqs"), 24);
}

#[test]
fn the_drafts_structure_is_another_one_of_the_same_name() {
    for draft in draft_structures() {
        assert!(structure(draft.name).is_some_and(|v1| v1.size < draft.size), "{}", draft.name);
    }
    assert!(draft_structures().count() > 0 && draft_constants().count() > 0);
}

#[test]
fn no_name_stands_twice_in_one_form() {
    for (at, constant) in constants().enumerate() {
        let again = constants().skip(at + 1).find(|other| {
            other.expression() == constant.expression()
                && other.form == constant.form
                && other.header == constant.header
        });
        assert_eq!(again, None);
    }
    for (at, structure) in structures().enumerate() {
        assert!(structures().skip(at + 1).all(|other| other.name != structure.name), "{}", structure.name);
    }
}
