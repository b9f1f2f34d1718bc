//! Writes the configuration with which a proxy asks nodes whether its clients are banned. No I/O.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::Proxy;
use banmesh_types::target::Target;

/// What the recipe is for.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub proxy: Proxy,
    /// The nodes to ask, in this order.
    pub nodes: Vec<SocketAddr>,
    /// Whether clients are refused while no node answers.
    pub fail_closed: bool,
    /// The address at which clients reach the proxy.
    pub listen: SocketAddr,
    /// The server behind the proxy.
    pub server: SocketAddr,
    /// Load balancers in front of the proxy.
    pub trusted: Vec<Target>,
    /// Whether Envoy passes on TCP instead of HTTP.
    pub tcp: bool,
    /// Whether Envoy asks over HTTP instead of gRPC.
    pub http: bool,
    /// The inner entry point of Traefik, or the inner listener of Envoy.
    pub inner: SocketAddr,
}

/// The files of the recipe: the name, and the text.
pub(super) fn files(plan: &Plan) -> Vec<(&'static str, String)> {
    match plan.proxy {
        Proxy::Nginx => vec![("banmesh.conf", nginx(plan))],
        Proxy::Caddy => vec![("Caddyfile", caddy(plan))],
        Proxy::Envoy => vec![("envoy.yaml", envoy(plan))],
        Proxy::Traefik => vec![("traefik.yaml", traefik_static(plan)), ("banmesh.yaml", traefik_dynamic(plan))],
    }
}

fn joined(items: impl IntoIterator<Item = String>, between: &str) -> String {
    items.into_iter().collect::<Vec<_>>().join(between)
}

fn nginx(plan: &Plan) -> String {
    let mut servers = String::new();
    for (at, node) in plan.nodes.iter().enumerate() {
        let backup = if at == 0 { "" } else { " backup" };
        let last = at > 0 && at + 1 == plan.nodes.len();
        let fails = if last { "max_fails=0" } else { "max_fails=1 fail_timeout=2s" };
        let _ = writeln!(servers, "    server {node} {fails}{backup};");
    }
    let real_ip: String = plan.trusted.iter().map(|proxy| format!("    set_real_ip_from {proxy};\n")).collect();
    let real_ip = if real_ip.is_empty() {
        real_ip
    } else {
        format!(
            "    # The load balancers in front of nginx name the client.\n{real_ip}    real_ip_header X-Forwarded-For;\n    \
             real_ip_recursive on;\n\n"
        )
    };
    let (intercept, open) = if plan.fail_closed {
        ("        # Without an answer, auth_request refuses the client with 500.\n", "")
    } else {
        (
            "        # Without an answer, the client passes.\n        proxy_intercept_errors on;\n        \
             error_page 400 404 408 429 500 502 503 504 =204 /.banmesh-open;\n",
            "    location = /.banmesh-open {\n        internal;\n        return 204;\n    }\n\n",
        )
    };
    format!(
        "# nginx asks banmesh for each request whether its client is banned. For the context `http`: /etc/nginx/conf.d/banmesh.conf
upstream banmesh {{
    # One slow answer must not make nginx give up the last node, so it has no max_fails.
{servers}    # Without connections that stay open, each request costs five times as much.
    keepalive 64;
}}

server {{
    listen {listen};

{real_ip}    location = /.banmesh {{
        internal;
        proxy_pass http://banmesh/api/v1/verdict;
        proxy_http_version 1.1;
        proxy_set_header Connection \"\";
        # Not what the client sends: it could name somebody else.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Real-IP \"\";
        proxy_set_header Cookie \"\";
        proxy_set_header Authorization \"\";
        # A question has no body, although the request may have one.
        proxy_pass_request_body off;
        proxy_set_header Content-Length \"\";
        proxy_connect_timeout 200ms;
        proxy_send_timeout 200ms;
        proxy_read_timeout 200ms;
        proxy_next_upstream_timeout 400ms;
{intercept}    }}

{open}    location @banned {{
        add_header Retry-After $banmesh_retry always;
        default_type text/plain;
        return 403 \"banned\\n\";
    }}

    location / {{
        auth_request /.banmesh;
        auth_request_set $banmesh_retry $upstream_http_retry_after;
        error_page 403 @banned;
        proxy_pass http://{server};
    }}
}}
",
        listen = plan.listen,
        server = plan.server,
    )
}

fn caddy(plan: &Plan) -> String {
    let nodes = joined(plan.nodes.iter().map(ToString::to_string), " ");
    let (port, server) = (plan.listen.port(), plan.server);
    // An address in the name of a site would be compared with the header Host.
    let bind = if plan.listen.ip().is_unspecified() { String::new() } else { format!("\tbind {}\n", plan.listen.ip()) };
    let trusted = if plan.trusted.is_empty() {
        String::new()
    } else {
        let proxies = joined(plan.trusted.iter().map(ToString::to_string), " ");
        format!(
            "\t\t# The load balancers in front of Caddy name the client. List them in verdict.trusted_proxies, too.\n\
             \t\ttrusted_proxies {proxies}\n"
        )
    };
    let open = if plan.fail_closed {
        String::new()
    } else {
        format!(
            "\t# Without an answer, the client passes. If {server} does not answer, it is asked once more.\n\
             \thandle_errors {{\n\
             \t\t@unanswered expression `{{err.status_code}} in [502, 503, 504]`\n\
             \t\treverse_proxy @unanswered {server}\n\
             \t}}\n"
        )
    };
    format!(
        "# Caddy asks banmesh for each request whether its client is banned.\n\
         http://:{port} {{\n\
         {bind}\
         \tforward_auth {nodes} {{\n\
         \t\turi /api/v1/verdict\n\
         \t\tlb_policy first\n\
         \t\tlb_retries 2\n\
         \t\tfail_duration 2s\n\
         \t\t# One slow answer must not make Caddy give up the last node.\n\
         \t\tmax_fails 2\n\
         {trusted}\
         \t\ttransport http {{\n\
         \t\t\tdial_timeout 200ms\n\
         \t\t\tresponse_header_timeout 200ms\n\
         \t\t}}\n\
         \t}}\n\
         {open}\
         \treverse_proxy {server}\n\
         }}\n"
    )
}

fn traefik_static(plan: &Plan) -> String {
    let trusted = if plan.trusted.is_empty() {
        String::new()
    } else {
        let proxies = joined(plan.trusted.iter().map(|proxy| format!("\"{proxy}\"")), ", ");
        format!(
            "    # The load balancers in front of Traefik name the client. List them in verdict.trusted_proxies, too.\n    \
             forwardedHeaders: {{ trustedIPs: [{proxies}] }}\n"
        )
    };
    format!(
        "# Traefik's static configuration: traefik.yaml\n\
         # Answers instead of the nodes while none of them does.\n\
         ping: {{ manualRouting: true }}\n\
         entryPoints:\n  \
           web:\n    \
             address: \"{listen}\"\n\
         {trusted}  \
           # The questions take this way through Traefik again, because forwardAuth alone has no short timeout and no second node.\n  \
           verdict:\n    \
             address: \"{inner}\"\n    \
             forwardedHeaders: {{ trustedIPs: [\"{inner_ip}/32\"] }}\n\
         providers:\n  \
           file: {{ filename: /etc/traefik/banmesh.yaml }}\n",
        listen = plan.listen,
        inner = plan.inner,
        inner_ip = plan.inner.ip(),
    )
}

/// Each node is a service of its own, because a failover asks the next one at once and in a fixed order; `retry` may choose the same node.
fn traefik_dynamic(plan: &Plan) -> String {
    let (mut chain, mut nodes) = (String::new(), String::new());
    // The service that asks a node and, if there is no answer, what comes after it.
    let asking = |number: usize| {
        let is_last = number >= plan.nodes.len();
        if is_last && plan.fail_closed { format!("node-{number}") } else { format!("ask-{number}") }
    };
    for (number, node) in (1..).zip(&plan.nodes) {
        if asking(number).starts_with("ask") {
            let fallback = if number < plan.nodes.len() {
                asking(number + 1)
            } else {
                chain.push_str("    # Without an answer, the client passes.\n");
                "ping@internal".to_owned()
            };
            let _ = writeln!(
                chain,
                "    ask-{number}: {{ failover: {{ service: node-{number}, fallback: \"{fallback}\", errors: {{ status: [\"500-599\"] }} }} }}"
            );
        }
        let _ = write!(
            nodes,
            "    node-{number}:
      loadBalancer:
        serversTransport: quick
        servers: [{{ url: \"http://{node}\" }}]
        healthCheck: {{ path: /api/health, interval: 1s, timeout: 500ms }}
"
        );
        if number < plan.nodes.len() {
            nodes.push_str("        passiveHealthCheck: { failureWindow: 2s, maxFailedAttempts: 1 }\n");
        }
    }
    format!(
        "# Traefik's dynamic configuration: banmesh.yaml. It needs Traefik 3.7 or newer.
http:
  middlewares:
    banmesh: {{ forwardAuth: {{ address: \"http://{inner}/api/v1/verdict\" }} }}
  routers:
    site: {{ rule: \"PathPrefix(`/`)\", entryPoints: [web], middlewares: [banmesh], service: app }}
    verdict: {{ rule: \"PathPrefix(`/`)\", entryPoints: [verdict], service: {first} }}
  serversTransports:
    quick: {{ forwardingTimeouts: {{ dialTimeout: 200ms, responseHeaderTimeout: 200ms }} }}
  services:
    app: {{ loadBalancer: {{ servers: [{{ url: \"http://{server}\" }}] }} }}
{chain}{nodes}",
        first = asking(1),
        inner = plan.inner,
        server = plan.server,
    )
}

fn endpoint(address: SocketAddr) -> String {
    format!(
        "{{ endpoint: {{ address: {{ socket_address: {{ address: \"{}\", port_value: {} }} }} }} }}",
        address.ip(),
        address.port()
    )
}

/// What both filters have.
fn envoy_check(plan: &Plan, indent: &str) -> String {
    let open = !plan.fail_closed;
    let comment = if open { "the client passes" } else { "the client is refused" };
    let failure = [format!("# Without an answer, {comment}."), format!("failure_mode_allow: {open}")];
    let service = if plan.http {
        vec![
            "# Its last address is the client's, which Envoy itself appended.".to_owned(),
            "allowed_headers: { patterns: [{ exact: x-forwarded-for }] }".to_owned(),
            "http_service:".to_owned(),
            format!("  server_uri: {{ uri: \"http://{}\", cluster: banmesh, timeout: 0.5s }}", plan.inner),
            "  path_prefix: /api/v1/verdict".to_owned(),
        ]
    } else {
        vec![
            "transport_api_version: V3".to_owned(),
            "grpc_service: { timeout: 0.5s, envoy_grpc: { cluster_name: banmesh } }".to_owned(),
        ]
    };
    failure.into_iter().chain(service).map(|line| format!("{indent}{line}\n")).collect()
}

fn envoy_filters(plan: &Plan) -> String {
    if plan.tcp {
        return format!(
            "            - name: envoy.filters.network.ext_authz
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz
                stat_prefix: banmesh
{}            - name: envoy.filters.network.tcp_proxy
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
                stat_prefix: site
                cluster: app
",
            envoy_check(plan, "                ")
        );
    }
    format!(
        "            - name: envoy.filters.network.http_connection_manager
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: site
                # Envoy appends the client's address to X-Forwarded-For.
                use_remote_address: true
                route_config:
                  virtual_hosts:
                    - name: all
                      domains: [\"*\"]
                      routes: [{{ match: {{ prefix: \"/\" }}, route: {{ cluster: app }} }}]
                http_filters:
                  - name: envoy.filters.http.ext_authz
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz
{}                  - name: envoy.filters.http.router
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
",
        envoy_check(plan, "                      ")
    )
}

const HTTP2: &str = "      typed_extension_protocol_options:
        envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
          \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
          explicit_http_config: { http2_protocol_options: {} }
";

fn envoy(plan: &Plan) -> String {
    let trusted = match (plan.trusted.as_slice(), plan.tcp) {
        ([], _) => "",
        (_, false) => {
            "# The load balancers in front of Envoy name the client in X-Forwarded-For: list them in verdict.trusted_proxies.\n"
        }
        (_, true) => {
            "# The load balancers in front of Envoy name the client by the PROXY protocol: see `listener_filters`.\n"
        }
    };
    let proxy_protocol = if plan.tcp && !plan.trusted.is_empty() {
        "      listener_filters:
        - name: envoy.filters.listener.proxy_protocol
          typed_config:
            \"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol
"
    } else {
        ""
    };
    let nodes: String = plan
        .nodes
        .iter()
        .enumerate()
        .map(|(priority, node)| {
            format!("          - {{ priority: {priority}, lb_endpoints: [{}] }}\n", endpoint(*node))
        })
        .collect();
    format!(
        "# Envoy asks banmesh for each {question} whether its client is banned.
{trusted}static_resources:
  listeners:
    - address: {{ socket_address: {{ address: \"{listen_ip}\", port_value: {listen_port} }} }}
{proxy_protocol}      filter_chains:
        - filters:
{filters}    # The questions take this way through Envoy again, because ext_authz alone does not ask a second node.
    - address: {{ socket_address: {{ address: \"{inner_ip}\", port_value: {inner_port} }} }}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
                stat_prefix: questions
                codec_type: {codec}
                route_config:
                  virtual_hosts:
                    - name: nodes
                      domains: [\"*\"]
                      routes:
                        - match: {{ prefix: \"/\" }}
                          route:
                            cluster: nodes
                            timeout: 0.45s
                            retry_policy:
                              retry_on: \"connect-failure,refused-stream,reset,unavailable,5xx\"
                              num_retries: 2
                              per_try_timeout: 0.2s
                              retry_back_off: {{ base_interval: 0.001s, max_interval: 0.002s }}
                              retry_priority:
                                name: envoy.retry_priorities.previous_priorities
                                typed_config:
                                  \"@type\": type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig
                                  update_frequency: 1
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
  clusters:
    - name: app
      type: STATIC
      load_assignment: {{ cluster_name: app, endpoints: [{{ lb_endpoints: [{app}] }}] }}
    - name: banmesh
      type: STATIC
      connect_timeout: 0.2s
{http2}      load_assignment: {{ cluster_name: banmesh, endpoints: [{{ lb_endpoints: [{inner}] }}] }}
    - name: nodes
      type: STATIC
      connect_timeout: 0.2s
{http2}      health_checks:
        - timeout: 0.5s
          interval: 1s
          no_traffic_interval: 1s
          unhealthy_threshold: 1
          healthy_threshold: 1
          http_health_check: {{ path: /api/health, codec_client_type: {codec} }}
      outlier_detection: {{ consecutive_5xx: 3, interval: 1s, base_ejection_time: 1s, max_ejection_percent: 100 }}
      load_assignment:
        cluster_name: nodes
        endpoints:
{nodes}",
        question = if plan.tcp { "connection" } else { "request" },
        codec = if plan.http { "HTTP1" } else { "HTTP2" },
        http2 = if plan.http { "" } else { HTTP2 },
        listen_ip = plan.listen.ip(),
        listen_port = plan.listen.port(),
        inner_ip = plan.inner.ip(),
        inner_port = plan.inner.port(),
        filters = envoy_filters(plan),
        app = endpoint(plan.server),
        inner = endpoint(plan.inner),
    )
}
