use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::decisions::store::{self, Store};
use crate::decisions::view::View;
use crate::net::network::{Datagrams, Listener, Network, Stream, SystemNetwork};
use banmesh_cluster::timers::{Profile, Timers};
use banmesh_core::ban::{By, Cause};
use banmesh_core::hlc::Hlc;
use banmesh_core::ledger::{BanTerms, Ledger, Limits};
use banmesh_types::time::Expiry;

const DAY: Duration = Duration::from_secs(86_400);

fn new_store(id: &str) -> StoreHandle {
    let limits = Limits { max_bans: 1000, max_clock_drift: Duration::from_secs(10), max_ban_time: DAY };
    let ledger = Ledger::new(id.parse().unwrap(), limits, Hlc::default());
    let (_, writer) = View::new();
    let (store, handle) = Store::new(ledger, writer, None, DAY, store::Metrics::default());
    tokio::spawn(store.serve(CancellationToken::new()));
    handle
}

fn settings(id: &str, seeds: Vec<String>) -> ClusterSettings {
    ClusterSettings {
        listen: "127.0.0.1:0".parse().unwrap(),
        seeds,
        timers: Timers::of(Profile::Local),
        join_timeout: Duration::from_millis(300),
        ..ClusterSettings::new(id.parse().unwrap(), 1)
    }
}

/// The system's network, where the next `losses` datagrams to the node are lost.
#[derive(Clone, Debug, Default)]
struct Lossy {
    losses: Arc<AtomicU32>,
}

#[derive(Debug)]
struct LossySocket(Arc<dyn Datagrams>, Arc<AtomicU32>);

#[async_trait]
impl Network for Lossy {
    async fn listen(&self, address: SocketAddr) -> io::Result<(Listener, Arc<dyn Datagrams>)> {
        let (listener, socket) = SystemNetwork.listen(address).await?;
        Ok((listener, Arc::new(LossySocket(socket, Arc::clone(&self.losses)))))
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        SystemNetwork.connect(address).await
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        SystemNetwork.resolve(name).await
    }

    async fn source_to(&self, remote: SocketAddr) -> Option<IpAddr> {
        SystemNetwork.source_to(remote).await
    }
}

#[async_trait]
impl Datagrams for LossySocket {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send_to(datagram, to).await
    }

    async fn recv_from(&self, datagram: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        loop {
            let received = self.0.recv_from(datagram).await?;
            let lose = |left: u32| left.checked_sub(1);
            if self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, lose).is_err() {
                return Ok(received);
            }
        }
    }
}

async fn within_20_s(what: &str, condition: impl AsyncFn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_membership_that_ends_is_restarted_and_bans_replicate_again() {
    let (a, b) = (new_store("a"), new_store("b"));
    let metrics = Metrics::default();
    let first = Cluster::bind(settings("a", vec![]), a.clone(), metrics.clone()).await.unwrap();
    let (handle, membership) = (first.handle(), Arc::clone(&first.membership));
    let seeds = vec![handle.listen().to_string()];
    let second = Cluster::bind(settings("b", seeds), b.clone(), Metrics::default()).await.unwrap();
    let other = second.handle();
    let shutdown = CancellationToken::new();
    let serving = [first, second].map(|cluster| tokio::spawn(cluster.serve(shutdown.clone())));
    within_20_s("met", async || handle.members().live_peers().count() == 1).await;
    membership.abort();
    within_20_s("restarted", async || metrics.membership_restarts.get() == 1).await;
    within_20_s("met again", async || {
        handle.members().live_peers().count() == 1 && other.members().live_peers().count() >= 1
    })
    .await;
    for (author, receiver, target) in [(&a, &b, "192.0.2.1"), (&b, &a, "192.0.2.2")] {
        let cause = Cause::new(By::Operator("test".into()), "because");
        let target = target.parse().unwrap();
        author.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause).await.unwrap().unwrap();
        within_20_s("received", async || receiver.entry(target).await.unwrap().is_some()).await;
    }
    shutdown.cancel();
    for serving in serving {
        serving.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_receives_nothing_for_a_moment_still_learns_that_a_node_leaves() {
    let first = Cluster::bind(settings("a", vec![]), new_store("a"), Metrics::default()).await.unwrap();
    let leaver = first.handle();
    let network = Lossy::default();
    let peer =
        ClusterSettings { network: Arc::new(network.clone()), ..settings("b", vec![leaver.listen().to_string()]) };
    let second = Cluster::bind(peer, new_store("b"), Metrics::default()).await.unwrap();
    let handle = second.handle();
    let (stop, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let leaving = tokio::spawn(first.serve(stop.clone()));
    let serving = tokio::spawn(second.serve(shutdown.clone()));
    within_20_s("met", async || {
        leaver.members().live_peers().count() == 1 && handle.members().live_peers().count() == 1
    })
    .await;
    within_20_s("ready", async || *leaver.phase.borrow() == Phase::Ready).await;
    network.losses.store(8, Ordering::Relaxed);
    stop.cancel();
    leaving.await.unwrap().unwrap();
    within_20_s("left", async || {
        let members = handle.members();
        let mut others = members.nodes.iter().filter(|member| !member.is_self);
        others.next().is_some_and(|member| member.phase == Some(Phase::Leaving))
    })
    .await;
    shutdown.cancel();
    serving.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicating_tables_agree_while_bans_arrive_all_the_time() {
    let (a, b) = (new_store("a"), new_store("b"));
    let first = Cluster::bind(settings("a", vec![]), a.clone(), Metrics::default()).await.unwrap();
    let handle = first.handle();
    let seeds = vec![handle.listen().to_string()];
    let second = Cluster::bind(settings("b", seeds), b.clone(), Metrics::default()).await.unwrap();
    let shutdown = CancellationToken::new();
    let mut members = first.handle().members;
    let serving = [first, second].map(|cluster| tokio::spawn(cluster.serve(shutdown.clone())));
    let agrees = |members: &Members| members.live_peers().count() == 1 && members.live_peers().all(|peer| peer.agrees);
    within_20_s("agree", async || agrees(&handle.members())).await;
    let stop = shutdown.clone();
    let busy = tokio::spawn(async move {
        // The same few again and again, because the table has room for a thousand only.
        for number in (0..250u8).cycle() {
            for (store, network) in [(&a, 1), (&b, 2)] {
                let target = banmesh_types::target::Target::host([192, 0, network, number].into());
                let cause = Cause::new(By::Operator("test".into()), "because");
                let _ = store.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause).await;
            }
            if stop.is_cancelled() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(7)).await;
        }
    });
    for update in 0..60 {
        members.changed().await.unwrap();
        let seen = Arc::clone(&members.borrow_and_update());
        assert!(agrees(&seen), "at update {update}: {seen:?}");
    }
    shutdown.cancel();
    busy.await.unwrap();
    for serving in serving {
        serving.await.unwrap().unwrap();
    }
}

/// The bytes of a gossip message that names `count` members whose names begin with `prefix`.
pub(super) fn syn_naming(prefix: &str, count: u16, cluster: &str) -> Vec<u8> {
    let mut bytes = vec![0x53, 0xb0, 0, 0];
    bytes.extend(count.to_le_bytes());
    for number in 0..count {
        let name = format!("{prefix}-{number:05}");
        bytes.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(7u64.to_le_bytes());
        bytes.extend([4, 127, 0, 0, 1, 9, 0]);
        bytes.extend([1; 24]);
    }
    bytes.extend(u16::try_from(cluster.len()).unwrap().to_le_bytes());
    bytes.extend(cluster.as_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_invents_members_does_not_mute_another() {
    use chitchat::transport::Transport as _;
    use chitchat::{ChitchatMessage, Deserializable as _};
    let (a, b) = (new_store("a"), new_store("b"));
    let metrics = Metrics::default();
    let first = Cluster::bind(settings("a", vec![]), a.clone(), metrics.clone()).await.unwrap();
    let handle = first.handle();
    let name = first.settings.name.clone();
    let cipher = FrameCipher::new(&name, None).unwrap();
    let seeds = vec![handle.listen().to_string()];
    let second = Cluster::bind(settings("b", seeds), b.clone(), Metrics::default()).await.unwrap();
    let shutdown = CancellationToken::new();
    let serving = [first, second].map(|cluster| tokio::spawn(cluster.serve(shutdown.clone())));
    within_20_s("met", async || handle.members().live_peers().count() == 1).await;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let member = EncryptedTransport::new(
        Arc::new(socket),
        Arc::new(cipher),
        1_200,
        Duration::from_millis(50),
        inbox::inbox().0,
        SharedOffsets::default(),
        Metrics::default(),
    );
    let mut member = member.open(handle.listen()).await.unwrap();
    for datagram in 0..10 {
        let bytes = syn_naming(&format!("a{datagram}"), 1100, &name);
        let message = ChitchatMessage::deserialize(&mut &bytes[..]).unwrap();
        member.send(handle.listen(), message).await.unwrap();
    }
    within_20_s("refused", async || Metrics::counted(&metrics.records_refused, "too many members") > 10_000).await;
    let (sent, received) = (metrics.datagrams_sent.get(), metrics.datagrams_received.get());
    within_20_s("gossip goes on in both directions", async || {
        metrics.datagrams_sent.get() > sent + 20 && metrics.datagrams_received.get() > received + 20
    })
    .await;
    assert_eq!(metrics.send_errors.get(), 0, "every message still fits");
    assert_eq!(handle.members().live_peers().count(), 1);
    for (author, receiver, target) in [(&a, &b, "192.0.2.1"), (&b, &a, "192.0.2.2")] {
        let cause = Cause::new(By::Operator("test".into()), "because");
        let target = target.parse().unwrap();
        author.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause).await.unwrap().unwrap();
        within_20_s("received", async || receiver.entry(target).await.unwrap().is_some()).await;
    }
    shutdown.cancel();
    for serving in serving {
        serving.await.unwrap().unwrap();
    }
}

/// One node discards what has no effect. The cut reaches the other one by gossip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_that_one_node_discards_are_removed_on_all() {
    let (a, b) = (new_store("a"), new_store("b"));
    let first = Cluster::bind(settings("a", vec![]), a.clone(), Metrics::default()).await.unwrap();
    let handle = first.handle();
    let seeds = vec![handle.listen().to_string()];
    let second = Cluster::bind(settings("b", seeds), b.clone(), Metrics::default()).await.unwrap();
    let shutdown = CancellationToken::new();
    let serving = [first, second].map(|cluster| tokio::spawn(cluster.serve(shutdown.clone())));
    let cause = || Cause::new(By::Operator("test".into()), "because");
    for number in 0..20u8 {
        let target = banmesh_types::target::Target::host([192, 0, 2, number].into());
        a.ban(target, BanTerms::new(Expiry::NEVER, DAY), cause()).await.unwrap().unwrap();
        if number > 4 {
            a.unban(target, cause()).await.unwrap().unwrap();
        }
    }
    let summaries = async || (a.summary().await.unwrap(), b.summary().await.unwrap());
    within_20_s("equal", async || {
        let (a, b) = summaries().await;
        a.digest == b.digest && b.entries == 20
    })
    .await;
    assert_eq!(a.discard().await.unwrap(), 15);
    within_20_s("removed on both", async || {
        let (a, b) = summaries().await;
        (a.entries, b.entries, a.active, b.active) == (5, 5, 5, 5) && a.digest == b.digest
    })
    .await;
    shutdown.cancel();
    for serving in serving {
        serving.await.unwrap().unwrap();
    }
}
