//! Clients of HAProxy that choose their source address.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);

/// Connects to `to` from the local address `from`, with a timeout of ten seconds for each operation.
///
/// # Errors
/// As `connect(2)`.
pub fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers, with lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Response {
    /// The first header of this (lower-case) name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A keep-alive HTTP/1.1 connection.
#[derive(Debug)]
pub struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    /// Connects from the local address `from`.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub fn connect(from: IpAddr, to: SocketAddr) -> io::Result<Self> {
        Ok(Self { stream: BufReader::new(connect(from, to)?) })
    }

    /// Sends bytes before the first request, such as a PROXY protocol header.
    ///
    /// # Errors
    /// As `write(2)`.
    pub fn preamble(mut self, bytes: &[u8]) -> io::Result<Self> {
        self.stream.get_mut().write_all(bytes)?;
        Ok(self)
    }

    /// Sends a GET of `/` with additional header lines (`Name: value`).
    ///
    /// # Errors
    /// The connection ends, or the response cannot be read.
    pub fn get(&mut self, headers: &[&str]) -> io::Result<Response> {
        self.request("GET", "/", headers, "")
    }

    /// Sends a POST of `/` with a body.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub fn post(&mut self, headers: &[&str], body: &str) -> io::Result<Response> {
        let length = format!("Content-Length: {}", body.len());
        let headers: Vec<&str> = headers.iter().copied().chain([length.as_str()]).collect();
        self.request("POST", "/", &headers, body)
    }

    /// Sends a request. A body needs its `Content-Length` among the headers.
    ///
    /// # Errors
    /// As [`Http::get`].
    pub fn request(&mut self, method: &str, path: &str, headers: &[&str], body: &str) -> io::Result<Response> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: example.test\r\n");
        for header in headers {
            request.push_str(header);
            request.push_str("\r\n");
        }
        request.push_str("\r\n");
        request.push_str(body);
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .ok_or_else(|| io::Error::other(format!("no HTTP response: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut response = Response { status, headers, body: String::new() };
        let length = response.header("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        response.body = String::from_utf8_lossy(&body).into_owned();
        Ok(response)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

/// Sends one GET over a new connection.
///
/// # Errors
/// As [`Http::connect`] and [`Http::get`].
pub fn get(from: IpAddr, to: SocketAddr, headers: &[&str]) -> io::Result<Response> {
    Http::connect(from, to)?.get(headers)
}

/// The status of one GET over a new connection.
///
/// # Panics
/// There is no response.
#[track_caller]
#[expect(clippy::panic, reason = "fails the test")]
pub fn status(from: IpAddr, to: SocketAddr) -> u16 {
    match get(from, to, &[]) {
        Ok(response) => response.status,
        Err(error) => panic!("GET from {from} to {to}: {error}"),
    }
}

/// The banner of a server that speaks first; `None` if the connection was closed instead.
///
/// # Errors
/// The connection fails, or neither happens within ten seconds.
pub fn banner(from: IpAddr, to: SocketAddr) -> io::Result<Option<String>> {
    read_line(connect(from, to)?)
}

/// The answer to one line of a client that speaks first; `None` if the connection was closed instead.
///
/// # Errors
/// The connection fails, or neither happens within ten seconds.
pub fn speak_first(from: IpAddr, to: SocketAddr, line: &str) -> io::Result<Option<String>> {
    let mut stream = connect(from, to)?;
    match stream.write_all(format!("{line}\r\n").as_bytes()) {
        Ok(()) => read_line(stream),
        Err(error) if is_closed(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_line(stream: TcpStream) -> io::Result<Option<String>> {
    let mut line = String::new();
    match BufReader::new(stream).read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line.trim_end().to_owned())),
        Err(error) if is_closed(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}
