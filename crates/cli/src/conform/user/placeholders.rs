//! The placeholders in the arguments of a program under test. They name its devices, and so tell by which interface the
//! program uses them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use whimbrel_conformance::user::{Interface, Socket};

use crate::failure::Failure;

/// The meaning of a placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// An empty folder.
    Folder,
    /// The path of a device's vfio-user socket.
    Socket(Socket),
    /// The PCI address of a device.
    Address(Socket),
    /// The file of a device's group.
    Group(Socket),
    /// A device's own file.
    Cdev(Socket),
}

use Socket::{First, Second};

/// The placeholders, each with the variable of the same value.
const ALL: [(&str, &str, Value); 9] = [
    ("{socket}", "WHIMBREL_SOCKET", Value::Socket(First)),
    ("{address}", "WHIMBREL_ADDRESS", Value::Address(First)),
    ("{group}", "WHIMBREL_GROUP", Value::Group(First)),
    ("{cdev}", "WHIMBREL_CDEV", Value::Cdev(First)),
    ("{second}", "WHIMBREL_SECOND", Value::Socket(Second)),
    ("{second-address}", "WHIMBREL_SECOND_ADDRESS", Value::Address(Second)),
    ("{second-group}", "WHIMBREL_SECOND_GROUP", Value::Group(Second)),
    ("{second-cdev}", "WHIMBREL_SECOND_CDEV", Value::Cdev(Second)),
    ("{folder}", "WHIMBREL_FOLDER", Value::Folder),
];

/// The values of a run.
pub(super) type Values = Vec<(Value, OsString)>;

/// A program under test with its arguments, as they are on the command line.
#[derive(Clone, Debug)]
pub(super) struct Words {
    command: Vec<OsString>,
    interface: Interface,
    has_second: bool,
}

impl Value {
    fn interface(self) -> Option<Interface> {
        match self {
            Value::Folder => None,
            Value::Socket(_) => Some(Interface::VfioUser),
            Value::Address(_) | Value::Group(_) | Value::Cdev(_) => Some(Interface::Vfio),
        }
    }

    fn is_of_second(self) -> bool {
        matches!(
            self,
            Value::Socket(Second) | Value::Address(Second) | Value::Group(Second) | Value::Cdev(Second)
        )
    }
}

impl Words {
    /// Checks the arguments: they name the device, by one interface. A shell's script may name it by the variable.
    pub(super) fn new(words: &[OsString]) -> Result<Words, Failure> {
        if let Some(unknown) = words.iter().find_map(|word| unknown(word.as_bytes())) {
            let names: Vec<&str> = ALL.iter().map(|(name, ..)| *name).collect();
            let failure = Failure::usage(format!("unknown placeholder {unknown}"));
            return Err(failure.hint(format!(
                "known are {}; move braces that are the program's own into a script",
                names.join(", ")
            )));
        }
        let named = ALL.into_iter().filter(|(name, variable, _)| {
            let is_named =
                |word: &OsString| find(word.as_bytes(), name).is_some() || has_variable(word, variable);
            words.iter().any(is_named)
        });
        let named: Vec<_> =
            named.filter_map(|(name, _, value)| Some((name, value, value.interface()?))).collect();
        let Some((name, _, interface)) = named.first().copied() else {
            return Err(Failure::usage("the arguments of the program do not name a device").hint(
                "pass {socket} for a vfio-user socket, or {address}, {group} or {cdev} for a device of the kernel's \
                 VFIO, such as `-- vmm --device {socket}`",
            ));
        };
        if let Some((other, ..)) = named.iter().find(|(.., other)| *other != interface) {
            let message = format!("the program cannot use {name} and {other} in one run");
            return Err(Failure::usage(message).hint(
                "{socket} and {second} are vfio-user sockets, all others devices of the kernel's VFIO: test one of the \
                 two at a time",
            ));
        }
        let has_second = named.iter().any(|(_, value, _)| value.is_of_second());
        if named.iter().all(|(_, value, _)| value.is_of_second()) {
            let message = format!("the arguments name the second device by {name}, and not the first");
            return Err(Failure::usage(message).hint(
                "a program with one device, also one that only loads a state, is given the first: {socket}, {address}, \
                 {group} or {cdev}",
            ));
        }
        Ok(Words { command: words.to_vec(), interface, has_second })
    }

    /// Returns the interface by which the program uses its devices.
    pub(super) fn interface(&self) -> Interface {
        self.interface
    }

    /// Returns whether an argument names the second device.
    pub(super) fn has_second(&self) -> bool {
        self.has_second
    }

    /// Returns the words as they are on the command line.
    pub(super) fn unfilled(&self) -> &[OsString] {
        &self.command
    }

    /// Returns the program with these values.
    pub(super) fn program(&self, values: &Values) -> OsString {
        self.command.first().map(|word| filled(word, values)).unwrap_or_default()
    }

    /// Returns the arguments with these values.
    pub(super) fn arguments(&self, values: &Values) -> Vec<OsString> {
        self.command.iter().skip(1).map(|word| filled(word, values)).collect()
    }
}

/// Returns the variables with these values.
pub(super) fn variables(values: &Values) -> Vec<(&'static str, &OsStr)> {
    let value = |wanted| values.iter().find(|(value, _)| *value == wanted).map(|(_, text)| text.as_os_str());
    ALL.into_iter().filter_map(|(_, variable, wanted)| Some((variable, value(wanted)?))).collect()
}

fn filled(word: &OsStr, values: &Values) -> OsString {
    values.iter().fold(word.to_os_string(), |word, (value, text)| {
        let name = ALL.into_iter().find(|(.., other)| other == value).map_or("", |(name, ..)| name);
        replaced(&word, name, text)
    })
}

/// Returns a word in which each occurrence of `name` is replaced.
fn replaced(word: &OsStr, name: &str, value: &OsStr) -> OsString {
    let (mut rest, mut out) = (word.as_bytes(), Vec::new());
    while let Some(at) = find(rest, name) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value.as_bytes());
        rest = &rest[at + name.len()..];
    }
    out.extend_from_slice(rest);
    OsString::from_vec(out)
}

/// Returns the first word in braces that looks like a placeholder and is not one. `${NAME}` is a shell's.
fn unknown(word: &[u8]) -> Option<String> {
    let starts = (0..word.len()).filter(|at| word[*at] == b'{' && (*at == 0 || word[*at - 1] != b'$'));
    starts
        .filter_map(|at| {
            let inner = word[at + 1..].split(|byte| *byte == b'}').next()?;
            let is_closed = at + 1 + inner.len() < word.len();
            let is_name = inner.first().is_some_and(u8::is_ascii_alphabetic)
                && inner.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(byte));
            (is_closed && is_name).then(|| format!("{{{}}}", String::from_utf8_lossy(inner)))
        })
        .find(|found| ALL.iter().all(|(name, ..)| name != found))
}

fn find(text: &[u8], part: &str) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part.as_bytes())
}

/// Returns whether a word has the name of a variable, and not as the beginning of a longer one.
fn has_variable(word: &OsStr, variable: &str) -> bool {
    let mut rest = word.as_bytes();
    while let Some(at) = find(rest, variable) {
        rest = &rest[at + variable.len()..];
        if !rest.first().is_some_and(|next| next.is_ascii_alphanumeric() || *next == b'_') {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Result<Words, Failure> {
        Words::new(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn each_occurrence_in_an_argument_is_replaced() {
        let replace = |word: &str| replaced(OsStr::new(word), "{socket}", OsStr::new("/run/a"));
        assert_eq!(replace("vfio-user:{socket}"), "vfio-user:/run/a");
        assert_eq!(replace("{socket}{socket}, {sock}"), "/run/a/run/a, {sock}");
        assert_eq!(replace(""), "");
    }

    #[test]
    fn a_program_has_a_second_device_if_an_argument_names_it() {
        let has_second = |text: &[&str]| words(text).unwrap().has_second();
        assert!(has_second(&["vmm", "{socket}", "vfio-user:{second}"]));
        assert!(has_second(&["vmm", "{address}", "{second-address}"]));
        assert!(has_second(&["sh", "-c", "exec vmm $WHIMBREL_SOCKET $WHIMBREL_SECOND"]));
        assert!(has_second(&["sh", "-c", "exec vmm $WHIMBREL_CDEV $WHIMBREL_SECOND_CDEV"]));
        assert!(!has_second(&["vmm", "{socket}"]));
    }

    #[test]
    fn the_names_of_devices_tell_the_interface() {
        let cases: [(&[&str], Interface); 6] = [
            (&["vmm", "{socket}"], Interface::VfioUser),
            (&["sh", "-c", "vmm ${WHIMBREL_SOCKET}"], Interface::VfioUser),
            (&["vmm", "group:{address}", "-o", "{folder}/state"], Interface::Vfio),
            (&["vmm", "{cdev}", "{group}"], Interface::Vfio),
            (&["sh", "-c", "vmm $WHIMBREL_ADDRESS"], Interface::Vfio),
            // A longer variable is another one.
            (&["sh", "-c", "vmm $WHIMBREL_GROUP $WHIMBREL_SECOND_ADDRESS"], Interface::Vfio),
        ];
        for (text, interface) in cases {
            assert_eq!(words(text).unwrap().interface(), interface, "{text:?}");
        }
    }

    #[test]
    fn no_device_and_two_interfaces_are_refused() {
        for text in [&["vmm", "{folder}"][..], &["vmm"], &["vmm", "$WHIMBREL_SOCKETS"]] {
            let failure = words(text).unwrap_err();
            assert_eq!(failure.message(), "the arguments of the program do not name a device", "{text:?}");
        }
        let failure = words(&["vmm", "{group}", "{second}"]).unwrap_err();
        assert_eq!(failure.message(), "the program cannot use {group} and {second} in one run");
    }

    #[test]
    fn a_second_device_without_a_first_one_is_refused() {
        for text in [&["vmm", "{second-address}"][..], &["sh", "-c", "vmm $WHIMBREL_SECOND_ADDRESS"]] {
            let failure = words(text).unwrap_err();
            let expected = "the arguments name the second device by {second-address}, and not the first";
            assert_eq!(failure.message(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_mistyped_placeholder_is_refused_and_other_braces_are_the_programs_own() {
        for (word, unknown) in [
            ("{adress}", "{adress}"),
            ("file:{Folder}/x", "{Folder}"),
            ("{folder}/{second_address}", "{second_address}"),
        ] {
            let failure = words(&["vmm", "{address}", word]).unwrap_err();
            assert_eq!(failure.message(), format!("unknown placeholder {unknown}"));
        }
        for word in ["{}", "{ exit 1; }", "${HOME}", "{\"a\":1}", "{a,b}", "{1}", "{open", "a}", "{{folder}}"]
        {
            assert!(words(&["vmm", "{address}", word]).is_ok(), "{word}");
        }
    }

    #[test]
    fn variables_have_the_values_of_their_placeholders() {
        let values: Values = vec![(Value::Folder, "/tmp/f".into()), (Value::Cdev(Second), "/dev/x".into())];
        let expected =
            [("WHIMBREL_SECOND_CDEV", OsStr::new("/dev/x")), ("WHIMBREL_FOLDER", OsStr::new("/tmp/f"))];
        assert_eq!(variables(&values), expected);
        let command = words(&["{folder}/vmm", "{second-cdev}", "$WHIMBREL_CDEV"]).unwrap();
        assert_eq!(
            (command.program(&values), command.arguments(&values)),
            ("/tmp/f/vmm".into(), vec!["/dev/x".into(), "$WHIMBREL_CDEV".into()])
        );
    }
}
