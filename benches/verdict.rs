//! Verdicts over HTTP and gRPC: the endpoint compared with a server of the same library that looks at nothing and always answers 200.
//!
//! `cargo bench --bench verdict [-- SECONDS]`. Server and load generator are separate processes, each on its own core. 32 connections of
//! HTTP/1.1 have one request in flight each; 4 connections of gRPC have 32 calls in flight each. Every client is looked up in a table
//! of 1,000,000 bans and is not banned. Compare only within one run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a benchmark may fail")]

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use banmesh::clock;
use banmesh::decisions::view::{Reader, View, ViewWriter};
use banmesh::enforcement::verdict::ext_authz::{CHECK, encode_question};
use banmesh::enforcement::verdict::{Bans, Metrics, Remaining, VerdictConfig, VerdictEndpoint};
use banmesh_types::address::Address;
use banmesh_types::target::Target;
use banmesh_types::time::Expiry;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// The environment variable that makes this program a server: `bare` or `banmesh`.
const SERVER: &str = "BANMESH_BENCH_SERVER";
const ROUNDS: usize = 5;
const BANS: u32 = 1_000_000;
/// The headers that Envoy and nginx send for a browser.
const HEADERS: [(&str, &str); 5] = [
    ("host", "www.example.org"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
];

fn main() {
    if let Ok(kind) = std::env::var(SERVER) {
        return runtime(0).block_on(serve(&kind));
    }
    let seconds: f64 = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1.5);
    let runtime = runtime(1);
    println!("{:<5} {:<8} {:>11} {:>10} {:>11} {:>10}", "proto", "server", "answers/s", "ratio", "CPU ns", "CPU ratio");
    for grpc in [false, true] {
        let mut servers = [Server::start("bare"), Server::start("banmesh")];
        let mut rounds: [Vec<Figures>; 2] = Default::default();
        for _ in 0..ROUNDS {
            for (server, rounds) in servers.iter_mut().zip(&mut rounds) {
                rounds.push(runtime.block_on(server.load(grpc, seconds)));
            }
        }
        let [bare, ours] = rounds.map(median);
        for (name, figures) in [("bare", &bare), ("banmesh", &ours)] {
            println!(
                "{:<5} {name:<8} {:>11.0} {:>10.2} {:>11.0} {:>10.2}",
                if grpc { "gRPC" } else { "HTTP" },
                figures.rate,
                figures.rate / bare.rate,
                figures.cpu,
                figures.cpu / bare.cpu,
            );
        }
    }
}

struct Figures {
    /// Answers per second.
    rate: f64,
    /// Nanoseconds of the server's CPU per answer.
    cpu: f64,
}

fn median(mut rounds: Vec<Figures>) -> Figures {
    rounds.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
    rounds.swap_remove(rounds.len() / 2)
}

/// A runtime of one thread on a core of its own.
fn runtime(core: usize) -> tokio::runtime::Runtime {
    let mut cores = CpuSet::new();
    // Fails on a machine with one core, where it does not matter.
    if cores.set(core).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &cores);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server process.
struct Server {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Server {
    fn start(kind: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(SERVER, kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let address = line(&mut answers).parse().unwrap();
        Self { child, orders, answers, address }
    }

    /// The server's CPU time in microseconds.
    fn cpu(&mut self) -> f64 {
        self.orders.write_all(b"\n").unwrap();
        line(&mut self.answers).parse().unwrap()
    }

    async fn load(&mut self, grpc: bool, seconds: f64) -> Figures {
        ask(self.address, grpc, Duration::from_millis(200)).await;
        let before = self.cpu();
        let start = Instant::now();
        let answers = ask(self.address, grpc, Duration::from_secs_f64(seconds)).await as f64;
        let elapsed = start.elapsed().as_secs_f64();
        Figures { rate: answers / elapsed, cpu: (self.cpu() - before) * 1e3 / answers }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn line(input: &mut impl BufRead) -> String {
    let mut line = String::new();
    input.read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Asks for `span`, and returns the number of answers.
async fn ask(to: SocketAddr, grpc: bool, span: Duration) -> u64 {
    let end = Instant::now() + span;
    let clients = (0..if grpc { 128 } else { 32 }).map(async |client: u32| {
        let mut random = client;
        move || {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Not banned: the first addresses are.
            Address::new(IpAddr::V4(address(BANS + random % 1_000_000)))
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    let mut shared = Vec::new();
    for (at, client) in clients.enumerate() {
        let mut next = client.await;
        if grpc {
            if at % 32 == 0 {
                let stream = TcpStream::connect(to).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let io = TokioIo::new(stream);
                let (sender, connection) =
                    hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
                tokio::spawn(connection);
                shared.push(sender);
            }
            let mut sender = shared.last().unwrap().clone();
            tasks.spawn(async move {
                let mut answers = 0;
                while Instant::now() < end {
                    let message = encode_question(next(), &HEADERS);
                    let mut body = vec![0];
                    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                    body.extend(message);
                    let request = Request::post(format!("http://x{CHECK}")).header("content-type", "application/grpc");
                    let request = request.body(Full::new(Bytes::from(body))).unwrap();
                    let answer = sender.send_request(request).await.unwrap();
                    let body = answer.into_body().collect().await.unwrap();
                    assert_eq!(body.trailers().unwrap().get("grpc-status").unwrap(), "0");
                    answers += 1;
                }
                answers
            });
        } else {
            tasks.spawn(async move {
                let stream = TcpStream::connect(to).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
                tokio::spawn(connection);
                let mut answers = 0;
                while Instant::now() < end {
                    let mut request = Request::get("/api/v1/verdict").header("x-forwarded-for", next().to_string());
                    for (name, value) in HEADERS {
                        request = request.header(name, value);
                    }
                    let request = request.body(Full::<Bytes>::default()).unwrap();
                    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
                    answers += 1;
                }
                answers
            });
        }
    }
    tasks.join_all().await.into_iter().sum()
}

/// The n-th address, with neighbours far apart.
fn address(n: u32) -> Ipv4Addr {
    n.wrapping_mul(0x9e37_79b1).into()
}

/// The server process: prints its address, then its CPU time for every line of input.
async fn serve(kind: &str) {
    let report = || {
        std::thread::spawn(|| {
            for line in std::io::stdin().lines() {
                line.unwrap();
                let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
                println!("{}", usage.user_time().num_microseconds() + usage.system_time().num_microseconds());
            }
            std::process::exit(0);
        });
    };
    if kind == "bare" {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        report();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(bare);
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    }
    // Kept alive, because the writer owns the table.
    let (lookup, _writer) = table();
    let config = VerdictConfig {
        listen: vec![("verdict.address", SocketAddr::from(([127, 0, 0, 1], 0)))],
        trusted_proxies: ["127.0.0.1".parse::<Target>().unwrap()].into_iter().collect(),
        max_clients: 1000,
        drain: Duration::ZERO,
    };
    let endpoint = VerdictEndpoint::bind(config, lookup, Metrics::default()).unwrap();
    println!("{}", endpoint.addresses()[0]);
    report();
    endpoint.serve(CancellationToken::new()).await;
}

type Bare = Response<http_body_util::Either<http_body_util::Empty<Bytes>, StreamBody<Frames>>>;
type Frames = futures_util::stream::Iter<std::array::IntoIter<Result<Frame<Bytes>, Infallible>, 2>>;

/// Answers 200 without looking at anything: over HTTP with an empty body, over gRPC with an empty message.
async fn bare(request: Request<Incoming>) -> Result<Bare, Infallible> {
    if request.version() < hyper::Version::HTTP_2 {
        return Ok(Response::new(http_body_util::Either::Left(http_body_util::Empty::new())));
    }
    let _ = request.into_body().collect().await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(Bytes::from_static(&[0; 5]))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut answer = Response::new(http_body_util::Either::Right(body));
    answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(answer)
}

fn table() -> (Lookup, ViewWriter) {
    let (view, mut writer) = View::new();
    let now = clock::now();
    let until = Expiry::at(now.plus(Duration::from_secs(86_400)));
    for n in 0..BANS {
        writer.set(Target::host(IpAddr::V4(address(n)).into()), until, now);
    }
    (Lookup(view.reader()), writer)
}

#[derive(Clone)]
struct Lookup(Reader);

impl Bans for Lookup {
    fn ban(&mut self, address: Address) -> Option<Remaining> {
        self.0.banned_until(address, clock::now()).map(|_| Remaining::Permanent)
    }
}
