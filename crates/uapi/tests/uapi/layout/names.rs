//! The other direction: the names a header defines, and which of them the crate has nothing for. The header
//! is read as text, since a compiler answers only for names it is asked about.

use std::collections::BTreeSet;

use whimbrel_uapi::table::{self, Header};

/// The names in the text of `header` that are neither in the table nor left out on purpose.
pub(crate) fn unknown(header: Header, text: &str) -> Vec<String> {
    let known: BTreeSet<String> = table::constants()
        .filter(|constant| constant.header == header)
        .map(|constant| constant.name().to_string())
        .chain(table::structures().filter(|s| s.header == header).flat_map(|structure| {
            structure
                .fields
                .iter()
                .map(|field| format!("{}.{}", structure.name, field.name))
                .chain([structure.name.to_owned()])
        }))
        .collect();
    defined(text)
        .into_iter()
        .filter(|name| !known.contains(name) && table::left_out(name).is_none())
        .collect()
}

/// Everything a header defines: macros with a value, enumerators, structures, and `structure.field`.
fn defined(text: &str) -> Vec<String> {
    let text = without_comments(text).replace("\\\n", " ");
    let (directives, code): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.trim_start().starts_with('#'));

    let mut names: Vec<String> = directives.into_iter().filter_map(macro_with_value).collect();
    let code = code.join("\n");
    let mut rest = code.as_str();
    while let Some(open) = rest.find('{') {
        let head: Vec<&str> =
            rest[..open].rsplit([';', '}']).next().unwrap_or("").split_whitespace().collect();
        let body = body(&rest[open..]);
        match head.as_slice() {
            [.., "struct", name] => {
                names.push((*name).to_owned());
                names.extend(fields(body).map(|field| format!("{name}.{field}")));
            }
            ["enum", ..] => names.extend(body.split(',').filter_map(first_word)),
            _ => {}
        }
        rest = &rest[open + body.len()..];
    }
    names
}

fn without_comments(text: &str) -> String {
    let mut kept = String::new();
    let mut parts = text.split("/*");
    kept.push_str(parts.next().unwrap_or(""));
    for part in parts {
        kept.push_str(part.split_once("*/").map_or("", |(_, after)| after));
    }
    kept
}

/// The name of a `#define` that is more than a guard.
fn macro_with_value(directive: &str) -> Option<String> {
    let rest = directive.trim_start().strip_prefix('#')?.trim_start().strip_prefix("define")?.trim();
    let name = first_word(rest)?;
    (rest.len() > name.len()).then_some(name)
}

/// From an opening brace to the one that closes it.
fn body(text: &str) -> &str {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return &text[..=at];
        }
    }
    text
}

/// The name each declaration of a structure's body ends with.
fn fields(body: &str) -> impl Iterator<Item = String> {
    body.split([';', '{', '}']).filter_map(|declaration| {
        let declared = declaration.split(['[', '(']).next()?;
        // A flexible array may be followed by the attribute that counts it.
        let name = declared.rsplit(|c: char| !is_of_a_name(c)).find(|word| !word.is_empty())?;
        (name != "union" && name != "struct").then(|| name.to_owned())
    })
}

fn first_word(text: &str) -> Option<String> {
    let start = text.find(is_of_a_name)?;
    let word: String = text[start..].chars().take_while(|c| is_of_a_name(*c)).collect();
    Some(word)
}

fn is_of_a_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}
