//! Bounds on the time and memory that a hostile header may take.

use super::*;

/// Longer than any name, number or string of a header, and short enough that what is wrong fails a test and no machine.
const LONG: usize = 64 << 10;

fn read_alone(text: &str) -> Header {
    read(text, |_| None)
}

fn said(header: &Header) -> usize {
    header.unread.iter().map(|own| own.why.len()).sum()
}

#[test]
fn a_long_name_or_number_is_not_repeated_whole_in_what_is_said_of_it() {
    let long = "a".repeat(LONG);
    let texts = [
        format!("#define L 1{long}\n{}", "#if L\n#endif\n".repeat(50)),
        format!("#{long}"),
        format!("#define F(x) x\n#define {long}(x) x\n#if {long}(1, 2)\n#endif"),
        format!("struct {long} {{ other x; }};"),
        format!("struct a {{ struct {long} x; }};"),
        format!("struct a {{ {long} x; }};"),
        format!("struct a {{ __u8 x {long}; }};"),
        format!("struct a {{ __u8 x __attribute__(({long})); }};"),
        format!("enum {{ {long} = 1UL << 40 }};"),
        format!("enum {{ A = {long} }};"),
        format!("enum {{ A = '{long}' }};"),
    ];
    for text in texts {
        let header = read_alone(&text);
        assert!(!header.unread.is_empty(), "{}", &text[..40]);
        assert!(said(&header) < 16 << 10, "{} bytes are said of {}..", said(&header), &text[..40]);
    }
}

#[test]
fn a_text_of_many_faults_is_taken_for_no_header_after_a_hundred() {
    for fault in ["#x\n", "#if 1\n", "static;\n"] {
        let header = read_alone(&fault.repeat(1000));
        assert!((100..=101).contains(&header.unread.len()), "{fault:?}: {}", header.unread.len());
    }
    let header = read_alone(&"#x\n".repeat(1000));
    let last = header.unread.last().map(|own| (own.line, own.why.contains("too much before")));
    assert_eq!(last, Some((100, true)));
}

#[test]
fn strings_that_macros_repeat_are_kept_within_the_budget() {
    let long = "a".repeat(LONG);
    let header = read_alone(&format!("#define T \"{long}\"\n{}", "#define A T\n#define A T T\n".repeat(200)));
    let kept: usize = header.clashes.iter().map(|own| own.to_string().len()).sum();
    assert!((LONG..8 << 20).contains(&kept), "{kept} bytes of clashes");
}

#[test]
fn a_long_name_costs_as_much_as_it_is_work() {
    let header = read_alone(&format!("#define L {}\n#define A {}", "a".repeat(LONG), "L ".repeat(10_000)));
    let error = header.value("A").expect_err("655 MB of names");
    assert!(error.contains("too much"), "{error}");
}

#[test]
fn a_macro_has_at_most_127_parameters() {
    let of = |count: usize| {
        let parameters: Vec<String> = (0..count).map(|at| format!("p{at}")).collect();
        let zeros = vec!["0"; count].join(",");
        let header = read_alone(&format!("#define F({}) 7", parameters.join(",")));
        (header.value(&format!("F({zeros})")).ok(), header.unread)
    };
    assert_eq!(of(127), (Some(Value::Number(7)), vec![]));
    assert_eq!(of(128), (None, vec![Unread::new(1, "a macro with more than 127 parameters")]));
}
