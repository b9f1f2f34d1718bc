//! The name of an account, as a line or a report gives it.

use std::fmt;
use std::sync::Arc;

/// The longest name, in bytes. A longer one is cut: no service has such accounts, but a client may send one.
const MAX_NAME: usize = 256;

/// The name of an account, trimmed, in lower case and of at most 256 bytes. Clones share it. Clients choose names, so a name may
/// contain anything.
///
/// It does not leave the node: other nodes get a keyed hash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountName(Arc<str>);

impl AccountName {
    /// `None` if nothing is left of the name after trimming. Bytes that are not UTF-8 are replaced.
    pub fn new(name: &[u8]) -> Option<Self> {
        // A cut within a character leaves at most 3 bytes that are not UTF-8.
        let text = String::from_utf8_lossy(name.get(..MAX_NAME).unwrap_or(name));
        let mut text = text.trim().to_lowercase();
        while text.len() > MAX_NAME {
            text.pop();
        }
        (!text.is_empty()).then(|| Self(text.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_trimmed_in_lower_case_and_bounded() {
        let name = |bytes: &[u8]| AccountName::new(bytes).map(|name| name.as_str().to_owned());
        assert_eq!(name(b" Anna@Example.org\t").as_deref(), Some("anna@example.org"));
        assert_eq!(name("\u{c4}nne".as_bytes()).as_deref(), Some("\u{e4}nne"));
        assert_eq!((name(b""), name(b" \n")), (None, None));
        assert_eq!(name(b"a\xff").as_deref(), Some("a\u{fffd}"));
        assert!(name(&[0xff; 1000]).unwrap().len() <= MAX_NAME);
        // Its lower case is longer.
        assert!(name("\u{130}".repeat(1000).as_bytes()).unwrap().len() <= MAX_NAME);
    }
}
