//! The name of a stick-table in a peers section.

use std::fmt;
use std::str::FromStr;

use super::setting::Scalar;

/// The longest name, so that the suffixes of sums fit.
const MAX_NAME: usize = 200;

/// The name of a stick-table that HAProxy counts in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableName(String);

/// The text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a name for a table; write letters, digits or - _ . without the name of the peers section, and do not end it with \
     .others or .agg"
)]
pub struct TableNameError(String);

impl TableName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TableName {
    type Err = TableNameError;

    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let is_plain = (1..=MAX_NAME).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let is_sum = text.ends_with(".others") || text.ends_with(".agg");
        if is_plain && !is_sum { Ok(Self(text.to_owned())) } else { Err(TableNameError(text.to_owned())) }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Scalar for TableName {
    const KIND: &'static str = "the name of a table";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: TableNameError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sums_and_of_other_sections_are_refused() {
        for name in ["failed", "a.b-c_1"] {
            assert_eq!(name.parse::<TableName>().map(|name| name.to_string()), Ok(name.to_owned()));
        }
        for name in ["", "mesh/failed", "failed.others", "failed.agg", "a b", "\u{e4}"] {
            assert!(name.parse::<TableName>().is_err(), "{name}");
        }
    }
}
