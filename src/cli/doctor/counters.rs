//! What the node's counters mean that `status` does not show. They count since the node started. No I/O.

use super::check::{Check, Code};
use crate::cli::people::number;

/// A counter that should not rise.
struct Counter {
    code: Code,
    metric: &'static str,
    /// The label that says why, and the values that count; all if there are none.
    label: Option<(&'static str, &'static [&'static str])>,
    /// The number from which it is worth a warning.
    from: u64,
    what: &'static str,
    todo: &'static str,
}

const COUNTERS: [Counter; 13] = [
    Counter {
        code: Code::Refused,
        metric: "banmesh_spoa_connections_refused_total",
        label: Some(("reason", &[])),
        from: 1,
        what: "connections to the agent were refused",
        todo: "add your HAProxy to spoa.allowed_clients, or raise spoa.max_clients; see docs/operations.md, HAProxy's frames or connections are refused",
    },
    Counter {
        code: Code::Refused,
        metric: "banmesh_spoa_frames_refused_total",
        label: Some(("code", &[])),
        from: 1,
        what: "frames were refused by the agent",
        todo: "the log names the address; a health check needs `option spop-check`",
    },
    Counter {
        code: Code::Refused,
        metric: "banmesh_peers_refused_total",
        label: Some(("reason", &["not allowed", "superseded", "protocol"])),
        from: 1,
        what: "connections and entries of HAProxy's peers were refused",
        todo: "give every HAProxy its own `localpeer` name, and see docs/rate-limits.md, When something is wrong",
    },
    Counter {
        code: Code::Evicted,
        metric: "banmesh_api_refused_total",
        label: Some(("reason", &["evicted"])),
        from: 1,
        what: "connections to the API were closed in favour of others",
        todo: "the log names the address with the most; see docs/operations.md, Connections are closed in favour of others",
    },
    Counter {
        code: Code::Evicted,
        metric: "banmesh_syslog_dropped_total",
        label: Some(("reason", &["evicted"])),
        from: 1,
        what: "connections to syslog were closed in favour of others",
        todo: "raise syslog.tcp_max_connections, or restrict syslog.allowed_senders",
    },
    Counter {
        code: Code::Evicted,
        metric: "banmesh_cluster_connections_dropped_total",
        label: Some(("reason", &["too many"])),
        from: 1,
        what: "connections to the cluster's port were closed in favour of others",
        todo: "let only the nodes of the cluster reach cluster.listen",
    },
    Counter {
        code: Code::Passwords,
        metric: "banmesh_api_refused_total",
        label: Some(("reason", &["bad_credentials", "login_rate"])),
        from: 10,
        what: "requests to the API had wrong credentials",
        todo: "the log names the address: remove it from api.allowed_ips; after a password change, look for a script with the old one",
    },
    Counter {
        code: Code::Bans,
        metric: "banmesh_bans_failed_total",
        label: Some(("reason", &[])),
        from: 1,
        what: "bans could not be written",
        todo: "check the clock (`timedatectl`); see docs/operations.md, Offenders are not banned",
    },
    Counter {
        code: Code::Limits,
        metric: "banmesh_store_refused_total",
        label: Some(("limit", &[])),
        from: 1,
        what: "entries of other nodes exceed a limit",
        todo: "set the same ban.max_bans on all nodes; see docs/operations.md, Another node exceeds the limits",
    },
    Counter {
        code: Code::Limits,
        metric: "banmesh_cluster_records_refused_total",
        label: Some(("reason", &[])),
        from: 1,
        what: "records of other nodes were refused",
        todo: "upgrade the older node; see docs/operations.md, Another node exceeds the limits",
    },
    Counter {
        code: Code::Journal,
        metric: "banmesh_journal_errors_total",
        label: None,
        from: 1,
        what: "writes of the journal failed",
        todo: "check the disk of node.data_dir; see docs/storage.md, When the disk fails",
    },
    Counter {
        code: Code::Panics,
        metric: "banmesh_panics_total",
        label: None,
        from: 1,
        what: "tasks panicked",
        todo: "this is a bug: report it with the log",
    },
    Counter {
        code: Code::Webhooks,
        metric: "banmesh_webhook_notices_total",
        label: Some(("outcome", &["dropped", "lost"])),
        from: 1,
        what: "notices did not reach their webhook",
        todo: "check notifications.webhooks and its server; the log has the answer",
    },
];

/// The mean time of an answer from which clients notice it, in seconds.
const SLOW_ANSWER: f64 = 0.01;

/// What the metrics of a node mean, in Prometheus' text format.
pub fn of_metrics(text: &str) -> Vec<Check> {
    let mut all = Vec::new();
    for counter in &COUNTERS {
        let Counter { code, metric, label, from, what, todo } = counter;
        for (labels, value) in samples(text, metric) {
            let reason = label.and_then(|(name, _)| value_of(labels, name));
            let counts = label
                .is_none_or(|(_, values)| values.is_empty() || reason.is_some_and(|reason| values.contains(&reason)));
            let value = whole(value);
            if counts && value >= *from {
                let why = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                let message = format!("{} {what} since the start{why}", number(value));
                all.push(Check::warning(*code, message, *todo));
            }
        }
    }
    all.extend(answers(text));
    all.extend(attacked(text));
    all
}

/// The mean time from reading a query of HAProxy to writing its answer.
fn answers(text: &str) -> Option<Check> {
    let total = |name: &str| samples(text, name).map(|(_, value)| value).sum::<f64>();
    let (sum, count) = (total("banmesh_spoa_answer_seconds_sum"), total("banmesh_spoa_answer_seconds_count"));
    if count < 1.0 {
        return None;
    }
    let mean = sum / count;
    let message = format!("HAProxy's queries are answered within {:.3} ms on average", mean * 1000.0);
    Some(if mean < SLOW_ANSWER {
        Check::ok(Code::Answers, message)
    } else {
        Check::warning(
            Code::Answers,
            message,
            "the host is busy: `top`, and the limits of CPU of the service or container",
        )
    })
}

/// Accounts that strangers from many networks try at present.
fn attacked(text: &str) -> Option<Check> {
    let accounts = whole(samples(text, "banmesh_accounts_attacked").map(|(_, value)| value).sum());
    let are = if accounts == 1 {
        "1 account in use is".to_owned()
    } else {
        format!("{} accounts in use are", number(accounts))
    };
    let todo = "`banmesh top accounts` names them; give them a long password or a second factor: see docs/operations.md, Accounts are \
                under attack";
    (accounts > 0).then(|| Check::warning(Code::Accounts, format!("{are} under attack"), todo))
}

/// The samples of a metric: their labels and values.
fn samples<'a>(text: &'a str, metric: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(metric)?;
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        Some((labels, value.trim().parse().ok()?))
    })
}

fn value_of<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\"")?.strip_suffix('"'))
}

/// A counter's value. Counters are whole numbers.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "casts from float saturate")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::check::Outcome;

    #[test]
    fn counters_that_rose_are_warnings() {
        let text = "# TYPE banmesh_spoa_connections_refused counter\n\
                    banmesh_spoa_connections_refused_total{reason=\"address\"} 3\n\
                    banmesh_api_refused_total{reason=\"bad_credentials\"} 9\n\
                    banmesh_api_refused_total{reason=\"evicted\"} 0\n\
                    banmesh_panics_total 2\n";
        let found = of_metrics(text);
        let messages: Vec<&str> = found.iter().map(|check| &*check.message).collect();
        assert_eq!(
            messages,
            ["3 connections to the agent were refused since the start (address)", "2 tasks panicked since the start"]
        );
        assert!(found.iter().all(|check| check.outcome == Outcome::Warning && !check.todo.is_empty()));
    }

    #[test]
    fn accounts_under_attack_are_found() {
        let found = of_metrics("banmesh_accounts_attacked 2\n");
        let messages: Vec<&str> = found.iter().map(|check| &*check.message).collect();
        assert_eq!(messages, ["2 accounts in use are under attack"]);
        assert!(of_metrics("banmesh_accounts_attacked 0\n").is_empty());
    }

    #[test]
    fn slow_answers_are_found() {
        let text = |sum: &str| format!("banmesh_spoa_answer_seconds_sum {sum}\nbanmesh_spoa_answer_seconds_count 10\n");
        let outcome = |sum| of_metrics(&text(sum)).first().map(|check| check.outcome);
        assert_eq!((outcome("0.001"), outcome("2.5")), (Some(Outcome::Ok), Some(Outcome::Warning)));
        assert!(of_metrics("").is_empty());
    }
}
