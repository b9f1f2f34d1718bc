//! Finds mistakes in a configuration of nginx that asks for verdicts by `auth_request`. No I/O: the caller has read the included files.

use std::collections::BTreeMap;

use super::subject::{Findings, Source, common, port};
use banmesh_haproxy::Finding;
use banmesh_haproxy::document::Place;

/// The deepest nesting of blocks.
const MAX_DEPTH: usize = 32;

/// A directive with the block that belongs to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Directive {
    pub words: Vec<String>,
    /// `None` only for the root.
    pub place: Option<Place>,
    pub block: Vec<Directive>,
}

impl Directive {
    fn name(&self) -> &str {
        self.word(0)
    }

    fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    fn is(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(at, word)| self.word(at).eq_ignore_ascii_case(word))
    }

    fn place(&self) -> Place {
        self.place.clone().unwrap_or_else(|| Place { file: "-".into(), line: 1 })
    }

    /// All directives below, with this one.
    fn all<'a>(&'a self, found: &mut Vec<&'a Self>) {
        found.push(self);
        self.block.iter().for_each(|directive| directive.all(found));
    }
}

/// The blocks around a location, the innermost first.
type Levels<'a> = Vec<&'a Directive>;

/// Reads a file. What is not closed is closed at its end: nginx itself refuses such a file.
pub(super) fn parse(source: &Source) -> Directive {
    let mut open = vec![Directive::default()];
    let mut words: Vec<String> = Vec::new();
    let mut begun = 1;
    for (line, token) in tokens(&source.text) {
        let place = |line| Some(Place { file: source.name.clone(), line });
        match token {
            Token::Word(word) => {
                if words.is_empty() {
                    begun = line;
                }
                words.push(word);
            }
            Token::Open if open.len() < MAX_DEPTH => {
                open.push(Directive { words: std::mem::take(&mut words), place: place(begun), block: Vec::new() });
            }
            Token::Open | Token::End => {
                let directive = Directive { words: std::mem::take(&mut words), place: place(begun), block: Vec::new() };
                if let (Some(last), false) = (open.last_mut(), directive.words.is_empty()) {
                    last.block.push(directive);
                }
            }
            Token::Close => close(&mut open),
        }
    }
    while open.len() > 1 {
        close(&mut open);
    }
    open.pop().unwrap_or_default()
}

fn close(open: &mut Vec<Directive>) {
    if open.len() > 1
        && let Some(closed) = open.pop()
        && let Some(last) = open.last_mut()
    {
        last.block.push(closed);
    }
}

enum Token {
    Word(String),
    Open,
    Close,
    End,
}

fn tokens(text: &str) -> Vec<(usize, Token)> {
    let (mut tokens, mut line) = (Vec::new(), 1);
    let mut rest = text.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '#' => while rest.next_if(|c| *c != '\n').is_some() {},
            '{' => tokens.push((line, Token::Open)),
            '}' => tokens.push((line, Token::Close)),
            ';' => tokens.push((line, Token::End)),
            quote @ ('"' | '\'') => {
                let (mut word, begun) = (String::new(), line);
                while let Some(c) = rest.next() {
                    match c {
                        '\\' => word.extend(rest.next()),
                        c if c == quote => break,
                        c => {
                            line += usize::from(c == '\n');
                            word.push(c);
                        }
                    }
                }
                tokens.push((begun, Token::Word(word)));
            }
            c => {
                let mut word = String::from(c);
                // `${name}` is part of a word.
                let ends = |word: &str, c: char| {
                    c.is_whitespace()
                        || c == ';'
                        || (c == '{' && !word.ends_with('$'))
                        || (c == '}' && !word.contains("${"))
                };
                while let Some(c) = rest.next_if(|c| !ends(&word, *c)) {
                    word.push(c);
                }
                tokens.push((line, Token::Word(word)));
            }
        }
    }
    tokens
}

/// Checks `root`, whose `include`s are resolved. `ports` are those of the endpoint.
pub(super) fn check(root: &Directive, ports: &[u16]) -> Vec<Finding> {
    let mut findings = Findings::default();
    let mut all = Vec::new();
    root.all(&mut all);
    let upstreams: BTreeMap<&str, &Directive> =
        all.iter().filter(|one| one.name() == "upstream").map(|one| (one.word(1), *one)).collect();
    let first = all.get(1).map_or_else(|| root.place(), |one| one.place());
    let asking: Vec<&&Directive> =
        all.iter().filter(|one| one.name() == "auth_request" && one.word(1) != "off").collect();
    if asking.is_empty() {
        common::no_check(&mut findings, first, "there is no auth_request", "nginx");
        return findings.finish();
    }
    let mut ours = 0;
    let mut levels = Vec::new();
    walk(root, &mut levels, &mut |location, levels| {
        let Some(pass) = inherited(location, levels, "proxy_pass") else { return };
        let host = pass.word(1).split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
        let upstream = upstreams.get(host).copied();
        let goes_to_us = match upstream {
            Some(upstream) => upstream
                .block
                .iter()
                .any(|one| one.name() == "server" && port(one.word(1)).is_some_and(|port| ports.contains(&port))),
            None => port(pass.word(1)).is_some_and(|port| ports.contains(&port)),
        };
        if goes_to_us {
            ours += 1;
            question(location, levels, upstream, &mut findings);
        }
    });
    if ours == 0 {
        common::other_port(&mut findings, first, ports);
        return findings.finish();
    }
    for request in asking {
        let uri = request.word(1);
        let answers = |one: &&&Directive| {
            one.name() == "location"
                && (one.is(&["location", "=", uri])
                    // `location /` would ask the application.
                    || (one.words.len() == 2 && one.word(1) != "/" && uri.starts_with(one.word(1))))
        };
        if !all.iter().any(|one| answers(&one)) {
            findings.error(
                request.place(),
                "no-location",
                format!("no location here answers auth_request {uri}"),
                format!("add `location = {uri}`; `banmesh nginx config` prints it"),
            );
        }
    }
    for one in all.iter().filter(|one| one.is(&["auth_request", "off"])) {
        findings.note(one.place(), "switched-off", "bans do not hold here", "remove the line if they should");
    }
    for one in all.iter().filter(|one| one.is(&["satisfy", "any"])) {
        let fix = "write `satisfy all`, or leave the line out";
        let problem = "with `satisfy any`, a banned client passes whenever another check lets it pass";
        findings.error(one.place(), "satisfy-any", problem, fix);
    }
    findings.finish()
}

/// Calls `visit` with every location and the blocks around it.
fn walk<'a>(one: &'a Directive, levels: &mut Levels<'a>, visit: &mut impl FnMut(&'a Directive, &Levels<'a>)) {
    if one.name() == "location" {
        visit(one, levels);
    }
    levels.insert(0, one);
    one.block.iter().for_each(|inner| walk(inner, levels, visit));
    levels.remove(0);
}

/// The directive in force in a location. `proxy_pass` alone is not inherited.
fn inherited<'a>(location: &'a Directive, levels: &Levels<'a>, name: &str) -> Option<&'a Directive> {
    let at = |level: &'a Directive| level.block.iter().find(|one| one.name() == name);
    at(location).or_else(|| (name != "proxy_pass").then(|| levels.iter().find_map(|level| at(level))).flatten())
}

/// The `proxy_set_header` in force: those of the innermost block that has any.
fn headers<'a>(location: &'a Directive, levels: &Levels<'a>) -> Vec<&'a Directive> {
    let of =
        |level: &'a Directive| level.block.iter().filter(|one| one.name() == "proxy_set_header").collect::<Vec<_>>();
    std::iter::once(location).chain(levels.iter().copied()).map(of).find(|found| !found.is_empty()).unwrap_or_default()
}

/// Checks the location that asks.
fn question(location: &Directive, levels: &Levels<'_>, upstream: Option<&Directive>, findings: &mut Findings) {
    let headers = headers(location, levels);
    let header = |name: &str| headers.iter().find(|one| one.word(1).eq_ignore_ascii_case(name)).copied();
    const NAME: &str = "write `proxy_set_header X-Forwarded-For $remote_addr;`";
    match header("X-Forwarded-For").map(|one| (one, one.word(2))) {
        None => common::client_chooses(findings, location.place(), "nginx passes on the client's own X-Forwarded-For", NAME),
        Some((one, "")) => common::unnamed(findings, one.place(), "X-Forwarded-For is removed", NAME),
        Some((one, value)) if value.contains("$http_") || value.contains("${http_") => {
            common::client_chooses(findings, one.place(), &format!("X-Forwarded-For is {value}, which the client sends"), NAME);
        }
        Some((one, "$proxy_add_x_forwarded_for")) => findings.note(
            one.place(),
            "forwarded-list",
            "the list begins with what the client sends; banmesh reads it from the right, as far as verdict.trusted_proxies go",
            NAME,
        ),
        Some(_) => {}
    }
    let drops_body = inherited(location, levels, "proxy_pass_request_body").is_some_and(|one| one.word(1) == "off");
    let drops_length = header("Content-Length").is_some_and(|one| one.word(2).is_empty());
    if !drops_body || !drops_length {
        let missing =
            if drops_body { "`proxy_set_header Content-Length \"\"`" } else { "`proxy_pass_request_body off`" };
        findings.error(
            location.place(),
            "body",
            format!("{missing} is missing, so requests with a body fail"),
            "write `proxy_pass_request_body off;` and `proxy_set_header Content-Length \"\";`",
        );
    }
    let reuses = upstream.is_some_and(|one| one.block.iter().any(|one| one.name() == "keepalive"))
        && inherited(location, levels, "proxy_http_version").is_some_and(|one| one.word(1) == "1.1")
        && header("Connection").is_some_and(|one| one.word(2).is_empty());
    if !reuses {
        findings.warning(
            location.place(),
            "no-keepalive",
            "nginx opens a connection for each question, which costs five times as much",
            "ask an `upstream` with `keepalive 64;`, and write `proxy_http_version 1.1;` and `proxy_set_header Connection \"\";`",
        );
    }
    for name in ["proxy_connect_timeout", "proxy_read_timeout"] {
        if inherited(location, levels, name).is_none() {
            common::no_timeout(
                findings,
                location.place(),
                &format!("{name} is not set, so it is 60 s"),
                &format!("write `{name} 200ms;`"),
            );
        }
    }
    let opens = inherited(location, levels, "proxy_intercept_errors").is_some_and(|one| one.word(1) == "on")
        && location
            .block
            .iter()
            .any(|one| one.name() == "error_page" && one.words.iter().any(|word| word.starts_with('=')));
    if !opens {
        const FIX: &str =
            "to let them pass, copy `proxy_intercept_errors` and `error_page` from `banmesh nginx config`";
        common::fails_closed(findings, location.place(), FIX);
    }
    let nodes = upstream.map_or(1, |one| one.block.iter().filter(|one| one.name() == "server").count());
    if nodes < 2 {
        common::one_node(
            findings,
            location.place(),
            "add `server ADDRESS:PORT backup;` of another node to the `upstream`",
        );
    }
    for name in ["Cookie", "Authorization"] {
        if header(name).is_none() {
            let fix = format!("write `proxy_set_header {name} \"\";`");
            findings.note(
                location.place(),
                "secrets",
                format!("the client's {name} is sent to banmesh, which ignores it"),
                fix,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::proxy::subject::tests::{codes, source};

    fn check_text(text: &str) -> Vec<String> {
        codes(&check(&parse(&source(text)), &[8889]))
    }

    const GOOD: &str = "http { upstream b { server 127.0.0.1:8889; server 192.0.2.1:8889 backup; keepalive 64; }
server { location = /.b { internal; proxy_pass http://b/api/v1/verdict; proxy_http_version 1.1;
proxy_set_header Connection \"\"; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header Cookie \"\";
proxy_set_header Authorization ''; proxy_set_header Content-Length \"\"; proxy_pass_request_body off;
proxy_connect_timeout 1s; proxy_read_timeout 1s; proxy_intercept_errors on; error_page 502 =204 /.open; }
location / { auth_request /.b; proxy_pass http://127.0.0.1:1; } } }";

    #[test]
    fn a_good_configuration_has_no_findings() {
        assert_eq!(check_text(GOOD), [""; 0]);
    }

    #[test]
    fn each_trap_is_found() {
        for (from, to, expected) in [
            ("proxy_set_header X-Forwarded-For $remote_addr;", "", "2 client-chooses"),
            ("$remote_addr", "$http_x_forwarded_for", "3 client-chooses"),
            ("$remote_addr", "${http_x_real_ip}", "3 client-chooses"),
            ("$remote_addr", "\"\"", "3 unnamed"),
            ("$remote_addr", "$proxy_add_x_forwarded_for", "3 forwarded-list"),
            ("proxy_set_header Content-Length \"\";", "", "2 body"),
            ("proxy_pass_request_body off;", "", "2 body"),
            ("keepalive 64;", "", "2 no-keepalive"),
            ("proxy_http_version 1.1;", "", "2 no-keepalive"),
            ("proxy_set_header Connection \"\";", "", "2 no-keepalive"),
            ("proxy_read_timeout 1s;", "", "2 no-timeout"),
            ("proxy_intercept_errors on;", "", "2 fails-closed"),
            ("server 192.0.2.1:8889 backup;", "", "2 one-node"),
            ("proxy_set_header Cookie \"\";", "", "2 secrets"),
            ("auth_request /.b;", "", "1 no-check"),
            ("auth_request /.b;", "auth_request /.c;", "6 no-location"),
            ("auth_request /.b;", "auth_request /.b; satisfy any;", "6 satisfy-any"),
            ("location / {", "location /open { auth_request off; } location / {", "6 switched-off"),
            (":8889", ":8890", "1 other-port"),
        ] {
            assert_eq!(check_text(&GOOD.replace(from, to)), [expected], "{from} -> {to}");
        }
    }

    #[test]
    fn headers_of_an_outer_block_count_only_without_own_ones() {
        let outer = GOOD.replace("http { ", "http { proxy_set_header Cookie \"\"; proxy_read_timeout 1s; ");
        let without = outer
            .replace("proxy_set_header Cookie \"\";\n", "\n")
            .replace(" proxy_read_timeout 1s; proxy_int", " proxy_int");
        assert_eq!(check_text(&without), ["2 secrets"]);
    }

    #[test]
    fn broken_files_are_read_as_far_as_possible() {
        for text in ["{", "}", "a \"b", "a {", "a } b;", "'", "${", "a\\", &"a {".repeat(1000)] {
            let _ = check_text(text);
        }
    }
}
