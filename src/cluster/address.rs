//! The address that a node listens on, and the one that it advertises.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::settings::ClusterSettings;
use crate::net::network::{Datagrams, Listener, Network};

/// Why `cluster.listen` failed.
#[derive(Debug, thiserror::Error)]
#[error("cluster.listen: cannot listen on {address} on both UDP and TCP: {source}")]
pub struct BindError {
    /// As configured.
    pub address: SocketAddr,
    /// The error of the system.
    pub source: io::Error,
}

/// How many ports are tried that are free on TCP but not on UDP.
const TRIES: usize = 32;

/// Listens on `address`, on the same port number on TCP and UDP.
pub(super) async fn bind(
    network: &dyn Network,
    address: SocketAddr,
) -> Result<(Listener, Arc<dyn Datagrams>), BindError> {
    let mut last = None;
    for _ in 0..if address.port() == 0 { TRIES } else { 1 } {
        match network.listen(address).await {
            Ok(sockets) => return Ok(sockets),
            Err(error) => last = Some(error),
        }
    }
    Err(BindError { address, source: last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()) })
}

/// The address to advertise: as configured, or the address that the node listens on if it is specific, or that of the interface
/// that reaches the seeds.
pub(super) async fn advertised(settings: &ClusterSettings, listen: SocketAddr) -> SocketAddr {
    if let Some(mut address) = settings.advertise {
        if address.port() == 0 {
            address.set_port(listen.port());
        }
        return address;
    }
    if !listen.ip().is_unspecified() {
        return listen;
    }
    for seed in &settings.seeds {
        let resolved = tokio::time::timeout(Duration::from_secs(2), settings.network.resolve(seed)).await;
        let Ok(Ok(addresses)) = resolved else { continue };
        for address in addresses {
            if let Some(ip) = settings.network.source_to(address).await {
                return SocketAddr::new(ip, listen.port());
            }
        }
    }
    // Nothing is sent: connecting a datagram socket only looks up the route. The address is reserved for documentation
    // (RFC 5737), so it has the default route.
    let ip = settings.network.source_to(SocketAddr::from(([192, 0, 2, 1], 9))).await;
    SocketAddr::new(ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::network::SystemNetwork;

    fn settings(advertise: Option<&str>, seeds: &[&str]) -> ClusterSettings {
        ClusterSettings {
            advertise: advertise.map(|text| text.parse().unwrap()),
            seeds: seeds.iter().map(ToString::to_string).collect(),
            ..ClusterSettings::new("a".parse().unwrap(), 1)
        }
    }

    #[tokio::test]
    async fn tcp_and_udp_have_the_same_port() {
        let (streams, datagrams) = bind(&SystemNetwork, "127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_eq!(streams.local_addr().unwrap(), datagrams.local_addr().unwrap());
        let error = bind(&SystemNetwork, streams.local_addr().unwrap()).await.unwrap_err();
        assert!(error.to_string().starts_with("cluster.listen: cannot listen on 127.0.0.1:"), "{error}");
    }

    #[tokio::test]
    async fn the_advertised_address_is_the_configured_or_the_one_that_reaches_the_seeds() {
        let any: SocketAddr = "0.0.0.0:7".parse().unwrap();
        let advertised = async |settings, listen| advertised(&settings, listen).await.to_string();
        assert_eq!(advertised(settings(Some("192.0.2.5:0"), &[]), any).await, "192.0.2.5:7");
        assert_eq!(advertised(settings(Some("192.0.2.5:8"), &[]), any).await, "192.0.2.5:8");
        assert_eq!(advertised(settings(None, &[]), "127.0.0.9:7".parse().unwrap()).await, "127.0.0.9:7");
        assert_eq!(advertised(settings(None, &["127.0.0.1:9"]), any).await, "127.0.0.1:7");
    }
}
