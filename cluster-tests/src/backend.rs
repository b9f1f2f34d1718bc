//! What stands behind HAProxy: the smallest web server and mail server that tell whether a client got through.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server on a thread. It lives as long as the test's process and costs nothing when nobody asks.
#[derive(Debug, Clone)]
pub struct Backend {
    /// Where it listens.
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
}

impl Backend {
    /// A web server. Every request is answered with 200 and a body that repeats the request's head, so that a test sees what
    /// HAProxy has made of the headers.
    pub fn http() -> Self {
        Self::start(|stream, served| {
            let mut reader = BufReader::new(stream.try_clone()?);
            let mut writer = stream;
            loop {
                let mut head = String::new();
                loop {
                    let before = head.len();
                    if reader.read_line(&mut head)? == 0 {
                        return Ok(());
                    }
                    if head.len() - before <= 2 {
                        break;
                    }
                }
                served.fetch_add(1, Ordering::Relaxed);
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                writer.write_all(response.as_bytes())?;
            }
        })
    }

    /// A mail server that speaks first and then repeats every line it hears.
    pub fn mail(greeting: &'static str) -> Self {
        Self::start(move |stream, served| {
            let mut writer = stream.try_clone()?;
            writer.write_all(format!("{greeting}\r\n").as_bytes())?;
            served.fetch_add(1, Ordering::Relaxed);
            repeat_lines(stream)
        })
    }

    /// A server that waits for the client's first line, and repeats every line it hears.
    pub fn echo() -> Self {
        Self::start(|stream, served| {
            served.fetch_add(1, Ordering::Relaxed);
            repeat_lines(stream)
        })
    }

    /// How many requests (HTTP) or connections (others; HAProxy's own checks among them) it has served.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    fn start(serve: impl Fn(TcpStream, &AtomicU64) -> io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind a backend");
        let address = listener.local_addr().expect("the backend's address");
        let served = Arc::new(AtomicU64::new(0));
        let backend = Self { address, served: Arc::clone(&served) };
        let serve = Arc::new(serve);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (serve, served) = (Arc::clone(&serve), Arc::clone(&served));
                // A client may close its connection at any time.
                std::thread::spawn(move || {
                    let _ = stream.set_nodelay(true);
                    serve(stream, &served)
                });
            }
        });
        backend
    }
}

fn repeat_lines(stream: TcpStream) -> io::Result<()> {
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        writer.write_all(format!("{}\r\n", line?).as_bytes())?;
    }
    Ok(())
}
