//! The evaluator of C's constant expressions, with C's widths and signs on 64-bit Linux. `expansion` has replaced
//! the macros.

use super::names::Names;
use super::number::{Number, cast, character, combine, literal};
use super::shape::Shape;
use super::tokens::{Kind, Token};

/// Maximum nesting depth of brackets and operators.
const MAX_DEPTH: usize = 64;

/// The evaluator of an expression without macros.
pub(super) struct Evaluator<'a> {
    rest: &'a [Token],
    names: &'a dyn Names,
    depth: usize,
    /// Set if all integers have the widest type, as in an `#if`.
    widest: bool,
}

type Result<T> = std::result::Result<T, String>;

/// The binary operators and their precedence.
const BINARY: [(&str, u8); 18] = [
    ("||", 1),
    ("&&", 2),
    ("|", 3),
    ("^", 4),
    ("&", 5),
    ("==", 6),
    ("!=", 6),
    ("<", 7),
    (">", 7),
    ("<=", 7),
    (">=", 7),
    ("<<", 8),
    (">>", 8),
    ("+", 9),
    ("-", 9),
    ("*", 10),
    ("/", 10),
    ("%", 10),
];

impl<'a> Evaluator<'a> {
    pub(super) fn new(tokens: &'a [Token], names: &'a dyn Names) -> Self {
        Evaluator { rest: tokens, names, depth: 0, widest: false }
    }

    /// Returns the evaluator of an `#if`.
    pub(super) fn of_directive(tokens: &'a [Token], names: &'a dyn Names) -> Self {
        Evaluator { widest: true, ..Self::new(tokens, names) }
    }

    /// Returns the value of all the tokens.
    pub(super) fn whole(mut self) -> Result<Number> {
        let value = self.expression()?;
        match self.rest.first() {
            None => Ok(value),
            Some(token) => Err(format!("{token} cannot follow an expression")),
        }
    }

    fn next(&mut self) -> Option<&'a Token> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn next_is(&mut self, sign: &str) -> bool {
        let is = self.rest.first().is_some_and(|token| token.is_sign(sign));
        if is {
            self.next();
        }
        is
    }

    fn expect(&mut self, sign: &str) -> Result<()> {
        if self.next_is(sign) { Ok(()) } else { Err(format!("missing `{sign}` in an expression")) }
    }

    /// Reads one level deeper.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth == MAX_DEPTH {
            return Err(format!("the expression is nested more than {MAX_DEPTH} deep"));
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    fn expression(&mut self) -> Result<Number> {
        self.deeper(|this| {
            let condition = this.binary(1)?;
            if !this.next_is("?") {
                return Ok(condition);
            }
            let yes = this.expression()?;
            this.expect(":")?;
            let no = this.expression()?;
            let chosen = if condition.is_true() { yes } else { no };
            Ok(yes.common(no).with_bits(chosen.bits))
        })
    }

    fn binary(&mut self, least: u8) -> Result<Number> {
        let mut left = self.unary()?;
        while let Some((operator, binds)) = self.operator(least) {
            self.next();
            let right = self.deeper(|this| this.binary(binds + 1))?;
            left = combine(operator, left, right)?;
        }
        Ok(left)
    }

    /// Returns the next operator, if its precedence is at least `least`.
    fn operator(&self, least: u8) -> Option<(&'static str, u8)> {
        let token = self.rest.first()?;
        BINARY.into_iter().find(|(sign, binds)| token.is_sign(sign) && *binds >= least)
    }

    fn unary(&mut self) -> Result<Number> {
        let token = self.next().ok_or("the expression ends too early")?;
        match &token.kind {
            Kind::Sign(sign @ ("+" | "-" | "~" | "!")) => {
                let operand = self.deeper(Self::unary)?;
                Ok(match *sign {
                    "+" => operand,
                    "-" => operand.with_bits(operand.bits.wrapping_neg()),
                    "~" => operand.with_bits(!operand.bits),
                    _ => Number::truth(!operand.is_true()),
                })
            }
            Kind::Sign("(") => {
                if self.rest.first().is_some_and(|first| self.names.begins_type(first)) {
                    let shape = self.type_in_brackets()?;
                    let operand = self.deeper(Self::unary)?;
                    return cast(operand, shape);
                }
                let value = self.expression()?;
                self.expect(")")?;
                Ok(value)
            }
            Kind::Number(text) => {
                let number = literal(text).ok_or_else(|| format!("{token} is not an integer"))?;
                Ok(if self.widest { Number { wide: true, ..number } } else { number })
            }
            Kind::Character(text) => character(text).ok_or_else(|| format!("{token} is not a character")),
            Kind::Name(name) => match &**name {
                "sizeof" => {
                    self.expect("(")?;
                    let shape = self.type_in_brackets()?;
                    Ok(Number::unsigned_long(shape.size))
                }
                "_IO" | "_IOR" | "_IOW" | "_IOWR" => self.ioctl(name),
                "_BITUL" | "_BITULL" if self.rest.first().is_some_and(|t| t.is_sign("(")) => {
                    self.expect("(")?;
                    let bit = self.expression()?;
                    self.expect(")")?;
                    combine("<<", Number::unsigned_long(1), bit)
                }
                _ => self.names.enumerator(name).ok_or_else(|| format!("unknown name {token}")),
            },
            _ => Err(format!("{token} cannot begin an operand")),
        }
    }

    /// Reads a type and the closing bracket.
    fn type_in_brackets(&mut self) -> Result<Shape> {
        let end =
            self.rest.iter().position(|token| token.is_sign(")")).ok_or("missing `)` in an expression")?;
        let (words, rest) = self.rest.split_at(end);
        self.rest = rest.get(1..).unwrap_or_default();
        self.names.type_of(words).ok_or_else(|| "unknown type in an expression".into())
    }

    /// Reads the operands of a macro of `linux/ioctl.h`, and returns the ioctl number.
    fn ioctl(&mut self, name: &str) -> Result<Number> {
        self.expect("(")?;
        let kind = self.expression()?;
        self.expect(",")?;
        let ordinal = self.expression()?;
        let size = if name == "_IO" {
            0
        } else {
            self.expect(",")?;
            self.type_in_brackets()?.size
        };
        if name == "_IO" {
            self.expect(")")?;
        }
        let direction: u64 = match name {
            "_IO" => 0,
            "_IOW" => 1,
            "_IOR" => 2,
            _ => 3,
        };
        if kind.bits > 0xff || ordinal.bits > 0xff || size > 0x3fff {
            return Err(format!("the operands of {name} are too large"));
        }
        // sizeof makes the number a long.
        let bits = direction << 30 | size << 16 | kind.bits << 8 | ordinal.bits;
        Ok(Number { wide: name != "_IO", signed: false, bits })
    }
}

#[cfg(test)]
mod tests {
    use super::super::names::BaseTypes;
    use super::super::tokens::tokens;
    use super::*;

    fn evaluated(text: &str) -> Result<i64> {
        Evaluator::new(&tokens(text, 1), &BaseTypes).whole().map(Number::value)
    }

    #[test]
    fn expressions_are_evaluated_as_c_does() {
        let cases = [
            ("1 + 2 * 3", 7),
            ("(1 + 2) * 3", 9),
            ("10 - 4 - 3", 3),
            ("1 << 3 | 1", 9),
            ("1 << 31", -(1 << 31)),
            ("1U << 31", 1 << 31),
            ("1UL << 63", i64::MIN),
            ("~0", -1),
            ("~0U", 0xffff_ffff),
            ("~0ULL", -1),
            ("-1", -1),
            ("0xffffffff", 0xffff_ffff),
            ("4294967295", 0xffff_ffff),
            ("0x80000000", 0x8000_0000),
            ("-0x80000000", 0x8000_0000),
            ("010", 8),
            ("';'", 59),
            ("'\\n'", 10),
            ("_IO(';', 100 + 17)", 0x3b75),
            ("_IOR(';', 1, __u64)", 0x8008_3b01),
            ("_IOWR(';', 1, __u32)", 0xc004_3b01),
            ("_BITUL(33)", 1 << 33),
            ("5 & 4 ? 2 : 1", 2),
            ("0 ? 2 : 0 ? 3 : 4", 4),
            ("5 & 4 == 4", 1),
            ("-1 < 0U", 0),
            ("-1L < 0U", 1),
            ("7 / -2", -3),
            ("7 % -2", 1),
            ("(__u8)0x1ff", 0xff),
            ("(signed char)0xff", -1),
            ("(__u32)-1", 0xffff_ffff),
            ("(__s64)-1", -1),
            ("sizeof(__u16) * 2", 4),
            ("sizeof(void *)", 8),
            ("!3 + !0", 1),
            ("1 && 2 || 0", 1),
            ("3 > 2 && 2 >= 2 && 1 <= 1 && 1 != 2", 1),
            ("2147483647 + 1", -(1 << 31)),
        ];
        for (text, value) in cases {
            assert_eq!(evaluated(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_expression_is_an_error_and_no_panic() {
        let cases = [
            ("", "ends too early"),
            ("1 +", "ends too early"),
            ("(1", "missing `)`"),
            ("1 2", "`2` cannot follow"),
            ("1 / 0", "division by zero"),
            ("1 % 0U", "division by zero"),
            ("1 << 32", "invalid number of bits"),
            ("1 << -1", "invalid number of bits"),
            ("1.5", "is not an integer"),
            ("0x", "is not an integer"),
            ("99999999999999999999", "is not an integer"),
            ("9223372036854775808", "is not an integer"),
            ("'ab'", "is not a character"),
            ("foo", "unknown name `foo`"),
            ("sizeof(foo)", "unknown type"),
            ("_IO(1000, 1)", "too large"),
            ("\"text\"", "cannot begin an operand"),
        ];
        for (text, said) in cases {
            let error = evaluated(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        for deep in ["(", "~", "1+(", "1?", "(int)", "1 || 2 && "] {
            assert!(evaluated(&deep.repeat(10_000)).is_err(), "{deep}");
        }
    }

    #[test]
    fn the_least_number_divided_by_minus_one_is_no_panic() {
        assert_eq!(evaluated("(-9223372036854775807 - 1) / -1"), Ok(i64::MIN));
        assert_eq!(evaluated("(-9223372036854775807 - 1) % -1"), Ok(0));
    }
}
