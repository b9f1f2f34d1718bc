//! [`Account`]: the keyed hash by which nodes know an account. Names never leave a node.

use std::fmt;

use crate::account::AccountName;
use crate::siphash::SipKey;

/// The hash of an account's name, under a key that all nodes of a cluster share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Account(pub u64);

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An account, and the part of its name before the `@` if it has one: somebody who logs in as `anna@example.org` also shows that the
/// name `anna` is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The account.
    pub account: Account,
    /// The account with the name before the `@`.
    pub local: Option<Account>,
}

/// The key of the hashes.
#[derive(Clone, Copy, Debug)]
pub struct AccountKey(SipKey);

impl AccountKey {
    /// Creates a key from its bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(SipKey::new(bytes))
    }

    /// Returns what tells two keys apart without showing them. It is the hash of no name, since names have no line feed.
    pub fn fingerprint(&self) -> u64 {
        self.0.hash(b"\nfingerprint")
    }

    /// Returns the hash of a name. Names that Unicode considers equal have one hash.
    pub fn account(&self, name: &str) -> Account {
        if name.is_ascii() {
            return Account(self.0.hash(name.as_bytes()));
        }
        use unicode_normalization::UnicodeNormalization as _;
        let composed: String = name.nfc().collect();
        Account(self.0.hash(composed.as_bytes()))
    }

    /// Returns the hash of a name, and of the part before the `@`.
    pub fn named(&self, name: &AccountName) -> Named {
        let name = name.as_str();
        let local = name.rsplit_once('@').map(|(local, _)| local).filter(|local| !local.is_empty());
        Named { account: self.account(name), local: local.map(|local| self.account(local)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_written_differently_have_one_hash_and_keys_separate_clusters() {
        let (one, two) = (AccountKey::new([1; 16]), AccountKey::new([2; 16]));
        let name = |text: &str| AccountName::new(text.as_bytes()).unwrap();
        let hash = |text: &str| one.named(&name(text)).account;
        assert_eq!(hash(" Anna@Example.org "), hash("anna@example.org"));
        assert_eq!(hash("e\u{301}va"), hash("\u{e9}va"));
        assert_ne!(hash("anna"), two.named(&name("anna")).account);
        assert_ne!(one.fingerprint(), two.fingerprint());
        assert_eq!(one.named(&name("Anna@example.org")).local, Some(hash("anna")));
        assert_eq!((one.named(&name("anna")).local, one.named(&name("@x")).local), (None, None));
    }
}
