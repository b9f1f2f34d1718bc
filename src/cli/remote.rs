//! A node on another host: its URL, the credentials for it, and the connection to it.

use std::fs;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::header::HeaderValue;

use super::failure::Failure;
use super::node_args::NodeArgs;
use super::secret;
use crate::net::dial::{DialError, Endpoint, Stream, Trust, TrustError};

/// How long a connection may take, including TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The API of a node on another host.
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
    /// The API that options and environment variables name; `None` if they name a socket or nothing.
    ///
    /// # Errors
    /// [`Failure::Usage`] when the URL is invalid, or a file that an option names cannot be used.
    pub fn from_args(args: &NodeArgs) -> Result<Option<Self>, Failure> {
        let Some(url) = args.url() else {
            let remote_only = [
                ("--token-file", args.token_file.is_some()),
                ("--user", args.user.is_some()),
                ("--ca", args.ca.is_some()),
            ];
            return match remote_only.into_iter().find(|(_, given)| *given) {
                Some((option, _)) => {
                    Err(Failure::Usage(format!("{option} needs --url; the admin socket takes no credentials")))
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
            eprintln!("banmesh: warning: the credentials cross the network as plaintext; use https://");
        }
        Ok(Some(Self { endpoint, trust, authorization }))
    }

    /// The URL as it was given.
    pub fn url(&self) -> &str {
        self.endpoint.url()
    }

    /// The path of the URL, to be put before every path; may be empty.
    pub fn prefix(&self) -> &str {
        self.endpoint.path().trim_end_matches('/')
    }

    /// Host and port as in the URL.
    pub fn authority(&self) -> &str {
        self.endpoint.authority()
    }

    /// The value of the Authorization header; `None` without credentials.
    pub fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.clone()
    }

    /// Connects, over TLS if the URL says so.
    ///
    /// # Errors
    /// [`Failure::RemoteUnreachable`].
    pub async fn connect(&self) -> Result<Stream, Failure> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.try_connect()).await {
            Ok(connected) => connected,
            Err(_) => {
                let reason = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
                Err(self.unreachable(reason, "check for a firewall between this host and the node"))
            }
        }
    }

    async fn try_connect(&self) -> Result<Stream, Failure> {
        self.endpoint.connect(&self.trust).await.map_err(|error| {
            let hint = match &error {
                DialError::Reach(_) => "check that the node is running, and its api.address and api.port",
                DialError::Secure(_) => {
                    "give the CA that signed the node's certificate with --ca; for a node without api.tls use http://"
                }
            };
            self.unreachable(error.to_string(), hint)
        })
    }

    fn unreachable(&self, reason: String, hint: &'static str) -> Failure {
        Failure::RemoteUnreachable { url: self.url().to_owned(), reason, hint }
    }
}

/// Parses `https://host[:port][/prefix]`, or the same with `http://`.
fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let endpoint: Endpoint = url.parse().map_err(|error: crate::net::dial::EndpointError| {
        Failure::Usage(format!("--url: {error}; give credentials with --user or --token-file"))
    })?;
    if endpoint.path().contains('?') {
        return Err(Failure::Usage(format!("--url: `{url}` must not have a query")));
    }
    Ok(endpoint)
}

/// The CA certificates of `--ca` or of the system, and the client certificate of `--cert`.
fn trust(args: &NodeArgs) -> Result<Trust, TrustError> {
    match &args.cert {
        None => Trust::load(args.ca.as_deref()),
        Some(certificate) => Trust::load_as(args.ca.as_deref(), certificate, args.key.as_ref().unwrap_or(certificate)),
    }
}

/// The Authorization header: from `--user`, else from `--token-file`, else from `BANMESH_TOKEN`.
fn authorization(args: &NodeArgs) -> Result<Option<HeaderValue>, Failure> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let usage = |what: String| Failure::Usage(what);
    let text = if let Some(user) = &args.user {
        if user.contains(':') {
            return Err(usage("--user must not contain a colon; put the password into $BANMESH_PASSWORD".to_owned()));
        }
        let prompt = || {
            secret::ask(&format!("Password for {user}: "))
                .map_err(|error| usage(format!("cannot read the password: {error}")))
        };
        let password = variable("BANMESH_PASSWORD").map_or_else(prompt, Ok)?;
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    } else if let Some(path) = &args.token_file {
        let text = fs::read_to_string(path)
            .map_err(|error| usage(format!("cannot read --token-file {}: {error}", path.display())))?;
        let token = text.lines().next().map(str::trim).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| {
            usage(format!("--token-file {}: the first line is empty; it must be the token", path.display()))
        })?;
        format!("Bearer {token}")
    } else if let Some(token) = variable("BANMESH_TOKEN") {
        format!("Bearer {}", token.trim())
    } else {
        return Ok(None);
    };
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| usage("the token contains characters that are not allowed in an HTTP header".to_owned()))?;
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
