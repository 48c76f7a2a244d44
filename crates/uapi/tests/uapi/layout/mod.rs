//! The layouts and numbers of this crate against real headers and a C compiler.
//!
//! There are two generations of headers: those of a kernel that is in use, and those of the newest kernel,
//! which have what came since. The first are the ones the lab keeps
//! (`${WHIMBREL_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/whimbrel/lab}/include`), else those of
//! `/usr/include`; the second the lab keeps beside them, in `include-newer`. If `$WHIMBREL_UAPI_INCLUDE` is
//! set, its headers alone are compared. An older header is compared in what it has, and what it lacks is
//! listed. With `WHIMBREL_REQUIRE_ALL=1` nothing may be skipped and a header may define nothing this crate
//! does not know.

mod names;
mod proof;

use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use proof::{Comparison, HeaderFile, compare};
use whimbrel_uapi::table::Header;

const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");

/// Writes past the capture of test output: a proof that did not happen must be seen.
fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn all_is_required() -> bool {
    env::var_os("WHIMBREL_REQUIRE_ALL").is_some_and(|value| value == "1")
}

/// Whether there is a C compiler; if not, one line for all the tests that need it.
fn there_is_a_compiler() -> bool {
    static SAID: Once = Once::new();
    let here = proof::compiler_is_here();
    if !here {
        let reason = "no C compiler (apt-get install gcc)";
        SAID.call_once(|| say(&format!("SKIPPED: uapi layout proof: {reason}")));
        assert!(!all_is_required(), "WHIMBREL_REQUIRE_ALL=1, but there is {reason}");
    }
    here
}

/// Headers of one age.
struct Generation {
    name: &'static str,
    /// The folders that may hold them, the most wanted first.
    folders: Vec<PathBuf>,
    /// How to come by them.
    remedy: &'static str,
}

impl Generation {
    /// The header of this generation, if it is here.
    fn file(&self, header: Header) -> Option<HeaderFile> {
        let paths = self.folders.iter().map(|folder| folder.join(header.path()));
        let path = paths.filter_map(|path| fs::canonicalize(path).ok()).find(|path| path.is_file())?;
        Some(HeaderFile { header, path })
    }
}

/// The newest kernel whose headers this crate claims to hold whole.
const NEWEST_KNOWN: (u32, u32) = (7, 3);

impl Generation {
    /// Whether these are the headers of a newer kernel than `known`, by what the lab notes beside them.
    fn is_after(&self, known: (u32, u32)) -> bool {
        let version = self.folders.iter().find_map(|folder| fs::read_to_string(folder.join("version")).ok());
        version.as_deref().and_then(kernel_version).is_some_and(|version| version > known)
    }
}

/// Major and minor number of a package's version, such as `7.3.4-1~bpo13+1`.
fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[test]
fn a_packages_version_tells_its_kernels() {
    assert_eq!(kernel_version("7.3.4-1~bpo13+1\n"), Some((7, 3)));
    assert_eq!(kernel_version("6.12.117-1"), Some((6, 12)));
    assert_eq!(kernel_version("none"), None);
}

fn generations() -> Vec<Generation> {
    let folder = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(chosen) = folder("WHIMBREL_UAPI_INCLUDE") {
        assert!(
            chosen.join(Header::Vfio.path()).is_file(),
            "WHIMBREL_UAPI_INCLUDE is {}, but there is no {} in it",
            chosen.display(),
            Header::Vfio.path()
        );
        return vec![Generation {
            name: "the chosen headers",
            folders: vec![chosen],
            remedy: "WHIMBREL_UAPI_INCLUDE names the folder",
        }];
    }
    let lab = folder("WHIMBREL_LAB_CACHE").or_else(|| {
        let cache = folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))?;
        Some(cache.join("whimbrel/lab"))
    });
    let of_lab = |name: &str| lab.iter().map(|lab| lab.join(name)).collect::<Vec<_>>();
    let mut in_use = of_lab("include");
    in_use.push(PathBuf::from("/usr/include"));
    vec![
        Generation {
            name: "the headers in use",
            folders: in_use,
            remedy: "linux-libc-dev since 6.2 has it (or run lab/run build headers)",
        },
        Generation {
            name: "the newest headers",
            folders: of_lab("include-newer"),
            remedy: "run lab/run build headers, where Debian's trixie-backports can be had",
        },
    ]
}

#[test]
fn every_size_offset_and_constant_is_the_headers_own() {
    if !there_is_a_compiler() {
        return;
    }
    for generation in generations() {
        for header in Header::ALL {
            if let Some(file) = generation.file(header) {
                compare_whole(&file);
            } else {
                let reason = format!("no {} ({})", header.path(), generation.remedy);
                say(&format!("SKIPPED: uapi layout proof against {}: {reason}", generation.name));
                assert!(!all_is_required(), "WHIMBREL_REQUIRE_ALL=1, but there is {reason}");
            }
        }
    }
}

/// Compares, and says how much was compared and what the header lacks.
fn compare_whole(file: &HeaderFile) {
    let (name, path) = (file.header.path(), file.path.display());
    let compared = compare(file, Path::new(SCRATCH)).unwrap_or_else(|error| panic!("{path}: {error}"));
    if !compared.lacks.is_empty() {
        say(&format!("header {name} (from {path}) lacks: {}", compared.lacks.join(", ")));
    }
    let Comparison { sizes, alignments, offsets, constants, .. } = compared;
    say(&format!(
        "header {name} (from {path}): compared {sizes} sizes, {alignments} alignments, {offsets} offsets, \
         {constants} constants"
    ));
    assert!(sizes > 0 && offsets > 0 && constants > 0, "{path} has nothing of the table");
    let differences = compared.differences.join("\n");
    assert!(differences.is_empty(), "the crate differs from {path}:\n{differences}");
}

#[test]
fn the_crate_defines_nothing_that_no_header_has() {
    if !there_is_a_compiler() {
        return;
    }
    for header in Header::ALL {
        let generations = generations();
        let files: Vec<_> = generations.iter().filter_map(|generation| generation.file(header)).collect();
        if files.len() < 2 {
            continue; // The proof above says which one is missing.
        }
        let mut lacks = files.iter().map(|file| {
            compare(file, Path::new(SCRATCH))
                .unwrap_or_else(|error| panic!("{}: {error}", file.path.display()))
                .lacks
        });
        let mut nowhere = lacks.next().unwrap_or_default();
        for others in lacks {
            nowhere.retain(|lack| others.contains(lack));
        }
        assert_eq!(nowhere, <[&str; 0]>::default(), "no {} has these", header.path());
    }
}

#[test]
fn a_header_defines_nothing_that_this_crate_does_not_know() {
    let generations = generations();
    // The proof above says so if a header is missing.
    for (generation, file) in generations.iter().flat_map(|generation| {
        Header::ALL.into_iter().filter_map(move |h| Some((generation, generation.file(h)?)))
    }) {
        let text =
            fs::read_to_string(&file.path).unwrap_or_else(|error| panic!("{}: {error}", file.path.display()));
        let unknown = names::unknown(file.header, &text).join(", ");
        if !unknown.is_empty() {
            let path = file.path.display();
            let name = file.header.path();
            say(&format!("header {name} (from {path}) defines what this crate does not know: {unknown}"));
            // Of headers that came out after this crate it can only be said.
            let required = all_is_required() && !generation.is_after(NEWEST_KNOWN);
            assert!(!required, "{path} defines what this crate does not know: {unknown}");
        }
    }
}

/// A header of a test's own, in a folder of its own.
struct Invented {
    _folder: tempfile::TempDir,
    file: HeaderFile,
}

fn invented(text: &str) -> Invented {
    let folder = tempfile::tempdir_in(SCRATCH).expect("the scratch folder of cargo");
    let path = folder.path().join("vfio.h");
    fs::write(&path, format!("#include <linux/types.h>\n{text}")).expect("a file in it");
    Invented { _folder: folder, file: HeaderFile { header: Header::Vfio, path } }
}

fn compared_with(text: &str) -> Option<Comparison> {
    there_is_a_compiler().then(|| {
        let header = invented(text);
        compare(&header.file, Path::new(SCRATCH)).expect("the invented header compiles")
    })
}

#[test]
fn a_value_that_differs_from_the_header_is_found() {
    let Some(compared) = compared_with(
        "struct vfio_group_status { __u32 flags; __u32 argsz; __u32 more; };
         struct vfio_bitmap { __u32 pgsize; __u64 size; __u64 *data; };
         #define VFIO_API_VERSION 1
         #define VFIO_PCI_DEVID_NOT_OWNED -1
         #define VFIO_DEVICE_API_PCI_STRING \"vfio\"",
    ) else {
        return;
    };
    assert_eq!(
        compared.differences,
        [
            "sizeof(struct vfio_group_status): the header has 12, the crate 8",
            "__builtin_offsetof(struct vfio_group_status, argsz): the header has 4, the crate 0",
            "__builtin_offsetof(struct vfio_group_status, flags): the header has 0, the crate 4",
            "sizeof(((struct vfio_bitmap *)0)->pgsize): the header has 4, the crate 8",
            "VFIO_DEVICE_API_PCI_STRING: the header has vfio, the crate vfio-pci",
            "VFIO_API_VERSION: the header has 1, the crate 0",
        ]
    );
}

#[test]
fn an_older_header_is_compared_in_what_it_has() {
    let Some(compared) = compared_with(
        "struct vfio_device_info { __u32 argsz, flags, num_regions, num_irqs, cap_offset; };
         #define VFIO_DEVICE_STATE_RUNNING (1 << 0)
         #define VFIO_API_VERSION 0",
    ) else {
        return;
    };
    assert_eq!(compared.differences, <[&str; 0]>::default());
    // The bit of v1 is one of the two constants.
    assert_eq!((compared.sizes, compared.alignments, compared.offsets, compared.constants), (6, 0, 5, 2));
    let lacks = |name: &str| compared.lacks.iter().any(|lack| lack == name);
    assert!(lacks("vfio_device_info.pad"), "a field that came later is named");
    assert!(lacks("struct vfio_region_info"), "a structure that came later is named");
    assert!(lacks("VFIO_DEVICE_STATE_RUNNING"), "a bit of migration v1 is not a state of v2");
}

#[test]
fn a_header_of_migration_v1_is_compared_with_the_names_it_had_then() {
    let Some(compared) = compared_with(
        "#define VFIO_REGION_TYPE_MIGRATION (3)
         #define VFIO_REGION_SUBTYPE_MIGRATION (2)
         #define VFIO_DEVICE_STATE_STOP (0)
         #define VFIO_DEVICE_STATE_RUNNING (1 << 1)
         #define VFIO_DEVICE_STATE_SAVING (1 << 1)
         #define VFIO_DEVICE_STATE_RESUMING (1 << 2)",
    ) else {
        return;
    };
    assert_eq!(compared.constants, 6);
    assert_eq!(
        compared.differences,
        [
            "VFIO_DEVICE_STATE_RUNNING: the header has 2, the crate 1",
            "VFIO_REGION_SUBTYPE_MIGRATION: the header has 2, the crate 1",
        ]
    );
}

#[test]
fn a_count_is_compared_with_what_the_header_counts() {
    let indices = |all: &str| format!("enum {{ VFIO_AP_REQ_IRQ_INDEX, {all} VFIO_AP_NUM_IRQS }};");
    let headers = [indices(""), indices("VFIO_AP_CFG_CHG_IRQ_INDEX,"), indices("VFIO_AP_OTHER,")];
    let [older, newer, wrong] = headers.map(|text| compared_with(&text).map(|compared| compared.differences));
    assert_eq!(older.unwrap_or_default(), <[&str; 0]>::default());
    assert_eq!(newer.unwrap_or_default(), <[&str; 0]>::default());
    if let Some(wrong) = wrong {
        assert_eq!(wrong, ["VFIO_AP_NUM_IRQS: the header has 2, the crate 1"]);
    }
}

#[test]
fn a_header_that_does_not_compile_is_an_error() {
    if !there_is_a_compiler() {
        return;
    }
    let header = invented("struct vfio_group_status { nonsense argsz; };");
    let error = compare(&header.file, Path::new(SCRATCH)).expect_err("it does not compile");
    assert!(error.starts_with("the header does not compile"), "{error}");
}

#[test]
fn names_the_table_does_not_have_are_found() {
    let text = "
        #ifndef VFIO_H
        #define VFIO_H
        /* #define VFIO_COMMENTED 1 */
        #define VFIO_API_VERSION 0
        #define VFIO_NEWER 1
        #define VFIO_DEVICE_STATE_VALID(state) 1
        struct vfio_group_status { __u32 argsz; __u32 flags; union { __u32 a; __u8 b[4]; }; };
        struct vfio_newer { __u32 argsz; struct vfio_bitmap areas[] __counted_by(argsz); };
        struct iommu_viommu_alloc { __u32 size; };
        enum vfio_kind { VFIO_PCI_NUM_IRQS = 5, VFIO_KIND, };
        enum { VFIO_LAST };
        #endif";
    assert_eq!(
        names::unknown(Header::Vfio, text),
        [
            "VFIO_NEWER",
            "vfio_group_status.a",
            "vfio_group_status.b",
            "vfio_newer",
            "vfio_newer.argsz",
            "vfio_newer.areas",
            "VFIO_KIND",
            "VFIO_LAST"
        ]
    );
}
