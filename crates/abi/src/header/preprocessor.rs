//! The part of the preprocessor that headers of the user API need: conditional lines and macro definitions.
//! `expansion` replaces macros; `#include` is skipped.

use std::rc::Rc;

use super::budget::Budget;
use super::excerpt::Excerpt;
use super::expansion::expand;
use super::expressions::Evaluator;
use super::lines::Line;
use super::macros::{Macro, Macros};
use super::names::NoNames;
use super::tokens::{Kind, Token};
use super::unread::{MAX_UNREAD, Unread};

/// Maximum number of macro parameters. C requires no more of a compiler.
const MAX_PARAMETERS: usize = 127;

/// A preprocessed header.
#[derive(Debug, Default)]
pub(super) struct Preprocessed {
    pub(super) macros: Macros,
    /// The tokens outside of directives.
    pub(super) code: Vec<Token>,
    /// The macros that are defined twice, with different text.
    pub(super) redefined: Vec<(Rc<str>, Macro, Macro)>,
    pub(super) unread: Vec<Unread>,
}

/// An open `#if`.
struct Branch {
    line: u32,
    /// Set while its lines count.
    counts: bool,
    /// Set while a later branch may be taken.
    is_open: bool,
    had_else: bool,
}

/// Preprocesses the lines of a header.
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
            result.unread.push(Unread::new(line.number, why));
            if result.unread.len() == MAX_UNREAD {
                result.unread.push(Unread::and_no_more(line.number));
                return result;
            }
        }
    }
    // An unterminated `#if` within another one adds nothing.
    for branch in branches.into_iter().take(MAX_UNREAD) {
        result.unread.push(Unread::new(branch.line, "this #if has no #endif"));
    }
    result
}

/// Executes a directive.
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
        return Ok(()); // A `#` alone has no effect.
    };
    let named = || {
        let name = rest.first().and_then(Token::name);
        name.ok_or_else(|| format!("#{} without a name", Excerpt(word)))
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
                return Err(format!("#{word} after #else"));
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
        _ => Err(format!("unknown directive #{}", Excerpt(word))),
    }
}

/// Returns whether a compiler for 64-bit Linux predefines this name, among those that headers test.
fn is_predefined(name: &str) -> bool {
    ["__LP64__", "__linux__", "__STDC__", "__GNUC__"].contains(&name)
}

/// Adds the macro of a `#define`.
fn define(line: &Line, name: &Rc<str>, rest: &[Token], result: &mut Preprocessed) -> Result<(), String> {
    let mut body = rest.get(1..).unwrap_or_default();
    // A bracket begins parameters only without a space before it, which the tokens do not show.
    let after_name = line.text.split_once("define").map_or("", |(_, after)| after.trim_start());
    let parameters = if after_name.get(name.len()..).is_some_and(|after| after.starts_with('(')) {
        let end = body.iter().position(|token| token.is_sign(")")).ok_or("unterminated macro parameters")?;
        let parameters = body[1..end].split(|token| token.is_sign(",")).filter(|part| !part.is_empty());
        let name_of = |part: &[Token]| match part {
            [one] => one.name().cloned().ok_or_else(|| format!("{one} is not a macro parameter")),
            _ => Err("malformed macro parameters".to_owned()),
        };
        let parameters = parameters.map(name_of).collect::<Result<Vec<_>, _>>()?;
        if parameters.len() > MAX_PARAMETERS {
            return Err(format!("a macro with more than {MAX_PARAMETERS} parameters"));
        }
        body = &body[end + 1..];
        Some(parameters)
    } else {
        None
    };
    let new = Macro::new(line.number, parameters, body.to_vec());
    if let Some(old) = result.macros.at(name, line.number) {
        let kinds = |of: &Macro| of.body.iter().map(|token| token.kind.clone()).collect::<Vec<_>>();
        if old.parameters != new.parameters || kinds(old) != kinds(&new) {
            result.redefined.push((Rc::clone(name), old.clone(), new.clone()));
        }
    }
    result.macros.define(name, new);
    Ok(())
}

/// Returns whether the condition of an `#if` holds.
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
