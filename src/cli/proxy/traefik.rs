//! Finds mistakes in Traefik's static and dynamic configuration (YAML) that asks for verdicts by `forwardAuth`. No I/O.

use super::subject::{Findings, Source, common, port};
use super::tree::{Document, Item};
use banmesh_haproxy::Finding;
use banmesh_haproxy::document::Place;

/// Checks the files together: the entry points are in another file than the middlewares. `ports` are those of the endpoint.
pub(super) fn check(sources: &[Source], ports: &[u16]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut documents = Vec::new();
    for source in sources {
        match Document::parse(source) {
            Ok(document) => documents.push(document),
            Err((place, problem)) => findings.error(place, "unreadable", problem, "give the configuration as YAML"),
        }
    }
    let roots: Vec<Item<'_>> = documents.iter().map(Document::root).collect();
    let every = |path: &str| -> Vec<(&str, Item<'_>)> {
        roots.iter().filter_map(|root| root.at(path)).flat_map(Item::entries).collect()
    };
    let (entry_points, middlewares) = (every("entryPoints"), every("http.middlewares"));
    let (routers, services) = (every("http.routers"), every("http.services"));
    let asking: Vec<(&str, Item<'_>)> =
        middlewares.iter().filter_map(|(name, one)| Some((*name, one.get("forwardAuth")?))).collect();
    let first = roots.first().map_or_else(|| Place { file: "-".into(), line: 1 }, |root| root.place());
    if asking.is_empty() {
        common::no_check(&mut findings, first, "there is no middleware with forwardAuth", "traefik");
        return findings.finish();
    }
    let inner: Vec<(&str, u16)> = entry_points
        .iter()
        .filter_map(|(name, one)| Some((*name, port(one.get("address")?.text()?.trim_end_matches("/tcp"))?)))
        .collect();
    // Of several services with nodes, the one that comes first when they are asked.
    let with_nodes = services.iter().filter(|(_, one)| nodes(*one).any(|port| ports.contains(&port)));
    let to_us = with_nodes.max_by_key(|(name, _)| chain(&services, name).nodes).copied();
    let mut ours = 0;
    for (name, auth) in &asking {
        let address = auth.get("address");
        let asked = address.and_then(|address| port(address.text()?));
        let is_direct = asked.is_some_and(|port| ports.contains(&port));
        let is_loop = inner.iter().any(|(_, port)| asked == Some(*port)) && to_us.is_some();
        if !is_direct && !is_loop {
            continue;
        }
        ours += 1;
        if let Some(trust) = auth.get("trustForwardHeader").filter(|trust| trust.is_true()) {
            let why = "with trustForwardHeader, Traefik passes on the client's own X-Forwarded-For";
            let fix = "remove it; list load balancers in forwardedHeaders.trustedIPs of the entry point";
            common::client_chooses(&mut findings, trust.place(), why, fix);
        }
        if is_direct {
            const FIX: &str = "let the questions take a way through Traefik, as `banmesh traefik config` prints it";
            let why = "forwardAuth has a timeout of 30 s, which cannot be changed";
            common::no_timeout(&mut findings, auth.place(), why, FIX);
            common::fails_closed(&mut findings, auth.place(), FIX);
            common::one_node(&mut findings, auth.place(), FIX);
        }
        let uses = |router: &Item<'_>| {
            let listed = router
                .get("middlewares")
                .into_iter()
                .flat_map(Item::items)
                .filter_map(Item::text)
                .any(|used| used.split('@').next() == Some(*name));
            listed || middlewares.iter().any(|(_, one)| one.at("chain.middlewares").is_some())
        };
        let by_entry_point = entry_points.iter().any(|(_, one)| one.at("http.middlewares").is_some());
        if !by_entry_point && !routers.iter().any(|(_, router)| uses(router)) {
            let problem = format!("no router here uses the middleware {name}");
            findings.warning(auth.place(), "unused", problem, format!("add `middlewares: [{name}]` to your routers"));
        }
    }
    if ours == 0 {
        common::other_port(&mut findings, first, ports);
        return findings.finish();
    }
    if let Some((name, service)) = to_us {
        balancing(&roots, &services, &routers, name, service, &mut findings);
    }
    for (name, one) in &entry_points {
        if let Some(insecure) = one.at("forwardedHeaders.insecure").filter(|insecure| insecure.is_true()) {
            let why = format!("the entry point {name} trusts the X-Forwarded-For of every client");
            common::client_chooses(
                &mut findings,
                insecure.place(),
                &why,
                "list only your load balancers in trustedIPs",
            );
        }
    }
    findings.finish()
}

/// The ports of the servers of a service.
fn nodes(service: Item<'_>) -> impl Iterator<Item = u16> {
    let servers = service.at("loadBalancer.servers").into_iter().flat_map(Item::items);
    servers.filter_map(|server| port(server.get("url")?.text()?))
}

/// Checks the service whose servers are nodes.
fn balancing(
    roots: &[Item<'_>],
    services: &[(&str, Item<'_>)],
    routers: &[(&str, Item<'_>)],
    name: &str,
    service: Item<'_>,
    findings: &mut Findings,
) {
    let place = service.place();
    let transport = service.at("loadBalancer.serversTransport").and_then(Item::text);
    let timeouts = transport.and_then(|transport| {
        let name = transport.split('@').next().unwrap_or_default();
        roots.iter().find_map(|root| root.at("http.serversTransports")?.get(name)?.get("forwardingTimeouts"))
    });
    for key in ["dialTimeout", "responseHeaderTimeout"] {
        if timeouts.and_then(|timeouts| timeouts.get(key)).is_none() {
            let fix = "add a serversTransport with forwardingTimeouts, as `banmesh traefik config` prints it";
            common::no_timeout(findings, place.clone(), &format!("{key} is not set"), fix);
        }
    }
    if service.at("loadBalancer.healthCheck").is_none() {
        let problem = "without a healthCheck, Traefik goes on asking a node that is down";
        let fix = "add `healthCheck: { path: /api/health, interval: 1s, timeout: 500ms }`";
        findings.warning(place.clone(), "no-health-check", problem, fix);
    }
    let chain = chain(services, name);
    if chain.nodes < 2 {
        common::one_node(findings, place.clone(), "add another node, as `banmesh traefik config --backup` prints it");
    }
    if !chain.opens {
        const FIX: &str = "to let them pass, add the failover to ping@internal that `banmesh traefik config` prints";
        common::fails_closed(findings, place.clone(), FIX);
    }
    let retries = routers.iter().any(|(_, router)| {
        let used = router.get("middlewares").into_iter().flat_map(Item::items).filter_map(Item::text);
        used.map(|used| used.split('@').next().unwrap_or_default()).any(|used| {
            roots
                .iter()
                .any(|root| root.at("http.middlewares").is_some_and(|all| all.at(&format!("{used}.retry")).is_some()))
        })
    });
    if chain.nodes > 1 && !chain.by_answer && !retries {
        let problem =
            "until a health check notices that a node is down, questions to it are not asked again at the next one";
        let fix = "add `errors: { status: [\"500-599\"] }` to the failover, as `banmesh traefik config` prints it";
        findings.warning(place, "no-retry", problem, fix);
    }
}

/// What follows when a service with nodes does not answer.
struct Chain {
    /// All nodes that may be asked.
    nodes: usize,
    /// Whether a service of Traefik answers in the end.
    opens: bool,
    /// Whether an answer such as 502 leads to the next service, and not only a health check.
    by_answer: bool,
}

fn chain(services: &[(&str, Item<'_>)], first: &str) -> Chain {
    let named = |name: &str| services.iter().find(|(other, _)| *other == name).map(|(_, one)| *one);
    let mut chain = Chain { nodes: named(first).map_or(0, |one| nodes(one).count()), opens: false, by_answer: false };
    let uses =
        |name: &str| services.iter().find(|(_, one)| one.at("failover.service").and_then(Item::text) == Some(name));
    let mut failover = uses(first).map(|(_, one)| *one);
    // A chain that goes in circles ends here.
    for _ in 0..16 {
        let Some(one) = failover.take() else { break };
        chain.by_answer |= one.at("failover.errors").is_some();
        let Some(fallback) = one.at("failover.fallback").and_then(Item::text) else { break };
        chain.opens |= fallback.ends_with("@internal");
        let Some(next) = named(fallback.split('@').next().unwrap_or_default()) else { break };
        let inner = next.at("failover.service").and_then(Item::text).and_then(named).unwrap_or(next);
        chain.nodes += nodes(inner).count();
        failover = next.get("failover").map(|_| next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proxy::subject::tests::{codes, source};

    fn check_text(text: &str) -> Vec<String> {
        codes(&check(&[source(text)], &[8889]))
    }

    const GOOD: &str = "entryPoints:
  web: {address: ':80'}
  verdict: {address: '127.0.0.1:8890', forwardedHeaders: {trustedIPs: [127.0.0.1/32]}}
http:
  middlewares:
    banmesh: {forwardAuth: {address: 'http://127.0.0.1:8890/api/v1/verdict'}}
  routers:
    site: {entryPoints: [web], middlewares: [banmesh], service: app}
    verdict: {entryPoints: [verdict], service: ask}
  serversTransports:
    quick: {forwardingTimeouts: {dialTimeout: 1s, responseHeaderTimeout: 1s}}
  services:
    ask: {failover: {service: nodes, fallback: second, errors: {status: [500-599]}}}
    second: {failover: {service: other, fallback: ping@internal}}
    other: {loadBalancer: {servers: [{url: 'http://192.0.2.1:8889'}]}}
    nodes: {loadBalancer: {serversTransport: quick, servers: [{url: 'http://127.0.0.1:8889'}], healthCheck: {path: /api/health}}}
";

    #[test]
    fn a_good_configuration_has_no_findings() {
        assert_eq!(check_text(GOOD), [""; 0]);
    }

    #[test]
    fn each_trap_is_found() {
        for (from, to, expected) in [
            ("/api/v1/verdict'", "/api/v1/verdict', trustForwardHeader: true", &["6 client-chooses"][..]),
            ("':80'", "':80', forwardedHeaders: {insecure: true}", &["2 client-chooses"]),
            ("responseHeaderTimeout: 1s", "idleConnTimeout: 1s", &["16 no-timeout"]),
            (", healthCheck: {path: /api/health}", "", &["16 no-health-check"]),
            ("fallback: second", "fallback: ping@internal", &["16 one-node"]),
            ("fallback: ping@internal", "fallback: other", &["16 fails-closed"]),
            (", errors: {status: [500-599]}", "", &["16 no-retry"]),
            ("fallback: ping@internal", "fallback: ask", &["16 fails-closed"]),
            ("middlewares: [banmesh], ", "", &["6 unused"]),
            ("forwardAuth", "basicAuth", &["1 no-check"]),
            (":8889", ":8887", &["1 other-port"]),
            ("http:\n", "http: [\n", &["1 no-check", "6 unreadable"]),
        ] {
            assert_eq!(check_text(&GOOD.replace(from, to)), expected, "{from} -> {to}");
        }
        let direct = check_text(&GOOD.replace("127.0.0.1:8890/", "127.0.0.1:8889/"));
        assert_eq!(direct, ["6 no-timeout", "6 fails-closed", "6 one-node"]);
    }
}
