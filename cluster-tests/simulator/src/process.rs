//! One process: the parts of a node as `banmesh::app` wires them, without its listeners for people, HAProxy and syslog. What those
//! would call is called directly.

mod peers;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use banmesh::app::Lookup;
use banmesh::cluster::{self, Cluster, ClusterHandle, ClusterSettings, OtherSite, Profile, Timers};
use banmesh::decisions::journal::{self, Journal};
use banmesh::decisions::judge::{self, JudgeHandle, JudgeTask, Sharing};
use banmesh::decisions::store::{self, Store, StoreHandle};
use banmesh::decisions::view::View;
use banmesh::enforcement::agent::Verdicts as _;
use banmesh::inputs::detect::{self, Detection, FilterSink};
use banmesh::inputs::syslog::LineSink as _;
use banmesh_core::ban::BanEntry;
use banmesh_core::evidence::{AccountKey, Mode, Settings};
use banmesh_core::judge::Rules;
use banmesh_core::ledger::Limits;
use banmesh_core::policy::{BanPolicy, Scope};
use banmesh_core::seal::{Keyring, key_text};
use banmesh_core::wire::{Dialect, MIN_VERSION, VERSION, Versions};
use banmesh_spop::data::{Data, encode_pair, encode_string};
use banmesh_spop::frame::DEFAULT_MAX_FRAME_SIZE;
use banmesh_spop::{Handler, Session};
use banmesh_types::nat64::Nat64;
use banmesh_types::netset::NetSet;
use banmesh_types::target::Target;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::disk::Disk;
use crate::network::{Port, address, name};
use crate::platform;
pub use peers::{Door, Entrance, PeersParts};

/// The longest automatic ban.
pub const MAX_BAN_TIME: Duration = Duration::from_secs(120);
/// `cluster.max_clock_drift`.
pub const MAX_CLOCK_DRIFT: Duration = Duration::from_secs(10);

/// The general ban policy: short bans, so that a run sees them end.
pub fn policy() -> BanPolicy {
    BanPolicy {
        max_attempts: 3,
        time_window: Duration::from_secs(60),
        initial_ban_time: Duration::from_secs(10),
        max_ban_time: MAX_BAN_TIME,
        escalation_factor: 2.0,
        max_memory_ttl: Duration::from_secs(300),
    }
}

/// The build that a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    /// This one.
    This,
    /// One that also has the next wire version, and sends records of a kind that this one does not know.
    Newer,
}

impl Build {
    const fn dialect(self) -> Dialect {
        let newest = match self {
            Self::This => VERSION,
            Self::Newer => VERSION + 1,
        };
        let addition: Option<(u8, &'static [u8])> = match self {
            Self::This => None,
            Self::Newer => Some((200, b"new")),
        };
        Dialect { versions: Versions { oldest: MIN_VERSION, newest }, addition }
    }
}

/// What all processes have in common.
#[derive(Clone)]
pub struct Common {
    /// The compiled filters.
    pub detection: Arc<ArcSwap<Detection>>,
    /// The judge's settings.
    pub rules: Arc<ArcSwap<Rules>>,
    /// How many nodes there are.
    pub nodes: usize,
    /// The sites, of as many nodes each. Sites other than the first name only the first, and that names all others.
    pub sites: usize,
    /// The timers of the cluster.
    pub timers: Timers,
    /// Whether the nodes keep evidence. They only observe, so it changes no decision that the oracle knows.
    pub evidence: bool,
    /// Whether the nodes have a keyring. Without one, everything else is the same, and a run takes half the time.
    pub encrypted: bool,
}

impl Common {
    /// For `nodes` nodes in one site.
    pub fn new(nodes: usize, profile: Profile, encrypted: bool, evidence: bool) -> Result<Self, String> {
        let library = banmesh_filter::library::FilterLibrary::built_in().map_err(|errors| format!("{errors:?}"))?;
        let enabled = ["sshd".to_owned()];
        let detector =
            library.detector(&enabled, banmesh_filter::Mode::Normal, &[]).map_err(|errors| format!("{errors:?}"))?;
        let policy = policy();
        let detection = Detection::new(detector).within(policy.time_window);
        let rules = Rules {
            scope: Arc::new(Scope {
                ipv4_prefix: 32,
                ipv6_prefix: 64,
                allowlist: NetSet::default(),
                own: NetSet::default(),
                nat64: Nat64::default(),
                dry_run: false,
            }),
            own: detection.policies(&policy),
            general: Arc::new(policy),
            success_clears: false,
            evidence: Arc::new(if evidence { observing() } else { Settings::default() }),
        };
        Ok(Self {
            detection: Arc::new(ArcSwap::from_pointee(detection)),
            rules: Arc::new(ArcSwap::from_pointee(rules)),
            nodes,
            sites: 1,
            timers: Timers::of(profile),
            evidence,
            encrypted,
        })
    }

    /// The nodes of each site.
    pub const fn nodes_per_site(&self) -> usize {
        self.nodes.div_ceil(self.sites)
    }

    /// The site of `node`. A clone is in the last one.
    pub fn site_of(&self, node: usize) -> usize {
        (node / self.nodes_per_site()).min(self.sites - 1)
    }

    /// `cluster.name` of `site`.
    fn name_of(&self, site: usize) -> String {
        if self.sites == 1 { "banmesh".to_owned() } else { format!("site-{site}") }
    }

    /// Names of some nodes of `site`.
    fn addresses(&self, site: usize) -> Vec<String> {
        let first = site * self.nodes_per_site();
        (first..self.nodes.min(first + self.nodes_per_site())).take(3).map(name).collect()
    }

    /// The other sites that nodes of `site` name.
    fn others(&self, site: usize) -> Vec<OtherSite> {
        let named = if site == 0 { 1..self.sites } else { 0..1 };
        named.map(|other| OtherSite { name: self.name_of(other), addresses: self.addresses(other) }).collect()
    }
}

fn observing() -> Settings {
    let [known, names, networks] = [Mode::Observe; 3];
    let key = Some(AccountKey::new(*b"of all the nodes"));
    Settings { known, names, networks, key, ..Settings::default() }
}

/// The accounts that lines are about.
pub const ACCOUNTS: [&str; 4] = ["root", "ann", "bob", "admin"];

/// A running process.
pub struct Process {
    /// Its sockets.
    pub port: Port,
    /// Its store.
    pub store: StoreHandle,
    /// Its end of the cluster.
    pub cluster: ClusterHandle,
    /// The metrics of the cluster.
    pub metrics: cluster::Metrics,
    /// The metrics of the journal.
    pub journal_metrics: journal::Metrics,
    /// The metrics of the judge.
    pub judge_metrics: judge::Metrics,
    /// Asks the judge.
    pub judge: JudgeHandle,
    /// The entries that its journal had at the start.
    pub loaded: Vec<(Target, BanEntry)>,
    /// HAProxy's peer; `None` if the node has no HAProxy.
    pub peers: Option<PeersParts>,
    node: usize,
    sink: FilterSink,
    agent: Agent,
    parts: Parts,
}

struct Parts {
    writer: JoinHandle<usize>,
    store: (JoinHandle<()>, CancellationToken),
    judge: (JoinHandle<()>, CancellationToken),
    cluster: (Vec<JoinHandle<()>>, CancellationToken),
}

impl Process {
    /// Starts a process on `node`, which runs as `name`. Its HAProxy connects through `entrance`. Must run [`platform::on`] the node.
    pub async fn start(
        common: &Common,
        (node, name): (usize, &str),
        (port, at): (Port, SocketAddr),
        disk: &Disk,
        build: Build,
        entrance: Option<&Entrance>,
    ) -> Result<Self, String> {
        let settings = journal::Settings { path: disk.path(), node: name.parse().ok(), may_start_without: true };
        let limits = Limits { max_bans: 10_000, max_clock_drift: MAX_CLOCK_DRIFT, max_ban_time: MAX_BAN_TIME };
        let journal_metrics = journal::Metrics::default();
        let opened = Journal::load(disk.opener(), &settings, limits, journal_metrics.clone())
            .map_err(|error| error.to_string())?;
        let journal::Loaded { journal, identity, ledger, writer } = opened;
        let loaded = ledger.table().scan(usize::MAX, usize::MAX).0.collect();
        let (view, view_writer) = View::new();
        let (store, handle) =
            Store::new(ledger, view_writer, Some(journal), Duration::from_secs(30), store::Metrics::default());
        let metrics = cluster::Metrics::default();
        let site = common.site_of(node);
        let keyring = if common.encrypted { Keyring::parse(&key_text([7; 32])).ok() } else { None };
        let settings = ClusterSettings {
            listen: at,
            advertise: Some(at),
            name: common.name_of(site),
            seeds: common.addresses(site),
            sites: common.others(site),
            timers: common.timers,
            keyring,
            insecure: !common.encrypted,
            max_clock_drift: MAX_CLOCK_DRIFT,
            wire: build.dialect(),
            network: Arc::new(port.clone()),
            ..ClusterSettings::new(identity.node, identity.generation)
        };
        let cluster = Cluster::bind(settings, handle.clone(), metrics.clone()).await;
        let mut cluster = cluster.map_err(|error| error.to_string())?;
        let cluster_handle = cluster.handle();
        let (counts, evidence) = (cluster.remote_counts(), cluster.remote_evidence());
        let sharing = counts.zip(evidence).map(|(remote, evidence)| {
            Sharing::new(cluster_handle.local_counts(), remote, cluster_handle.local_evidence(), evidence)
        });
        let peers = entrance.map(|entrance| PeersParts::start(node, &mut cluster, entrance));
        let judge_metrics = judge::Metrics::default();
        let rules = Arc::clone(&common.rules);
        let (judge, offences) =
            JudgeTask::new(10_000, Arc::clone(&rules), handle.clone(), view.reader(), sharing, judge_metrics.clone());
        let judge_handle = judge.handle();
        let sink = FilterSink::new(Arc::clone(&common.detection), offences.clone(), detect::Metrics::default());
        let lookup = Lookup::new(view.reader(), rules, handle.exempt(), offences);
        let [stop_store, stop_judge, stop_cluster] = [(); 3].map(|()| CancellationToken::new());
        let parts = Parts {
            writer: tokio::spawn(platform::on(node, disk.delayed(writer))),
            store: (tokio::spawn(platform::on(node, store.serve(stop_store.clone()))), stop_store),
            judge: (tokio::spawn(platform::on(node, judge.serve(stop_judge.clone()))), stop_judge),
            cluster: {
                let parts = cluster.parts(&stop_cluster).into_iter();
                (parts.map(|(_, part)| tokio::spawn(platform::on(node, part))).collect(), stop_cluster)
            },
        };
        let agent = Agent::new(lookup);
        Ok(Self {
            port,
            store: handle,
            cluster: cluster_handle,
            metrics,
            journal_metrics,
            judge_metrics,
            judge: judge_handle,
            loaded,
            peers,
            node,
            sink,
            agent,
            parts,
        })
    }

    /// A line of syslog about a failed login.
    pub fn failed_login(&mut self, source: IpAddr, account: &str, attempt: u64) {
        self.sshd("Failed", source, account, attempt);
    }

    /// A line of syslog about a login.
    pub fn login(&mut self, source: IpAddr, account: &str, attempt: u64) {
        self.sshd("Accepted", source, account, attempt);
    }

    fn sshd(&mut self, what: &str, source: IpAddr, account: &str, attempt: u64) {
        let line = format!(
            "<38>1 - host sshd {pid} - - {what} password for {account} from {source} port {port} ssh2",
            pid = 1000 + attempt % 30_000,
            port = 1024 + attempt % 60_000
        );
        platform::within(self.node, || self.sink.line(address(self.node, false).ip().into(), line.as_bytes()));
    }

    /// What HAProxy is answered about `client`.
    pub fn is_banned(&mut self, client: IpAddr) -> bool {
        platform::within(self.node, || self.agent.ask(client))
    }

    /// The first part that has ended, if any.
    pub fn broken(&self) -> Option<&'static str> {
        let Parts { writer, store, judge, cluster } = &self.parts;
        let parts =
            [(writer.is_finished(), "journal"), (store.0.is_finished(), "store"), (judge.0.is_finished(), "judge")];
        let cluster = cluster.0.iter().map(|part| (part.is_finished(), "cluster"));
        let peers = self.peers.iter().map(|peers| (peers.is_broken(), "exchange of counters"));
        parts.into_iter().chain(cluster).chain(peers).find_map(|(ended, name)| ended.then_some(name))
    }

    /// Stops as on SIGTERM.
    pub async fn stop(self) {
        let Parts { writer, store, judge, cluster } = self.parts;
        judge.1.cancel();
        let _ = judge.0.await;
        if let Some(peers) = self.peers {
            peers.stop().await;
        }
        cluster.1.cancel();
        for part in cluster.0 {
            let _ = part.await;
        }
        store.1.cancel();
        let _ = store.0.await;
        drop((self.sink, self.agent, self.store));
        let _ = writer.await;
    }

    /// Ends at once, as by SIGKILL or a loss of power. The caller must silence its sockets first.
    pub fn kill(self) {
        let Parts { writer, store, judge, cluster } = self.parts;
        if let Some(peers) = self.peers {
            peers.kill();
        }
        writer.abort();
        store.0.abort();
        judge.0.abort();
        cluster.0.iter().for_each(JoinHandle::abort);
    }
}

/// A connection of HAProxy: SPOP frames in and out.
struct Agent {
    session: Session,
    lookup: Answers,
    asked: u64,
}

struct Answers(Lookup);

impl Handler for Answers {
    fn is_banned(&mut self, address: IpAddr) -> bool {
        self.0.is_banned(address.into())
    }
}

const HELLO: &[u8] = b"\x00\x00\x00\x4b\x01\x00\x00\x00\x01\x00\x00\x12supported-versions\x08\x032.0\
    \x0emax-frame-size\x03\xfc\xf0\x06\x0ccapabilities\x08\x0apipelining";

impl Agent {
    fn new(lookup: Lookup) -> Self {
        let (mut session, mut lookup) = (Session::new(DEFAULT_MAX_FRAME_SIZE), Answers(lookup));
        session.receive(HELLO, &mut Vec::new(), &mut lookup);
        Self { session, lookup, asked: 0 }
    }

    fn ask(&mut self, client: IpAddr) -> bool {
        self.asked += 1;
        // NOTIFY, FIN, and stream and frame ids below 240, which are one byte each.
        let mut frame = vec![3, 0, 0, 0, 1, 1, u8::try_from(self.asked % 200).unwrap_or(1)];
        encode_string(b"check-client-ip", &mut frame);
        frame.push(1);
        let value = match client {
            IpAddr::V4(address) => Data::Ipv4(address),
            IpAddr::V6(address) => Data::Ipv6(address),
        };
        encode_pair("src", &value, &mut frame);
        let mut bytes = u32::try_from(frame.len()).unwrap_or_default().to_be_bytes().to_vec();
        bytes.extend(frame);
        self.lookup.0.begin();
        let mut answer = Vec::new();
        let progress = self.session.receive(&bytes, &mut answer, &mut self.lookup);
        assert_eq!(progress.tally.total(), 1, "the agent must answer each question: {progress:?}");
        // The last byte is the value of `banned`.
        let banned = answer.last() == Some(&1);
        assert_eq!(banned, progress.tally.banned == 1, "the frame must say what was counted");
        banned
    }
}
