//! The preprocessor, as far as headers of the user API need it: which lines count, and which macros there are
//! at which line.

use std::collections::HashMap;
use std::rc::Rc;

use super::expansion::{Budget, expand};
use super::expressions::{Evaluator, NoNames};
use super::tokens::{self, Kind, Line, Token};
use super::{Clash, Unread};

/// One `#define`.
#[derive(Clone, Debug)]
pub(super) struct Macro {
    pub(super) line: u32,
    /// The line where it is undefined or defined again.
    until: Option<u32>,
    pub(super) parameters: Option<Vec<Rc<str>>>,
    pub(super) body: Vec<Token>,
}

impl Macro {
    /// Whether it stands for its own name, as `#define A A` does, and changes nothing.
    pub(super) fn is_itself(&self, name: &str) -> bool {
        self.parameters.is_none() && matches!(self.body.as_slice(), [only] if only.is_name(name))
    }
}

/// All macros of a header, with the lines where they hold.
#[derive(Debug, Default)]
pub(super) struct Macros {
    /// In the order of their first definition.
    pub(super) names: Vec<Rc<str>>,
    definitions: HashMap<Rc<str>, Vec<Macro>>,
}

/// The line behind the last one.
pub(super) const END: u32 = u32::MAX;

impl Macros {
    /// The macro of this name that holds at a line.
    pub(super) fn at(&self, name: &str, line: u32) -> Option<&Macro> {
        let definitions = self.definitions.get(name)?;
        // They are in the order of their lines, and each ends the one before.
        let last = definitions.partition_point(|definition| definition.line < line).checked_sub(1)?;
        definitions.get(last).filter(|definition| definition.until.is_none_or(|until| line <= until))
    }

    /// The definitions of a name at a line and behind it, in order.
    pub(super) fn definitions_from(&self, name: &str, line: u32) -> &[Macro] {
        let definitions = self.definitions.get(name).map_or(&[][..], Vec::as_slice);
        &definitions[definitions.partition_point(|definition| definition.line < line)..]
    }

    fn end(&mut self, name: &str, line: u32) {
        if let Some(last) = self.definitions.get_mut(name).and_then(|definitions| definitions.last_mut()) {
            last.until.get_or_insert(line);
        }
    }

    fn define(&mut self, name: &Rc<str>, definition: Macro) {
        if !self.definitions.contains_key(name) {
            self.names.push(Rc::clone(name));
        }
        self.definitions.entry(Rc::clone(name)).or_default().push(definition);
    }
}

/// What is left of a header behind the preprocessor.
#[derive(Debug, Default)]
pub(super) struct Preprocessed {
    pub(super) macros: Macros,
    /// What is no directive.
    pub(super) code: Vec<Token>,
    /// Macros defined twice, with different text.
    pub(super) redefined: Vec<(Rc<str>, Macro, Macro)>,
    pub(super) unread: Vec<Unread>,
}

/// One `#if` that is open.
struct Branch {
    line: u32,
    /// Whether its lines count now.
    counts: bool,
    /// Whether a later branch of it may be taken.
    is_open: bool,
    had_else: bool,
}

/// Goes through the lines.
pub(super) fn preprocess(lines: &[Line], budget: &Budget) -> Preprocessed {
    let mut result = Preprocessed::default();
    let mut branches: Vec<Branch> = Vec::new();
    for line in lines {
        let counts = branches.last().is_none_or(|branch| branch.counts);
        if !line.is_directive() {
            if counts {
                result.code.extend(line.tokens());
            }
            continue;
        }
        if let Err(why) = directive(line, counts, &mut branches, &mut result, budget) {
            result.unread.push(Unread { line: line.number, why });
        }
    }
    for branch in branches {
        result.unread.push(Unread { line: branch.line, why: "this #if has no #endif".into() });
    }
    result
}

fn directive(
    line: &Line,
    counts: bool,
    branches: &mut Vec<Branch>,
    result: &mut Preprocessed,
    budget: &Budget,
) -> Result<(), String> {
    let tokens = line.tokens();
    let (Some(word), rest) = (tokens.get(1).and_then(Token::name), tokens.get(2..).unwrap_or_default())
    else {
        return Ok(()); // A `#` alone means nothing.
    };
    let named = || {
        let name = rest.first().and_then(Token::name);
        name.ok_or_else(|| format!("#{word} without a name"))
    };
    let decide = |result: &Preprocessed| match &**word {
        "ifdef" | "ifndef" => {
            let defined = result.macros.at(named()?, line.number).is_some() || is_predefined(named()?);
            Ok(defined == (&**word == "ifdef"))
        }
        _ => condition(rest, line.number, &result.macros, budget),
    };
    match &**word {
        "if" | "ifdef" | "ifndef" => {
            let decided = if counts { decide(result) } else { Ok(false) };
            let taken = *decided.as_ref().unwrap_or(&false);
            let number = line.number;
            let is_open = counts && !taken;
            branches.push(Branch { line: number, counts: taken, is_open, had_else: false });
            decided.map(|_| ())
        }
        "elif" | "else" => {
            let branch = branches.last_mut().ok_or_else(|| format!("#{word} without #if"))?;
            if branch.had_else {
                return Err(format!("#{word} behind #else"));
            }
            branch.had_else = &**word == "else";
            let decided = match (branch.is_open, branch.had_else) {
                (true, false) => decide(result),
                (is_open, _) => Ok(is_open),
            };
            branch.counts = *decided.as_ref().unwrap_or(&false);
            branch.is_open &= !branch.counts;
            decided.map(|_| ())
        }
        "endif" => branches.pop().map(|_| ()).ok_or_else(|| "#endif without #if".into()),
        _ if !counts => Ok(()),
        "define" => define(line, named()?, rest, result),
        "undef" => {
            result.macros.end(named()?, line.number);
            Ok(())
        }
        "include" | "warning" => Ok(()),
        "error" => Err("this #error stops a compiler".into()),
        _ => Err(format!("the directive #{word} is not known")),
    }
}

/// What a compiler for 64-bit Linux defines and a header may ask for.
fn is_predefined(name: &str) -> bool {
    ["__LP64__", "__linux__", "__STDC__", "__GNUC__"].contains(&name)
}

fn define(line: &Line, name: &Rc<str>, rest: &[Token], result: &mut Preprocessed) -> Result<(), String> {
    let mut body = rest.get(1..).unwrap_or_default();
    // Only without a space before it a bracket begins parameters: the tokens do not tell.
    let after_name = line.text.split_once("define").map_or("", |(_, after)| after.trim_start());
    let parameters = if after_name.get(name.len()..).is_some_and(|after| after.starts_with('(')) {
        let end = body.iter().position(|token| token.is_sign(")")).ok_or("the parameters have no end")?;
        let parameters = body[1..end].split(|token| token.is_sign(",")).filter(|part| !part.is_empty());
        let name_of = |part: &[Token]| match part {
            [one] => one.name().cloned().ok_or_else(|| format!("{one} is no parameter of a macro")),
            _ => Err("the parameters cannot be read".to_owned()),
        };
        let parameters = parameters.map(name_of).collect::<Result<Vec<_>, _>>()?;
        body = &body[end + 1..];
        Some(parameters)
    } else {
        None
    };
    let new = Macro { line: line.number, until: None, parameters, body: body.to_vec() };
    if let Some(old) = result.macros.at(name, line.number) {
        let kinds = |of: &Macro| of.body.iter().map(|token| token.kind.clone()).collect::<Vec<_>>();
        if old.parameters != new.parameters || kinds(old) != kinds(&new) {
            result.redefined.push((Rc::clone(name), old.clone(), new.clone()));
        }
    }
    result.macros.end(name, line.number);
    result.macros.define(name, new);
    Ok(())
}

/// What an `#if` comes to.
fn condition(tokens: &[Token], line: u32, macros: &Macros, budget: &Budget) -> Result<bool, String> {
    let mut asked = Vec::new();
    let mut rest = tokens;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if !first.is_name("defined") {
            asked.push(first.clone());
            continue;
        }
        let name = match after {
            [open, name, close, ..] if open.is_sign("(") && close.is_sign(")") => {
                rest = &after[3..];
                name
            }
            [name, ..] => {
                rest = &after[1..];
                name
            }
            [] => return Err("`defined` without a name".into()),
        };
        let name = name.name().ok_or("`defined` without a name")?;
        let defined = macros.at(name, line).is_some() || is_predefined(name);
        asked.push(Token { kind: Kind::Number(u8::from(defined).to_string().into()), line });
    }
    let expanded = expand(&asked, line, macros, budget)?;
    Ok(Evaluator::of_directive(&expanded, &NoNames).whole()?.is_true())
}

/// Reads an expression that stands in no header.
pub(super) fn expression(text: &str) -> Vec<Token> {
    tokens::tokens(text, END)
}

/// A macro that was defined twice, if the two are not the same number.
pub(super) fn clash(
    name: &str,
    [first, second]: [&Macro; 2],
    mut shown: impl FnMut(&Macro) -> Result<String, String>,
) -> Option<Clash> {
    let values = [shown(first), shown(second)];
    let are_plain = first.parameters.is_none() && second.parameters.is_none();
    if are_plain && matches!(&values, [Ok(first), Ok(second)] if first == second) {
        return None;
    }
    let [first_value, second_value] = values.map(|value| value.unwrap_or_else(|_| "another text".into()));
    Some(Clash::Redefined {
        name: name.to_owned(),
        first: (first.line, first_value),
        second: (second.line, second_value),
    })
}
