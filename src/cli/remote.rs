//! A node on another host: its URL, whom to be there, and the way to it.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

use super::client::{Failure, NodeArgs};
use super::secret;
use crate::net::dial::{DialError, Endpoint, Stream, Trust, TrustError};

/// The longest wait for a connection, TLS included.
const PATIENCE: Duration = Duration::from_secs(10);

/// The API of a node that is reached over the network.
#[derive(Clone)]
pub struct Remote {
    endpoint: Endpoint,
    trust: Trust,
    authorization: Option<HeaderValue>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Remote {
    /// What the options and variables say; `None` where they name a socket.
    ///
    /// # Errors
    /// [`Failure::Usage`] when they are no URL, or a file that they name cannot be used.
    pub fn of(args: &NodeArgs) -> Result<Option<Self>, Failure> {
        let Some(url) = args.url() else {
            let without = [
                ("--token-file", args.token_file.is_some()),
                ("--user", args.user.is_some()),
                ("--ca", args.ca.is_some()),
            ];
            return match without.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(Failure::Usage(format!("{option} needs --url: the socket asks nobody who they are")))
                }
                None => Ok(None),
            };
        };
        let endpoint = endpoint(&url)?;
        if !endpoint.is_secure() && (args.ca.is_some() || args.cert.is_some()) {
            return Err(Failure::Usage("--ca and --cert need a URL that begins with https://".to_owned()));
        }
        let trust = trust(args).map_err(|error| Failure::Usage(format!("--ca, --cert, --key: {error}")))?;
        let authorization = authorization(args)?;
        if authorization.is_some() && !endpoint.is_secure() && !endpoint.is_loopback() {
            eprintln!("banmesh: warning: what lets you in crosses the network in the clear; use https://");
        }
        Ok(Some(Self { endpoint, trust, authorization }))
    }

    /// As it was given.
    pub fn url(&self) -> &str {
        self.endpoint.url()
    }

    /// What stands before every path; may be empty.
    pub fn prefix(&self) -> &str {
        self.endpoint.path().trim_end_matches('/')
    }

    /// Host and port as the URL has them.
    pub fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    /// What lets us in, if anything does.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.clone()
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Failure::NotReached`].
    pub async fn connect(&self) -> Result<Stream, Failure> {
        match tokio::time::timeout(PATIENCE, self.try_connect()).await {
            Ok(connected) => connected,
            Err(_) => {
                Err(self.failed(format!("no answer within {} s", PATIENCE.as_secs()), "is a firewall in between?"))
            }
        }
    }

    async fn try_connect(&self) -> Result<Stream, Failure> {
        self.endpoint.connect(&self.trust).await.map_err(|error| {
            let hint = match &error {
                DialError::Reach(_) => "see api.address and api.port of that node; does it run?",
                DialError::Secure(_) => {
                    "name the certificates that sign the node's with --ca; a node without api.tls has http://"
                }
            };
            self.failed(error.to_string(), hint)
        })
    }

    fn failed(&self, reason: String, hint: &'static str) -> Failure {
        Failure::NotReached { url: self.url().to_owned(), reason, hint }
    }
}

/// `https://host[:port][/prefix]`, or `http://`.
fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let endpoint: Endpoint = url.parse().map_err(|error: crate::net::dial::EndpointError| {
        Failure::Usage(format!("--url: {error}; --user and --token-file say who asks"))
    })?;
    if endpoint.path().contains('?') {
        return Err(Failure::Usage(format!("--url: `{url}` must not have a query")));
    }
    Ok(endpoint)
}

/// Trusts the certificates in `--ca`, else those of the system; shows that in `--cert`.
fn trust(args: &NodeArgs) -> Result<Trust, TrustError> {
    match &args.cert {
        None => Trust::load(args.ca.as_deref()),
        Some(certificate) => Trust::load_as(args.ca.as_deref(), certificate, args.key.as_ref().unwrap_or(certificate)),
    }
}

/// The token of the file or of `BANMESH_TOKEN`, else the user's password.
fn authorization(args: &NodeArgs) -> Result<Option<HeaderValue>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let usage = |what: String| Failure::Usage(what);
    let text = if let Some(user) = &args.user {
        if user.contains(':') {
            return Err(usage("--user is a name without a colon; $BANMESH_PASSWORD is the password".to_owned()));
        }
        let asked =
            || secret::ask(&format!("Password of {user}: ")).map_err(|error| usage(format!("no password: {error}")));
        let password = variable("BANMESH_PASSWORD").map_or_else(asked, Ok)?;
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    } else if let Some(path) = &args.token_file {
        let text = fs::read_to_string(path)
            .map_err(|error| usage(format!("cannot read --token-file {}: {error}", path.display())))?;
        let token = text.lines().next().map(str::trim).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| usage(format!("the first line of {} is no token", path.display())))?;
        format!("Bearer {token}")
    } else if let Some(token) = variable("BANMESH_TOKEN") {
        format!("Bearer {}", token.trim())
    } else {
        return Ok(None);
    };
    let mut value =
        HeaderValue::try_from(text).map_err(|_| usage("the token holds characters that none has".to_owned()))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_may_have_a_path_but_no_query() {
        assert_eq!(endpoint("https://[2001:db8::1]:8888/mesh/").unwrap().path(), "/mesh/");
        for wrong in ["", "node1:8888", "https://ann:x@node1", "http://n/?a=b"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }
}
