//! The commands in groups, for `banmesh --help`.

use clap::Command;

/// The groups with their commands, in the order in which they are shown. A command that is in no group is shown in the last one.
const GROUPS: &[(&str, &[&str])] = &[
    ("See", &["status", "top", "why", "list", "allowlist", "watch", "cluster", "evidence", "feeds", "ping"]),
    ("Decide", &["ban", "unban", "purge", "allow", "disallow", "discard"]),
    (
        "Set up and check",
        &[
            "check", "doctor", "filter", "haproxy", "nginx", "traefik", "caddy", "envoy", "firewall", "api", "migrate",
            "replay",
        ],
    ),
    ("Run", &["run", "reload", "store"]),
    ("Other", &["completions", "man", "help"]),
];

/// `command` with a help that shows its subcommands in groups.
pub fn grouped(command: Command) -> Command {
    let help = ("help".to_owned(), "Print the help of a command".to_owned());
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set());
    let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    let all: Vec<(String, String)> =
        commands.map(|command| (command.get_name().to_owned(), about(command))).chain([help]).collect();
    let width = all.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let listed = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let mut text = String::new();
    for (index, (title, names)) in GROUPS.iter().enumerate() {
        text.push_str(&format!("{title}:\n"));
        let last = index + 1 == GROUPS.len();
        let known = names.iter().filter_map(|name| all.iter().find(|(known, _)| known == name));
        let rest = all.iter().filter(|(name, _)| last && !listed(name));
        for (name, about) in known.chain(rest) {
            text.push_str(&format!("  {name:width$}  {about}\n"));
        }
        text.push('\n');
    }
    // Braces would be placeholders of the template.
    let text = text.replace(['{', '}'], "");
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}Options:\n{{options}}{{after-help}}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_the_help_once() {
        let command = Command::new("x")
            .about("A thing")
            .subcommand(Command::new("status").about("Show the state"))
            .subcommand(Command::new("unheard-of").about("Do {it}"))
            .subcommand(Command::new("secret").hide(true));
        let help = grouped(command).render_help().to_string();
        for (line, times) in [("  status      Show the state\n", 1), ("  unheard-of  Do it\n", 1), ("secret", 0)] {
            assert_eq!(help.matches(line).count(), times, "{line}: {help}");
        }
        assert!(help.find("See:").unwrap() < help.find("status").unwrap(), "{help}");
        assert!(help.find("Other:").unwrap() < help.find("unheard-of").unwrap(), "{help}");
    }
}
