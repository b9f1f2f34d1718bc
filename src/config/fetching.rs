//! Checks `crowdsec` and `lists`, whose clients fetch bans.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::FetchKeys;
use super::access::SecretSource;
use super::consistency::Report;
use super::sections::Config;
use crate::operation::api::credential::weak_token;
use banmesh_types::target::Target;

/// The settings that both sections have.
struct Section<'a> {
    name: &'static str,
    enabled: bool,
    listen: SocketAddr,
    keys: &'a FetchKeys,
    proxies: &'a [Target],
    tls: bool,
    files: [&'a Option<PathBuf>; 2],
}

/// Adds the errors and warnings.
pub(super) fn check(config: &Config, report: &mut Report<'_>) {
    let (crowdsec, lists) = (&config.crowdsec, &config.lists);
    one(
        &Section {
            name: "crowdsec",
            enabled: crowdsec.enabled,
            listen: crowdsec.listen(),
            keys: &crowdsec.keys,
            proxies: &crowdsec.trusted_proxies,
            tls: crowdsec.tls.enabled,
            files: [&crowdsec.tls.certificate, &crowdsec.tls.key],
        },
        report,
    );
    one(
        &Section {
            name: "lists",
            enabled: lists.enabled,
            listen: lists.listen(),
            keys: &lists.keys,
            proxies: &lists.trusted_proxies,
            tls: lists.tls.enabled,
            files: [&lists.tls.certificate, &lists.tls.key],
        },
        report,
    );
    let silent = config.crowdsec.silent_after;
    report.require(silent.is_none_or(|span| span.0.as_secs() >= 10), &["crowdsec.silent_after"], || {
        format!("{} is too short; it must be at least 10s", silent.unwrap_or_default())
    });
}

fn one(section: &Section<'_>, report: &mut Report<'_>) {
    let key = |name: &str| format!("{}.{name}", section.name);
    let (keys, enabled, address) = (key("keys"), key("enabled"), key("address"));
    report.require(!section.enabled || !section.keys.is_empty(), &[&keys, &enabled], || {
        "is empty, so no client could fetch bans; `banmesh api token` makes a key and its key_hash".to_owned()
    });
    for (file, name, what) in
        [(section.files[0], "tls.certificate", "certificate"), (section.files[1], "tls.key", "key of its certificate")]
    {
        report.require(!section.tls || file.is_some(), &[&key(name), &key("tls.enabled")], || {
            format!("{} is missing: TLS needs the file with this node's {what}", key(name))
        });
    }
    for (name, entry) in section.keys.iter() {
        if let SecretSource::Plain(secret) = &entry.secret
            && let Some(weak) = weak_token(secret.expose())
        {
            report.warn(&[&keys], format!("the key `{name}` {weak}"));
        }
    }
    if let Some(wide) = section.proxies.iter().find(|proxy| proxy.prefix() == 0) {
        report.warn(
            &[&key("trusted_proxies")],
            format!("{wide} lets any client choose its address in X-Forwarded-For; list only the proxies"),
        );
    }
    if section.enabled && !section.tls && !section.listen.ip().to_canonical().is_loopback() {
        report.warn(
            &[&key("tls.enabled"), &address],
            format!(
                "keys and bans cross the network to {} as plaintext; set {}, or listen on loopback behind a proxy with TLS",
                section.listen,
                key("tls")
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{ConfigErrors, Loaded, resolve};

    const KEY: &str = "bm_lnmXbvjKxJmVh1Zq3bGg5pQe2tWyRfUo";

    fn read(yaml: &str) -> Result<Loaded, ConfigErrors> {
        resolve(Some((std::path::Path::new("c.yaml"), yaml.as_bytes())), [])
    }

    #[test]
    fn a_listener_without_keys_is_refused() {
        for section in ["crowdsec", "lists"] {
            let error = read(&format!("{section}: {{enabled: true}}\n")).unwrap_err().to_string();
            assert!(error.contains(&format!("{section}.enabled")) && error.contains("banmesh api token"), "{error}");
            assert!(read(&format!("{section}: {{enabled: true, keys: {{edge: {{key: {KEY}}}}}}}\n")).is_ok());
        }
    }

    #[test]
    fn keys_in_plaintext_on_the_network_and_weak_keys_are_warnings() {
        for section in ["crowdsec", "lists"] {
            let with = |rest: &str| {
                let yaml = format!("{section}: {{enabled: true, keys: {{edge: {{key: {KEY}}}}}{rest}}}\n");
                let found = read(&yaml).unwrap().warnings;
                found.iter().map(ToString::to_string).filter(|text| text.contains(section)).collect::<Vec<_>>()
            };
            assert_eq!(with(""), [""; 0]);
            let open = with(", address: 0.0.0.0");
            assert!(open.len() == 1 && open[0].contains("as plaintext"), "{open:?}");
            assert_eq!(with(", address: 0.0.0.0, tls: {enabled: true, certificate: /c, key: /k}"), [""; 0]);
            let wide = with(", trusted_proxies: [0.0.0.0/0]");
            assert!(wide.len() == 1 && wide[0].contains("list only the proxies"), "{wide:?}");
            let weak = format!("{section}: {{keys: {{edge: {{key: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa}}}}}}\n");
            let weak = read(&weak).unwrap().warnings;
            assert!(weak.iter().any(|problem| problem.to_string().contains("the key `edge`")), "{weak:?}");
        }
    }

    #[test]
    fn keys_are_hidden_and_have_no_role() {
        let config =
            read(&format!("crowdsec: {{keys: {{edge: {{key: {KEY}, expires: '2027-01-31'}}}}}}\n")).unwrap().config;
        assert!(!format!("{config:?}").contains(KEY));
        let error =
            read(&format!("crowdsec: {{keys: {{edge: {{key: {KEY}, role: read}}}}}}\n")).unwrap_err().to_string();
        assert!(error.contains("unknown"), "{error}");
    }
}
