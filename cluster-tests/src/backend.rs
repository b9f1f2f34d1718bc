//! Servers behind HAProxy: a minimal web server and mail server that show whether a client was let through.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A server on a thread, which runs until the test process ends.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The address that it listens on.
    pub address: SocketAddr,
    served: Arc<AtomicU64>,
}

impl Backend {
    /// A web server. It answers every request with 200 and the request's head as the body, so that a test sees the headers
    /// that HAProxy sent. The body of the request, if its length is known, follows the head.
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
                let lines = head.to_ascii_lowercase();
                let length = lines.lines().find_map(|line| line.strip_prefix("content-length:"));
                let mut body = vec![0; length.and_then(|length| length.trim().parse().ok()).unwrap_or(0)];
                reader.read_exact(&mut body)?;
                head.push_str(&String::from_utf8_lossy(&body));
                let response = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{head}", head.len());
                writer.write_all(response.as_bytes())?;
            }
        })
    }

    /// A web server that answers every request with 401.
    pub fn refusing() -> Self {
        Self::start(|stream, served| {
            let mut writer = stream.try_clone()?;
            for line in BufReader::new(stream).lines() {
                if line?.is_empty() {
                    served.fetch_add(1, Ordering::Relaxed);
                    writer.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")?;
                }
            }
            Ok(())
        })
    }

    /// A mail server that speaks first and then echoes every line.
    pub fn mail(greeting: &'static str) -> Self {
        Self::start(move |stream, served| {
            let mut writer = stream.try_clone()?;
            writer.write_all(format!("{greeting}\r\n").as_bytes())?;
            served.fetch_add(1, Ordering::Relaxed);
            repeat_lines(stream)
        })
    }

    /// A server that waits for the client's first line, and echoes every line.
    pub fn echo() -> Self {
        Self::start(|stream, served| {
            served.fetch_add(1, Ordering::Relaxed);
            repeat_lines(stream)
        })
    }

    /// The number of requests (HTTP) or connections (others, including HAProxy's health checks) served so far.
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
