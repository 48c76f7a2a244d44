//! A macro for the enums of a header or a protocol, whose variants have a number and a name.

/// Defines an enum whose variants have a number and a name, with `ALL`, `number()`, `name()`, `from_number()` and
/// `Display`, which writes the name. The representation is the caller's to choose.
///
/// ```
/// whimbrel_uapi::numbered_enum! {
///     /// A phase of the moon.
///     #[repr(u8)]
///     #[derive(Clone, Copy, Debug, PartialEq, Eq)]
///     pub enum Moon: u8 {
///         /// Dark.
///         New = 0 => "NEW",
///         /// Bright.
///         Full = 2 => "FULL",
///     }
/// }
///
/// assert_eq!(Moon::ALL, [Moon::New, Moon::Full]);
/// assert_eq!(Moon::from_number(2), Some(Moon::Full));
/// assert_eq!(Moon::from_number(1), None);
/// assert_eq!((Moon::Full.number(), Moon::Full.to_string()), (2, "FULL".to_owned()));
/// ```
#[doc(hidden)]
#[macro_export]
macro_rules! numbered_enum {
    (
        $(#[$attribute:meta])*
        $visibility:vis enum $enum:ident: $number:ty {
            $($(#[$variant_attribute:meta])* $variant:ident = $value:literal => $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        $visibility enum $enum {
            $($(#[$variant_attribute])* $variant = $value,)+
        }

        impl $enum {
            /// Every variant, in ascending order of its number.
            $visibility const ALL: [$enum; [$($enum::$variant),+].len()] = [$($enum::$variant),+];

            /// Returns the number.
            #[inline]
            $visibility const fn number(self) -> $number {
                self as $number
            }

            /// Returns the variant with this number, if one exists.
            #[inline]
            $visibility const fn from_number(number: $number) -> Option<$enum> {
                match number {
                    $($value => Some($enum::$variant),)+
                    _ => None,
                }
            }

            /// Returns the name.
            $visibility const fn name(self) -> &'static str {
                match self {
                    $($enum::$variant => $name,)+
                }
            }
        }

        impl ::core::fmt::Display for $enum {
            fn fmt(&self, f: &mut ::core::fmt::Formatter<'_>) -> ::core::fmt::Result {
                f.pad(self.name())
            }
        }
    };
}
