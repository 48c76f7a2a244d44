//! C integers with width and sign, the operators on them, and their literals. `expressions` parses the operators.

use super::shape::Shape;

type Result<T> = std::result::Result<T, String>;

/// An integer of C: `int`, `unsigned`, `long` or `unsigned long`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Number {
    /// The value, extended to 64 bits according to its type.
    pub(super) bits: u64,
    /// Set for 64 bits, clear for 32.
    pub(super) wide: bool,
    pub(super) signed: bool,
}

impl Number {
    /// Returns an `int`.
    pub(super) fn int(value: i32) -> Number {
        Number { bits: i64::from(value).cast_unsigned(), wide: false, signed: true }
    }

    /// Returns an `unsigned long`.
    pub(super) fn unsigned_long(bits: u64) -> Number {
        Number { bits, wide: true, signed: false }
    }

    /// Returns the value converted to `long long`.
    pub(super) fn value(self) -> i64 {
        self.bits.cast_signed()
    }

    /// Returns the number plus 1, in the narrowest type that holds it, if any.
    pub(super) fn successor(self) -> Option<Number> {
        let next = if self.signed {
            self.value().checked_add(1)?.cast_unsigned()
        } else {
            self.bits.checked_add(1)?
        };
        let wide = self.wide || self.with_bits(next).bits != next;
        Some(Number { bits: next, wide, ..self })
    }

    /// Returns whether the number fits an enumeration of four bytes.
    pub(super) fn is_of_an_enumeration(self) -> bool {
        i32::try_from(self.value()).is_ok() || u32::try_from(self.value()).is_ok()
    }

    pub(super) fn is_true(self) -> bool {
        self.bits != 0
    }

    /// Returns the number as a count of elements, bits or bytes, if it is not negative.
    pub(super) fn amount(self) -> Option<u64> {
        if self.signed { u64::try_from(self.value()).ok() } else { Some(self.bits) }
    }

    /// Returns other bits in the same type.
    pub(super) fn with_bits(self, bits: u64) -> Number {
        let bits = match (self.wide, self.signed) {
            (true, _) => bits,
            (false, true) => i64::from((bits as u32).cast_signed()).cast_unsigned(),
            (false, false) => u64::from(bits as u32),
        };
        Number { bits, ..self }
    }

    /// Returns the result of a comparison.
    pub(super) fn truth(is: bool) -> Number {
        Number::int(i32::from(is))
    }

    /// Returns the number in the common type of two operands.
    pub(super) fn common(self, other: Number) -> Number {
        let wide = self.wide || other.wide;
        // A narrow unsigned number fits a wide signed one.
        let signed = [self, other].iter().all(|number| number.signed || (wide && !number.wide));
        Number { bits: 0, wide, signed }
    }
}

/// Returns the result of a binary operator.
pub(super) fn combine(operator: &str, left: Number, right: Number) -> Result<Number> {
    let common = left.common(right);
    let (a, b) = (common.with_bits(left.bits), common.with_bits(right.bits));
    let less = if common.signed { a.value() < b.value() } else { a.bits < b.bits };
    let number = |bits: u64| Ok(common.with_bits(bits));
    match operator {
        "||" => Ok(Number::truth(left.is_true() || right.is_true())),
        "&&" => Ok(Number::truth(left.is_true() && right.is_true())),
        "|" => number(a.bits | b.bits),
        "^" => number(a.bits ^ b.bits),
        "&" => number(a.bits & b.bits),
        "==" => Ok(Number::truth(a.bits == b.bits)),
        "!=" => Ok(Number::truth(a.bits != b.bits)),
        "<" => Ok(Number::truth(less)),
        ">=" => Ok(Number::truth(!less)),
        ">" => Ok(Number::truth(!less && a.bits != b.bits)),
        "<=" => Ok(Number::truth(less || a.bits == b.bits)),
        "+" => number(a.bits.wrapping_add(b.bits)),
        "-" => number(a.bits.wrapping_sub(b.bits)),
        "*" => number(a.bits.wrapping_mul(b.bits)),
        "/" | "%" if b.bits == 0 => Err("a division by zero".into()),
        "/" if common.signed => number(a.value().wrapping_div(b.value()).cast_unsigned()),
        "%" if common.signed => number(a.value().wrapping_rem(b.value()).cast_unsigned()),
        "/" => number(a.bits / b.bits),
        "%" => number(a.bits % b.bits),
        _ => {
            // The type of a shift is that of its left operand.
            let width = if left.wide { u64::BITS } else { u32::BITS };
            let by = right.amount().and_then(|by| u32::try_from(by).ok()).filter(|by| *by < width);
            let by = by.ok_or("a shift by an invalid number of bits")?;
            let shifted = match (operator, left.signed) {
                ("<<", _) => left.bits << by,
                (_, true) => (left.value() >> by).cast_unsigned(),
                (_, false) => left.bits >> by,
            };
            Ok(left.with_bits(shifted))
        }
    }
}

/// Returns a number in another type; integers narrower than an int become one.
pub(super) fn cast(number: Number, shape: Shape) -> Result<Number> {
    let signed = shape.signed.ok_or("a cast to a type that is not an integer")?;
    let bits = number.bits;
    Ok(match (shape.size, signed) {
        (1, true) => Number::int(i32::from(bits as i8)),
        (1, false) => Number::int(i32::from(bits as u8)),
        (2, true) => Number::int(i32::from(bits as i16)),
        (2, false) => Number::int(i32::from(bits as u16)),
        (4, signed) => Number { bits: 0, wide: false, signed }.with_bits(bits),
        (_, signed) => Number { bits, wide: true, signed },
    })
}

/// Parses an integer literal.
pub(super) fn literal(text: &str) -> Option<Number> {
    let lower = text.to_ascii_lowercase();
    let (radix, digits) = match lower.strip_prefix("0x") {
        Some(digits) => (16, digits),
        None => match lower.strip_prefix("0b") {
            Some(digits) => (2, digits),
            None => (if lower.starts_with('0') { 8 } else { 10 }, lower.as_str()),
        },
    };
    let end = digits.find(|digit: char| !digit.is_digit(radix)).unwrap_or(digits.len());
    let (digits, suffix) = digits.split_at(end);
    let (unsigned, long) = match suffix {
        "" => (false, false),
        "u" => (true, false),
        "l" | "ll" => (false, true),
        "ul" | "ull" | "lu" | "llu" => (true, true),
        _ => return None,
    };
    let bits = u64::from_str_radix(digits, radix).ok()?;
    // The first of int, unsigned, long, unsigned long that holds it; a decimal number becomes unsigned only with a
    // suffix.
    let may_be_unsigned = unsigned || radix != 10;
    let types = [(false, true), (false, false), (true, true), (true, false)];
    let holds = |wide: bool, signed: bool| {
        bits <= match (wide, signed) {
            (false, true) => u64::from(i32::MAX.cast_unsigned()),
            (false, false) => u64::from(u32::MAX),
            (true, true) => i64::MAX.cast_unsigned(),
            (true, false) => u64::MAX,
        }
    };
    let mut possible = types.into_iter().filter(|(wide, signed)| {
        (*wide || !long) && (*signed || may_be_unsigned) && !(*signed && unsigned) && holds(*wide, *signed)
    });
    possible.next().map(|(wide, signed)| Number { bits, wide, signed })
}

/// Returns the value of the character with this text between quotes.
pub(super) fn character(text: &str) -> Option<Number> {
    let mut characters = text.chars();
    let value = match (characters.next()?, characters.next(), characters.next()) {
        (plain, None, None) if plain != '\\' => plain,
        ('\\', Some(escaped), None) => match escaped {
            '0' => '\0',
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '\\' | '\'' | '"' => escaped,
            _ => return None,
        },
        _ => return None,
    };
    value.is_ascii().then(|| Number::int(value as i32))
}
