//! `api.users` and `api.tokens`: people with passwords and programs with tokens, each with a role.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::problem::Faults;
use super::setting::{HIDDEN, Scalar, Setting, comparable};
use super::structured::{fields, optional, read_variable, required};
use super::value::Secret;
use super::yaml::{Node, Value};
use crate::config::role::Role;
use crate::operation::api::credential::{self, PasswordHash, TokenHash};
use banmesh_types::time::UnixMillis;

/// The maximum number of users, and of tokens.
const MAX_ENTRIES: usize = 1000;
/// The maximum length of a name, in bytes.
const MAX_NAME: usize = 64;

/// How the configuration gives a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In plaintext.
    Plain(Secret),
    /// As a hash whose syntax has been checked. It is hidden as well, because a weak password can be guessed from it.
    Hash(Secret),
    /// In a file whose first line is one of these.
    File(PathBuf),
}

/// An entry of `api.users` or `api.tokens`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// The password or the token.
    pub secret: SecretSource,
    /// The role of the user or program.
    pub role: Role,
    /// When the token expires; `None` for never. Users have none.
    pub expires: Option<UnixMillis>,
}

/// The differences between users and tokens.
pub trait CredentialKind: Clone + PartialEq + std::fmt::Debug + 'static {
    /// The plural noun, for messages.
    const PLURAL: &'static str;
    /// The keys for the secret, its hash, and the file with either.
    const KEYS: [&'static str; 3];
    /// Whether an entry may have `expires`.
    const EXPIRES: bool;
    /// The role of every entry; `None` if each has its own.
    const ROLE: Option<Role> = None;
    /// The error in a secret, if there is one.
    fn wrong(secret: &str) -> Option<String>;
    /// The error in a hash, if there is one.
    fn wrong_hash(hash: &str) -> Option<String>;
}

/// People, who log in by name and password (RFC 7617).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Person;

impl CredentialKind for Person {
    const PLURAL: &'static str = "users";
    const KEYS: [&'static str; 3] = ["password", "password_hash", "password_file"];
    const EXPIRES: bool = false;

    fn wrong(secret: &str) -> Option<String> {
        let wrong = secret.is_empty() || secret.len() > credential::MAX_LENGTH;
        wrong.then(|| format!("must be 1 to {} bytes long", credential::MAX_LENGTH))
    }

    fn wrong_hash(hash: &str) -> Option<String> {
        PasswordHash::parse(hash).err().map(|error| error.to_string())
    }
}

/// Programs, which send a token (RFC 6750).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program;

impl CredentialKind for Program {
    const PLURAL: &'static str = "tokens";
    const KEYS: [&'static str; 3] = ["token", "token_hash", "token_file"];
    const EXPIRES: bool = true;

    fn wrong(secret: &str) -> Option<String> {
        let fits = (credential::MIN_TOKEN..=credential::MAX_LENGTH).contains(&secret.len())
            && secret.bytes().all(|byte| byte.is_ascii_graphic());
        let least = credential::MIN_TOKEN;
        (!fits).then(|| {
            format!("must be at least {least} ASCII characters without blanks; `banmesh api token` generates one")
        })
    }

    fn wrong_hash(hash: &str) -> Option<String> {
        TokenHash::parse(hash).err().map(|error| error.to_string())
    }
}

/// Programs that only fetch bans: CrowdSec's bouncers, and appliances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetcher;

impl CredentialKind for Fetcher {
    const PLURAL: &'static str = "keys";
    const KEYS: [&'static str; 3] = ["key", "key_hash", "key_file"];
    const EXPIRES: bool = true;
    const ROLE: Option<Role> = Some(Role::Read);

    fn wrong(secret: &str) -> Option<String> {
        Program::wrong(secret)
    }

    fn wrong_hash(hash: &str) -> Option<String> {
        Program::wrong_hash(hash)
    }
}

/// CredentialMap by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialMap<K> {
    entries: BTreeMap<String, Credential>,
    kind: std::marker::PhantomData<K>,
}

/// `api.users`.
pub type ApiUsers = CredentialMap<Person>;
/// `api.tokens`.
pub type ApiTokens = CredentialMap<Program>;
/// `crowdsec.keys` and `lists.keys`.
pub type FetchKeys = CredentialMap<Fetcher>;

impl<K> Default for CredentialMap<K> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), kind: std::marker::PhantomData }
    }
}

impl<K: CredentialKind> CredentialMap<K> {
    /// All entries with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Credential)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Reads one entry; `None` if it has an error.
    fn entry(node: &Node, faults: &mut Faults<'_>) -> Option<Credential> {
        let [plain, hash, file] = K::KEYS;
        let Value::Map(pairs) = &node.value else {
            // Do not show the value: it may be a password.
            let found = node.value.kind();
            let role = if K::ROLE.is_some() { "" } else { ", role: …" };
            faults.invalid(node.line, format!("expected `{{ {hash}: …{role} }}`, found {found}"));
            return None;
        };
        let role = if K::ROLE.is_some() { plain } else { "role" };
        let known = [plain, hash, file, role, if K::EXPIRES { "expires" } else { role }];
        let (found, good) = fields(pairs, known, faults);
        let role: Option<RoleWord> = match K::ROLE {
            Some(role) => Some(RoleWord(role)),
            None => required(&found, "role", node, faults),
        };
        let expires: Option<Option<Expiry>> = match found.contains_key("expires") {
            true => required(&found, "expires", node, faults).map(Some),
            false => Some(None),
        };
        let mut secrets = Vec::new();
        let mut readable = good;
        for key in K::KEYS.into_iter().filter(|key| found.contains_key(key)) {
            let Some(text) = optional(&found, key, Secret::default(), faults) else {
                readable = false;
                continue;
            };
            let (wrong, one) = match key {
                key if key == plain => (K::wrong(text.expose()), SecretSource::Plain(text)),
                key if key == hash => (K::wrong_hash(text.expose()), SecretSource::Hash(text)),
                _ => (PathBuf::parse(text.expose()).err(), SecretSource::File(text.expose().into())),
            };
            if let Some(wrong) = wrong {
                let line = found.get(key).map_or(node.line, |node| node.line);
                faults.within(&format!(".{key}"), |faults| faults.invalid(line, wrong));
                readable = false;
            }
            secrets.push(one);
        }
        if readable && secrets.len() != 1 {
            faults.invalid(node.line, format!("needs one of {plain}, {hash} and {file}"));
        }
        let (RoleWord(role), expires) = (role?, expires?);
        let secret = secrets.pop().filter(|_| readable && secrets.is_empty())?;
        Some(Credential { secret, role, expires: expires.map(|Expiry(at)| at) })
    }
}

impl<K: CredentialKind> Setting for CredentialMap<K> {
    comparable!();

    fn kind(&self) -> &'static str {
        if K::ROLE.is_some() {
            "map of name to `{ key_hash, expires }`"
        } else if K::EXPIRES {
            "map of name to `{ token_hash, role, expires }`"
        } else {
            "map of name to `{ password_hash, role }`"
        }
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        let Value::Map(pairs) = &node.value else {
            let (found, what) = (node.value.kind(), K::PLURAL);
            return faults.invalid(node.line, format!("expected names of {what}, found {found}; write {{}} for none"));
        };
        if pairs.len() > MAX_ENTRIES {
            return faults.invalid(node.line, format!("{} are too many; at most {MAX_ENTRIES}", pairs.len()));
        }
        let mut lines: BTreeMap<&str, usize> = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for pair in pairs {
            let name = &pair.key;
            let read = faults.within(&format!(".{name}"), |faults| {
                if let Some(first) = lines.insert(name, pair.line) {
                    faults.add(pair.line, super::problem::ProblemKind::DuplicateKey { first });
                    return None;
                }
                if let Some(wrong) = wrong_name(name) {
                    faults.invalid(pair.line, wrong);
                    return None;
                }
                Self::entry(&pair.value, faults)
            });
            entries.extend(read.map(|entry| (name.clone(), entry)));
        }
        if entries.len() == pairs.len() {
            self.entries = entries;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        let [plain, hash, file] = K::KEYS;
        let one = |(name, entry): (&str, &Credential)| {
            let mut shown = serde_json::Map::new();
            match &entry.secret {
                SecretSource::Plain(_) => shown.insert(plain.to_owned(), HIDDEN.into()),
                SecretSource::Hash(_) => shown.insert(hash.to_owned(), HIDDEN.into()),
                SecretSource::File(path) => shown.insert(file.to_owned(), path.display().to_string().into()),
            };
            if K::ROLE.is_none() {
                shown.insert("role".to_owned(), entry.role.as_str().into());
            }
            shown.extend(entry.expires.map(|moment| ("expires".to_owned(), moment.to_string().into())));
            (name.to_owned(), serde_json::Value::Object(shown))
        };
        self.iter().map(one).collect::<serde_json::Map<_, _>>().into()
    }
}

/// The error in a name, if there is one. A colon would end the name in `Authorization: Basic`.
fn wrong_name(name: &str) -> Option<String> {
    let good = !name.is_empty() && name.len() <= MAX_NAME && !name.contains(|c: char| c == ':' || c.is_control());
    (!good).then(|| format!("the name must be 1 to {MAX_NAME} bytes long, without a colon"))
}

/// The role of an entry.
#[derive(Clone, PartialEq)]
struct RoleWord(Role);

impl Scalar for RoleWord {
    const KIND: &'static str = Role::KIND;

    fn parse(text: &str) -> Result<Self, String> {
        Role::parse(text).map(Self)
    }

    fn show(&self) -> String {
        self.0.show()
    }
}

impl Scalar for Role {
    const KIND: &'static str = "one of read, report, operate, admin";

    fn parse(text: &str) -> Result<Self, String> {
        let short: String = text.chars().take(40).collect();
        text.parse().map_err(|_| format!("`{short}` is not {}", Self::KIND))
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

/// The expiry of an entry.
#[derive(Clone, PartialEq)]
struct Expiry(UnixMillis);

impl Scalar for Expiry {
    const KIND: &'static str = "a date or time such as 2027-01-31 or 2027-01-31T12:00:00Z";

    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|error: banmesh_types::time::TimeError| error.to_string())
    }

    fn show(&self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, resolve};

    const HASH: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$BwcHBwcHBwcHBwcHBwcHBw$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn read(yaml: &str) -> Result<Config, String> {
        let path = std::path::Path::new("c.yaml");
        resolve(Some((path, yaml.as_bytes())), []).map(|loaded| loaded.config).map_err(|errors| errors.to_string())
    }

    #[test]
    fn secrets_of_users_and_tokens_are_never_shown() {
        let yaml = format!(
            "api:\n  users:\n    ann: {{password_hash: '{HASH}', role: operate}}\n    bob: {{password: hush-hush, role: read}}\n  \
             tokens:\n    ci: {{token: hush-hush-hush-hush-hush-hush, role: admin, expires: '2027-01-31'}}\n    \
             mon: {{token_file: /run/mon, role: read}}\n"
        );
        let config = read(&yaml).unwrap();
        let users: Vec<_> = config.api.users.iter().map(|(name, entry)| (name, entry.role)).collect();
        assert_eq!(users, [("ann", Role::Operate), ("bob", Role::Read)]);
        let tokens: Vec<_> = config.api.tokens.iter().collect();
        assert_eq!(tokens[0].1.expires, "2027-01-31".parse().ok());
        assert_eq!(tokens[1].1.secret, SecretSource::File("/run/mon".into()));
        for text in [config.api.users.text(), config.api.tokens.text(), format!("{config:?}")] {
            assert!(!text.contains("hush-hush") && !text.contains("BwcH"), "{text}");
        }
        assert!(
            config.api.tokens.text().contains(r#""expires":"2027-01-31T00:00:00Z""#),
            "{}",
            config.api.tokens.text()
        );
    }

    #[test]
    fn insecure_settings_are_warnings_or_errors() {
        let path = std::path::Path::new("c.yaml");
        let warned = |yaml: &str| {
            let loaded = resolve(Some((path, yaml.as_bytes())), []).unwrap();
            loaded.warnings.iter().map(ToString::to_string).filter(|text| text.contains("api.")).collect::<Vec<_>>()
        };
        let token = "tokens: {ci: {role: read, token: a-token-that-nobody-can-guess}}";
        assert_eq!(warned(&format!("api: {{{token}}}\n")), [""; 0]);
        let clear = warned(&format!("api: {{address: 0.0.0.0, {token}}}\n"));
        assert!(clear.len() == 1 && clear[0].contains("as plaintext"), "{clear:?}");
        let tls = "tls: {enabled: true, certificate: /c, key: /k}";
        assert_eq!(warned(&format!("api: {{address: 0.0.0.0, {token}, {tls}}}\n")), [""; 0]);
        let wide = warned("api: {trusted_proxies: [0.0.0.0/0]}\n");
        assert!(wide.len() == 1 && wide[0].contains("list only the proxies"), "{wide:?}");
        // A node refuses to start with these.
        for open in ["address: 0.0.0.0", "address: '::'", "address: 192.0.2.1"] {
            let error = read(&format!("api: {{{open}}}\n")).unwrap_err();
            assert!(error.contains("c.yaml:1") && error.contains("without authentication"), "{error}");
            assert!(read(&format!("api: {{{open}, enabled: false}}\n")).is_ok(), "{open}");
            assert!(read(&format!("api: {{{open}, {token}}}\n")).is_ok(), "{open}");
        }
        assert!(read("api: {address: '::ffff:127.0.0.1'}\n").is_ok());
        assert!(read("api: {tls: {enabled: true}}\n").unwrap_err().contains("api.tls.certificate is missing"));
        let both =
            "api: {basic_auth: {enabled: true, username: ann, password: x}, users: {ann: {role: read, password: y}}}\n";
        assert!(read(both).unwrap_err().contains("`ann` is also a user of api.basic_auth"));
    }

    #[test]
    fn errors_about_users_and_tokens_do_not_show_the_secret() {
        for (yaml, said) in [
            ("users: {ann: {password: hush-hush}}", "is missing"),
            ("users: {ann: {role: read}}", "needs one of password, password_hash and password_file"),
            ("users: {ann: {password: hush-hush, password_file: /x, role: read}}", "needs one of"),
            ("users: {ann: {password: hush-hush, role: root}}", "`root` is not one of read, report, operate, admin"),
            ("users: {ann: {password_hash: hush-hush, role: read}}", "is not a password hash"),
            ("users: {ann: hush-hush}", "expected `{ password_hash"),
            ("users: {'a:b': {password: hush-hush, role: read}}", "without a colon"),
            ("users: {ann: {password: hush-hush, role: read, expires: '2027-01-31'}}", "unknown"),
            ("users: {ann: {password: '', role: read}}", "1 to 1024 bytes"),
            ("users: hush-hush", "expected names of users"),
            ("tokens: {ci: {token: hush-hush, role: read}}", "at least 24"),
            ("tokens: {ci: {token_hash: 'sha256:hush-hush', role: read}}", "is not a token hash"),
            ("tokens: {ci: {token_file: /x, role: read, expires: soon}}", "is not a valid time"),
        ] {
            let error = read(&format!("api: {{{yaml}}}\n")).unwrap_err();
            assert!(error.contains(said) && !error.contains("hush-hush"), "{yaml}: {error}");
        }
    }
}
