//! Hashes of passwords and tokens.
//!
//! A password can be guessed, so its hash (argon2id, RFC 9106) costs 19 MiB and some tens of milliseconds per attempt. A token is 32
//! random bytes, which cannot be guessed, so SHA-256 is enough.

use std::fmt;

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHasher, Version};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

/// The longest password and token, in bytes.
pub const MAX_LENGTH: usize = 1024;
/// The shortest token that an operator may choose, in bytes.
pub const MIN_TOKEN: usize = 24;
/// The prefix of generated tokens, by which secret scanners find them in files.
const TOKEN_PREFIX: &str = "bm_";
/// The prefix of a token's hash.
const TOKEN_HASH_PREFIX: &str = "sha256:";
/// The most memory to check a password, in KiB.
const MAX_MEMORY: u32 = 128 * 1024;
/// The most work to check a password, in KiB times passes: about a second.
const MAX_WORK: u32 = 1024 * 1024;

/// Why a hash is invalid, or cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The text is not a password hash.
    #[error("is not a password hash; it must begin with $argon2id$. `banmesh api hash-password` makes one")]
    Password,
    /// The hash would cost too much to check.
    #[error("needs more than 128 MiB or a second for each login; `banmesh api hash-password` makes a cheaper hash")]
    Costly,
    /// The text is not a token hash.
    #[error(
        "is not a token hash; it must be sha256: and 64 hexadecimal digits. `banmesh api token` makes a token and its hash"
    )]
    Token,
    /// The password is empty or too long.
    #[error("is not a valid password: it must be 1 to {MAX_LENGTH} bytes long")]
    Length,
    /// The system has no randomness for a salt.
    #[error("cannot be hashed: the system has no randomness")]
    Randomness,
}

/// A password's hash in the PHC string format.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(phc::PasswordHash);

impl PasswordHash {
    /// Whether `text` is meant to be a hash, not a password.
    pub fn looks_like(text: &str) -> bool {
        text.starts_with("$argon2")
    }

    /// Reads `$argon2id$v=19$m=…,t=…,p=…$salt$hash`.
    ///
    /// # Errors
    /// When it is invalid, or would cost too much to check.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let hash = phc::PasswordHash::new(text).map_err(|_| CredentialError::Password)?;
        if hash.algorithm.as_str() != "argon2id" || hash.salt.is_none() || hash.hash.is_none() {
            return Err(CredentialError::Password);
        }
        let params = Params::try_from(&hash).map_err(|_| CredentialError::Password)?;
        if params.m_cost() > MAX_MEMORY || params.m_cost().saturating_mul(params.t_cost()) > MAX_WORK {
            return Err(CredentialError::Costly);
        }
        Ok(Self(hash))
    }

    /// Hashes `password` with OWASP's parameters (19 MiB, 2 passes); `salt` must be random. Takes tens of milliseconds.
    ///
    /// # Errors
    /// [`CredentialError::Length`].
    pub fn of(password: &[u8], salt: [u8; 16]) -> Result<Self, CredentialError> {
        if password.is_empty() || password.len() > MAX_LENGTH {
            return Err(CredentialError::Length);
        }
        Argon2::default().hash_password_with_salt(password, &salt).map(Self).map_err(|_| CredentialError::Length)
    }

    /// Whether `password` is the one. Takes as long whether or not it is. The check works in `memory`.
    pub fn is_of(&self, password: &[u8], memory: &mut CheckMemory) -> bool {
        self.matches(password, memory).unwrap_or(false)
    }

    fn matches(&self, password: &[u8], memory: &mut CheckMemory) -> Option<bool> {
        let (salt, expected) = (self.0.salt.as_ref()?, self.0.hash.as_ref()?);
        let params = Params::try_from(&self.0).ok()?;
        let version = self.0.version.map_or(Ok(Version::default()), Version::try_from).ok()?;
        let blocks = memory.blocks(params.block_count());
        let mut computed = vec![0; expected.len()];
        Argon2::new(Algorithm::Argon2id, version, params)
            .hash_password_into_with_memory(password, salt, &mut computed, blocks)
            .ok()?;
        Some(expected.as_bytes().ct_eq(&computed).into())
    }

    /// What checking it costs, to compare with others.
    pub fn cost(&self) -> u64 {
        let params = Params::try_from(&self.0).unwrap_or_default();
        u64::from(params.m_cost()) * u64::from(params.t_cost())
    }
}

/// The memory in which passwords are checked, to be used again for the next check.
///
/// Memory of this size that is freed on one thread is often not available to another one: the C library keeps it for the thread
/// that allocated it. With a new allocation per check, guessed passwords would therefore grow the process by 19 MiB per thread.
#[derive(Default)]
pub struct CheckMemory(Vec<Block>);

impl CheckMemory {
    /// At least `count` blocks. What they hold does not matter.
    fn blocks(&mut self, count: usize) -> &mut [Block] {
        if self.0.len() < count {
            // Freed first, so that the old and the new memory are never held at once.
            self.0 = Vec::new();
            self.0.resize(count, Block::new());
        }
        &mut self.0
    }
}

impl fmt::Debug for CheckMemory {
    // The content depends on a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CheckMemory").field(&self.0.len()).finish()
    }
}

impl fmt::Display for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PasswordHash {
    // A weak password can be guessed from its hash.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(hidden)")
    }
}

/// A token's hash, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy)]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// Whether `text` is meant to be a hash, not a token.
    pub fn looks_like(text: &str) -> bool {
        text.starts_with(TOKEN_HASH_PREFIX)
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`CredentialError::Token`].
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let digits = text.strip_prefix(TOKEN_HASH_PREFIX).filter(|digits| digits.len() == 64 && digits.is_ascii());
        let digits = digits.ok_or(CredentialError::Token)?;
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| !pair.starts_with('+'));
            let value = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok());
            *byte = value.ok_or(CredentialError::Token)?;
        }
        Ok(Self(hash))
    }

    /// The hash of `token`.
    pub fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }
}

/// In constant time.
impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(TOKEN_HASH_PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash(hidden)")
    }
}

/// The shortest password that is not weak, in characters.
const STRONG_LENGTH: usize = 12;
/// Passwords that attackers try first, or that others are made of.
const COMMON: [&str; 14] = [
    "password", "passwort", "123456", "qwerty", "qwertz", "letmein", "welcome", "changeme", "secret", "banmesh",
    "admin", "root", "abc123", "iloveyou",
];

/// Why a guesser finds the password of `user` soon; `None` if no reason is known. The text does not show it.
pub fn weak_password(password: &str, user: &str) -> Option<&'static str> {
    let lower = password.to_lowercase();
    let without = |known: &str| if known.is_empty() { lower.clone() } else { lower.replace(known, "") };
    let rest =
        |known: &str| without(known).chars().filter(|c| !c.is_ascii_digit() && !c.is_ascii_punctuation()).count();
    if password.chars().count() < STRONG_LENGTH {
        return Some(
            "is shorter than 12 characters; use a longer one, and `banmesh api hash-password` to store its hash",
        );
    }
    if different(password) < 5 {
        return Some("has only a few different characters; choose another one");
    }
    let user = user.to_lowercase();
    let guessed = COMMON
        .into_iter()
        .chain([user.as_str()])
        .any(|known| !known.is_empty() && lower.contains(known) && rest(known) < 4);
    guessed.then_some("is a common password or the name of the user, with little added; choose another one")
}

/// Why a guesser finds the token soon; `None` if no reason is known. The text does not show it.
pub fn weak_token(token: &str) -> Option<&'static str> {
    (different(token) < 10)
        .then_some("has only a few different characters; `banmesh api token` makes one that cannot be guessed")
}

fn different(text: &str) -> usize {
    text.chars().collect::<std::collections::BTreeSet<_>>().len()
}

/// A token of 32 random bytes.
pub fn token(random: [u8; 32]) -> String {
    format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_matches_its_hash() {
        let hash = PasswordHash::of(b"correct horse", [7; 16]).unwrap();
        let text = hash.to_string();
        assert!(text.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{text}");
        let (read, memory) = (PasswordHash::parse(&text).unwrap(), &mut CheckMemory::default());
        assert!(PasswordHash::looks_like(&text) && read.is_of(b"correct horse", memory));
        assert!(!read.is_of(b"correct horsf", memory) && read.is_of(b"correct horse", memory), "used again");
        assert_eq!(format!("{hash:?}"), "PasswordHash(hidden)");
        assert_eq!(PasswordHash::of(b"", [7; 16]).err(), Some(CredentialError::Length));
        assert_eq!(PasswordHash::of(&[0; MAX_LENGTH + 1], [7; 16]).err(), Some(CredentialError::Length));
    }

    /// A hash that another program made, with other costs than ours.
    #[test]
    fn memory_of_a_cheaper_check_serves_a_costlier_one() {
        let (cheap, memory) = (Params::new(64, 1, 2, None).unwrap(), &mut CheckMemory::default());
        let cheap = Argon2::new(Algorithm::Argon2id, Version::V0x10, cheap);
        let cheap = cheap.hash_password_with_salt(b"old", &[1; 16]).unwrap().to_string();
        let cheap = PasswordHash::parse(&cheap).unwrap();
        let usual = PasswordHash::of(b"new", [2; 16]).unwrap();
        for _ in 0..2 {
            assert!(cheap.is_of(b"old", memory) && !cheap.is_of(b"new", memory), "{cheap}");
            assert!(usual.is_of(b"new", memory) && !usual.is_of(b"old", memory));
        }
        assert_eq!(format!("{memory:?}"), "CheckMemory(19456)");
    }

    #[test]
    fn refuses_invalid_and_costly_password_hashes() {
        let good = "$argon2id$v=19$m=19456,t=2,p=1$BwcHBwcHBwcHBwcHBwcHBw$";
        let hash = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        assert!(PasswordHash::parse(&format!("{good}{hash}")).is_ok());
        for (text, error) in [
            ("secret".to_owned(), CredentialError::Password),
            (String::new(), CredentialError::Password),
            ("$argon2id$v=19$m=19456,t=2,p=1".to_owned(), CredentialError::Password),
            (format!("{}{hash}", good.replace("argon2id", "argon2i")), CredentialError::Password),
            (format!("{}{hash}", good.replace("m=19456", "m=4000000")), CredentialError::Costly),
            (format!("{}{hash}", good.replace("t=2", "t=1000000")), CredentialError::Costly),
        ] {
            assert_eq!(PasswordHash::parse(&text).err(), Some(error), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn hashes_round_trip(text in "(\\$argon2id|sha256:)?[$a-z0-9=,+/]{0,90}") {
            if let Ok(hash) = PasswordHash::parse(&text) {
                proptest::prop_assert_eq!(hash.to_string(), text.clone());
            }
            if let Ok(hash) = TokenHash::parse(&text) {
                proptest::prop_assert_eq!(hash.to_string(), text);
            }
        }
    }

    #[test]
    fn a_token_matches_its_hash() {
        let token = token([1; 32]);
        assert!(token.starts_with("bm_") && token.len() == 46, "{token}");
        let hash = TokenHash::of(token.as_bytes());
        assert_eq!(TokenHash::parse(&hash.to_string()), Ok(hash));
        assert_ne!(TokenHash::of(b"other"), hash);
        // FIPS 180-4: the hash of `abc`.
        let known = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TokenHash::of(b"abc").to_string(), known);
        for wrong in ["", "sha256:", &known[..70], &known.replace("ba", "+a"), &known.replace("ba", "zz"), &known[7..]]
        {
            assert_eq!(TokenHash::parse(wrong), Err(CredentialError::Token), "{wrong}");
        }
    }
}
