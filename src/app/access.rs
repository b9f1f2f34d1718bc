//! Builds the API's access rules from the configuration: users, tokens, and the files with their secrets.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Config, Credential, FetchKeys, SecretSource};
use crate::operation::api::Access;
use crate::operation::api::credential::{
    CredentialError, MAX_LENGTH, PasswordHash, TokenHash, weak_password, weak_token,
};
use crate::operation::api::login::{self, Credentials, Token, User};
use banmesh_types::time::UnixMillis;

/// How many bytes of a secret file are read. Only its first line is used.
const MAX_FILE: u64 = 64 * 1024;

/// Why the users and tokens of the API cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// A file cannot be read.
    #[error("cannot read {} ({key}): {source}", path.display())]
    File {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: std::io::Error,
    },
    /// The first line of a file is not a valid secret.
    #[error("{key}: {}: the first line {source}", path.display())]
    Content {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: CredentialError,
    },
    /// A token in a file is too short.
    #[error("{key}: {}: the first line must be a token of at least 24 characters; `banmesh api token` generates one", path.display())]
    Short {
        /// The configuration key.
        key: String,
        /// The file.
        path: PathBuf,
    },
    /// A password in the configuration cannot be hashed.
    #[error("{key} {source}")]
    Password {
        /// The configuration key.
        key: String,
        /// What is wrong with it.
        source: CredentialError,
    },
}

impl AccessError {
    /// The configuration key, without the name of the user or token.
    fn key(&self) -> &str {
        let (Self::File { key, .. } | Self::Content { key, .. } | Self::Short { key, .. } | Self::Password { key, .. }) =
            self;
        ["api.users", "api.tokens", "crowdsec.keys", "lists.keys"]
            .into_iter()
            .find(|section| key.starts_with(section))
            .unwrap_or(key)
    }
}

/// Loads the users, tokens and allowed addresses of the API. Hashes plaintext passwords, which takes tens of milliseconds each.
///
/// # Errors
/// A password or token is invalid, or a file with one cannot be used.
pub fn access(config: &Config) -> Result<Access, AccessError> {
    let api = &config.api;
    let credentials = if api.asks_for_credentials() { Some(Arc::new(credentials(config)?)) } else { None };
    Ok(Access {
        allowed: api.allowed_ips.iter().copied().collect(),
        trusted_proxies: api.trusted_proxies.iter().copied().collect(),
        credentials,
    })
}

/// Loads the secret of Dovecot's auth policy; `None` if it has none.
///
/// # Errors
/// The secret is invalid, or its file cannot be used.
pub fn auth_policy(config: &Config) -> Result<Option<TokenHash>, AccessError> {
    let auth = &config.auth_policy;
    if let Some(path) = &auth.token_file {
        return token_in("auth_policy.token_file", path).map(Some);
    }
    let text = auth.token.expose();
    let read = if TokenHash::looks_like(text) { TokenHash::parse(text) } else { Ok(TokenHash::of(text.as_bytes())) };
    let wrong = |source| AccessError::Password { key: "auth_policy.token".to_owned(), source };
    read.map(|hash| Some(hash).filter(|_| !text.is_empty())).map_err(wrong)
}

/// A key of `crowdsec.keys` or `lists.keys`.
#[derive(Clone, Debug)]
pub struct FetchKey {
    /// Its name.
    pub name: Arc<str>,
    /// Its hash.
    pub hash: TokenHash,
    /// When it expires; `None` for never.
    pub expires: Option<UnixMillis>,
}

/// The first problem of each section with the users and tokens of `config` and their files, as configuration key and message.
pub fn problems(config: &Config) -> Vec<(String, String)> {
    let (crowdsec, lists) = (&config.crowdsec, &config.lists);
    let of_api = access(config).err().filter(|_| config.api.enabled);
    let of_crowdsec = fetch_keys("crowdsec.keys", &crowdsec.keys).err().filter(|_| crowdsec.enabled);
    let of_lists = fetch_keys("lists.keys", &lists.keys).err().filter(|_| lists.enabled);
    let of_auth_policy = auth_policy(config).err().filter(|_| config.auth_policy.enabled);
    let errors = of_api.into_iter().chain(of_crowdsec).chain(of_lists).chain(of_auth_policy);
    errors.map(|error| (error.key().to_owned(), error.to_string())).collect()
}

/// The passwords and tokens in files that are easy to guess, as configuration key and message. Files that cannot be read are left to
/// [`problems`].
pub fn weak_secrets(config: &Config) -> Vec<(String, String)> {
    let line = |key: &str, path: &Path| first_line(key, path).ok();
    let users = config.api.users.iter().filter_map(|(name, entry)| {
        let SecretSource::File(path) = &entry.secret else { return None };
        let text = line("api.users", path).filter(|text| !PasswordHash::looks_like(text))?;
        Some((
            "api.users".to_owned(),
            format!("{}: the password of `{name}` {}", path.display(), weak_password(&text, name)?),
        ))
    });
    let tokens = config.api.tokens.iter().filter_map(|(name, entry)| {
        let SecretSource::File(path) = &entry.secret else { return None };
        let text = line("api.tokens", path).filter(|text| !TokenHash::looks_like(text))?;
        Some(("api.tokens".to_owned(), format!("{}: the token `{name}` {}", path.display(), weak_token(&text)?)))
    });
    let auth_policy = config.auth_policy.token_file.as_ref().and_then(|path| {
        let text = line("auth_policy.token_file", path).filter(|text| !TokenHash::looks_like(text))?;
        Some(("auth_policy.token_file".to_owned(), format!("{}: the token {}", path.display(), weak_token(&text)?)))
    });
    users.chain(tokens).chain(auth_policy).collect()
}

fn credentials(config: &Config) -> Result<Credentials, AccessError> {
    let (api, basic) = (&config.api, &config.api.basic_auth);
    let mut users = Vec::new();
    if basic.enabled {
        let one = basic.users.is_empty().then_some((&basic.username, &basic.password));
        for (name, word) in basic.users.iter().chain(one) {
            let key = || "api.basic_auth".to_owned();
            let password = password(word.expose()).map_err(|source| AccessError::Password { key: key(), source })?;
            users.push(User { name: name.clone(), password, role: basic.role });
        }
    }
    for (name, entry) in api.users.iter() {
        users.push(User { name: name.to_owned(), password: user(name, entry)?, role: entry.role });
    }
    let mut tokens = Vec::new();
    for (name, entry) in api.tokens.iter() {
        tokens.push(Token {
            name: name.to_owned(),
            token: token("api.tokens", name, entry)?,
            role: entry.role,
            expires: entry.expires,
        });
    }
    Ok(Credentials::new(users, tokens))
}

fn password(text: &str) -> Result<PasswordHash, CredentialError> {
    login::hash(text.as_bytes())
}

fn user(name: &str, entry: &Credential) -> Result<PasswordHash, AccessError> {
    let key = || format!("api.users.{name}");
    let wrong = |source| AccessError::Password { key: key(), source };
    match &entry.secret {
        SecretSource::Plain(word) => password(word.expose()).map_err(wrong),
        SecretSource::Hash(text) => PasswordHash::parse(text.expose()).map_err(wrong),
        SecretSource::File(path) => {
            let line = first_line(&key(), path)?;
            let read = if PasswordHash::looks_like(&line) { PasswordHash::parse(&line) } else { password(&line) };
            read.map_err(|source| AccessError::Content { key: key(), path: path.clone(), source })
        }
    }
}

/// Loads the keys of `section`.
///
/// # Errors
/// A key is invalid, or its file cannot be used.
pub fn fetch_keys(section: &str, keys: &FetchKeys) -> Result<Vec<FetchKey>, AccessError> {
    let one = |(name, entry): (&str, &Credential)| {
        Ok(FetchKey { name: name.into(), hash: token(section, name, entry)?, expires: entry.expires })
    };
    keys.iter().map(one).collect()
}

fn token(section: &str, name: &str, entry: &Credential) -> Result<TokenHash, AccessError> {
    let key = || format!("{section}.{name}");
    match &entry.secret {
        SecretSource::Plain(word) => Ok(TokenHash::of(word.expose().as_bytes())),
        SecretSource::Hash(text) => {
            TokenHash::parse(text.expose()).map_err(|source| AccessError::Password { key: key(), source })
        }
        SecretSource::File(path) => token_in(&key(), path),
    }
}

/// The token or hash in the first line of a file.
fn token_in(key: &str, path: &Path) -> Result<TokenHash, AccessError> {
    let line = first_line(key, path)?;
    if TokenHash::looks_like(&line) {
        let wrong = |source| AccessError::Content { key: key.to_owned(), path: path.to_owned(), source };
        return TokenHash::parse(&line).map_err(wrong);
    }
    if line.len() < crate::operation::api::credential::MIN_TOKEN || line.len() > MAX_LENGTH {
        return Err(AccessError::Short { key: key.to_owned(), path: path.to_owned() });
    }
    Ok(TokenHash::of(line.as_bytes()))
}

fn first_line(key: &str, path: &Path) -> Result<String, AccessError> {
    let mut text = String::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
    read.map_err(|source| AccessError::File { key: key.to_owned(), path: path.to_owned(), source })?;
    Ok(text.lines().next().unwrap_or_default().trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;

    fn read(directory: &Path, content: &str) -> Result<Access, String> {
        let file = directory.join("secret");
        fs::write(&file, content).unwrap();
        let yaml = format!(
            "api: {{users: {{ann: {{password_file: {0}, role: read}}}}, tokens: {{ci: {{token_file: {0}, role: read}}}}}}\n",
            file.display()
        );
        let loaded = resolve(Some((Path::new("c.yaml"), yaml.as_bytes())), []).unwrap();
        access(&loaded.config).map_err(|error| error.to_string())
    }

    #[test]
    fn invalid_secrets_in_files_are_errors() {
        let directory = tempfile::tempdir().unwrap();
        assert!(read(directory.path(), "a long enough secret for both\nthe rest\n").is_ok());
        let error = read(directory.path(), "\n").unwrap_err();
        assert!(error.contains("api.users.ann") && error.contains("1 to 1024 bytes"), "{error}");
        let error = read(directory.path(), "short\n").unwrap_err();
        assert!(error.contains("api.tokens.ci") && error.contains("at least 24"), "{error}");
        let error = read(directory.path(), "$argon2id$nonsense\n").unwrap_err();
        assert!(error.contains("is not a password hash"), "{error}");
        assert!(access(&Config::default()).unwrap().credentials.is_none());
    }

    #[test]
    fn the_secret_of_the_auth_policy_is_a_token_or_its_hash() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        let load = |yaml: &str| {
            let loaded = resolve(Some((Path::new("c.yaml"), yaml.as_bytes())), []).unwrap();
            auth_policy(&loaded.config).map_err(|error| error.to_string())
        };
        let token = "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo";
        let hash = TokenHash::of(token.as_bytes());
        let in_file = format!("auth_policy: {{token_file: {}}}\n", file.display());
        assert!(load(&in_file).unwrap_err().contains("auth_policy.token_file"));
        for text in [token.to_owned(), hash.to_string()] {
            fs::write(&file, &text).unwrap();
            assert_eq!(load(&in_file), Ok(Some(hash)));
            assert_eq!(load(&format!("auth_policy: {{token: '{text}'}}\n")), Ok(Some(hash)));
        }
        fs::write(&file, "short").unwrap();
        assert!(load(&in_file).unwrap_err().contains("at least 24"));
        assert!(load("auth_policy: {token: 'sha256:x'}\n").is_err());
        assert_eq!(load(""), Ok(None));
    }

    #[test]
    fn weak_secrets_in_files_are_found_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        let yaml = format!(
            "api: {{users: {{ann: {{password_file: {0}, role: read}}}}, tokens: {{ci: {{token_file: {0}, role: read}}}}}}\n",
            file.display()
        );
        let config = resolve(Some((Path::new("c.yaml"), yaml.as_bytes())), []).unwrap().config;
        assert_eq!(weak_secrets(&config), [], "a missing file");
        fs::write(&file, "annannannannannannannann\n").unwrap();
        let found = weak_secrets(&config);
        assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["api.users", "api.tokens"]);
        assert!(found.iter().all(|(_, message)| !message.contains("annann")), "{found:?}");
        fs::write(&file, "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo\n").unwrap();
        assert_eq!(weak_secrets(&config), []);
    }
}
