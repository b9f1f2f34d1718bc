//! The inputs: syslog, files, and the systemd journal. They share the filters and the counters of lines.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use prometheus_client::registry::Registry;
use tracing::{debug, info};

use super::settings;
use super::shutdown::Stage;
use super::start_error::StartError;
use super::supervisor::{Part, Supervisor};
use crate::config::Config;
use crate::inputs::detect::FilterSink;
use crate::inputs::files::{self, Files};
use crate::inputs::journald::{self, Journald};
use crate::inputs::syslog::{self, Syslog};
use crate::net::tls::TlsServer;

/// All inputs, with their listeners bound.
#[derive(Debug)]
pub(super) struct Inputs {
    lines: syslog::Metrics,
    syslog: Vec<Syslog<FilterSink>>,
    tls: Option<TlsServer>,
    files: Option<Files<FilterSink>>,
    journal: Option<Journald<FilterSink>>,
}

impl Inputs {
    /// Opens the inputs of `config`.
    pub(super) fn bind(config: &Config, sink: &FilterSink, registry: &mut Registry) -> Result<Self, StartError> {
        let lines = syslog::Metrics::default();
        lines.register(registry);
        let mut syslog = if config.syslog.enabled { bind_syslog(config, sink, &lines)? } else { Vec::new() };
        let mut tls = None;
        if let Some((settings, files)) = settings::syslog_tls(config) {
            let server = tls.insert(TlsServer::load(files)?).clone();
            let client_certificates = server.asks_for_certificates();
            let listener = Syslog::bind_tls(&settings, server, sink.clone(), &lines)?;
            if let Some(address) = listener.tls_address() {
                info!(%address, client_certificates, "listening for syslog over TLS");
            }
            syslog.push(listener);
        }
        Ok(Self {
            lines: lines.clone(),
            syslog,
            tls,
            files: open_files(config, sink, &lines, registry),
            journal: bind_journal(config, sink, &lines, registry)?,
        })
    }

    /// The TLS servers whose certificates a reload replaces.
    pub(super) fn tls(&self) -> Vec<TlsServer> {
        self.tls.clone().into_iter().collect()
    }

    /// The counters of lines.
    pub(super) fn line_metrics(&self) -> syslog::Metrics {
        self.lines.clone()
    }

    /// The counters of followed files, if there are any.
    pub(super) fn file_metrics(&self) -> Option<files::Metrics> {
        self.files.as_ref().map(|files| files.metrics().clone())
    }

    /// Starts all inputs.
    pub(super) fn start(self, supervisor: &mut Supervisor) {
        let end = supervisor.end_of(Stage::Inputs);
        let mut names = HashSet::new();
        for (transport, part) in self.syslog.into_iter().flat_map(|syslog| syslog.parts(&end)) {
            // The second listener of a transport is the one on the IPv6 loopback address.
            let second = if names.insert(transport) { "" } else { " [::1]" };
            supervisor.run(Part::new(format!("syslog {}{second}", transport.as_str()), Stage::Inputs), part);
        }
        if let Some(files) = self.files {
            supervisor.run(Part::new("files", Stage::Inputs), files.serve(end.clone()));
        }
        if let Some(journal) = self.journal {
            supervisor.run(Part::new("journald", Stage::Inputs), journal.serve(end));
        }
    }
}

/// Usually one listener. For the IPv4 loopback address there is a second one on the IPv6 loopback address, because senders
/// resolve `localhost` to either, and UDP to the wrong one is lost silently.
fn bind_syslog(
    config: &Config,
    sink: &FilterSink,
    metrics: &syslog::Metrics,
) -> Result<Vec<Syslog<FilterSink>>, StartError> {
    let settings = settings::syslog(config);
    let mut listeners = vec![Syslog::bind(&settings, sink.clone(), metrics)?];
    if settings.address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) && settings.address.port() != 0 {
        let address = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), settings.address.port());
        let settings = syslog::SyslogConfig { address, ..settings };
        match Syslog::bind(&settings, sink.clone(), metrics) {
            Ok(listener) => listeners.push(listener),
            // No IPv6 on this machine, or another program has the port.
            Err(reason) => debug!(%reason, "not listening on the IPv6 loopback address"),
        }
    }
    for listener in &listeners {
        for (protocol, address) in [("udp", listener.udp_address()), ("tcp", listener.tcp_address())] {
            if let Some(address) = address {
                info!(%address, protocol, "listening for syslog");
            }
        }
    }
    Ok(listeners)
}

fn open_files(
    config: &Config,
    sink: &FilterSink,
    lines: &syslog::Metrics,
    registry: &mut Registry,
) -> Option<Files<FilterSink>> {
    let settings = settings::files(config);
    if settings.patterns.is_empty() {
        return None;
    }
    let metrics = files::Metrics::default();
    metrics.register(registry);
    Some(Files::open(settings, sink.clone(), lines, metrics))
}

fn bind_journal(
    config: &Config,
    sink: &FilterSink,
    lines: &syslog::Metrics,
    registry: &mut Registry,
) -> Result<Option<Journald<FilterSink>>, StartError> {
    if !config.inputs.journal.enabled {
        return Ok(None);
    }
    let metrics = journald::Metrics::default();
    metrics.register(registry);
    Ok(Some(Journald::bind(settings::journald(config), sink.clone(), lines, metrics)?))
}
