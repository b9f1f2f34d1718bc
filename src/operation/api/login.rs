//! Authentication: names with passwords (RFC 7617) and tokens (RFC 6750).
//!
//! A password costs 19 MiB and some tens of milliseconds to check. So at most `CONCURRENT_CHECKS` run at once, in memory that they
//! use again, each client may fail only `FAILURES_PER_MINUTE` times a minute, and a keyed hash of each correct password is cached.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::sync::Semaphore;

use crate::clock;
use crate::config::role::Role;
use crate::operation::api::credential::{CheckMemory, CredentialError, MAX_LENGTH, PasswordHash, TokenHash};
use crate::operation::http_server::rate::RateLimiter;
use banmesh_types::address::Address;
use banmesh_types::time::UnixMillis;

/// The most password checks at once.
const CONCURRENT_CHECKS: usize = 2;
/// The longest wait for a free check.
const CHECK_WAIT: Duration = Duration::from_secs(10);
/// Failed logins per client and minute.
const FAILURES_PER_MINUTE: u32 = 20;
/// How long a correct password stays in the cache.
const CACHE_TIME: Duration = Duration::from_secs(300);
/// The most passwords in the cache.
const CACHE_SIZE: usize = 1024;

/// An account with a password.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password's hash.
    pub password: PasswordHash,
    /// The role.
    pub role: Role,
}

/// An account with a token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its name.
    pub name: String,
    /// The token's hash.
    pub token: TokenHash,
    /// The role.
    pub role: Role,
    /// When the token expires; `None` for never.
    pub expires: Option<UnixMillis>,
}

/// Hashes a password with a random salt. Takes tens of milliseconds.
///
/// # Errors
/// When it is too long, or empty, or the system has no randomness.
pub fn hash(password: &[u8]) -> Result<PasswordHash, CredentialError> {
    let mut salt = [0; 16];
    getrandom::fill(&mut salt).map_err(|_| CredentialError::Randomness)?;
    PasswordHash::of(password, salt)
}

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The name of the user or the token.
    pub name: String,
    /// The role.
    pub role: Role,
    /// When the token expires; `None` for passwords and permanent tokens.
    pub expires: Option<UnixMillis>,
}

/// Why a login failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There are no usable credentials in the request.
    Missing,
    /// The credentials are wrong.
    Wrong {
        /// The name in the request; `None` for a token.
        user: Option<String>,
    },
    /// The token has expired.
    Expired,
    /// The client has failed too often; how long it must wait.
    TooOften(Duration),
    /// Too many password checks are running.
    Busy,
}

/// All who may log in. A reload makes another one.
pub struct Credentials {
    users: Vec<User>,
    tokens: Vec<Token>,
    /// Checked where there is no such user, so that the time does not tell which names exist.
    decoy: Option<PasswordHash>,
    /// `None` where the system has no randomness: then nothing is known again.
    key: Option<[u8; 32]>,
    known: Mutex<HashMap<[u8; 32], (Identity, Instant), foldhash::quality::RandomState>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("users", &self.users.len()).field("tokens", &self.tokens.len()).finish()
    }
}

impl Credentials {
    /// For these, of whom no two users have the same name.
    pub fn new(users: Vec<User>, tokens: Vec<Token>) -> Self {
        let mut key = [0; 32];
        let key = getrandom::fill(&mut key).is_ok().then_some(key);
        let decoy = users.iter().map(|user| &user.password).max_by_key(|hash| hash.cost()).cloned();
        Self { users, tokens, decoy, key, known: Mutex::default() }
    }

    /// Whether there are no accounts.
    pub const fn is_empty(&self) -> bool {
        self.users.is_empty() && self.tokens.is_empty()
    }

    fn token(&self, given: &[u8], now: UnixMillis) -> Result<Identity, Refusal> {
        let hash = TokenHash::of(given);
        let mut found = Err(Refusal::Wrong { user: None });
        // No early exit: constant time costs little here.
        for token in &self.tokens {
            if token.token == hash {
                found = match token.expires {
                    Some(end) if end <= now => Err(Refusal::Expired),
                    _ => Ok(Identity { name: token.name.clone(), role: token.role, expires: token.expires }),
                };
            }
        }
        found
    }

    /// The cache key of a name and a password, so that neither is stored.
    fn fingerprint(&self, name: &[u8], password: &[u8]) -> Option<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key?).ok()?;
        mac.update(&(name.len() as u64).to_be_bytes());
        mac.update(name);
        mac.update(password);
        Some(mac.finalize().into_bytes().into())
    }

    fn known(&self, fingerprint: Option<&[u8; 32]>, now: Instant) -> Option<Identity> {
        let known = self.known.lock();
        let (identity, until) = known.get(fingerprint?)?;
        (*until > now).then(|| identity.clone())
    }

    fn cache(&self, fingerprint: Option<[u8; 32]>, identity: Identity, now: Instant) {
        let mut known = self.known.lock();
        known.retain(|_, (_, until)| *until > now);
        if let Some(fingerprint) = fingerprint.filter(|_| known.len() < CACHE_SIZE) {
            known.insert(fingerprint, (identity, now + CACHE_TIME));
        }
    }

    /// Checks a password; blocks for tens of milliseconds.
    fn password(&self, name: &[u8], password: &[u8], memory: &mut CheckMemory) -> Option<Identity> {
        let user = self.users.iter().find(|user| user.name.as_bytes() == name);
        let right = user.map(|user| &user.password).or(self.decoy.as_ref())?.is_of(password, memory);
        user.filter(|_| right).map(|user| Identity { name: user.name.clone(), role: user.role, expires: None })
    }
}

/// The limits on logins. They survive reloads.
#[derive(Debug)]
pub struct Login {
    checks: Arc<Semaphore>,
    /// The memory of checks that have ended: at most one for each of `CONCURRENT_CHECKS`.
    memory: Arc<Mutex<Vec<CheckMemory>>>,
    failures: RateLimiter,
}

impl Default for Login {
    fn default() -> Self {
        Self {
            checks: Arc::new(Semaphore::new(CONCURRENT_CHECKS)),
            memory: Arc::default(),
            failures: RateLimiter::new(FAILURES_PER_MINUTE),
        }
    }
}

impl Login {
    /// Authenticates a request with these headers from `client`.
    ///
    /// # Errors
    /// Why the login failed.
    pub async fn check(
        &self,
        credentials: &Arc<Credentials>,
        headers: &HeaderMap,
        client: Address,
    ) -> Result<Identity, Refusal> {
        match Authorization::of(headers).ok_or(Refusal::Missing)? {
            Authorization::Token(token) => credentials.token(token.as_bytes(), clock::now()).map_err(|refusal| {
                self.failures.take(client, Instant::now()).map_or_else(Refusal::TooOften, |()| refusal)
            }),
            Authorization::Password { name, password } => self.password(credentials, name, password, client).await,
        }
    }

    async fn password(
        &self,
        credentials: &Arc<Credentials>,
        name: Vec<u8>,
        password: Vec<u8>,
        client: Address,
    ) -> Result<Identity, Refusal> {
        let fingerprint = credentials.fingerprint(&name, &password);
        if let Some(identity) = credentials.known(fingerprint.as_ref(), Instant::now()) {
            return Ok(identity);
        }
        let waited = tokio::time::timeout(CHECK_WAIT, Arc::clone(&self.checks).acquire_owned()).await;
        let Ok(Ok(permit)) = waited else { return Err(Refusal::Busy) };
        // Another request with the same password may have filled the cache meanwhile.
        if let Some(identity) = credentials.known(fingerprint.as_ref(), Instant::now()) {
            return Ok(identity);
        }
        self.failures.take(client, Instant::now()).map_err(Refusal::TooOften)?;
        let (all, memory, given) = (Arc::clone(credentials), Arc::clone(&self.memory), name.clone());
        let checked = tokio::task::spawn_blocking(move || {
            let mut own = memory.lock().pop().unwrap_or_default();
            let found = all.password(&given, &password, &mut own);
            memory.lock().push(own);
            // Held until now even if the client has disconnected, because it bounds the memory.
            drop(permit);
            found
        });
        match checked.await {
            Ok(Some(identity)) => {
                self.failures.give_back(client);
                credentials.cache(fingerprint, identity.clone(), Instant::now());
                Ok(identity)
            }
            _ => Err(Refusal::Wrong { user: Some(String::from_utf8_lossy(&name).chars().take(64).collect()) }),
        }
    }
}

/// The content of the header `Authorization`.
enum Authorization {
    Password { name: Vec<u8>, password: Vec<u8> },
    Token(String),
}

impl Authorization {
    /// `None` for a missing, repeated, overlong or unknown header.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(AUTHORIZATION).iter();
        let (Some(given), None) = (all.next(), all.next()) else { return None };
        let (scheme, rest) = given.to_str().ok()?.split_once(' ')?;
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("bearer") {
            return (!rest.is_empty() && rest.len() <= MAX_LENGTH).then(|| Self::Token(rest.to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") || rest.len() > 2 * MAX_LENGTH {
            return None;
        }
        let mut name = STANDARD.decode(rest).ok()?;
        let at = memchr::memchr(b':', &name)?;
        let password = name.split_off(at + 1);
        name.pop();
        (password.len() <= MAX_LENGTH).then_some(Self::Password { name, password })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn credentials() -> Arc<Credentials> {
        let user = |name: &str, password: &str, role| User {
            name: name.to_owned(),
            password: hash(password.as_bytes()).unwrap(),
            role,
        };
        let token = |name: &str, token: &[u8], expires| Token {
            name: name.to_owned(),
            token: TokenHash::of(token),
            role: Role::Read,
            expires,
        };
        Arc::new(Credentials::new(
            vec![user("ann", "s3cr:et", Role::Admin), user("bob", "b", Role::Operate)],
            vec![
                token("ci", b"bm_ci", None),
                token("old", b"bm_old", Some(UnixMillis(1))),
                token("new", b"bm_new", Some(UnixMillis(u64::MAX))),
            ],
        ))
    }

    fn headers(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(value).unwrap())])
    }

    fn basic(text: &str) -> HeaderMap {
        headers(&format!("Basic {}", STANDARD.encode(text)))
    }

    const CLIENT: Address = Address::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));

    #[tokio::test]
    async fn correct_passwords_and_tokens_authenticate() {
        let (login, credentials) = (Login::default(), credentials());
        let check = async |headers: HeaderMap| login.check(&credentials, &headers, CLIENT).await;
        let until = |name: &str, role, expires| Ok(Identity { name: name.to_owned(), role, expires });
        let named = |name: &str, role| until(name, role, None);
        assert_eq!(check(basic("ann:s3cr:et")).await, named("ann", Role::Admin));
        assert_eq!(check(basic("bob:b")).await, named("bob", Role::Operate));
        assert_eq!(check(headers("bearer bm_ci")).await, named("ci", Role::Read));
        assert_eq!(check(headers("Bearer bm_new")).await, until("new", Role::Read, Some(UnixMillis(u64::MAX))));
        assert_eq!(check(headers("Bearer bm_old")).await, Err(Refusal::Expired));
        assert_eq!(check(headers("Bearer bm_c")).await, Err(Refusal::Wrong { user: None }));
        for (wrong, user) in
            [("ann:", "ann"), ("ann:s3cr:e", "ann"), ("bob:bb", "bob"), (":", ""), ("eve:s3cr:et", "eve")]
        {
            assert_eq!(check(basic(wrong)).await, Err(Refusal::Wrong { user: Some(user.to_owned()) }), "{wrong}");
        }
        for missing in
            ["Digest x", "Basic", "Basic ***", "Basic YW5u", "Bearer ", "", &format!("Bearer {}", "x".repeat(1025))]
        {
            assert_eq!(check(headers(missing)).await, Err(Refusal::Missing), "{missing}");
        }
        assert_eq!(check(HeaderMap::new()).await, Err(Refusal::Missing));
        let mut two = basic("ann:s3cr:et");
        two.append(AUTHORIZATION, HeaderValue::from_static("Bearer x"));
        assert_eq!(check(two).await, Err(Refusal::Missing));
    }

    #[tokio::test]
    async fn failed_logins_are_limited_per_client() {
        // One failure a minute, so that the test does not depend on how fast it runs.
        let login = Login { failures: RateLimiter::new(1), ..Login::default() };
        let credentials = credentials();
        let check = async |headers: &HeaderMap, client| login.check(&credentials, headers, client).await;
        let (right, unseen, wrong) = (basic("bob:b"), basic("ann:s3cr:et"), headers("Bearer guess"));
        for _ in 0..3 {
            // What is right is not counted.
            assert!(check(&right, CLIENT).await.is_ok());
        }
        assert_eq!(check(&wrong, CLIENT).await, Err(Refusal::Wrong { user: None }));
        assert!(matches!(check(&wrong, CLIENT).await, Err(Refusal::TooOften(_))));
        assert!(matches!(check(&unseen, CLIENT).await, Err(Refusal::TooOften(_))));
        // Who was let in lately still is: somebody else behind the same address must not lock them out.
        assert!(check(&right, CLIENT).await.is_ok());
        assert!(check(&unseen, Address::from([192, 0, 2, 2])).await.is_ok());
    }

    #[tokio::test]
    async fn password_checks_are_limited() {
        let (login, credentials) = (Login::default(), credentials());
        let taken = Arc::clone(&login.checks).try_acquire_many_owned(2).unwrap();
        tokio::time::pause();
        assert_eq!(login.check(&credentials, &basic("bob:b"), CLIENT).await, Err(Refusal::Busy));
        assert!(login.check(&credentials, &headers("Bearer bm_ci"), CLIENT).await.is_ok());
        drop(taken);
    }

    #[test]
    fn debug_output_hides_credentials() {
        assert_eq!(format!("{:?}", credentials()), "Credentials { users: 2, tokens: 3 }");
    }
}
