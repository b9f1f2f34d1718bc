//! A check of `banmesh doctor`: what it looks for, its outcome, and what to do.

use serde::Serialize;

/// How grave the outcome of a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All is well.
    Ok,
    /// It could not be checked.
    Skipped,
    /// It needs attention.
    Warning,
    /// Something does not protect.
    Problem,
}

/// A check, by what it looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The configuration is valid.
    Configuration,
    /// A node answers.
    Node,
    /// The node has the version of this program.
    Version,
    /// The node has no problems and warnings.
    Warnings,
    /// Filters are in force.
    Filters,
    /// Filters recognise lines.
    Recognised,
    /// No filter in shadow mode would ban.
    Shadow,
    /// Lines arrive.
    Lines,
    /// A log daemon of this host sends to this node.
    LogDaemon,
    /// No line is dropped.
    Dropped,
    /// All offences are counted.
    Counted,
    /// No host that sends lines is banned.
    Senders,
    /// Bans hold somewhere.
    Enforcement,
    /// Proxies ask, and name the client.
    Proxies,
    /// HAProxy opens no more connections than `spoa.max_clients`.
    Connections,
    /// Queries are answered quickly.
    Answers,
    /// The agent's port accepts connections.
    AgentPort,
    /// HAProxy accepts its configuration.
    HaproxyAccepts,
    /// The configuration of HAProxy does what it says.
    HaproxyLint,
    /// HAProxy considers the agents alive.
    HaproxyServers,
    /// HAProxy logs no failed checks.
    HaproxyLog,
    /// The places that follow the ban table have all bans.
    Places,
    /// The kernel's firewall can be changed.
    Firewall,
    /// The other nodes are alive, with the same table.
    Peers,
    /// The nodes have a common wire version.
    WireVersions,
    /// All changes are on the disk.
    Saved,
    /// The file system has room.
    Space,
    /// The journal is written without errors.
    Journal,
    /// No connection and no frame of HAProxy was refused.
    Refused,
    /// No connection was closed in favour of others.
    Evicted,
    /// Nobody guesses passwords.
    Passwords,
    /// No account is under attack.
    Accounts,
    /// All bans could be written.
    Bans,
    /// No node exceeds the limits.
    Limits,
    /// Nothing panicked.
    Panics,
    /// Webhooks receive their notices.
    Webhooks,
}

impl Code {
    /// What the check is about, as people see it.
    pub const fn subject(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Node | Self::Version | Self::Warnings | Self::Panics => "node",
            Self::Filters | Self::Recognised | Self::Shadow => "filters",
            Self::Lines | Self::LogDaemon | Self::Dropped | Self::Counted | Self::Senders => "inputs",
            Self::Enforcement | Self::Places | Self::Firewall | Self::Bans => "enforcement",
            Self::Proxies | Self::Connections | Self::Answers | Self::AgentPort | Self::Refused => "agent",
            Self::HaproxyAccepts | Self::HaproxyLint | Self::HaproxyServers | Self::HaproxyLog => "HAProxy",
            Self::Peers | Self::WireVersions | Self::Limits => "cluster",
            Self::Saved | Self::Space | Self::Journal => "disk",
            Self::Evicted => "connections",
            Self::Passwords => "API",
            Self::Accounts => "accounts",
            Self::Webhooks => "webhooks",
        }
    }
}

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked for.
    pub code: Code,
    /// What was checked, for people.
    pub subject: &'static str,
    /// The outcome.
    pub outcome: Outcome,
    /// What was found.
    pub message: String,
    /// What to do; empty if nothing.
    pub todo: String,
}

impl Check {
    /// A check without anything to do.
    pub fn ok(code: Code, message: impl Into<String>) -> Self {
        Self { code, subject: code.subject(), outcome: Outcome::Ok, message: message.into(), todo: String::new() }
    }

    /// A check that could not be made.
    pub fn skipped(code: Code, message: impl Into<String>) -> Self {
        Self { outcome: Outcome::Skipped, ..Self::ok(code, message) }
    }

    /// Something that needs attention.
    pub fn warning(code: Code, message: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { outcome: Outcome::Warning, todo: todo.into(), ..Self::ok(code, message) }
    }

    /// Something that does not protect.
    pub fn problem(code: Code, message: impl Into<String>, todo: impl Into<String>) -> Self {
        Self { outcome: Outcome::Problem, ..Self::warning(code, message, todo) }
    }
}

/// Puts the checks of each subject together. Subjects stay in the order of their first checks.
pub fn group(found: &mut [Check]) {
    let mut subjects: Vec<&'static str> = Vec::new();
    for check in &*found {
        if !subjects.contains(&check.subject) {
            subjects.push(check.subject);
        }
    }
    found.sort_by_key(|check| subjects.iter().position(|subject| *subject == check.subject));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_of_a_subject_are_put_together() {
        let mut found = [Code::Node, Code::Saved, Code::Version, Code::Space].map(|code| Check::ok(code, "fine"));
        group(&mut found);
        assert_eq!(found.map(|check| check.code), [Code::Node, Code::Version, Code::Saved, Code::Space]);
    }
}
