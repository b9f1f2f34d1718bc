//! What HAProxy's configuration, state and log mean. No I/O.

use super::check::{Check, Code};
use banmesh_haproxy::{Finding, Severity};

/// How long a health check of an agent may take, in milliseconds. It takes a few, and clients wait as long.
const SLOW_CHECK: u64 = 100;

/// What the lint of HAProxy's configuration found.
pub fn of_findings(findings: &[Finding]) -> Vec<Check> {
    let one = |finding: &Finding| {
        let message = format!("{}:{}: {} [{}]", finding.place.file, finding.place.line, finding.problem, finding.code);
        match finding.severity {
            Severity::Error => Check::problem(Code::HaproxyLint, message, finding.fix.clone()),
            Severity::Warning => Check::warning(Code::HaproxyLint, message, finding.fix.clone()),
            Severity::Note => Check::ok(Code::HaproxyLint, message),
        }
    };
    if findings.iter().all(|finding| finding.severity == Severity::Note) {
        let first = Check::ok(Code::HaproxyLint, "the configuration asks this node");
        return [first].into_iter().chain(findings.iter().map(one)).collect();
    }
    findings.iter().map(one).collect()
}

/// What HAProxy's `show stat` says about the servers of agents.
pub fn of_stat(csv: &str) -> Vec<Check> {
    let mut lines = csv.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().trim_start_matches(['#', ' ']).split(',').collect();
    let column = |name: &str| header.iter().position(|found| *found == name);
    let mut all = Vec::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let field = |name: &str| column(name).and_then(|at| fields.get(at)).copied().unwrap_or_default();
        let (proxy, server, state) = (field("pxname"), field("svname"), field("status"));
        let is_agent = ["spoe", "banmesh", "agent"].iter().any(|word| proxy.contains(word));
        if !is_agent || matches!(server, "FRONTEND" | "BACKEND") {
            continue;
        }
        let took = field("check_duration").parse::<u64>().ok();
        all.push(if state.starts_with("DOWN") {
            let todo = "check spoa.address and spoa.port here, and spoa.allowed_clients and the firewall if HAProxy is on another host";
            Check::problem(Code::HaproxyServers, format!("the server {proxy}/{server} is {state}"), todo)
        } else if let Some(took) = took.filter(|took| *took > SLOW_CHECK) {
            let message = format!("the server {proxy}/{server} is {state}, but its last health check took {took} ms");
            let todo = "clients wait as long: is the host busy, or the agent far away? See docs/haproxy.md, Slow requests";
            Check::warning(Code::HaproxyServers, message, todo)
        } else if state == "no check" {
            let todo = "write `check` on its line; otherwise every request waits for an agent that is down";
            Check::warning(Code::HaproxyServers, format!("the server {proxy}/{server} has no health check"), todo)
        } else {
            Check::ok(Code::HaproxyServers, format!("the server {proxy}/{server} is {state}"))
        });
    }
    all
}

/// What the end of HAProxy's log says about failed checks. `None` if it has no line about checks.
pub fn of_log(path: &str, text: &str) -> Option<Check> {
    let codes: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("SPOE: ["))
        .filter_map(|line| line.split_once(" st=")?.1.split_whitespace().next())
        .collect();
    let failed = codes.iter().filter(|code| **code != "0").count();
    let timeouts = codes.iter().filter(|code| **code == "1").count();
    if codes.is_empty() {
        return None;
    }
    if failed == 0 {
        return Some(Check::ok(Code::HaproxyLog, format!("{path}: the last checks succeeded")));
    }
    let message =
        format!("{path}: {failed} of the last {} logged checks failed, {timeouts} of them by a timeout", codes.len());
    let todo = "see docs/haproxy.md, Variables are not set, and Slow requests";
    Some(Check::warning(Code::HaproxyLog, message, todo))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::check::Outcome;

    const HEADER: &str = "# pxname,svname,status,check_duration,";

    fn outcomes(rows: &[&str]) -> Vec<Outcome> {
        let csv = [&[HEADER], rows].concat().join("\n");
        of_stat(&csv).iter().map(|check| check.outcome).collect()
    }

    #[test]
    fn servers_of_agents_that_are_down_or_slow_are_found() {
        let rows = [
            "spoe-agents,primary,DOWN 1/2,0,",
            "spoe-agents,backup,UP,3,",
            "spoe-agents,far,UP,240,",
            "spoe-agents,unwatched,no check,,",
            "spoe-agents,BACKEND,DOWN,,",
            "web,app,DOWN,0,",
        ];
        assert_eq!(outcomes(&rows), [Outcome::Problem, Outcome::Ok, Outcome::Warning, Outcome::Warning]);
    }

    #[test]
    fn failed_checks_in_the_log_are_counted() {
        let line = |code: u32| {
            format!(
                "haproxy[1]: SPOE: [ip-reputation-agent] <EVENT:on-client-session> sid=1 st={code} 0/0/0/0/0 1/1 0/0 0/1\n"
            )
        };
        let found = of_log("haproxy.log", &(line(0) + &line(1) + &line(256) + "other st=1 \n")).unwrap();
        assert_eq!(found.outcome, Outcome::Warning);
        assert!(found.message.contains("2 of the last 3 logged checks failed, 1 of them"), "{}", found.message);
        assert_eq!(of_log("haproxy.log", &line(0)).unwrap().outcome, Outcome::Ok);
        assert_eq!(of_log("haproxy.log", "nothing\n"), None);
    }
}
