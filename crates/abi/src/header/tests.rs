//! The reader on whole headers, and on text that is not a header.

use proptest::prelude::*;

use super::*;

fn read_alone(text: &str) -> Header {
    read(text, |_| None)
}

/// Reads what must be readable.
fn read_whole(text: &str) -> Header {
    let header = read_alone(text);
    assert_eq!(header.unread, [], "{text}");
    header
}

fn fields(structure: &Structure) -> Vec<(&str, u32, u64, Option<u64>)> {
    structure.fields.iter().map(|own| (&*own.name, own.line, own.offset, own.size)).collect()
}

#[test]
fn a_structure_has_its_fields_with_their_lines_places_and_sizes() {
    let header = read_whole(
        "struct a {\n__u8 x;\n__u16 y[3];\nunion {\n__u64 z;\n__u32 w, v;\n};\nstruct { __u8 t; } s[2];\n\
         void *p;\n__u32 tail[];\n} __attribute__((packed));\nstruct b { struct a a; };",
    );
    let [a, b] = header.structures.as_slice() else { panic!("{:?}", header.structures) };
    assert_eq!((a.line, a.size, a.alignment, b.size), (1, 25, 1, 25));
    let expected = [
        ("x", 2, 0, Some(1)),
        ("y", 3, 1, Some(6)),
        ("z", 5, 7, Some(8)),
        ("w", 6, 7, Some(4)),
        ("v", 6, 7, Some(4)),
        ("s", 8, 15, Some(2)),
        ("p", 9, 17, Some(8)),
        ("tail", 10, 25, None),
    ];
    assert_eq!(fields(a), expected);
}

#[test]
fn a_branch_that_is_not_taken_defines_nothing() {
    let header = read_whole(
        "#ifndef GUARD\n#define GUARD\n#if 0\n#define A 1\n#elif defined(GUARD) && !defined B\n#define A 2\n\
         #else\n\
         #define A 3\n#endif\n#ifdef __KERNEL__\nenum { A };\n#error don't\n#endif\n#endif",
    );
    assert_eq!(header.value("A"), Ok(Value::Number(2)));
    assert_eq!(header.clashes, []);
}

#[test]
fn what_cannot_be_read_is_told_with_its_line_and_what_follows_is_read() {
    let cases = [
        ("struct a {\n__u32 x : 3;\n};", 2, "struct a: bit fields are not supported"),
        ("struct a {\n__u32 x;\nother y;\n};", 3, "struct a: expected a known type, found `other`"),
        ("struct a { struct c x; };", 1, "the size of struct c is unknown"),
        ("struct a { __u8 x[-1]; };", 1, "an array of negative length"),
        ("struct a { __u64 x[0x8000000000]; };", 1, "an array is too large"),
        ("struct a { __u64 x[1UL << 36], y[1UL << 36], z; };", 1, "a structure is too large"),
        ("struct a { __u8 x __attribute__((aligned(3))); };", 1, "not a power of two"),
        ("struct a { __u8 x __attribute__((mode(DI))); };", 1, "unknown attribute `mode`"),
        ("enum {\nA = B,\n};", 2, "unknown name `B`"),
        ("enum { A = 0xffffffff, B = 1UL << 40 };", 1, "B is larger than an enumerator"),
        ("enum { A B };", 1, "missing `,` before `B`"),
        ("typedef __u32 a;", 1, "expected a struct, union or enum, found `typedef`"),
        ("static inline int f(void)\n{ return 0; }", 1, "expected a struct, union or enum, found `static`"),
        ("\n#pragma pack(1)", 2, "unknown directive #pragma"),
        ("#if A(\n#endif", 1, "cannot follow"),
        ("#define F(x", 1, "unterminated macro parameters"),
        ("#endif", 1, "#endif without #if"),
        ("#error no", 1, "stops a compiler"),
    ];
    for (text, line, said) in cases {
        let header = read_alone(&format!("{text}\nstruct last {{ __u8 x; }};"));
        let [unread] = header.unread.as_slice() else { panic!("{text}: {:?}", header.unread) };
        assert_eq!(unread.line, line, "{text}");
        assert!(unread.why.contains(said), "{text}: {}", unread.why);
        assert!(header.structures.iter().any(|own| &*own.name == "last"), "{text}");
    }
    for (text, line, said) in [
        ("a;\n/* b", 2, "unterminated comment"),
        ("\n#if 1", 2, "no #endif"),
        ("struct a {", 1, "expected a known type, found the end"),
    ] {
        let header = read_alone(text);
        let told = header.unread.iter().any(|own| own.line == line && own.why.contains(said));
        assert!(told, "{text}: {:?}", header.unread);
    }
}

#[test]
fn names_that_clash_are_told_and_names_that_do_not_are_not() {
    let clash = |name: &str, line: u32| Some((name.to_owned(), line));
    let cases = [
        ("#define A 1\nenum { B,\nA };", clash("A", 3)),
        ("#define A 1\nstruct A { __u8 x; };", clash("A", 2)),
        ("#define A 1\nstruct B {\n__u8 A; };", clash("A", 3)),
        ("#define A 1\nenum A { B };", clash("A", 2)),
        ("enum { A };\n#define A 1", clash("A", 2)),
        ("#define A 1\n#define A 2", clash("A", 2)),
        ("#define A 1\n#define A (x)", clash("A", 2)),
        ("#define A(x) x\n#define A(x) (x)", clash("A", 2)),
        ("enum { A };\nenum { A };", clash("A", 2)),
        ("struct A { __u8 x; };\nstruct A { __u8 x; };", clash("A", 2)),
        ("enum { A };\n#define A A\n#undef A\n#define A(x) x\n#undef A\n#define A 1", clash("A", 6)),
        ("enum { A };\n#define A A", None),
        ("#define A A\nenum { A };", None),
        ("#define A(x) x\nenum { A };", None),
        ("#define A 1\n#define A 0x1", None),
        ("#define A 1\n#undef A\n#define A 2", None),
        ("#define A 1\n#undef A\nenum { A };", None),
        ("struct A { __u8 A; };\nenum { B };", None),
    ];
    for (text, expected) in cases {
        let clashes: Vec<_> =
            read_alone(text).clashes.iter().map(|own| (own.name().to_owned(), own.line())).collect();
        assert_eq!(clashes, Vec::from_iter(expected), "{text}");
    }
}

#[test]
fn text_that_nests_or_repeats_without_end_neither_overflows_nor_stalls() {
    let many = 100_000;
    let texts = [
        "struct a {".repeat(many),
        format!("struct a {{ __u8 x{};", "[".repeat(many)),
        format!("enum {{ A = {}", "(".repeat(many)),
        format!("#if {}\n#endif", "!".repeat(many)),
        "#if 1\n".repeat(many),
        "static }".repeat(many),
        "\"\\\"".repeat(many),
        "/**/".repeat(many),
        format!("{}/*{}", " ".repeat(many), "\n".repeat(many)),
        format!("enum {{ {} }};", (0..many).map(|at| format!("A{at},")).collect::<String>()),
        format!("{}enum {{ {} }};", "#define A 1\n#undef A\n".repeat(many / 10), "A,".repeat(many)),
        format!("enum {{ {} }};\n{}", "A,".repeat(many), "#define A(x) x\n".repeat(many)),
    ];
    for text in texts {
        read_alone(&text);
    }
}

/// Pieces of headers, so that random text is often nearly right.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "struct",
        "union",
        "enum",
        "a",
        "b",
        "A",
        "B",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        ";",
        ",",
        "=",
        "*",
        ":",
        "?",
        "1",
        "0x7fffffffffffffff",
        "-",
        "<<",
        "/",
        "~",
        "__u8",
        "__u64",
        "unsigned",
        "long",
        "char",
        "sizeof",
        "_IOW",
        "__attribute__((",
        "packed",
        "aligned",
        "__DECLARE_FLEX_ARRAY",
        "const",
        "'x'",
        "\"",
        "'",
        "\\\n",
        "\n#define A",
        "\n#define B(a)",
        "\n#define A(",
        "\n#undef A",
        "\n#if",
        "\n#ifdef A",
        "\n#elif",
        "\n#else",
        "\n#endif",
        "defined",
        "/*",
        "*/",
        "//",
        "\n",
        " ",
        "##",
        "#",
        "é",
    ]);
    prop::collection::vec(piece, 0..200).prop_map(|pieces| pieces.join(" "))
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        read_alone(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn any_pieces_of_headers_are_read_without_a_panic(text in pieces()) {
        let header = read_alone(&text);
        for name in ["A", "B(1)", "B(A)", "a"] {
            let _ = header.value(name);
        }
        let last = u32::try_from(text.lines().count()).unwrap().max(1);
        prop_assert!(header.unread.iter().all(|own| (1..=last).contains(&own.line)), "{:?}", header.unread);
    }
}
