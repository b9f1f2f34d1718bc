//! A client for a node's API on its Unix socket.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

/// All entries of a node, by target, without fields that depend on the time of the request.
pub type Table = BTreeMap<String, Value>;

/// The API of one node.
#[derive(Debug, Clone)]
pub struct Admin {
    socket: PathBuf,
}

/// A response of a node.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// The body is not JSON, or the status is not a success.
    pub fn json(&self) -> io::Result<Value> {
        if !(200..300).contains(&self.status) {
            let text = String::from_utf8_lossy(&self.body);
            return Err(io::Error::other(format!("status {}: {text}", self.status)));
        }
        serde_json::from_slice(&self.body).map_err(io::Error::other)
    }
}

impl Admin {
    /// The API on this socket.
    pub const fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends one request and reads the whole response.
    ///
    /// # Errors
    /// The node does not listen, or the connection ends before the response, as when the node is killed.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        // With HTTP/1.0, a streamed response ends with the connection.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: node\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body.as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let broken = || io::Error::other("the answer ends too early");
        let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").ok_or_else(broken)?;
        let body = answer.split_off(end + 4);
        let head = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok()).ok_or_else(broken)?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        if length.is_some_and(|length: usize| body.len() < length) {
            return Err(broken());
        }
        Ok(Answer { status, body })
    }

    /// Sends a GET for JSON below `/api/v1`.
    ///
    /// # Errors
    /// As [`Admin::request`] and [`Answer::json`].
    pub fn get(&self, path: &str) -> io::Result<Value> {
        self.request("GET", &format!("/api/v1{path}"), None)?.json()
    }

    /// Bans for an hour. Returns when the node has acknowledged the ban.
    ///
    /// # Errors
    /// The node has not acknowledged the change.
    pub fn ban(&self, target: IpAddr) -> io::Result<()> {
        self.ban_for(target, "1h")
    }

    /// Bans for `duration`, in the syntax of the configuration.
    ///
    /// # Errors
    /// The node has not acknowledged the ban.
    pub fn ban_for(&self, target: IpAddr, duration: &str) -> io::Result<()> {
        let terms = json!({
            "target": target.to_string(), "duration": duration, "reason": "test", "by": "test", "force": is_local(target),
        });
        self.request("POST", "/api/v1/bans", Some(&terms))?.json().map(drop)
    }

    /// Bans all `targets` for a day, in requests of ten thousand.
    ///
    /// # Errors
    /// One of the requests is not acknowledged.
    pub fn ban_many(&self, targets: impl IntoIterator<Item = IpAddr>) -> io::Result<()> {
        let targets: Vec<String> = targets.into_iter().map(|target| target.to_string()).collect();
        for part in targets.chunks(10_000) {
            let terms = json!({ "targets": part, "duration": "24h", "reason": "test", "by": "test" });
            let answer = self.request("POST", "/api/v1/bans/bulk", Some(&terms))?.json()?;
            if answer["done"] != part.len() {
                return Err(io::Error::other(format!("not all were banned: {answer}")));
            }
        }
        Ok(())
    }

    /// Unbans. Returns when the node has acknowledged the change.
    ///
    /// # Errors
    /// The node has not acknowledged the change.
    pub fn unban(&self, target: IpAddr) -> io::Result<()> {
        self.request("DELETE", &format!("/api/v1/bans/{target}"), None)?.json().map(drop)
    }

    /// Whether the node is ready.
    pub fn is_ready(&self) -> bool {
        self.request("GET", "/health/ready", None).is_ok_and(|answer| answer.status == 200)
    }

    /// Every entry of the node, including expired bans and unbans.
    ///
    /// # Errors
    /// As [`Admin::request`], or a line of the export is not an entry.
    pub fn table(&self) -> io::Result<Table> {
        let answer = self.request("GET", "/api/v1/bans/export?state=all", None)?;
        if answer.status != 200 {
            return Err(io::Error::other(format!("status {}", answer.status)));
        }
        let mut table = Table::new();
        for line in answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let mut entry: Value = serde_json::from_slice(line).map_err(io::Error::other)?;
            let target = entry["target"].as_str().unwrap_or_default().to_owned();
            let unbanned = entry["state"] == "unbanned";
            if let Some(fields) = entry.as_object_mut() {
                for passing in ["age_seconds", "remaining_seconds"] {
                    fields.remove(passing);
                }
                // Whether a ban has expired depends on the time of the request.
                fields.insert("state".to_owned(), if unbanned { "unbanned" } else { "banned" }.into());
            }
            table.insert(target, entry);
        }
        Ok(table)
    }

    /// The digest of the node's table, and the number of its entries.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn digest(&self) -> io::Result<(String, u64)> {
        let status = self.get("/status")?;
        let digest = status["digest"].as_str().unwrap_or_default().to_owned();
        Ok((digest, status["entries"].as_u64().unwrap_or_default()))
    }

    /// The ids of the members that are ready in the node's view, including itself.
    ///
    /// # Errors
    /// As [`Admin::get`].
    pub fn ready_members(&self) -> io::Result<Vec<String>> {
        let view = self.get("/cluster")?;
        let members = view["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let ready = members.iter().filter(|member| member["state"] == "ready");
        let mut ids: Vec<String> = ready.filter_map(|member| Some(member["id"].as_str()?.to_owned())).collect();
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// The sum of all samples whose line in the metrics begins with `start`, such as a name with or without labels.
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn metric(&self, start: &str) -> io::Result<f64> {
        let answer = self.request("GET", "/metrics", None)?;
        let page = String::from_utf8_lossy(&answer.body).into_owned();
        let samples = page.lines().filter(|line| line.starts_with(start));
        Ok(samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// The lines of the metrics that begin with `start`.
    ///
    /// # Errors
    /// As [`Admin::request`].
    pub fn metric_lines(&self, start: &str) -> io::Result<Vec<String>> {
        let answer = self.request("GET", "/metrics", None)?;
        let page = String::from_utf8_lossy(&answer.body).into_owned();
        Ok(page.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect())
    }
}

/// Whether only `force` bans this address. The clients of tests are on the loopback.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local(),
    }
}
