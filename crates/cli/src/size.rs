//! Sizes as a person gives them on the command line.

/// A size in bytes, as the models take it.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    whimbrel_models::parse_size(text)
        .ok_or_else(|| "give a number of bytes, alone or with K, M, G, KiB, MiB or GiB".to_string())
}
