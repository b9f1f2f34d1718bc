//! Feeds from real servers that misbehave in every way: whatever they send, the last good list stays in use.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use banmesh::clock;
use banmesh::decisions::feeds::{FeedRule, Feeds, Metrics};
use banmesh::inputs::feeds::{Copies, FeedKeeper, FeedSettings, FeedsHandle, Source, UpdateOutcome, Updated};
use banmesh::net::dial::Trust;
use banmesh_feeds::catalogue::Effect;
use banmesh_feeds::keeping::{Pace, Progress};
use banmesh_feeds::list::{Format, MAX_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A server that sends the same bytes to every client.
struct Server {
    address: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (answer, heads) = (Arc::<Mutex<Vec<u8>>>::default(), Arc::<Mutex<Vec<String>>>::default());
        let (sent, seen) = (Arc::clone(&answer), Arc::clone(&heads));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (sent, seen) = (Arc::clone(&sent), Arc::clone(&seen));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    seen.lock().unwrap().push(String::from_utf8(head).unwrap().to_lowercase());
                    let bytes = sent.lock().unwrap().clone();
                    let silent = bytes.ends_with(b"SILENCE");
                    stream.write_all(bytes.strip_suffix(b"SILENCE").unwrap_or(&bytes)).await.ok();
                    if silent {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { address, answer, heads }
    }

    fn says(&self, head: &str, body: &str) {
        *self.answer.lock().unwrap() = format!("HTTP/1.1 {head}\r\n\r\n{body}").into_bytes();
    }

    /// Sends a list of an announced length.
    fn lists(&self, headers: &str, body: &str) {
        self.says(&format!("200 OK\r\nContent-Length: {}{headers}", body.len()), body);
    }

    fn source(&self) -> Source {
        Source::Server {
            endpoint: format!("http://{}/list?key=s3cret", self.address).parse().unwrap(),
            trust: Trust::load(None).unwrap(),
            key: Some(("key".parse().unwrap(), "an0ther".parse().unwrap())),
            timeout: Duration::from_secs(1),
        }
    }

    fn last_head(&self) -> String {
        self.heads.lock().unwrap().last().unwrap().clone()
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const PACE: Pace = Pace { interval: HOUR, floor: Duration::ZERO, keep: Duration::from_secs(24 * 3600) };

/// A running feed that bans.
struct Running {
    feeds: Feeds,
    handle: FeedsHandle,
    _end: DropGuard,
}

impl Running {
    fn start(source: Source, format: Format, pace: Pace, folder: &Path) -> Self {
        let rule = FeedRule { name: "theirs".into(), effect: Effect::Ban, weight: 3, credit: "them".into() };
        let progress = vec![Progress::new(pace, clock::now())];
        let feeds = Feeds::new(vec![rule], progress, Vec::new(), Metrics::default());
        let settings = FeedSettings { name: "theirs".into(), source, format, pace };
        let (mut keeper, handle) =
            FeedKeeper::new(vec![settings], feeds.clone(), Copies::below(folder), Metrics::default());
        let end = CancellationToken::new();
        let shutdown = end.clone();
        tokio::spawn(async move { keeper.serve(shutdown).await });
        Self { feeds, handle, _end: end.drop_guard() }
    }

    fn plain(server: &Server, folder: &Path) -> Self {
        Self::start(server.source(), Format::Plain, PACE, folder)
    }

    async fn update(&self, accept: bool) -> Updated {
        self.handle.update(None, accept).await.unwrap().remove(0)
    }

    fn bans(&self, address: &str) -> bool {
        self.feeds.banned_until(address.parse().unwrap(), clock::now()).is_some()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while !done(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: {:?}", self.feeds.status());
    }
}

/// 300 hosts, the first of which is 11.0.0.0.
fn list() -> String {
    (0..300).map(|n| format!("11.0.{}.{}\n", n / 250, n % 250)).collect()
}

#[tokio::test]
async fn a_list_is_asked_for_with_what_its_server_said_about_it() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.lists("\r\nETag: \"one\"\r\nLast-Modified: Sat, 28 Nov 2026 10:00:00 GMT", &list());
    let running = Running::plain(&server, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    let head = server.last_head();
    assert!(head.contains("key: an0ther") && !head.contains("if-none-match") && head.contains("user-agent: banmesh/"));
    server.says("304 Not Modified", "");
    assert_eq!(running.update(false).await.outcome, UpdateOutcome::Unchanged);
    let head = server.last_head();
    assert!(
        head.contains("if-none-match: \"one\"\r\n") && head.contains("if-modified-since: sat, 28 nov 2026"),
        "{head}"
    );
    server.lists("\r\nETag: \"two\"", &format!("{}12.0.0.1\n", list()));
    let updated = running.update(false).await;
    assert_eq!((updated.outcome, updated.entries), (UpdateOutcome::Changed, 301));
    assert!(running.bans("12.0.0.1") && running.bans("11.0.0.0") && !running.bans("11.0.2.0"));
}

#[tokio::test]
async fn answers_that_are_no_list_change_nothing_and_say_what_to_do() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.lists("", &list());
    let running = Running::plain(&server, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    let (good, half) = (list(), &list()[..1000]);
    let redirect = format!("302 Found\r\nLocation: http://{}/\r\nContent-Length: 0", server.address);
    let huge = format!("200 OK\r\nContent-Length: {}", MAX_BYTES + 1);
    let longer = format!("200 OK\r\nContent-Length: {}", good.len());
    let cases: &[(&str, &str, &str)] = &[
        ("200 OK\r\nContent-Length: 0", "", "the file is empty"),
        ("200 OK\r\nContent-Type: text/plain", "<!DOCTYPE html>\n<html>log in</html>\n", "it is a web page"),
        ("200 OK", "11.0.0.1\n11.0.0.2\n11.0", "its last line has no line feed"),
        ("200 OK", "11.0.0.1\nnobody knows\n", "1 of 2 lines are not entries"),
        ("200 OK", "11.0.0.1\n", "changed from 300 to 1 entries at once"),
        (&longer, half, "is cut off"),
        ("200 OK\r\nTransfer-Encoding: chunked", "9\r\n11.0.0.1\n\r\n9\r\n11.0", "is cut off"),
        ("200 OK\r\nTransfer-Encoding: chunked", "zz\r\n", "is cut off"),
        ("200 OK\r\nContent-Encoding: gzip", "\u{1f}abc", "with the coding \"gzip\""),
        (&huge, "", "longer than 64 MiB"),
        ("204 No Content", "", "answered 204"),
        ("304 Not Modified", "", "answered 304"),
        ("403 Forbidden\r\nContent-Length: 0", "", "check the key"),
        ("404 Not Found\r\nContent-Length: 0", "", "has moved or was given up"),
        ("429 Too Many Requests\r\nRetry-After: 7200\r\nContent-Length: 0", "", "raise `interval`"),
        ("503 Service Unavailable\r\nContent-Length: 0", "", "it is asked again"),
        (&redirect, "", "redirects more than 3 times"),
        ("302 Found\r\nContent-Length: 0", "", "redirects to nowhere"),
        ("302 Found\r\nLocation: ftp://x/\r\nContent-Length: 0", "", "something that is no URL"),
        ("200 OK\r\nContent-Length: 9", "SILENCE", "did not send the whole list within 1 s"),
        ("200 OK", "11.0.0.1\nSILENCE", "did not send the whole list within 1 s"),
    ];
    for (head, body, message) in cases {
        server.says(head, body);
        let updated = running.update(false).await;
        assert_eq!((updated.outcome, updated.entries), (UpdateOutcome::Failed, 300), "{head} {body}");
        assert!(updated.message.contains(message), "{head} {body}: {}", updated.message);
        assert!(!updated.message.contains("s3cret") && !updated.message.contains("nobody"), "{}", updated.message);
        assert!(running.bans("11.0.0.0") && running.bans("11.0.1.49"), "{head} {body}");
    }
    for bytes in ["", "SILENCE", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"] {
        *server.answer.lock().unwrap() = bytes.into();
        assert_eq!(running.update(false).await.outcome, UpdateOutcome::Failed, "{bytes}");
        assert!(running.bans("11.0.0.0"));
    }
    let status = &running.feeds.status()[0];
    assert!(running.feeds.problem(clock::now()).unwrap().starts_with("feed theirs: "), "{status:?}");
    // A good list ends it.
    server.lists("", &list());
    assert_eq!(running.update(false).await.outcome, UpdateOutcome::Changed);
    assert_eq!(running.feeds.problem(clock::now()), None);
}

#[tokio::test]
async fn a_server_is_left_alone_as_long_as_it_or_its_publisher_wants() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.says("429 Too Many Requests\r\nRetry-After: 7200\r\nContent-Length: 0", "");
    let running = Running::start(server.source(), Format::Plain, Pace { floor: HOUR, ..PACE }, folder.path());
    running.until("it was asked", |running| running.feeds.status()[0].progress.failure().is_some()).await;
    let next = running.feeds.status()[0].progress.next();
    assert!(next.since(clock::now()) > Duration::from_secs(7100), "{next}");
    let updated = running.update(false).await;
    assert_eq!(updated.outcome, UpdateOutcome::Early);
    assert!(updated.message.contains("its publisher allows the next question at"), "{}", updated.message);
    assert_eq!(server.heads.lock().unwrap().len(), 1);
    server.lists("", &list());
    assert_eq!(running.update(true).await.outcome, UpdateOutcome::Changed);
}

#[tokio::test]
async fn a_list_that_was_held_back_is_used_when_an_operator_accepts_it() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.lists("", &list());
    let running = Running::plain(&server, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    server.lists("", "12.0.0.1\n");
    assert!(running.update(false).await.message.contains("--accept"));
    assert!(running.bans("11.0.0.0") && !running.bans("12.0.0.1"));
    assert_eq!(running.update(true).await.outcome, UpdateOutcome::Changed);
    assert!(!running.bans("11.0.0.0") && running.bans("12.0.0.1"));
    assert!(running.handle.update(Some("others"), false).await.unwrap_err().to_string().contains("theirs"));
}

#[tokio::test]
async fn the_last_good_list_is_in_use_after_a_restart_even_if_its_server_is_gone() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.lists("\r\nETag: \"one\"", &list());
    let running = Running::plain(&server, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    running.until("it is on the disk", |_| folder.path().join("feeds/theirs.json").exists()).await;
    drop(running);
    server.says("503 Service Unavailable\r\nContent-Length: 0", "");
    let asked = server.heads.lock().unwrap().len();
    let running = Running::plain(&server, folder.path());
    running.until("the list is in use again", |running| running.bans("11.0.0.0")).await;
    assert_eq!(server.heads.lock().unwrap().len(), asked, "not asked again before its interval");
    server.says("304 Not Modified", "");
    assert_eq!(running.update(false).await.outcome, UpdateOutcome::Unchanged);
    drop(running);
    // The list of another URL is not used.
    let other = Server::start().await;
    other.says("503 Service Unavailable\r\nContent-Length: 0", "");
    let running = Running::plain(&other, folder.path());
    running.until("it was asked", |running| running.feeds.status()[0].progress.failure().is_some()).await;
    assert!(!running.bans("11.0.0.0"));
}

#[tokio::test]
async fn a_list_that_is_not_confirmed_ends() {
    let (server, folder) = (Server::start().await, tempfile::tempdir().unwrap());
    server.lists("", &list());
    let second = Duration::from_secs(1);
    let pace = Pace { interval: 2 * second, floor: Duration::ZERO, keep: 3 * second };
    let running = Running::start(server.source(), Format::Plain, pace, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    server.says("503 Service Unavailable\r\nContent-Length: 0", "");
    running.until("the list has ended", |running| running.feeds.status()[0].progress.entries() == 0).await;
    assert!(!running.bans("11.0.0.0"));
    running
        .until("the problem says so", |running| {
            running.feeds.problem(clock::now()).is_some_and(|problem| problem.contains("no list and no effect"))
        })
        .await;
}

#[tokio::test]
async fn a_redirect_is_followed_and_another_server_does_not_get_the_key() {
    let (first, second) = (Server::start().await, Server::start().await);
    let folder = tempfile::tempdir().unwrap();
    first.says(&format!("301 Moved\r\nLocation: http://{}/new\r\nContent-Length: 0", second.address), "");
    second.lists("", &list());
    let running = Running::plain(&first, folder.path());
    running.until("the list is in use", |running| running.bans("11.0.0.0")).await;
    assert!(first.last_head().contains("an0ther"));
    let head = second.last_head();
    assert!(head.starts_with("get /new ") && !head.contains("an0ther") && !head.contains("s3cret"), "{head}");
}

#[tokio::test]
async fn a_file_of_this_host_is_read_when_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.txt");
    let running = Running::start(Source::File(path.clone()), Format::Plain, PACE, folder.path());
    running.until("it is missing", |running| running.feeds.status()[0].progress.failure().is_some()).await;
    assert!(running.update(false).await.message.contains("check the path"));
    std::fs::write(&path, "# ours\n11.0.0.1\n127.0.0.1\n").unwrap();
    let updated = running.update(false).await;
    assert_eq!((updated.outcome, updated.entries), (UpdateOutcome::Changed, 1));
    assert_eq!(running.update(false).await.outcome, UpdateOutcome::Unchanged);
    assert!(running.bans("11.0.0.1") && !running.bans("127.0.0.1"));
    std::fs::write(&path, "11.0.0.2").unwrap();
    assert!(running.update(false).await.message.contains("no line feed"));
    assert!(running.bans("11.0.0.1"));
}
