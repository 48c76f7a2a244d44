//! Sizes and rates on the command line.

/// Parses a size in bytes, in the form of the models' settings.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    whimbrel_models::parse_size(text)
        .ok_or_else(|| "expected a number of bytes, alone or with K, M, G, KiB, MiB or GiB".to_string())
}
