//! Names of programs in the configuration.

use super::setting::Scalar;

/// The name of a program, in which `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPattern(pub glob::Pattern);

impl Scalar for ProgramPattern {
    const KIND: &'static str = "the name of a program, or a pattern such as mail*";
    const KINDS: &'static str = "list of programs";

    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(format!(
                "`{text}` is not the name of a program: write one word, such as mail, or a pattern such as mail*"
            ));
        }
        let pattern =
            glob::Pattern::new(text).map_err(|error| format!("`{text}` is not a valid pattern: {}", error.msg))?;
        Ok(Self(pattern))
    }

    fn show(&self) -> String {
        self.0.as_str().to_owned()
    }
}
