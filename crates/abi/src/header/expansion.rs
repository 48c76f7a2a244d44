//! Macro expansion, within bounds: macros that double one another, or are nested without end, are an error. `macros`
//! has the definitions; `expressions` evaluates the result.

use std::borrow::Cow;
use std::rc::Rc;

use super::budget::Budget;
use super::excerpt::Excerpt;
use super::macros::Macros;
use super::tokens::{Kind, Token};

/// Maximum nesting depth of macros.
const MAX_DEPTH: usize = 64;

/// Returns the cost of these tokens in a budget.
fn cost(tokens: &[Token]) -> usize {
    tokens.iter().map(Token::cost).sum()
}

/// Replaces the macros that hold at a line.
pub(super) fn expand(
    tokens: &[Token],
    line: u32,
    macros: &Macros,
    budget: &Budget,
) -> Result<Vec<Token>, String> {
    Expansion { line, macros, budget, within: Vec::new(), depth: 0 }.expand(tokens)
}

struct Expansion<'a> {
    line: u32,
    macros: &'a Macros,
    budget: &'a Budget,
    /// The macros being expanded: C does not expand a macro within itself.
    within: Vec<Rc<str>>,
    /// The nesting depth of arguments and texts.
    depth: usize,
}

impl Expansion<'_> {
    fn expand(&mut self, tokens: &[Token]) -> Result<Vec<Token>, String> {
        self.budget.spend(cost(tokens))?;
        if self.depth == MAX_DEPTH {
            return Err(format!("macros are nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let mut expanded = Vec::new();
        let mut rest = tokens;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            let found = first.name().filter(|name| !self.within.contains(name));
            let Some((name, definition)) =
                found.and_then(|name| Some((name, self.macros.at(name, self.line)?)))
            else {
                expanded.push(first.clone());
                continue;
            };
            let text = match &definition.parameters {
                None => Cow::Borrowed(definition.body.as_slice()),
                Some(parameters) => {
                    let Some((arguments, behind)) = arguments(after)? else {
                        expanded.push(first.clone());
                        continue;
                    };
                    rest = behind;
                    let mut given = Vec::new();
                    for argument in arguments {
                        given.push(self.expand(argument)?);
                    }
                    Cow::Owned(substitute(name, parameters, &definition.body, &given, self.budget)?)
                }
            };
            self.within.push(Rc::clone(name));
            expanded.extend(self.expand(&text)?);
            self.within.pop();
        }
        self.depth -= 1;
        Ok(expanded)
    }
}

/// The arguments of a macro call, and the tokens after them.
type Arguments<'a> = (Vec<&'a [Token]>, &'a [Token]);

/// Reads arguments in brackets, if any.
fn arguments(tokens: &[Token]) -> Result<Option<Arguments<'_>>, String> {
    if tokens.first().is_none_or(|first| !first.is_sign("(")) {
        return Ok(None);
    }
    let mut depth = 0_usize;
    let mut start = 1;
    let mut arguments = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Sign("(") => depth += 1,
            Kind::Sign(")") if depth > 1 => depth -= 1,
            Kind::Sign(")") => {
                arguments.push(&tokens[start..at]);
                return Ok(Some((arguments, &tokens[at + 1..])));
            }
            Kind::Sign(",") if depth == 1 => {
                arguments.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    Err("unterminated macro arguments".into())
}

/// Returns the text of a macro with its arguments in it.
fn substitute(
    name: &str,
    parameters: &[Rc<str>],
    body: &[Token],
    arguments: &[Vec<Token>],
    budget: &Budget,
) -> Result<Vec<Token>, String> {
    // No argument at all looks like one empty argument.
    let given =
        if parameters.is_empty() && arguments.iter().all(Vec::is_empty) { 0 } else { arguments.len() };
    if given != parameters.len() {
        return Err(format!("the macro {} takes {} arguments, not {given}", Excerpt(name), parameters.len()));
    }
    budget.spend(cost(body))?;
    let mut text = Vec::new();
    for token in body {
        if token.is_sign("#") || token.is_sign("##") {
            return Err(format!("unsupported {token} in the macro {}", Excerpt(name)));
        }
        let parameter = token.name().and_then(|name| parameters.iter().position(|own| own == name));
        match parameter.and_then(|parameter| arguments.get(parameter)) {
            Some(argument) => {
                budget.spend(cost(argument))?;
                text.extend(argument.iter().cloned());
            }
            None => text.push(token.clone()),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::lines::lines;
    use super::super::macros::END;
    use super::super::preprocessor::preprocess;
    use super::super::tokens::tokens;
    use super::*;

    fn expanded(header: &str, text: &str) -> Result<String, String> {
        let budget = Budget::default();
        let macros = preprocess(&lines(header).0, &budget).macros;
        let expanded = expand(&tokens(text, END), END, &macros, &budget)?;
        Ok(expanded.iter().map(|token| token.to_string().replace('`', "")).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn macros_are_replaced_as_c_does() {
        let cases = [
            ("#define A 1\n#define B A", "B + A", "1 + 1"),
            ("#define A A + 1", "A", "A + 1"),
            ("#define A B\n#define B A", "A", "A"),
            ("#define F(x) (x * x)", "F(1 + 2)", "( 1 + 2 * 1 + 2 )"),
            ("#define F(x, y) x - y", "F((1, 2), F(3, 4))", "( 1 , 2 ) - 3 - 4"),
            ("#define F(x) x", "F + F(F(2))", "F + 2"),
            ("#define F() 7", "F()", "7"),
            ("#define F (x)", "F", "( x )"),
            ("#define A 1\n#undef A", "A", "A"),
        ];
        for (header, text, expected) in cases {
            assert_eq!(expanded(header, text), Ok(expected.to_owned()), "{header:?} {text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error() {
        let cases = [
            ("#define F(x) x", "F(1, 2)", "takes 1 arguments, not 2"),
            ("#define F(x) x", "F(1", "unterminated macro arguments"),
            ("#define F(x) a##x", "F(1)", "unsupported `##`"),
        ];
        for (header, text, said) in cases {
            let error = expanded(header, text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn macros_that_double_one_another_come_to_an_end() {
        let doubled: String = (0..60).map(|at| format!("#define A{} A{at} A{at}\n", at + 1)).collect();
        let error = expanded(&doubled, "A60").expect_err("it is far too much");
        assert!(error.contains("too much"), "{error}");
    }

    #[test]
    fn neither_macros_nor_arguments_stand_in_one_another_without_end() {
        let chain: String = (0..1000).map(|at| format!("#define A{at} A{}\n", at + 1)).collect();
        let nested = format!("{}1{}", "F(".repeat(10_000), ")".repeat(10_000));
        for error in [expanded(&chain, "A0"), expanded("#define F(x) x", &nested)] {
            assert!(error.clone().is_err_and(|error| error.contains("64 deep")), "{error:?}");
        }
    }
}
