//! Where the verdict endpoint listens, and settings of it that protect nothing.

use std::net::SocketAddr;

use super::consistency::Report;
use super::sections::Config;
use banmesh_types::target::Target;

/// The sockets of the verdict endpoint, each with the key of its address.
pub fn sockets(config: &Config) -> Vec<(&'static str, SocketAddr)> {
    let all = [
        (config.verdict.enabled, "verdict.address", config.verdict.address),
        (config.nginx.enabled, "nginx.port", config.nginx.listen()),
        (config.envoy.enabled, "envoy.port", config.envoy.listen()),
    ];
    all.into_iter().filter(|(on, ..)| *on).map(|(_, key, address)| (key, address)).collect()
}

/// Adds the warnings about the verdict endpoint.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    for (section, enabled) in [("nginx", config.nginx.enabled), ("envoy", config.envoy.enabled)] {
        if !enabled && let Some((first, _)) = report.origins.first_of_section(section) {
            let first = first.to_owned();
            report.warn(&[&first], format!("without effect, because {section}.enabled is false; remove the section"));
        }
    }
    let sockets = sockets(config);
    let trusted = &config.verdict.trusted_proxies;
    if let Some(wide) = trusted.iter().find(|proxy| proxy.prefix() == 0) {
        report.warn(
            &["verdict.trusted_proxies"],
            format!(
                "{wide} lets any client choose its address in X-Forwarded-For and so pass a ban; list only the proxies"
            ),
        );
    }
    let is_local = |target: &Target| target.address().is_loopback();
    for (key, address) in sockets.iter().filter(|(_, address)| !address.ip().is_loopback()) {
        if trusted.iter().all(is_local) {
            report.warn(
                &["verdict.trusted_proxies", key],
                format!(
                    "the endpoint listens on {address}, but no proxy on another host is trusted, so all clients of such a proxy pass; list \
                     the proxies in verdict.trusted_proxies, or listen on loopback"
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::resolve;

    fn warnings(yaml: &str) -> Vec<String> {
        let loaded = resolve(Some((std::path::Path::new("c.yaml"), yaml.as_bytes())), []).unwrap();
        let about = |key: &str| ["verdict", "nginx", "envoy"].iter().any(|section| key.starts_with(section));
        loaded.warnings.iter().filter(|problem| about(&problem.key)).map(ToString::to_string).collect()
    }

    #[test]
    fn proxies_whose_clients_would_all_pass_are_a_warning() {
        for open in
            ["verdict: {enabled: true, address: '0.0.0.0:8889'}\n", "envoy: {enabled: true, address: 192.0.2.1}\n"]
        {
            let found = warnings(open);
            assert!(found.len() == 1 && found[0].contains("verdict.trusted_proxies"), "{found:?}");
        }
        for fine in [
            "",
            "verdict: {enabled: true}\n",
            "nginx: {enabled: true}\n",
            "verdict: {enabled: true, address: '0.0.0.0:8889', trusted_proxies: [127.0.0.1, 192.0.2.0/24]}\n",
        ] {
            assert_eq!(warnings(fine), [""; 0], "{fine}");
        }
        let found = warnings("verdict: {enabled: true, trusted_proxies: ['::/0']}\n");
        assert!(found.len() == 1 && found[0].contains("choose its address"), "{found:?}");
    }
}
