//! Finds mistakes in a configuration of Envoy (YAML) that asks for verdicts by `ext_authz`. No I/O.

use super::subject::{Findings, Source, common};
use super::tree::{Document, Item};
use banmesh_haproxy::Finding;
use banmesh_haproxy::document::Place;

const FILTER: &str = "ext_authz.v3.ExtAuthz";
const ROUTER: &str = "router.v3.Router";

/// Checks the files. `ports` are those of the endpoint.
pub(super) fn check(sources: &[Source], ports: &[u16]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut documents = Vec::new();
    for source in sources {
        match Document::parse(source) {
            Ok(document) => documents.push(document),
            Err((place, problem)) => findings.error(place, "unreadable", problem, "give the configuration as YAML"),
        }
    }
    let mut all = Vec::new();
    documents.iter().for_each(|document| document.root().walk(&mut |item| all.push(item)));
    let first = documents.first().map_or_else(|| Place { file: "-".into(), line: 1 }, |one| one.root().place());
    let filters: Vec<Item<'_>> = all.iter().filter(|item| is_type(**item, FILTER)).copied().collect();
    if filters.is_empty() {
        common::no_check(&mut findings, first, "there is no filter ext_authz", "envoy");
        return findings.finish();
    }
    let mut ours = 0;
    for filter in filters {
        let Some(asked) = cluster_of(filter).and_then(|name| cluster(&all, name)) else { continue };
        let goes_to_us = |cluster: Item<'_>| ports_of(cluster).iter().any(|port| ports.contains(port));
        // Directly, or through a listener of Envoy's own, whose route can retry.
        let (route, nodes) = if goes_to_us(asked) {
            (None, asked)
        } else if let Some(found) = through(&all, asked).filter(|(_, nodes)| goes_to_us(*nodes)) {
            (Some(found.0), found.1)
        } else {
            continue;
        };
        ours += 1;
        let grpc = filter.get("grpc_service").is_some();
        check_filter(filter, appends_client(&all, filter), &mut findings);
        check_http2(asked, grpc, &mut findings);
        check_nodes(filter, route, nodes, grpc, &mut findings);
    }
    if ours == 0 {
        common::other_port(&mut findings, first, ports);
        return findings.finish();
    }
    for list in all.iter().filter_map(|item| item.get("http_filters")) {
        let at =
            |of: &str| list.items().position(|one| one.get("typed_config").is_some_and(|config| is_type(config, of)));
        if let (Some(router), Some(authz)) = (at(ROUTER), at(FILTER))
            && router < authz
        {
            let problem = "ext_authz comes after the router, so it is never asked";
            findings.error(list.place(), "order", problem, "move it before envoy.filters.http.router");
        }
    }
    for item in all.iter().filter(|item| is_type(**item, "ExtAuthzPerRoute")) {
        if item.get("disabled").is_some_and(Item::is_true) {
            findings.note(item.place(), "switched-off", "bans do not hold on this route", "remove it if they should");
        }
    }
    findings.finish()
}

fn is_type(item: Item<'_>, of: &str) -> bool {
    item.get("@type").and_then(Item::text).is_some_and(|name| name.ends_with(of))
}

/// The name of the cluster that a filter asks.
fn cluster_of(filter: Item<'_>) -> Option<&str> {
    let grpc = filter.at("grpc_service.envoy_grpc.cluster_name");
    grpc.or_else(|| filter.at("http_service.server_uri.cluster")).and_then(Item::text)
}

fn cluster<'a>(all: &[Item<'a>], name: &str) -> Option<Item<'a>> {
    let named =
        |item: &Item<'_>| item.get("name").and_then(Item::text) == Some(name) && item.get("load_assignment").is_some();
    all.iter().copied().find(named)
}

/// The ports of the endpoints of a cluster.
fn ports_of(cluster: Item<'_>) -> Vec<u16> {
    let mut ports = Vec::new();
    if let Some(assignment) = cluster.get("load_assignment") {
        assignment.walk(&mut |item| ports.extend(item.at("socket_address.port_value").and_then(Item::port)));
    }
    ports
}

/// The route and the cluster of the listener that `asked` connects to.
fn through<'a>(all: &[Item<'a>], asked: Item<'_>) -> Option<(Item<'a>, Item<'a>)> {
    let ports = ports_of(asked);
    let is_asked = |item: &&Item<'_>| {
        let port = item.at("address.socket_address.port_value").and_then(Item::port);
        item.get("filter_chains").is_some() && port.is_some_and(|port| ports.contains(&port))
    };
    let mut route = None;
    all.iter().find(is_asked)?.walk(&mut |item| {
        if let (None, Some(name)) = (route, item.at("route.cluster").and_then(Item::text)) {
            route = item.get("route").map(|route| (route, name));
        }
    });
    let (route, name) = route?;
    Some((route, cluster(all, name)?))
}

/// Whether the last address in X-Forwarded-For is always that of the peer when `filter` sees a request.
fn appends_client(all: &[Item<'_>], filter: Item<'_>) -> bool {
    let is_in = |item: &Item<'_>| {
        let mut filters = item.get("http_filters").into_iter().flat_map(Item::items);
        filters.any(|one| one.get("typed_config").is_some_and(|config| config.place() == filter.place()))
    };
    all.iter().any(|item| item.get("use_remote_address").is_some_and(Item::is_true) && is_in(item))
}

fn check_filter(filter: Item<'_>, appends_client: bool, findings: &mut Findings) {
    let place = filter.place();
    if !filter.get("failure_mode_allow").is_some_and(Item::is_true) {
        common::fails_closed(findings, place.clone(), "to let them pass, write `failure_mode_allow: true`");
    }
    if let Some(grpc) = filter.get("grpc_service") {
        if filter.get("transport_api_version").and_then(Item::text) != Some("V3") {
            let problem = "Envoy refuses ext_authz without `transport_api_version: V3`";
            findings.error(place.clone(), "api-version", problem, "write `transport_api_version: V3` into the filter");
        }
        if grpc.get("timeout").is_none() {
            common::no_timeout(findings, grpc.place(), "timeout is not set", "write `timeout: 0.4s` into grpc_service");
        }
        return;
    }
    let Some(http) = filter.get("http_service") else { return };
    const FIX: &str = "write `authorization_request: { headers_to_add: [{ key: x-forwarded-for, value: \
                       \"%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%\" }] }` into http_service";
    let added =
        http.at("authorization_request.headers_to_add").into_iter().flat_map(Item::items).find(|one| {
            one.get("key").and_then(Item::text).is_some_and(|key| key.eq_ignore_ascii_case("x-forwarded-for"))
        });
    let mut passed_on = false;
    for path in ["allowed_headers", "authorization_request.allowed_headers"] {
        if let Some(allowed) = [filter, http].iter().find_map(|from| from.at(path)) {
            allowed.walk(&mut |item| {
                passed_on |= item.text().is_some_and(|text| text.eq_ignore_ascii_case("x-forwarded-for"));
            });
        }
    }
    match added.map(|one| (one, one.get("value").and_then(Item::text).unwrap_or_default())) {
        Some((one, value)) if value.contains("REQ(") => {
            common::client_chooses(
                findings,
                one.place(),
                &format!("X-Forwarded-For is {value}, which the client sends"),
                FIX,
            );
        }
        Some(_) => {}
        None if passed_on && appends_client => {}
        None if passed_on => {
            let why = "X-Forwarded-For is the client's own, unless use_remote_address is true";
            common::client_chooses(findings, http.place(), why, FIX);
        }
        None => common::unnamed(findings, http.place(), "X-Forwarded-For is not sent", FIX),
    }
}

fn check_http2(cluster: Item<'_>, grpc: bool, findings: &mut Findings) {
    let mut http2 = false;
    cluster.walk(&mut |item| http2 |= item.get("http2_protocol_options").is_some());
    if grpc && !http2 {
        findings.error(
            cluster.place(),
            "no-http2",
            "gRPC needs HTTP/2, and the cluster does not have http2_protocol_options, so no question is answered",
            "add the `typed_extension_protocol_options` that `banmesh envoy config` prints",
        );
    }
}

/// Checks the cluster of the nodes, and the route to it if there is one.
fn check_nodes(filter: Item<'_>, route: Option<Item<'_>>, nodes: Item<'_>, grpc: bool, findings: &mut Findings) {
    check_http2(nodes, grpc, findings);
    if ports_of(nodes).len() < 2 {
        common::one_node(findings, nodes.place(), "add another node to the endpoints, with `priority: 1`");
        return;
    }
    if nodes.get("health_checks").is_none() {
        let problem = "without health_checks, Envoy goes on asking a node that is down";
        let fix = "add the `health_checks` that `banmesh envoy config` prints";
        findings.warning(nodes.place(), "no-health-check", problem, fix);
    }
    if route.is_none_or(|route| route.get("retry_policy").is_none()) {
        findings.warning(
            filter.place(),
            "no-retry",
            "a question to a node that is down is not asked again at the next one: ext_authz itself ignores a retry_policy for gRPC",
            "let the questions take a way through Envoy, as `banmesh envoy config` prints it",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proxy::subject::tests::{codes, source};

    fn check_text(text: &str) -> Vec<String> {
        codes(&check(&[source(text)], &[8889]))
    }

    const GOOD: &str = "http_filters:
- name: a
  typed_config:
    '@type': type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
    failure_mode_allow: true
    transport_api_version: V3
    grpc_service: {timeout: 0.4s, envoy_grpc: {cluster_name: b}}
- {name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
listeners:
- address: {socket_address: {port_value: 5}}
  filter_chains: [{routes: [{route: {cluster: c, retry_policy: {num_retries: 2}}}]}]
clusters:
- name: b
  http2_protocol_options: {}
  load_assignment: {endpoints: [{address: {socket_address: {port_value: 5}}}]}
- name: c
  health_checks: []
  typed: {http2_protocol_options: {}}
  load_assignment: {endpoints: [{address: {socket_address: {port_value: 8889}}}, {address: {socket_address: {port_value: 1}}}]}
";
    const HTTP: &str = "    http_service: {server_uri: {cluster: b}, authorization_request: {headers_to_add: [{key: x-forwarded-for, value: '%X%'}]}}";

    #[test]
    fn a_good_configuration_has_no_findings() {
        assert_eq!(check_text(GOOD), [""; 0]);
        let grpc = "    grpc_service: {timeout: 0.4s, envoy_grpc: {cluster_name: b}}";
        assert_eq!(check_text(&GOOD.replace(grpc, HTTP)), [""; 0]);
    }

    #[test]
    fn each_trap_is_found() {
        for (from, to, expected) in [
            ("failure_mode_allow: true", "failure_mode_allow: false", "4 fails-closed"),
            ("transport_api_version: V3", "transport_api_version: V2", "4 api-version"),
            ("timeout: 0.4s, ", "", "7 no-timeout"),
            (", retry_policy: {num_retries: 2}", "", "4 no-retry"),
            ("  http2_protocol_options: {}\n  load", "  load", "13 no-http2"),
            ("typed: {http2_protocol_options: {}}", "x: 1", "16 no-http2"),
            ("health_checks: []", "x: 1", "16 no-health-check"),
            (", {address: {socket_address: {port_value: 1}}}", "", "16 one-node"),
            ("cluster_name: b}", "cluster_name: c}", "4 no-retry"),
            ("port_value: 8889", "port_value: 2", "1 other-port"),
            ("ext_authz.v3", "rbac.v3", "1 no-check"),
        ] {
            assert_eq!(check_text(&GOOD.replace(from, to)), [expected], "{from} -> {to}");
        }
        let late = GOOD
            .replace("http_filters:\n", "http_filters:\n- {name: r, typed_config: {'@type': x/router.v3.Router}}\n");
        assert_eq!(check_text(&late), ["2 order"]);
    }

    #[test]
    fn an_http_service_must_name_the_client() {
        let grpc = "    grpc_service: {timeout: 0.4s, envoy_grpc: {cluster_name: b}}";
        let http = GOOD.replace(grpc, HTTP);
        let add = ", authorization_request: {headers_to_add: [{key: x-forwarded-for, value: '%X%'}]}";
        assert_eq!(check_text(&http.replace(add, "")), ["7 unnamed"]);
        assert_eq!(check_text(&http.replace("%X%", "%REQ(X-Forwarded-For)%")), ["7 client-chooses"]);
        let allowed = http
            .replace(add, "")
            .replace("    failure", "    allowed_headers: {patterns: [{exact: X-Forwarded-For}]}\n    failure");
        assert_eq!(check_text(&allowed), ["8 client-chooses"]);
        assert_eq!(check_text(&allowed.replace("http_filters:", "use_remote_address: true\nhttp_filters:")), [""; 0]);
    }
}
