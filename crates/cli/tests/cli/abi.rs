//! `whimbrel abi`: the kernels' headers, copies of them with one thing changed, and headers of migration v1.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::machine::lab_cache;
use crate::support::{Run, argument, keys, skip, whimbrel};

/// What of migration the header had from 5.8 to 5.17.
const V1: &str = include_str!("headers/v1.h");
/// The same as drafted in 2019.
const DRAFT: &str = include_str!("headers/draft.h");
/// A step between v1 and v2 as it was proposed: the states of v2 beside the bits of v1.
const BOTH: &str = include_str!("headers/v1_and_v2.h");

fn check(text: &str) -> Run {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vfio.h");
    fs::write(&path, text).unwrap();
    whimbrel(["--json", "abi", "--check", &argument(&path)])
}

/// The headers that the lab places; those it has not are said.
pub(crate) fn headers(of_one: &str) -> Vec<PathBuf> {
    let lab = lab_cache();
    let found = ["include", "include-newer"].into_iter().filter_map(|include| {
        let path = lab.as_ref().map(|lab| lab.join(include).join(of_one)).filter(|path| path.is_file());
        if path.is_none() {
            skip("whimbrel abi --check", &format!("no {include}/{of_one} (lab/run build headers)"));
        }
        path
    });
    found.collect()
}

/// A list of the result, each of its objects by these keys.
fn listed(value: &Value, list: &str, keys: &[&str]) -> Vec<Value> {
    let list = value[list].as_array().unwrap();
    list.iter().map(|own| keys.iter().map(|key| own[*key].clone()).collect()).collect()
}

#[test]
fn the_kernels_headers_differ_in_nothing() {
    for name in ["linux/vfio.h", "linux/iommufd.h", "linux/vfio_ccw.h", "linux/vfio_zdev.h"] {
        for path in headers(name) {
            let value = whimbrel(["abi", "--json", "--check", &argument(&path)]).succeeded().json();
            assert_eq!(
                keys(&value),
                [
                    "clashes",
                    "compared",
                    "differences",
                    "header",
                    "lacks",
                    "path",
                    "protocols",
                    "unknown",
                    "unread"
                ]
            );
            assert_eq!(value["header"], name);
            for list in ["differences", "clashes", "unread", "unknown"] {
                assert_eq!(value[list], json!([]), "{}: {list}", path.display());
            }
            if name == "linux/vfio.h" {
                assert_eq!(value["protocols"], json!(["v2"]));
                assert!(value["compared"]["structures"].as_u64() >= Some(49), "{value}");
                assert!(value["compared"]["constants"].as_u64() >= Some(250), "{value}");
            }
        }
    }
}

/// How one thing is changed in a header, and what is told of it: list, kind, name, the text of the line.
struct Mutation {
    from: &'static str,
    to: &'static str,
    told: &'static [(&'static str, &'static str, &'static str, &'static str)],
}

const MUTATIONS: &[Mutation] = &[
    Mutation {
        from: "#define VFIO_DEVICE_FEATURE_MIGRATION 1\n",
        to: "#define VFIO_DEVICE_FEATURE_MIGRATION 3\n",
        told: &[("differences", "value", "VFIO_DEVICE_FEATURE_MIGRATION", "FEATURE_MIGRATION 3")],
    },
    Mutation {
        from: "VFIO_DEVICE_STATE_STOP_COPY = 3,",
        to: "VFIO_DEVICE_STATE_STOP_COPY = 8,",
        told: &[("differences", "value", "VFIO_DEVICE_STATE_STOP_COPY", "STATE_STOP_COPY = 8")],
    },
    Mutation {
        from: "#define VFIO_DEVICE_API_PCI_STRING\t\t\"vfio-pci\"",
        to: "#define VFIO_DEVICE_API_PCI_STRING \"vfio-cpi\"",
        told: &[("differences", "value", "VFIO_DEVICE_API_PCI_STRING", "vfio-cpi")],
    },
    Mutation {
        from: "struct vfio_group_status {\n\t__u32\targsz;",
        to: "struct vfio_group_status {\n\t__u32\targsz;\n\t__u32\tinserted;",
        told: &[
            ("differences", "size", "vfio_group_status", "struct vfio_group_status {"),
            ("unknown", "", "vfio_group_status.inserted", "inserted;"),
            ("differences", "offset", "vfio_group_status.flags", ""),
        ],
    },
    Mutation {
        from: "struct vfio_device_feature_mig_state {\n\t__u32 device_state;",
        to: "struct vfio_device_feature_mig_state {\n\t__u64 device_state;",
        told: &[
            (
                "differences",
                "size",
                "vfio_device_feature_mig_state",
                "struct vfio_device_feature_mig_state {",
            ),
            (
                "differences",
                "field_size",
                "vfio_device_feature_mig_state.device_state",
                "__u64 device_state;",
            ),
            ("differences", "offset", "vfio_device_feature_mig_state.data_fd", "data_fd;"),
            (
                "differences",
                "alignment",
                "vfio_device_feature_mig_state",
                "struct vfio_device_feature_mig_state {",
            ),
        ],
    },
    Mutation {
        from: "enum vfio_device_mig_state {",
        to: "#define VFIO_DEVICE_STATE_RUNNING (1 << 0)\nenum vfio_device_mig_state {",
        told: &[(
            "clashes",
            "macro_replaces_name",
            "VFIO_DEVICE_STATE_RUNNING",
            "VFIO_DEVICE_STATE_RUNNING = 2,",
        )],
    },
    Mutation {
        from: "struct vfio_precopy_info {",
        to: "#define VFIO_DEVICE_STATE_STOP 0\nstruct vfio_precopy_info {",
        told: &[("clashes", "macro_hides_enumerator", "VFIO_DEVICE_STATE_STOP", "VFIO_DEVICE_STATE_STOP 0")],
    },
    Mutation {
        from: "struct vfio_group_status {",
        to: "#define VFIO_API_VERSION 7\nstruct vfio_group_status {",
        told: &[
            ("clashes", "macro_redefined", "VFIO_API_VERSION", "VFIO_API_VERSION 7"),
            ("differences", "value", "VFIO_API_VERSION", "VFIO_API_VERSION 7"),
        ],
    },
    Mutation {
        from: "struct vfio_precopy_info {",
        to: "enum again { VFIO_DEVICE_STATE_PRE_COPY = 9 };\nstruct vfio_precopy_info {",
        told: &[("clashes", "enumerator_twice", "VFIO_DEVICE_STATE_PRE_COPY", "enum again")],
    },
    Mutation {
        from: "struct vfio_precopy_info {",
        to: "struct vfio_precopy_info { something odd; };\nstruct vfio_other {",
        told: &[("unread", "", "", "something odd"), ("unknown", "", "vfio_other", "struct vfio_other {")],
    },
];

#[test]
fn a_change_to_a_kernels_header_is_told_by_name_and_line() {
    for path in headers("linux/vfio.h") {
        let header = fs::read_to_string(&path).unwrap();
        for Mutation { from, to, told } in MUTATIONS {
            assert_eq!(header.matches(from).count(), 1, "{from:?} in {}", path.display());
            let changed = header.replace(from, to);
            let run = check(&changed).failed();
            let value = run.json();
            let lines: Vec<&str> = changed.lines().collect();
            for (list, kind, name, text) in *told {
                let is_told = |own: &&Value| {
                    own["kind"].as_str().unwrap_or("") == *kind && own["name"].as_str().unwrap_or("") == *name
                };
                let own = value[*list].as_array().unwrap().iter().find(is_told);
                let own = own.unwrap_or_else(|| panic!("{to}: no {kind} of {name} in {value}"));
                let line = lines[usize::try_from(own["line"].as_u64().unwrap()).unwrap() - 1];
                assert!(line.contains(text), "{to}: {own} is told of the line {line:?}");
            }
            let count = |list: &str| told.iter().filter(|own| own.0 == list).count();
            for list in ["differences", "clashes", "unread"] {
                let all = value[list].as_array().unwrap();
                assert_eq!(all.len(), count(list), "{to}: {list} {all:?}");
            }
        }
    }
}

#[test]
fn a_name_that_only_the_header_has_is_told_and_is_no_failure() {
    let value = check("#define VFIO_API_VERSION 0\n#define VFIO_NEWER 1\nstruct vfio_newer { __u8 x; };");
    let value = value.succeeded().json();
    assert_eq!(
        value["unknown"],
        json!([{ "name": "VFIO_NEWER", "line": 2 }, { "name": "vfio_newer", "line": 3 }])
    );
}

#[test]
fn a_value_is_shown_as_what_it_is() {
    let cases = [
        ("#define VFIO_DEVICE_API_PCI_STRING \"vfio-cpi\"", "\"vfio-cpi\"", "\"vfio-pci\""),
        ("#define VFIO_DEVICE_API_PCI_STRING 1", "1", "\"vfio-pci\""),
        ("#define VFIO_API_VERSION \"0\"", "\"0\"", "0"),
        ("#define VFIO_API_VERSION (1 - 2)", "-1", "0"),
        ("#define VFIO_API_VERSION other", "not a constant (unknown name `other`)", "0"),
    ];
    for (text, header, ours) in cases {
        let value = check(text).failed().json();
        assert_eq!(listed(&value, "differences", &["header", "whimbrel"]), [json!([header, ours])], "{text}");
    }
}

#[test]
fn a_header_of_v1_is_compared_with_the_names_of_v1() {
    let value = check(V1).succeeded().json();
    assert_eq!(value["protocols"], json!(["v1"]));
    assert_eq!(value["compared"], json!({ "structures": 1, "fields": 5, "constants": 55 }));
    assert_eq!(value["unknown"], json!([]));
    let lacks = value["lacks"]["constants"].as_array().unwrap();
    assert!(lacks.contains(&json!("VFIO_DEVICE_STATE_STOP_COPY")));
}

#[test]
fn a_bit_of_v1_with_the_number_of_the_state_of_v2_is_a_difference() {
    let value = check(&V1.replace("RUNNING (1 << 0)", "RUNNING (2)")).failed().json();
    let told = listed(&value, "differences", &["kind", "name", "header", "whimbrel"]);
    assert!(told.contains(&json!(["value", "VFIO_DEVICE_STATE_RUNNING", "2", "1"])), "{value}");
}

#[test]
fn a_header_of_the_draft_is_compared_with_the_drafts_layout() {
    let value = check(DRAFT).succeeded().json();
    assert_eq!(value["protocols"], json!(["draft"]));
    assert_eq!(value["compared"], json!({ "structures": 1, "fields": 9, "constants": 9 }));
    assert_eq!(value["unknown"], json!([]));

    let value = check(&DRAFT.replace("__u64 start_pfn", "__u32 start_pfn")).failed().json();
    let told = listed(&value, "differences", &["kind", "name", "header", "whimbrel"]);
    assert_eq!(
        told[..2],
        [
            json!(["size", "vfio_device_migration_info", "60", "64"]),
            json!(["field_size", "vfio_device_migration_info.start_pfn", "4", "8"]),
        ]
    );
}

#[test]
fn macros_that_stand_before_enumerators_of_the_same_names_are_told_without_a_compiler() {
    let run = check(BOTH).failed().says(&["3 names that clash"]);
    let value = run.json();
    assert_eq!(value["protocols"], json!(["v1", "v2"]));
    // Both the bits and the states have their own numbers: only the names are wrong.
    assert_eq!(value["differences"], json!([]));
    let line = |text: &str| BOTH.lines().position(|line| line.contains(text)).unwrap() + 1;
    let expected = |name: &str, enumerator: &str| json!(["macro_replaces_name", name, line(enumerator)]);
    assert_eq!(
        listed(&value, "clashes", &["kind", "name", "line"]),
        [
            expected("VFIO_DEVICE_STATE_STOP", "STOP = 1"),
            expected("VFIO_DEVICE_STATE_RUNNING", "RUNNING = 2"),
            expected("VFIO_DEVICE_STATE_RESUMING", "RESUMING = 4"),
        ]
    );
    let text = value["clashes"][0]["text"].as_str().unwrap();
    let defined = format!("the macro VFIO_DEVICE_STATE_STOP of line {}", line("STOP (0)"));
    assert!(text.starts_with(&defined), "{text}");
}

#[test]
fn people_get_the_same_as_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vfio.h");
    fs::write(&path, V1.replace("RUNNING (1 << 0)", "RUNNING (1 << 1)")).unwrap();
    let run = whimbrel(["abi", "--check", &argument(&path)]).failed();
    let text = run.text();
    for said in [
        "linux/vfio.h\nMigration: v1; VFIO_DEVICE_STATE_RUNNING is a bit",
        "Compared: 1 structure, 5 fields, 55 constants\n",
        "LINE",
        "The header lacks what other versions have",
    ] {
        assert!(text.contains(said), "{said}: {text}");
    }
    let row = text.lines().find(|line| line.contains("VFIO_DEVICE_STATE_RUNNING  ")).unwrap();
    assert_eq!(
        row.split_whitespace().collect::<Vec<_>>()[1..],
        ["VFIO_DEVICE_STATE_RUNNING", "value", "2", "1"]
    );

    fs::write(&path, V1).unwrap();
    let run = whimbrel(["abi", "--check", &argument(&path)]).succeeded();
    assert!(run.text().ends_with("The header and Whimbrel agree in all that both have.\n"), "{}", run.text());
}

#[test]
fn what_is_no_vfio_h_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = argument(&folder.path().join("vfio.h"));
    whimbrel(["abi", "--check", &path]).failed().says(&[&path, "ENOENT"]);
    whimbrel(["abi", "--check", &argument(folder.path())]).failed().says(&["EISDIR"]);
    for text in [&b""[..], b"\xff\x00\xfe", b"int main(void) { return 0; }", b"struct other { int x; };"] {
        fs::write(&path, text).unwrap();
        whimbrel(["abi", "--check", &path]).failed().says(&["is not a vfio.h", "hint: "]);
    }
    fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    whimbrel(["abi", "--check", &path]).failed().says(&["larger than 1 MiB"]);
}
