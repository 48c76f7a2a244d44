//! The comments of a C header, each with the names that are declared behind it.

/// A comment, without its marks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Comment {
    /// Its lines, with their numbers in the header.
    pub(super) lines: Vec<(u32, String)>,
    /// Set if it begins its line. A comment behind code explains that line alone.
    pub(super) stands_alone: bool,
    /// The names of the structures, enumerations and macros between it and the next comment that stands alone.
    pub(super) names: Vec<String>,
}

/// Reads a header. An unterminated comment ends with the text.
pub(super) fn comments(text: &str) -> Vec<Comment> {
    let mut found: Vec<Comment> = Vec::new();
    let mut open: Option<Comment> = None;
    for (number, line) in (1..).zip(text.lines()) {
        let mut rest = line;
        let mut code = String::new();
        loop {
            if let Some(mut comment) = open.take() {
                let (inside, after) = match rest.split_once("*/") {
                    Some((inside, after)) => (inside, Some(after)),
                    None => (rest, None),
                };
                comment.lines.push((number, unmarked(inside)));
                let Some(after) = after else {
                    open = Some(comment);
                    break;
                };
                found.push(comment);
                rest = after;
            } else {
                let Some((before, inside)) = rest.split_once("/*") else {
                    code.push_str(rest);
                    break;
                };
                code.push_str(before);
                code.push(' ');
                let stands_alone = code.trim().is_empty();
                open = Some(Comment { stands_alone, ..Comment::default() });
                rest = inside;
            }
        }
        let owner = found.iter_mut().rev().find(|comment| comment.stands_alone);
        if let (Some(owner), Some(name)) = (owner, declared(&code)) {
            owner.names.push(name.to_string());
        }
    }
    found.extend(open);
    found
}

/// Removes the star before a comment's line, and one space behind it: deeper indentation tells lists.
fn unmarked(line: &str) -> String {
    let line = line.trim_end();
    let text = match line.trim_start().strip_prefix('*') {
        Some(text) => text.trim_start_matches('*'),
        None => line,
    };
    text.replace('\t', "        ").strip_prefix(' ').map_or_else(|| text.to_string(), str::to_string)
}

/// Returns the name that a line of code declares, if it is a macro, a structure or an enumeration.
fn declared(code: &str) -> Option<&str> {
    let code = code.trim_start();
    let rest = match code.strip_prefix('#') {
        Some(directive) => directive.trim_start().strip_prefix("define")?,
        None => code.strip_prefix("struct").or_else(|| code.strip_prefix("enum"))?,
    };
    let name = rest.strip_prefix([' ', '\t'])?.trim_start();
    let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
    Some(&name[..end]).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(comment: &Comment) -> Vec<(u32, &str)> {
        comment.lines.iter().map(|(number, line)| (*number, line.as_str())).collect()
    }

    #[test]
    fn a_comment_has_its_lines_and_the_names_behind_it() {
        let text = "int a;\n/**\n * One.\n *   - two\n */\nstruct s {\n\tint x; /* three */\n#define V_A (1 << 0)\n};\n\
                    # define V_B 2 /* four\n * five */\n/* six */ enum e { A };\n";
        let found = comments(text);
        assert_eq!(found.len(), 4);
        assert_eq!(lines(&found[0]), [(2, ""), (3, "One."), (4, "  - two"), (5, "")]);
        assert_eq!(found[0].names, ["s", "V_A", "V_B"]);
        assert!(found[0].stands_alone);
        assert_eq!(lines(&found[1]), [(7, "three ")].map(|(n, t)| (n, t.trim_end())));
        assert!(!found[1].stands_alone);
        assert_eq!(lines(&found[2]), [(10, "four"), (11, "five")]);
        assert_eq!(found[3].names, ["e"]);
    }

    #[test]
    fn an_unterminated_comment_ends_with_the_text() {
        let found = comments("/* one\n * two");
        assert_eq!(lines(&found[0]), [(1, "one"), (2, "two")]);
        assert_eq!(comments("/*").len(), 1);
        assert_eq!(comments("no comment"), []);
    }
}
