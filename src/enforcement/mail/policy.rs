//! Postfix's policy delegation (`check_policy_service`).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::listener::{MailClient, MailListener};
use super::queries::{Answer, Queries};
use crate::enforcement::agent::Verdicts;
use crate::net::listen::ListenError;
use banmesh_mail::delegation::{self, Action, MAX_REQUEST};

/// How long a connection may be idle. Postfix closes idle ones after 300 s, and any after 1,000 s.
const IDLE: Duration = Duration::from_secs(1_000);
/// How long the rest of a begun request, and writing an answer, may take.
const SLOW: Duration = Duration::from_secs(10);

/// The listener's settings.
#[derive(Clone, Debug)]
pub struct PolicyConfig {
    /// The TCP address. `None`: no TCP.
    pub listen: Option<SocketAddr>,
    /// The Unix socket. `None`: no Unix socket.
    pub socket: Option<PathBuf>,
    /// Clients that may ask over TCP; none when empty.
    pub allowed_clients: Vec<banmesh_types::target::Target>,
    /// The most open connections.
    pub max_clients: usize,
    /// The answer for banned clients.
    pub action: Action,
}

/// The listener.
pub struct Policy<V> {
    listener: MailListener,
    rules: Arc<Shared<V>>,
}

struct Shared<V> {
    verdicts: V,
    action: Action,
    queries: Queries,
}

impl<V: Verdicts + Sync> Policy<V> {
    /// Listens. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address or the path is in use.
    pub fn bind(config: PolicyConfig, verdicts: V, queries: Queries) -> Result<Self, ListenError> {
        let at = (config.listen, config.socket.as_deref());
        let keys = ("policy.address", "policy.socket");
        let listener = MailListener::open(keys, at, config.allowed_clients, config.max_clients, queries.clone())?;
        Ok(Self { listener, rules: Arc::new(Shared { verdicts, action: config.action, queries }) })
    }

    /// The TCP address.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.address()
    }

    /// Answers until `shutdown`.
    pub async fn serve(&mut self, shutdown: CancellationToken) {
        let rules = Arc::clone(&self.rules);
        self.listener.serve(shutdown, move |client, shutdown| connection(client, Arc::clone(&rules), shutdown)).await;
    }
}

async fn connection<V: Verdicts + Sync>(mut client: MailClient, shared: Arc<Shared<V>>, shutdown: CancellationToken) {
    let mut verdicts = shared.verdicts.clone();
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        let wait = if input.is_empty() { IDLE } else { SLOW };
        let read = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            _ = &mut client.place.revoked => return,
            read = timeout(wait, client.stream.read_buf(&mut input)) => read,
        };
        // Exim closes its sending side after the request. All answers are written already, so closing ours ends its wait.
        let Ok(Ok(1..)) = read else { return };
        let (consumed, is_valid) = answer(&input, &mut output, &mut verdicts, &shared, &client);
        input.drain(..consumed);
        if !output.is_empty() {
            if !matches!(timeout(SLOW, client.stream.write_all(&output)).await, Ok(Ok(()))) {
                return;
            }
            output.clear();
        }
        if !is_valid || input.len() > MAX_REQUEST {
            return;
        }
    }
}

/// Answers all complete requests in `input`. Returns the length of what was read, and whether the rest can be read.
fn answer<V: Verdicts>(
    input: &[u8],
    output: &mut Vec<u8>,
    verdicts: &mut V,
    shared: &Shared<V>,
    client: &MailClient,
) -> (usize, bool) {
    let mut consumed = 0;
    verdicts.begin();
    loop {
        let request = match delegation::read(input.get(consumed..).unwrap_or_default()) {
            Ok(Some((request, length))) => {
                consumed += length;
                request
            }
            Ok(None) => return (consumed, true),
            Err(error) => {
                shared.queries.complain(
                    Answer::Unreadable,
                    client.address,
                    &format!("its request is invalid: {error}"),
                );
                // The client accepts everybody if it gets no valid answer, so this one only spares it the wait.
                delegation::answer(None, output);
                return (consumed, false);
            }
        };
        client.place.touch(tokio::time::Instant::now());
        client.place.mark_useful();
        let banned = match request.client {
            Some(client) => verdicts.is_banned(client.into()),
            None => {
                shared.queries.complain(Answer::Unreadable, client.address, "its request has no valid client_address");
                delegation::answer(None, output);
                continue;
            }
        };
        shared.queries.count(if banned { Answer::Banned } else { Answer::Clean });
        delegation::answer(banned.then_some(&shared.action), output);
    }
}
