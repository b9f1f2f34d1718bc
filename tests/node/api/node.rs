//! A node as the API sees it: a store, a view, and the API over them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::{Method, Request, StatusCode};
use banmesh::clock;
use banmesh::decisions::judge::{self, JudgeTask};
use banmesh::decisions::store::{Metrics, Store, StoreHandle};
use banmesh::decisions::view::View;
use banmesh::operation::api::views::FiltersView;
use banmesh::operation::api::{ApiContext, ApiSocket, LiveSettings, router};
use banmesh::operation::metrics;
use banmesh::operation::readiness::Readiness;
use banmesh_core::attempts::Recognised;
use banmesh_core::evidence::{AccountKey, Mode, Settings};
use banmesh_core::hlc::Hlc;
use banmesh_core::judge::{BanOrder, Rules};
use banmesh_core::ledger::{Ledger, Limits};
use banmesh_core::policy::Scope;
use banmesh_types::target::Target;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

pub struct Node {
    pub store: StoreHandle,
    pub router: Router,
    pub socket: PathBuf,
    pub dir: tempfile::TempDir,
    pub shutdown: CancellationToken,
    ready: Arc<AtomicBool>,
    serving: std::sync::Mutex<Option<tokio::task::JoinHandle<()>>>,
}

/// Starts a node with this configured allowlist that serves its socket.
pub async fn start(allowlist: &[&str]) -> Node {
    let limits = Limits {
        max_bans: 1_500_000,
        max_clock_drift: Duration::from_secs(10),
        max_ban_time: Duration::from_secs(86_400),
    };
    let name: banmesh_core::node::NodeId = "node-a".parse().unwrap();
    let (view, writer) = View::new();
    let counters = Metrics::default();
    let ledger = Ledger::new(name.clone(), limits, Hlc::default());
    let (store, handle) = Store::new(ledger, writer, None, Duration::from_secs(1), counters.clone());
    let shutdown = CancellationToken::new();
    tokio::spawn(store.serve(shutdown.clone()));

    let mut registry = metrics::registry(&name, "1.2.3", clock::now());
    counters.register(&mut registry);
    let ready = Arc::new(AtomicBool::new(true));
    let mut context = ApiContext::new(handle.clone(), view, name);
    let defaults = (context.rules)();
    let allowlist = allowlist.iter().map(|text| text.parse::<Target>().unwrap()).collect();
    let rules = LiveSettings { scope: Arc::new(Scope { allowlist, ..(*defaults.scope).clone() }), ..defaults };
    context.rules = Arc::new(move || rules.clone());
    let state = Arc::clone(&ready);
    context.readiness = Arc::new(move || match state.load(Ordering::Relaxed) {
        true => Readiness::ready(),
        false => Readiness { ready: false, waiting_for: vec!["the journal".to_owned()] },
    });
    let sshd = serde_json::json!({
        "name": "sshd", "mode": "normal", "rules": 3, "lines": 2, "offences": 2, "successes": 0, "bans": 1,
        "last_offence": "2027-01-15T08:00:20Z",
    });
    let filters = FiltersView { filters: vec![serde_json::from_value(sshd).unwrap()] };
    context.filters = Arc::new(move || filters.clone());
    context.registry = Arc::new(registry);
    context.shutdown = shutdown.clone();
    let judged = Rules {
        scope: (context.rules)().scope,
        general: (context.rules)().policy,
        own: HashMap::new(),
        success_clears: false,
        evidence: Arc::new(Settings { known: Mode::On, key: Some(AccountKey::new([7; 16])), ..Settings::default() }),
    };
    let judged = Arc::new(ArcSwap::from_pointee(judged));
    let (judge, offences) =
        JudgeTask::new(1000, judged, handle.clone(), context.view.reader(), None, judge::Metrics::default());
    context.judge = Some(judge.handle());
    tokio::spawn(judge.serve(shutdown.clone()));
    context.offences = Some(offences);
    let router = router(Arc::new(context));

    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("banmesh.sock");
    let serving = tokio::spawn(ApiSocket::bind(&socket).unwrap().serve(router.clone(), shutdown.clone()));
    let serving = std::sync::Mutex::new(Some(serving));
    Node { store: handle, router, socket, dir, shutdown, ready, serving }
}

impl Node {
    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.request(Method::GET, path, None).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.request(Method::POST, path, Some(body)).await
    }

    /// The status and the JSON of an answer.
    pub async fn request(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let text = body.map(|body| body.to_string()).unwrap_or_default();
        let (status, text) = self.send(method, path, "application/json", &text).await;
        let value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {status} {text}"));
        (status, value)
    }

    /// The status and the text of an answer.
    pub async fn send(&self, method: Method, path: &str, content_type: &str, body: &str) -> (StatusCode, String) {
        let mut request = Request::builder().method(method).uri(path);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        let response = TowerToHyperService::new(self.router.clone()).call(request).await.unwrap();
        let status = response.status();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    /// Bans `target` like a filter of this node.
    pub async fn ban_by_filter(&self, target: &str) {
        let by = Recognised { filter: "sshd".into(), rule: "failed-password".into() };
        let policy = ApiContext::new(self.store.clone(), View::new().0, "other".parse().unwrap());
        let policy = (policy.rules)().policy;
        self.store.offence(BanOrder { target: target.parse().unwrap(), by, attempts: 5, policy }).await.unwrap();
    }

    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Waits until the socket is no longer served.
    pub async fn stopped(&self) {
        let serving = self.serving.lock().unwrap().take();
        serving.unwrap().await.unwrap();
    }
}
