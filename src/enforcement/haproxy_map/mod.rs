//! The map in HAProxy's memory as a place where bans hold, over HAProxy's runtime API.

mod link;

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::info;

use crate::enforcement::follower::{Comparison, Place, PlaceError, Sent};
use banmesh_core::follow::{Allowlist, Change, Digest, Form, Traits};
use banmesh_haproxy::runtime::{MapName, Refusal, Reply, SHOW_MAPS, entry};
use banmesh_types::target::Target;
use link::{Link, LinkError};

/// The runtime API socket of a HAProxy (`stats socket`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Socket {
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`. A name is resolved for every connection.
    Tcp(String),
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// The map of one HAProxy process.
#[derive(Debug)]
pub struct HaproxyMap {
    socket: Socket,
    map: MapName,
    /// How often the whole content is compared.
    verify_interval: Duration,
    link: Option<Link>,
    /// The version of the map that a replacement fills.
    version: Option<u32>,
    /// How many more entries HAProxy counts than were sent; `None` after a replacement. HAProxy's count drifts when an addition by hand
    /// fails.
    drift: Option<i128>,
    verified: Instant,
}

impl HaproxyMap {
    /// The map with this name in the HAProxy behind `socket`.
    pub fn new(socket: Socket, map: MapName, verify_interval: Duration) -> Self {
        Self { socket, map, verify_interval, link: None, version: None, drift: None, verified: Instant::now() }
    }

    fn link(&mut self) -> Result<&mut Link, LinkError> {
        self.link.as_mut().ok_or(LinkError::Closed)
    }

    /// How many more entries HAProxy counts than were sent.
    async fn count(&mut self, sent: Digest) -> Result<i128, LinkError> {
        let map = self.map.clone();
        let link = self.link()?;
        let mut counted = None;
        link.send(SHOW_MAPS).await?;
        link.each_line(|line| counted = counted.or_else(|| map.count(line))).await?;
        let counted = counted.ok_or(Refusal::UnknownMap)?;
        Ok(i128::from(counted) - i128::from(sent.entries))
    }

    /// Compares the whole content with what was sent.
    async fn verify(&mut self, sent: Digest) -> Result<Comparison, LinkError> {
        let mut found = Digest::default();
        let show = self.map.show();
        let link = self.link()?;
        link.send(&show).await?;
        link.each_line(|line| match entry(line) {
            Some((target, value)) => found.add(target, value),
            None => found.add_foreign(),
        })
        .await?;
        if found == sent {
            return Ok(Comparison::Verified);
        }
        let map = &self.map;
        let (sent, found) = (sent.entries, found.entries);
        Ok(Comparison::Differs(format!(
            "something else changed the map {map}: {sent} entries were sent, {found} are there"
        )))
    }
}

impl Place for HaproxyMap {
    type Error = LinkError;

    async fn open(&mut self) -> Result<Traits, LinkError> {
        self.link = None;
        let mut link = Link::open(&self.socket).await?;
        let process = link.info().await?;
        info!(socket = %self.socket, version = process.version, process = process.pid, "connected to HAProxy");
        self.link = Some(link);
        Ok(Traits { form: Form::LongestPrefix, slow: process.scans_maps(), expires: false })
    }

    /// HAProxy discards a version that is never committed when a later one is.
    async fn begin(&mut self, _allowlist: &Allowlist) -> Result<(), LinkError> {
        let prepare = self.map.prepare();
        match self.link()?.execute(&prepare).await? {
            Reply::NewVersion(version) => self.version = Some(version),
            other => return Err(Refusal::Other(format!("expected a version, got {other:?}")).into()),
        }
        Ok(())
    }

    async fn fill(&mut self, page: Vec<(Target, u32)>) -> Result<(), LinkError> {
        let version = self.version.ok_or(LinkError::Closed)?;
        let commands = self.map.add(Some(version), &page);
        let link = self.link()?;
        for command in commands {
            link.execute(&command).await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), LinkError> {
        let Some(version) = self.version.take() else { return Ok(()) };
        let commit = self.map.commit(version);
        self.link()?.execute_slowly(&commit).await?;
        (self.drift, self.verified) = (None, Instant::now());
        Ok(())
    }

    async fn change(&mut self, changes: Vec<Change>) -> Result<(), LinkError> {
        let mut added = Vec::new();
        let mut commands = Vec::new();
        for change in changes {
            match change {
                Change::Add(target, value) => added.push((target, value)),
                Change::Set(target, value) => commands.push(self.map.set(target, value)),
                Change::Remove(target) => commands.push(self.map.remove(target)),
            }
        }
        commands.extend(self.map.add(None, &added));
        let link = self.link()?;
        link.send(&commands.concat()).await?;
        for _ in 0..commands.len() {
            if let Reply::Refused(refusal) = Reply::read(&link.answer().await?) {
                return Err(refusal.into());
            }
        }
        Ok(())
    }

    /// Checks that HAProxy is still the same process and has the expected number of entries, and regularly compares all of them.
    async fn look(&mut self, sent: Sent<'_>) -> Result<Comparison, LinkError> {
        self.link()?.info().await?;
        let counted = self.count(sent.digest()).await?;
        let expected = *self.drift.get_or_insert(counted);
        if counted == expected && self.verified.elapsed() < self.verify_interval {
            return Ok(Comparison::Unchanged);
        }
        (self.drift, self.verified) = (Some(counted), Instant::now());
        self.verify(sent.digest()).await
    }
}

impl PlaceError for LinkError {
    fn kind(&self) -> &'static str {
        Self::kind(self)
    }

    fn is_expected(&self) -> bool {
        matches!(self, Self::Stopping)
    }
}
