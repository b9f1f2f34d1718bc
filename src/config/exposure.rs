//! Warnings about settings that are valid but let in more than an operator probably wants.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::access::SecretSource;
use super::allowlist::AllowlistEntry;
use super::consistency::Report;
use super::sections::Config;
use crate::inputs::envelope::LineFormat;
use crate::operation::api::credential::{weak_password, weak_token};
use banmesh_types::target::Target;

/// Adds the warnings.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    local_users(config, report);
    allowlist(config, report);
    envelopes(config, report);
    secrets(config, report);
    access_logs(config, report);
    mail(config, report);
}

/// What mail servers can ask and report.
fn mail(config: &Config, report: &mut Report<'_>) {
    let (dnsbl, policy, auth) = (&config.dnsbl, &config.policy, &config.auth_policy);
    for (enabled, key, allowed) in [
        (dnsbl.enabled, "dnsbl.allowed_clients", &dnsbl.allowed_clients),
        (policy.enabled, "policy.allowed_clients", &policy.allowed_clients),
        (auth.enabled, "auth_policy.allowed_clients", &auth.allowed_clients),
    ] {
        if let Some(wide) = allowed.iter().find(|target| enabled && target.prefix() == 0) {
            let message = format!(
                "{wide} is everybody, who can then learn which addresses are banned; list your mail servers and resolvers"
            );
            report.warn(&[key], message);
        }
    }
    if dnsbl.enabled && dnsbl.address.ip().is_unspecified() {
        report.warn(
            &["dnsbl.address"],
            format!(
                "on a host with several addresses, answers from {} may come from another address than was asked, and resolvers ignore \
                 those; name one address",
                dnsbl.address.ip()
            ),
        );
    }
    // Beyond loopback, that is an error.
    let is_local = auth.address.ip().to_canonical().is_loopback();
    if auth.enabled && is_local && auth.token.is_empty() && auth.token_file.is_none() {
        report.warn(
            &["auth_policy.token", "auth_policy.enabled"],
            "every process on this host can report failed logins and thereby ban any address; set auth_policy.token_file".to_owned(),
        );
    }
    let reads_dovecot = |name: &String| matches!(name.split(':').next(), Some("dovecot" | "all"));
    if auth.enabled && config.filters.enabled.iter().any(reads_dovecot) {
        report.warn(
            &["filters.enabled", "auth_policy.enabled"],
            "the filter `dovecot` recognises the failed logins that Dovecot also reports to auth_policy, so each counts twice if this node \
             receives Dovecot's log; remove `dovecot` from filters.enabled"
                .to_owned(),
        );
    }
    if let Some(weak) = weak_token(auth.token.expose()).filter(|_| auth.enabled && !auth.token.is_empty()) {
        report.warn(&["auth_policy.token"], format!("the token {weak}"));
    }
}

/// An access log may begin with a header of the client, who can then write a syslog header.
fn access_logs(config: &Config, report: &mut Report<'_>) {
    let is_named = |path: &str| path.rsplit('/').next().is_some_and(|name| name.contains("access"));
    for file in config.inputs.files.iter().filter(|file| file.program.is_none() && is_named(&file.path)) {
        if file.format != LineFormat::default() {
            continue;
        }
        report.warn(
            &["inputs.files"],
            format!(
                "{} is an access log by its name and has no `program`; name it, for example {{path: {}, program: nginx}}, so that a \
                 client whose header begins a line cannot imitate another service",
                file.path, file.path
            ),
        );
    }
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// What every user and every process on this host can change.
fn local_users(config: &Config, report: &mut Report<'_>) {
    let spoa = &config.spoa;
    let is_loopback = |target: &Target| LOOPBACK.iter().any(|address| target.contains((*address).into()));
    let asks = spoa.allowed_clients.is_empty() || spoa.allowed_clients.iter().any(is_loopback);
    let serves = spoa.enabled || (spoa.tls.enabled && spoa.tls.client_ca.is_none());
    let local = spoa.reports_from.iter().find(|from| is_loopback(from));
    if let Some(from) = local.filter(|_| serves && asks) {
        report.warn(
            &["spoa.reports_from"],
            format!(
                "{from} includes the loopback, so every process on this host can report offences and thereby ban any address; if \
                 this host has other users, let HAProxy report over spoa.tls with client_ca and set spoa.enabled: false"
            ),
        );
    }
    let cluster = &config.cluster;
    if cluster.enabled && cluster.secret_file.is_none() && cluster.listen.ip().to_canonical().is_loopback() {
        report.warn(
            &["cluster.secret_file", "cluster.enabled"],
            format!(
                "the cluster has no key, so every process on this host can ban and unban over {}; make one with `banmesh cluster \
                 keygen` and set cluster.secret_file on all nodes",
                cluster.listen
            ),
        );
    }
}

fn allowlist(config: &Config, report: &mut Report<'_>) {
    let list: Vec<Target> = config.allowlist.iter().filter_map(AllowlistEntry::target).collect();
    if let Some(wide) = list.iter().find(|target| target.prefix() == 0) {
        let family = if wide.is_ipv4() { "IPv4" } else { "IPv6" };
        let message = format!(
            "{wide} is every {family} address, so no {family} client is ever banned; list only your own networks"
        );
        report.warn(&["allowlist"], message);
    }
    let missing: Vec<String> = LOOPBACK
        .iter()
        .filter(|address| !list.iter().any(|target| target.contains((**address).into())))
        .map(ToString::to_string)
        .collect();
    // A file may have them.
    if !missing.is_empty() && config.allowlist_files.is_empty() {
        let message = format!(
            "{} can be banned, and with it programs on this host; add 127.0.0.0/8 and ::1",
            missing.join(" and ")
        );
        report.warn(&["allowlist"], message);
    }
}

/// Formats in which a message names its program, for messages of any program.
fn envelopes(config: &Config, report: &mut Report<'_>) {
    let (syslog, journal) = (&config.syslog, &config.inputs.journal);
    for (key, format, programs) in [
        ("syslog.format", syslog.format, &syslog.format_programs),
        ("inputs.journal.format", journal.format, &journal.format_programs),
    ] {
        if matches!(format, LineFormat::Json | LineFormat::Nested) && programs.is_empty() {
            report.warn(
                &[key],
                format!(
                    "{} applies to the messages of every program that no filter knows, so a client that can write the beginning of such a \
                     message can choose the program; list the programs that write this format in {key}_programs",
                    format.as_str()
                ),
            );
        }
    }
}

/// Passwords and tokens that the configuration has in plaintext. Those in files are checked where the files are read.
fn secrets(config: &Config, report: &mut Report<'_>) {
    let (api, basic) = (&config.api, &config.api.basic_auth);
    let one = basic.users.is_empty().then_some((&basic.username, &basic.password));
    for (name, password) in basic.users.iter().chain(one).filter(|_| basic.enabled) {
        if let Some(weak) = weak_password(password.expose(), name).filter(|_| !password.is_empty()) {
            let key = if basic.users.is_empty() { "api.basic_auth.password" } else { "api.basic_auth.users" };
            report.warn(&[key], format!("the password of `{name}` {weak}"));
        }
    }
    for (name, entry) in api.users.iter() {
        if let SecretSource::Plain(password) = &entry.secret
            && let Some(weak) = weak_password(password.expose(), name)
        {
            report.warn(&["api.users"], format!("the password of `{name}` {weak}"));
        }
    }
    for (name, entry) in api.tokens.iter() {
        if let SecretSource::Plain(token) = &entry.secret
            && let Some(weak) = weak_token(token.expose())
        {
            report.warn(&["api.tokens"], format!("the token `{name}` {weak}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::config::resolve;

    fn warnings(yaml: &str, key: &str) -> Vec<String> {
        let path = std::path::Path::new("c.yaml");
        let loaded = resolve(Some((path, yaml.as_bytes())), []).unwrap();
        loaded.warnings.iter().filter(|problem| problem.key.starts_with(key)).map(ToString::to_string).collect()
    }

    #[test]
    fn what_all_local_users_can_change_is_a_warning() {
        for from in ["127.0.0.0/8", "'::1'"] {
            let open = format!("spoa: {{address: 127.0.0.1, reports_from: [{from}]}}\n");
            let found = warnings(&open, "spoa");
            assert!(found.len() == 1 && found[0].contains("every process on this host"), "{open}: {found:?}");
        }
        let tls = "tls: {enabled: true, certificate: /c, key: /k, client_ca: /ca}";
        let authenticated = format!("spoa: {{enabled: false, reports_from: [127.0.0.1], {tls}}}\n");
        let local = "spoa: {address: 127.0.0.1}\n";
        for safe in [local, "spoa: {allowed_clients: [192.0.2.1], reports_from: [192.0.2.1]}\n", &authenticated] {
            assert_eq!(warnings(safe, "spoa"), [""; 0], "{safe}");
        }
        let cluster = "cluster: {enabled: true, listen: '127.0.0.1:12350', seeds: ['127.0.0.1:12351']";
        let found = warnings(&format!("{cluster}}}\n"), "cluster");
        assert!(found.len() == 1 && found[0].contains("keygen"), "{found:?}");
        assert_eq!(warnings(&format!("{cluster}, secret_file: /key}}\n"), "cluster"), [""; 0]);
    }

    #[test]
    fn open_listeners_for_mail_servers_are_warnings() {
        let warnings = |yaml: &str, key: &str| warnings(&format!("spoa: {{address: 127.0.0.1}}\n{yaml}"), key);
        assert_eq!(warnings("dnsbl: {enabled: true}\npolicy: {enabled: true}\n", ""), [""; 0]);
        for section in ["dnsbl", "policy"] {
            let found = warnings(&format!("{section}: {{enabled: true, allowed_clients: [0.0.0.0/0]}}\n"), section);
            assert!(found.len() == 1 && found[0].contains("everybody"), "{found:?}");
        }
        let found = warnings("dnsbl: {enabled: true, address: '0.0.0.0:53'}\n", "dnsbl");
        assert!(found.len() == 1 && found[0].contains("name one address"), "{found:?}");
        let found = warnings("auth_policy: {enabled: true}\nfilters: {enabled: [sshd]}\n", "");
        assert!(found.len() == 1 && found[0].contains("every process on this host"), "{found:?}");
        let token = "auth_policy: {enabled: true, token: bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo}\n";
        let found = warnings(token, "");
        assert!(found.len() == 1 && found[0].contains("counts twice"), "{found:?}");
        assert_eq!(warnings(&format!("{token}filters: {{enabled: [sshd, postfix]}}\n"), ""), [""; 0]);
        assert_eq!(
            warnings("auth_policy: {enabled: true, token: aaaaaaaaaaaaaaaaaaaaaaaaaaaa}\n", "auth_policy.token").len(),
            1
        );
    }

    #[test]
    fn an_access_log_without_a_program_is_a_warning() {
        let found = warnings("inputs: {files: [/var/log/mail.log, '/var/log/nginx/*access.log']}\n", "inputs");
        assert!(found.len() == 1 && found[0].contains("program: nginx"), "{found:?}");
        let named = "inputs: {files: [{path: '/var/log/nginx/*access.log', program: nginx}]}\n";
        assert_eq!(warnings(named, "inputs"), [""; 0]);
    }

    #[test]
    fn prefixes_that_ban_too_much_or_that_an_offender_evades_are_a_warning() {
        assert_eq!(warnings("ban: {ipv4_prefix: 16, ipv6_prefix: 64}\n", "ban"), [""; 0]);
        let found = warnings("ban: {ipv4_prefix: 15}\n", "ban");
        assert!(found.len() == 1 && found[0].contains("131072 addresses"), "{found:?}");
        let found = warnings("ban: {ipv6_prefix: 72}\n", "ban");
        assert!(found.len() == 1 && found[0].contains("256 networks of /72"), "{found:?}");
        assert_eq!(warnings("ban: {ipv6_prefix: 128}\n", "ban").len(), 1);
    }

    #[test]
    fn an_allowlist_of_everything_or_without_the_loopback_is_a_warning() {
        assert_eq!(warnings("", "allowlist"), [""; 0]);
        assert_eq!(warnings("allowlist: [127.0.0.0/8, '::1', 192.0.2.0/24]\n", "allowlist"), [""; 0]);
        let found = warnings("allowlist: [0.0.0.0/0, '::1']\n", "allowlist");
        assert!(found.len() == 1 && found[0].contains("every IPv4 address"), "{found:?}");
        let found = warnings("allowlist: ['::/0', 127.0.0.1]\n", "allowlist");
        assert!(found.len() == 1 && found[0].contains("every IPv6 address"), "{found:?}");
        for (list, missing) in [("192.0.2.0/24", "127.0.0.1 and ::1 can be banned"), ("127.0.0.1", "::1 can be banned")]
        {
            let found = warnings(&format!("allowlist: [{list}]\n"), "allowlist");
            assert!(found.len() == 1 && found[0].contains(missing), "{found:?}");
        }
    }

    #[test]
    fn formats_that_name_programs_warn_unless_their_writers_are_listed() {
        for (section, key) in
            [("syslog: {", "syslog.format"), ("inputs: {journal: {enabled: true, ", "inputs.journal.format")]
        {
            let close = "}".repeat(section.matches('{').count());
            for (format, count) in [("nested", 1), ("json", 1), ("cri", 0), ("docker", 0), ("plain", 0)] {
                let found = warnings(&format!("{section}format: {format}{close}\n"), key);
                assert_eq!(found.len(), count, "{found:?}");
                assert!(found.iter().all(|text| text.contains(&format!("{key}_programs"))), "{found:?}");
                let listed = format!("{section}format: {format}, format_programs: [mail*]{close}\n");
                assert_eq!(warnings(&listed, key), [""; 0], "{listed}");
            }
        }
    }

    #[test]
    fn weak_passwords_and_tokens_are_warnings_that_do_not_show_them() {
        for weak in [
            "users: {ann: {role: admin, password: hunter2}}",
            "users: {ann: {role: admin, password: annannannann}}",
            "users: {ann: {role: admin, password: password1234}}",
            "users: {ann: {role: admin, password: aaaaaaaaaaaaaaaa}}",
            "basic_auth: {enabled: true, username: ann, password: secret}",
            "basic_auth: {enabled: true, users: {ann: secret}}",
            "tokens: {ci: {role: admin, token: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}}",
        ] {
            let found = warnings(&format!("api: {{{weak}}}\n"), "api.");
            assert!(found.len() == 1, "{weak}: {found:?}");
            assert!(
                !found[0].contains("hunter2") && !found[0].contains("aaaa") && !found[0].contains("1234"),
                "{found:?}"
            );
        }
        for strong in [
            "users: {ann: {role: admin, password: four words chosen by chance}}",
            "tokens: {ci: {role: admin, token: bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo}}",
            "basic_auth: {enabled: false, username: ann, password: secret}",
        ] {
            assert_eq!(warnings(&format!("api: {{{strong}}}\n"), "api."), [""; 0], "{strong}");
        }
    }
}
