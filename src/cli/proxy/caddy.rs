//! Finds mistakes in a Caddyfile that asks for verdicts by `forward_auth`. No I/O.

use std::sync::Arc;

use super::subject::{Findings, Source, common, port};
use banmesh_haproxy::Finding;
use banmesh_haproxy::document::Place;

/// The deepest nesting of blocks.
const MAX_DEPTH: usize = 32;

/// A line with the block that belongs to it.
#[derive(Clone, Debug)]
struct Line {
    words: Vec<String>,
    place: Place,
    block: Vec<Line>,
}

impl Line {
    fn name(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    fn arguments(&self) -> &[String] {
        self.words.get(1..).unwrap_or_default()
    }

    fn find(&self, name: &str) -> Option<&Self> {
        self.block.iter().find(|line| line.name() == name)
    }

    /// Whether this line or one below has `name`.
    fn has(&self, name: &str) -> bool {
        self.name() == name || self.block.iter().any(|line| line.has(name))
    }
}

/// Reads a Caddyfile. Blocks that are not closed end with the file.
fn parse(source: &Source) -> Line {
    let place = |line| Place { file: Arc::clone(&source.name), line };
    let new = |words, line| Line { words, place: place(line), block: Vec::new() };
    let mut open = vec![new(Vec::new(), 1)];
    for (number, text) in source.text.lines().enumerate() {
        let mut words = words(text);
        let opens = words.last().is_some_and(|word| word == "{") && open.len() < MAX_DEPTH;
        if opens {
            words.pop();
            open.push(new(words, number + 1));
        } else if words.first().is_some_and(|word| word == "}") {
            close(&mut open);
        } else if let (Some(last), false) = (open.last_mut(), words.is_empty()) {
            last.block.push(new(words, number + 1));
        }
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap_or_else(|| new(Vec::new(), 1))
}

fn close(open: &mut Vec<Line>) {
    if open.len() > 1
        && let Some(closed) = open.pop()
        && let Some(last) = open.last_mut()
    {
        last.block.push(closed);
    }
}

/// The words of a line, up to a comment. Quotes with `"` and with backticks.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        if first == '#' {
            break;
        }
        let (word, after) = if first == '"' || first == '`' {
            let inner = rest.get(1..).unwrap_or_default();
            inner.split_once(first).unwrap_or((inner, ""))
        } else {
            rest.split_once(char::is_whitespace).unwrap_or((rest, ""))
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

/// Checks the files. `ports` are those of the endpoint.
pub(super) fn check(sources: &[Source], ports: &[u16]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let (mut asked, mut ours) = (0, 0);
    let files: Vec<Line> = sources.iter().map(parse).collect();
    for file in &files {
        for site in &file.block {
            let (before, ours_before) = (asked, ours);
            visit(site, ports, &mut asked, &mut ours, &mut findings);
            if ours > ours_before && !site.has("handle_errors") {
                const FIX: &str = "to let them pass, copy `handle_errors` from `banmesh caddy config`";
                common::fails_closed(&mut findings, site.place.clone(), FIX);
            }
            // A snippet or the global options.
            let is_site = !site.block.is_empty() && !site.words.is_empty() && !site.name().starts_with('(');
            if is_site && asked == before && site.has("reverse_proxy") && !site.has("import") {
                let problem = format!("the site {} has no forward_auth", site.name());
                let fix = "add it if bans should hold there; `banmesh caddy config` prints it";
                findings.note(site.place.clone(), "site-without-check", problem, fix);
            }
        }
    }
    let first = files.first().map_or_else(|| Place { file: "-".into(), line: 1 }, |file| file.place.clone());
    if asked == 0 {
        let mut none = Findings::default();
        common::no_check(&mut none, first, "there is no forward_auth", "caddy");
        return none.finish();
    }
    if ours == 0 {
        common::other_port(&mut findings, first, ports);
    }
    findings.finish()
}

fn visit(line: &Line, ports: &[u16], asked: &mut usize, ours: &mut usize, findings: &mut Findings) {
    if line.name() == "forward_auth" {
        *asked += 1;
        let nodes = nodes(line);
        if nodes.iter().any(|node| port(node).is_some_and(|port| ports.contains(&port))) {
            *ours += 1;
            question(line, nodes.len(), findings);
        }
    }
    let at = |name| line.block.iter().position(|line| line.name() == name);
    if let (true, Some(proxy), Some(auth)) = (line.name() == "route", at("reverse_proxy"), at("forward_auth"))
        && proxy < auth
        && let Some(late) = line.block.get(auth)
    {
        let problem = "in `route` the order counts, and reverse_proxy comes first: the client is never checked";
        findings.error(late.place.clone(), "order", problem, "move forward_auth before reverse_proxy");
    }
    for inner in &line.block {
        visit(inner, ports, asked, ours, findings);
    }
}

/// The addresses of a `forward_auth`, without its matcher.
fn nodes(line: &Line) -> Vec<&str> {
    let own = line.arguments().iter().map(String::as_str).filter(|word| port(word).is_some());
    let to = line.block.iter().filter(|inner| inner.name() == "to").flat_map(|inner| inner.arguments());
    own.chain(to.map(String::as_str)).collect()
}

/// Checks a `forward_auth` that asks the endpoint.
fn question(line: &Line, nodes: usize, findings: &mut Findings) {
    let transport = line.find("transport");
    for name in ["dial_timeout", "response_header_timeout"] {
        if transport.and_then(|transport| transport.find(name)).is_none() {
            let why = format!("{name} is not set");
            let fix = format!("write `{name} 200ms` into `transport http` of forward_auth");
            common::no_timeout(findings, line.place.clone(), &why, &fix);
        }
    }
    for header in line.block.iter().filter(|inner| inner.name() == "header_up") {
        let words = header.arguments();
        let name = words.first().map_or("", String::as_str);
        let value = words.get(1).map_or("", String::as_str);
        const FIX: &str = "remove the line: Caddy writes the client's address";
        if name.trim_start_matches(['+', '>']).eq_ignore_ascii_case("x-forwarded-for") {
            if value.contains("{header.") || value.contains("{http.request.header.") {
                let why = format!("X-Forwarded-For is {value}, which the client sends");
                common::client_chooses(findings, header.place.clone(), &why, FIX);
            }
        } else if name.eq_ignore_ascii_case("-x-forwarded-for") {
            common::unnamed(findings, header.place.clone(), "X-Forwarded-For is removed", FIX);
        }
    }
    if let Some(trusted) = line.find("trusted_proxies")
        && let Some(wide) = trusted.arguments().iter().find(|word| word.ends_with("/0"))
    {
        let why = format!("trusted_proxies has {wide}, so every client may write X-Forwarded-For");
        common::client_chooses(findings, trusted.place.clone(), &why, "list only your load balancers");
    }
    match nodes {
        0 | 1 => common::one_node(findings, line.place.clone(), "add the address of another node to forward_auth"),
        _ if line.find("lb_policy").is_none() => {
            let problem = "Caddy asks a random node, also one on another host";
            findings.note(line.place.clone(), "random-node", problem, "write `lb_policy first` into forward_auth");
        }
        _ => {}
    }
    if nodes > 1 && line.find("lb_retries").is_none() && line.find("lb_try_duration").is_none() {
        let problem = "a question to a node that is down is not asked again at the next one";
        findings.warning(
            line.place.clone(),
            "no-retry",
            problem,
            "write `lb_retries 1` and `fail_duration 2s` into forward_auth",
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

    const GOOD: &str = "{\n\tadmin off\n}\nhttp://:80 {
\tforward_auth 127.0.0.1:8889 192.0.2.1:8889 {
\t\turi /api/v1/verdict
\t\tlb_policy first
\t\tlb_retries 1
\t\ttransport http {
\t\t\tdial_timeout 1s
\t\t\tresponse_header_timeout 1s
\t\t}
\t}
\thandle_errors {
\t\treverse_proxy 127.0.0.1:1
\t}
\treverse_proxy 127.0.0.1:1
}
";

    #[test]
    fn a_good_configuration_has_no_findings() {
        assert_eq!(check_text(GOOD), [""; 0]);
    }

    #[test]
    fn each_trap_is_found() {
        for (from, to, expected) in [
            ("dial_timeout 1s", "", &["5 no-timeout"][..]),
            ("response_header_timeout 1s", "", &["5 no-timeout"]),
            ("lb_policy first", "", &["5 random-node"]),
            ("lb_retries 1", "", &["5 no-retry"]),
            (" 192.0.2.1:8889", "", &["5 one-node"]),
            ("handle_errors {", "handle_path /x {", &["4 fails-closed"]),
            ("lb_policy first", "lb_policy first\nheader_up X-Forwarded-For {header.X-Real-IP}", &["8 client-chooses"]),
            ("lb_policy first", "lb_policy first\nheader_up -X-Forwarded-For", &["8 unnamed"]),
            ("lb_policy first", "lb_policy first\ntrusted_proxies 0.0.0.0/0", &["8 client-chooses"]),
            (":8889", ":8890", &["1 other-port"]),
            ("forward_auth", "# forward_auth", &["1 no-check"]),
            (
                "http://:80 {\n",
                "http://:80 {\nroute {\nreverse_proxy a:1\nforward_auth 127.0.0.1:9 {\n}\n}\n",
                &["7 order"],
            ),
        ] {
            assert_eq!(check_text(&GOOD.replace(from, to)), expected, "{from} -> {to}");
        }
        let other = format!("{GOOD}http://:81 {{\n\treverse_proxy 127.0.0.1:2\n}}\n");
        assert_eq!(check_text(&other), ["19 site-without-check"]);
    }

    #[test]
    fn broken_files_are_read_as_far_as_possible() {
        for text in ["{", "}", "\"", "`", "a \"b", &"a {\n".repeat(1000), "é \"é"] {
            let _ = check_text(text);
        }
    }
}
