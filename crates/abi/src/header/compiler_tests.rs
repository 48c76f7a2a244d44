//! The reader against a C compiler: every size, offset and number it finds in whole headers.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use whimbrel_uapi::table;

use super::*;

/// Everything the reader understands, in one header of our own.
const EVERYTHING: &str = "
#define COUNT (1 << 2)
#define LONGEST 0x8000000000000000
#define SUM(a, b) ((a) + \\
    (b))
#define SMALL SUM(SUM(1, COUNT), -7) /* less
    than none */
#define TEXT \"te\" \"xt\"
#define REQUEST _IOWR(';', 100 + 3, struct plain)
#define CHOICE (COUNT == 4 ? 0xffffffff : -1L)
#define SIZE sizeof(struct plain) * 2
#define WIDE ((__s64)-1 < 0U)
enum first { ZERO, ONE, TEN = 10, ELEVEN, LEAST = -5, AFTER, };
enum { MOST = 0x7fffffff };
enum { LARGE = 0xfffffffe, LARGER };
struct plain { __u8 a; __u64 b; __u16 c; };
struct packed { __u8 a; __u64 b; struct plain c; } __attribute__((packed));
struct before { __u8 a; unsigned short b; } __attribute__((aligned(32)));
struct members {
    __u8 a __attribute__((aligned(4)));
    __u64 b __attribute__((packed));
    __u8 c[3], d[2][COUNT], *e;
    const char *f; enum first g; signed char h; long long unsigned i;
};
struct nested {
    __u32 argsz;
    union { struct { __u16 a; __u8 b; }; __u64 c; __u8 d[11]; };
    struct { __u8 x; __u32 y; } e[2];
    union { __u8 a; __u16 b; } f;
    struct packed g;
    struct plain tail[];
};
struct ends { __u64 a; __be16 b; __u8 c[0]; };
";

fn skip(why: &str) {
    assert!(
        env::var_os("WHIMBREL_REQUIRE_ALL").is_none(),
        "the reader cannot be held to a C compiler, and WHIMBREL_REQUIRE_ALL is set: {why}"
    );
    // Past the test harness, which shows what a test prints only when it fails.
    let _ = writeln!(std::io::stderr(), "SKIPPED: the reader of headers against a C compiler: {why}");
}

fn compiler() -> Command {
    let mut command = Command::new("cc");
    command.args(["-w", "-D__user=", "-D__counted_by(member)=", "-D__packed=__attribute__((packed))"]);
    command
}

/// Returns C's value for each of these, one per line.
fn measured(header: &Path, statements: &[String]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("measure.c"), folder.path().join("measure"));
    let mut text =
        format!("#include <linux/types.h>\n#include <linux/ioctl.h>\n#include \"{}\"\n", header.display());
    text.push_str("#include <stdio.h>\nint main(void) {\n");
    for statement in statements {
        writeln!(text, "{statement}").unwrap();
    }
    text.push_str("return 0; }\n");
    fs::write(&source, text).unwrap();
    let include = header.parent().and_then(Path::parent).unwrap();
    let compiled = compiler().arg("-I").arg(include).arg("-o").args([&program, &source]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let output = Command::new(&program).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// Compares everything, and returns how much that was.
fn agree(path: &Path) -> usize {
    let header = read(&fs::read_to_string(path).unwrap(), |name| {
        table::structure(name).map(|own| (own.size as u64, own.alignment as u64))
    });
    assert_eq!(header.unread, [], "{}", path.display());
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut texts: Vec<(String, String)> = Vec::new();
    let mut number = |expression: String, value: i64| {
        expected.push((format!("printf(\"%lld\\n\", (long long)({expression}));"), value.to_string()));
    };
    for Structure { name, size, alignment, fields, .. } in &header.structures {
        number(format!("sizeof(struct {name})"), size.cast_signed());
        number(format!("_Alignof(struct {name})"), alignment.cast_signed());
        for Field { name: field, offset, size, .. } in fields {
            number(format!("__builtin_offsetof(struct {name}, {field})"), offset.cast_signed());
            if let Some(size) = size {
                number(format!("sizeof(((struct {name} *)0)->{field})"), size.cast_signed());
            }
        }
    }
    for enumerator in &header.enumerators {
        number(enumerator.name.to_string(), enumerator.value);
    }
    let plain =
        |own: &Defined<'_>| header.macros.at(own.name, END).is_some_and(|own| own.parameters.is_none());
    for own in header.macros().filter(|own| !own.is_empty).filter(plain) {
        match header.value(own.name).unwrap_or_else(|why| panic!("line {}: {}: {why}", own.line, own.name)) {
            Value::Number(value) => number(own.name.to_owned(), value),
            Value::Text(text) => texts.push((format!("puts({});", own.name), text)),
        }
    }
    expected.extend(texts);
    let statements: Vec<String> = expected.iter().map(|(statement, _)| statement.clone()).collect();
    let measured = measured(path, &statements);
    assert_eq!(measured.len(), expected.len());
    for ((statement, expected), measured) in expected.iter().zip(&measured) {
        assert_eq!(expected, measured, "{}: {statement}", path.display());
    }
    expected.len()
}

fn there_is_a_compiler() -> bool {
    compiler().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn the_reader_agrees_with_a_c_compiler_on_everything_it_understands() {
    if !there_is_a_compiler() {
        return skip("no C compiler (apt-get install gcc)");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("linux/everything.h");
    fs::create_dir(folder.path().join("linux")).unwrap();
    fs::write(&path, EVERYTHING).unwrap();
    assert_eq!(agree(&path), 86);
}

#[test]
fn the_reader_agrees_with_a_c_compiler_on_the_kernels_headers() {
    if !there_is_a_compiler() {
        return skip("no C compiler (apt-get install gcc)");
    }
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let lab = folder("WHIMBREL_LAB_CACHE").or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("whimbrel/lab"))
    });
    for name in ["include", "include-newer"] {
        for header in table::Header::ALL {
            match lab.as_ref().map(|lab| lab.join(name).join(header.path())).filter(|path| path.is_file()) {
                Some(path) => assert!(agree(&path) > 20, "{}", path.display()),
                None => skip(&format!("no {name}/{} (lab/run build headers)", header.path())),
            }
        }
    }
}
