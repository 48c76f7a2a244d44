//! The proof: asks a C compiler which items of the table a header has, has it measure those, and compares.
//!
//! Which items a header has is told by the compiler too, not by reading the header: one probe file uses each
//! item on a line of its own, and the lines with errors are the items that are not there.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use whimbrel_uapi::table::{self, Constant, Field, Form, Header, Kind, Structure, Value};

/// A header on this machine.
#[derive(Clone, Debug)]
pub(crate) struct HeaderFile {
    pub(crate) header: Header,
    pub(crate) path: PathBuf,
}

/// The result of the comparison.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    /// Items that the header does not have, by name.
    pub(crate) lacks: Vec<String>,
    /// The differences between header and table, as sentences.
    pub(crate) differences: Vec<String>,
    pub(crate) sizes: usize,
    pub(crate) alignments: usize,
    pub(crate) offsets: usize,
    pub(crate) constants: usize,
}

/// Whether there is a C compiler here.
pub(crate) fn compiler_is_here() -> bool {
    compiler().arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

fn compiler() -> Command {
    let mut command = Command::new("cc");
    // Raw kernel headers mark user pointers, counted arrays and packing with words that only the kernel
    // defines.
    command.env("LC_ALL", "C").args([
        "-w",
        "-D__user=",
        "-D__counted_by(member)=",
        "-D__packed=__attribute__((packed))",
    ]);
    command
}

/// Compares the part of the table that is about the header `file` with it.
pub(crate) fn compare(file: &HeaderFile, scratch: &Path) -> Result<Comparison, String> {
    let mut comparison = Comparison::default();
    let mut expected: Vec<(String, Expected)> = Vec::new();

    let structures: Vec<&Structure> = table::structures().filter(|s| s.header == file.header).collect();
    let constants: Vec<&Constant> = table::constants().filter(|c| c.header == file.header).collect();

    // One line a structure, one a named field, one a constant.
    let mut probe = Vec::new();
    for structure in &structures {
        probe.push(format!("sizeof(struct {})", structure.name));
        for field in structure.named_fields() {
            probe.push(format!("__builtin_offsetof(struct {}, {})", structure.name, field.name));
        }
    }
    for constant in &constants {
        let (name, expression) = (constant.name(), constant.expression());
        probe.push(match (constant.value, constant.form) {
            (Value::Text(_), _) => format!("sizeof({expression} \"\")"),
            (Value::Number { .. }, Form::Any) => format!("(long long)({expression})"),
            (Value::Number { .. }, Form::EnumeratorOf(enumeration)) => {
                format!("sizeof(enum {enumeration}) * 0 + (long long)({expression})")
            }
            // A macro's text is not as long as its name; what is no macro stays as it is.
            (Value::Number { .. }, Form::MacroBefore518) => format!(
                "sizeof(char[sizeof(TEXT({name})) == sizeof(\"{name}\") ? -1 : 1]) * 0 \
                 + (long long)({expression})"
            ),
        });
    }
    let absent = absent(file, &probe)?;
    let mut present = (0..).map(|line| !absent.contains(&line));
    let mut next_is_present = || present.next().unwrap_or(false);

    for structure in &structures {
        let here = next_is_present();
        let (have, lack): (Vec<&Field>, Vec<&Field>) =
            structure.named_fields().partition(|_| next_is_present() && here);
        let name = structure.name;
        if !here {
            comparison.lacks.push(format!("struct {name}"));
            continue;
        }
        comparison.lacks.extend(lack.iter().map(|field| format!("{name}.{}", field.name)));

        let size = structure.size_without(|field| lack.iter().any(|lack| lack.name == field.name));
        comparison.sizes += 1;
        expected.push((format!("sizeof(struct {name})"), Expected::number(size)));
        // What C aligns the structure for may be a field it lacks, or a flexible array that is no field here.
        if lack.is_empty() && structure.fields.iter().all(|field| field.kind != Kind::Tail) {
            comparison.alignments += 1;
            expected.push((format!("_Alignof(struct {name})"), Expected::number(structure.alignment)));
        }
        for field in have {
            comparison.offsets += 1;
            let offset = format!("__builtin_offsetof(struct {name}, {})", field.name);
            expected.push((offset, Expected::number(field.offset)));
            if field.kind != Kind::Tail {
                comparison.sizes += 1;
                let size = format!("sizeof(((struct {name} *)0)->{})", field.name);
                expected.push((size, Expected::number(field.size)));
            }
        }
    }
    for constant in &constants {
        if next_is_present() {
            comparison.constants += 1;
            let value = match constant.before {
                Some((counted, before)) if comparison.lacks.iter().any(|lack| lack == counted) => before,
                _ => constant.value,
            };
            expected.push((constant.expression().to_string(), Expected(value)));
        } else if constant.form != Form::MacroBefore518 {
            comparison.lacks.push(constant.expression().to_string());
        }
    }

    let measured = measure(file, &expected, scratch)?;
    for ((expression, expected), measured) in expected.iter().zip(&measured) {
        if let Some(difference) = expected.differs_from(measured) {
            comparison.differences.push(format!("{expression}: {difference}"));
        }
    }
    Ok(comparison)
}

/// The line that the C program must print for one expression.
struct Expected(Value);

impl Expected {
    fn number(value: usize) -> Self {
        Self(Value::Number { value: value as u64, bits: u64::BITS })
    }

    /// A statement that prints what C has.
    fn statement(&self, expression: &str) -> String {
        match self.0 {
            Value::Number { .. } => format!("printf(\"%lld\\n\", (long long)({expression}));"),
            Value::Text(_) => format!("puts({expression});"),
        }
    }

    /// Returns a sentence on how a printed line differs from the crate's value.
    fn differs_from(&self, measured: &str) -> Option<String> {
        let same = match self.0 {
            Value::Text(text) => text == measured,
            number @ Value::Number { .. } => measured.parse().is_ok_and(|c| number.is(c)),
        };
        (!same).then(|| format!("the header has {measured}, the crate {}", self.0))
    }
}

/// The include folder with the other headers of the same version.
fn include_folder(file: &HeaderFile) -> Option<PathBuf> {
    let linux = file.path.parent().filter(|folder| folder.ends_with("linux"))?;
    linux.parent().map(Path::to_owned)
}

/// The line that every program starts with.
fn include(file: &HeaderFile) -> String {
    // By path, so that no other header of the same name can be taken.
    format!("#include \"{}\"\n", file.path.display())
}

/// The expressions of the probe that do not compile, by position.
fn absent(file: &HeaderFile, probe: &[String]) -> Result<BTreeSet<usize>, String> {
    const MARK: &str = "whimbrel-probe";
    let mut source = include(file);
    source.push_str("#define TEXT_OF(x) #x\n#define TEXT(x) TEXT_OF(x)\n");
    for (line, expression) in probe.iter().enumerate() {
        // Lines count from 1.
        let _ = writeln!(source, "#line {} \"{MARK}\"", line + 1);
        let _ = writeln!(source, "static const long long item_{line} = {expression};");
    }
    let output = compile(file, &["-fsyntax-only", "-fmax-errors=0"], &source)?;
    let text = String::from_utf8_lossy(&output.stderr);
    let mut absent = BTreeSet::new();
    for error in text.lines().filter(|line| line.contains(" error: ")) {
        let line = error.strip_prefix(MARK).and_then(|rest| rest.split(':').nth(1)?.parse::<usize>().ok());
        let line = line.and_then(|line| line.checked_sub(1));
        absent.insert(line.ok_or_else(|| format!("the header does not compile: {error}"))?);
    }
    if !output.status.success() && absent.is_empty() {
        return Err(format!("the C compiler failed:\n{text}"));
    }
    Ok(absent)
}

/// Compiles and runs a program that prints every expression, one a line.
fn measure(
    file: &HeaderFile,
    expected: &[(String, Expected)],
    scratch: &Path,
) -> Result<Vec<String>, String> {
    let mut source = format!("{}#include <stdio.h>\nint main(void) {{\n", include(file));
    for (expression, expected) in expected {
        let _ = writeln!(source, "{}", expected.statement(expression));
    }
    source.push_str("return 0; }\n");

    let folder = tempfile::tempdir_in(scratch).map_err(|e| format!("no scratch folder: {e}"))?;
    let program = folder.path().join("layout");
    let output = compile(file, &["-o", &program.to_string_lossy()], &source)?;
    if !output.status.success() {
        return Err(format!("the C compiler failed:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    let output = Command::new(&program).output().map_err(|e| format!("{}: {e}", program.display()))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let measured: Vec<String> = printed.lines().map(str::to_owned).collect();
    if !output.status.success() || measured.len() != expected.len() {
        return Err(format!("the C program printed {} of {} lines", measured.len(), expected.len()));
    }
    Ok(measured)
}

/// Runs the compiler over `source`.
fn compile(file: &HeaderFile, arguments: &[&str], source: &str) -> Result<Output, String> {
    let mut child = compiler()
        .args(include_folder(file).map(|folder| format!("-I{}", folder.display())))
        .args(arguments)
        .args(["-x", "c", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cc: {e}"))?;
    // A compiler reads its whole input before it says anything long enough to fill the pipe of its errors.
    let written = child.stdin.take().map(|mut stdin| stdin.write_all(source.as_bytes()));
    let output = child.wait_with_output().map_err(|e| format!("cc: {e}"))?;
    written.transpose().map_err(|e| format!("cc: {e}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok(output)
}
