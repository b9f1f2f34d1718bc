//! Documents generated from the table of keys: the commented file, the tables in the documentation, and the resolved values
//! with their origins.

use std::fmt::Write;

use super::load::Loaded;
use super::sections::Config;
use super::table::settings;

/// The width to which comments in the file are wrapped.
const WIDTH: usize = 100;

/// Sections with other names for keys of `verdict`. The commented file omits them.
const OTHER_NAMES: [&str; 2] = ["nginx.", "envoy."];

/// The introduction of a section, in the commented file and above its table.
fn heading(section: &str) -> &'static str {
    match section {
        "node" => "This node.",
        "syslog" => "Log lines from the network.",
        "syslog.tls" => "Syslog over TLS (RFC 5425).",
        "inputs" => "Sources of log lines other than syslog.",
        "inputs.journal" => "The systemd journal.",
        "filters" => "The filters, which recognise offences in log lines.",
        "ban" => "When and for how long a source is banned.",
        "spoa" => "The agent that HAProxy queries over SPOP.",
        "spoa.tls" => "SPOP over TLS.",
        "haproxy" => "Mirror mode: banmesh keeps its bans in a map in HAProxy's memory (docs/haproxy.md).",
        "haproxy.peers" => "This node as a peer of HAProxy: bans and limits in stick-tables (docs/rate-limits.md).",
        "dnsbl" => "The bans as a DNS block list (docs/enforcement.md).",
        "policy" => "Postfix's policy delegation (docs/enforcement.md).",
        "auth_policy" => "Dovecot's auth policy (docs/enforcement.md).",
        "cluster" => "The nodes that share bans.",
        "api" => "The HTTP API.",
        "api.basic_auth" => "Names and passwords for the API.",
        "api.tls" => "The API over TLS.",
        "api.rate_limiting" => "The limit on requests per client.",
        "prometheus" => "Metrics for Prometheus.",
        "notifications" => "Webhooks (docs/operations.md).",
        "log" => "The log that banmesh itself writes.",
        "geo" => "Countries and networks (docs/feeds.md).",
        "admin" => "The socket for the command line.",
        "verdict" => "The endpoint that nginx, Traefik, Caddy and Envoy ask (docs/enforcement.md).",
        "nginx" | "envoy" => {
            "Another address of the verdict endpoint, for configurations of WebFail2Ban. Use `verdict` in new ones."
        }
        _ => "",
    }
}

/// Example lines below a key in the commented file.
fn example(key: &str) -> &'static [&'static str] {
    match key {
        "syslog.patterns" => &[
            "#   - name: my-webmail",
            "#     regex: 'webmail: login failed for \\S+ from ([0-9a-fA-F.:]+)$'",
            "#     ip_group: 1",
            "#     severity: 4",
            "#     description: failed webmail login",
        ],
        "filters.<name>" => {
            &["# sshd:", "#   ban: { max_attempts: 3, time_window: 1h }", "#   rules: { early-end: { mode: shadow } }"]
        }
        "syslog.allowed_senders" => &["# allowed_senders: [127.0.0.1, 10.0.0.0/8]"],
        "inputs.files" => &["# files: [/var/log/mail.log, { path: /var/log/nginx/*access.log, program: nginx }]"],
        "inputs.journal.units" => &["# units: [ssh.service, dovecot.service]"],
        "cluster.seeds" => &["# seeds: [\"node1.example.org:12350\", \"node2.example.org:12350\"]"],
        "cluster.sites" => {
            &["# sites: [\"paris@node1.paris.example.org:12350\", \"paris@node2.paris.example.org:12350\"]"]
        }
        "api.basic_auth.users" => &["#   alice: \"her password\""],
        "notifications.webhooks" => &[
            "#   - url: https://chat.example.org/hooks/abc",
            "#     events: [cluster, alarm]",
            "#     template: '{\"text\": \"{{summary}}\"}'",
        ],
        "feeds" => &["#   - spamhaus-drop", "#   - { name: ours, url: https://lists.example.org/bad.txt, weight: 2 }"],
        "geo.rules" => &["#   - { countries: [XX], weight: 2, ban_time: 4 }"],
        "api.users" => &["#   ann: { password_hash: \"$argon2id$v=19$m=19456,t=2,p=1$…\", role: operate }"],
        "api.tokens" => &["#   monitoring: { token_hash: \"sha256:…\", role: read, expires: \"2027-01-31\" }"],
        _ => &[],
    }
}

/// `config/banmesh.yaml`: every key with its default and meaning.
pub fn commented_file() -> String {
    let mut text = String::from(
        "# The configuration of banmesh. It has every key with its default; a key that you omit has the same value.\n\
         #\n\
         # banmesh reads the file that --config names, else ./config.yaml, else /etc/banmesh/config.yaml. An environment\n\
         # variable overrides the file: ban.max_attempts is FAIL2BAN_BAN_MAX_ATTEMPTS. Separate list items by commas.\n\
         # `banmesh check` reports all errors at once; `banmesh check --print` shows every value in force and where it was set.\n\
         # SIGHUP reloads the keys marked [reload]; the others need a restart.\n\
         #\n\
         # Durations: 500ms, 30s, 5m, 24h, 3d, 1h30m. Sizes: 64KiB, 32MiB. Networks: 192.0.2.0/24, 2001:db8::/32, 192.0.2.1.\n",
    );
    let config = Config::default();
    let mut last: Vec<String> = Vec::new();
    for (key, setting) in settings(&config) {
        if OTHER_NAMES.iter().any(|section| key.path.starts_with(section)) {
            continue;
        }
        let mut names: Vec<String> = key.path.split('.').map(str::to_owned).collect();
        let name = names.pop().unwrap_or_default();
        for depth in 0..names.len() {
            if last.get(..=depth) != names.get(..=depth) {
                let section = names.get(..=depth).map(|part| part.join(".")).unwrap_or_default();
                let indent = "  ".repeat(depth);
                let own = names.get(depth).map_or("", String::as_str);
                let _ = write!(text, "\n{indent}# {}\n{indent}{own}:", heading(&section));
                text.push('\n');
            }
        }
        let indent = "  ".repeat(names.len());
        if names.is_empty() {
            text.push('\n');
        }
        let marked = format!("{}{}", if key.live { "[reload] " } else { "" }, prose(key.doc));
        for line in wrapped(&marked, WIDTH - indent.len()) {
            let _ = writeln!(text, "{indent}# {line}");
        }
        let _ = writeln!(text, "{indent}{name}: {}", setting.text());
        for line in example(&key.path) {
            let _ = writeln!(text, "{indent}{line}");
        }
        last = names;
    }
    text
}

/// The tables of keys in `docs/configuration.md`, one per section.
pub fn tables() -> String {
    let config = Config::default();
    let mut text = String::new();
    let mut last = None;
    for (key, setting) in settings(&config) {
        let section = key.path.rsplit_once('.').map_or("", |(section, _)| section).to_owned();
        if last.as_ref() != Some(&section) {
            let title = if section.is_empty() { &key.path } else { &section };
            let _ = write!(text, "\n### `{title}`\n\n{}", heading(&section));
            let gap = if heading(&section).is_empty() { "" } else { "\n\n" };
            let _ = writeln!(text, "{gap}| key | default | takes | reload | meaning |\n|---|---|---|---|---|");
            last = Some(section);
        }
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {} | {} | {} |",
            key.path,
            setting.text(),
            setting.kind(),
            if key.live { "yes" } else { "" },
            prose(key.doc).replace('|', "\\|"),
        );
    }
    text
}

/// `check --print`: every value with its origin; secrets are hidden.
pub fn resolved(loaded: &Loaded) -> String {
    let rows: Vec<(String, String)> = settings(&loaded.config)
        .into_iter()
        .map(|(key, setting)| (format!("{}: {}", key.path, setting.text()), loaded.origins.of(&key.path).to_string()))
        .collect();
    let width = rows.iter().map(|(left, _)| left.chars().count()).filter(|width| *width <= 60).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (left, origin)| {
        let _ = writeln!(text, "{left:width$}  # {origin}");
        text
    })
}

/// Like [`resolved`], as JSON: `{"file": …, "settings": [{"key", "value", "origin", "variable", "reload"}]}`.
pub fn resolved_json(loaded: &Loaded) -> serde_json::Value {
    let rows: Vec<serde_json::Value> = settings(&loaded.config)
        .into_iter()
        .map(|(key, setting)| {
            serde_json::json!({
                "key": key.path,
                "value": setting.json(),
                "origin": loaded.origins.of(&key.path).to_string(),
                "variable": key.variable(),
                "reload": key.live,
            })
        })
        .collect();
    serde_json::json!({ "file": loaded.path, "settings": rows })
}

/// A docstring as one line.
fn prose(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `text` in lines of at most `width` characters, as far as its words allow.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
