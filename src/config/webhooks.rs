//! `notifications.webhooks`: HTTP servers to notify.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::Faults;
use super::setting::{HIDDEN, Scalar, Setting, comparable};
use super::structured::{fields, named_list, optional, read_variable, required, scalars};
use super::value::Secret;
use super::yaml::{Node, Value};
use crate::net::dial::without_path;
use crate::operation::webhooks::notice::{Template, Topic};
use banmesh_types::time::Span;

/// An element of `notifications.webhooks`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebhookConfig {
    /// The name under which it is counted and logged; unique. Default: the host of the URL.
    pub name: String,
    /// The URL to send notices to. A secret, because anyone who has the URL of a chat's webhook can write there.
    pub url: Secret,
    /// The events to send.
    pub events: Vec<Topic>,
    /// Send only bans by these filters; empty means all.
    pub filters: Vec<String>,
    /// The body; `None` for the default JSON.
    pub template: Option<Template>,
    /// The key that signs the bodies; empty for no signature.
    pub secret: Secret,
    /// The value of the header `Authorization`; empty for no header.
    pub authorization: Secret,
    /// The file with the CA certificates, in PEM, that must have signed the server's certificate. `None`: those that the system
    /// trusts.
    pub ca: Option<PathBuf>,
    /// The maximum duration of one attempt.
    pub timeout: Span,
    /// The maximum number of retries of a delivery.
    pub retries: u32,
    /// How long notices are collected into one delivery.
    pub collect: Span,
}

impl Scalar for Topic {
    const KIND: &'static str = "one of ban, unban, allow, cluster, alarm";
    const KINDS: &'static str = "list of ban, unban, allow, cluster, alarm";

    fn parse(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|topic| topic.as_str().eq_ignore_ascii_case(text));
        found.ok_or_else(|| format!("`{}` is not {}", text.chars().take(40).collect::<String>(), Self::KIND))
    }

    fn show(&self) -> String {
        self.as_str().to_owned()
    }
}

const KEYS: [&str; 11] =
    ["name", "url", "events", "filters", "template", "secret", "authorization", "ca", "timeout", "retries", "collect"];

/// The maximum of `retries`. This many take more than an hour and a half.
const MAX_RETRIES: u32 = 100;

impl WebhookConfig {
    fn read(node: &Node, faults: &mut Faults<'_>) -> Option<Self> {
        let Value::Map(pairs) = &node.value else {
            faults.invalid(node.line, format!("expected a webhook (url, events …), found {}", node.value.kind()));
            return None;
        };
        let (found, good) = fields(pairs, KEYS, faults);
        let line = |key: &str| found.get(key).map_or(node.line, |node| node.line);
        let url: Option<String> = required(&found, "url", node, faults).and_then(|url: String| {
            let good = host(&url).is_some();
            if !good {
                let message =
                    "is not a valid URL; write for example https://hooks.example.org/path, without a name or password";
                faults.within(".url", |faults| faults.invalid(line("url"), message.to_owned()));
            }
            good.then_some(url)
        });
        let name: Option<String> = optional(&found, "name", String::new(), faults);
        let events = scalars(&found, "events", Topic::ALL.to_vec(), faults);
        let filters: Option<Vec<String>> = scalars(&found, "filters", Vec::new(), faults);
        let template: Option<String> = optional(&found, "template", String::new(), faults);
        let template = template.and_then(|text| match text.trim() {
            "" => Some(None),
            text => match Template::parse(text) {
                Ok(template) => Some(Some(template)),
                Err(error) => {
                    faults.within(".template", |faults| faults.invalid(line("template"), error.to_string()));
                    None
                }
            },
        });
        let secret: Option<Secret> = optional(&found, "secret", Secret::default(), faults);
        let authorization: Option<Secret> = optional(&found, "authorization", Secret::default(), faults);
        let authorization = authorization.filter(|value| {
            let printable = value.expose().bytes().all(|b| (b' '..=b'~').contains(&b));
            if !printable {
                let message = "holds characters that a header cannot have".to_owned();
                faults.within(".authorization", |faults| faults.invalid(line("authorization"), message));
            }
            printable
        });
        let ca: Option<String> = optional(&found, "ca", String::new(), faults);
        let timeout = span(&found, "timeout", 10, 1, faults);
        let retries: Option<u32> = optional(&found, "retries", 6, faults);
        let retries = retries.filter(|retries| {
            if *retries > MAX_RETRIES {
                let message = format!("{retries} is too many; at most {MAX_RETRIES}");
                faults.within(".retries", |faults| faults.invalid(line("retries"), message));
            }
            *retries <= MAX_RETRIES
        });
        let collect = span(&found, "collect", 1, 0, faults);
        let url = url?;
        let name = name?;
        let hook = Self {
            name: if name.is_empty() { host(&url)?.to_owned() } else { name },
            url: Secret::new(url),
            events: events?,
            filters: filters?,
            template: template?,
            secret: secret?,
            authorization: authorization?,
            ca: Some(ca?).filter(|ca| !ca.is_empty()).map(PathBuf::from),
            timeout: timeout?,
            retries: retries?,
            collect: collect?,
        };
        good.then_some(hook)
    }
}

/// The host and port of `url`; `None` if the URL cannot be used.
fn host(url: &str) -> Option<&str> {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"))?;
    let host = rest.split(['/', '?', '#']).next()?;
    let plain = url.bytes().all(|b| b.is_ascii_graphic()) && !host.is_empty() && !host.contains('@');
    plain.then_some(host)
}

/// Reads a duration of at least `least` seconds and at most ten minutes.
fn span(found: &BTreeMap<&str, &Node>, key: &str, default: u64, least: u64, faults: &mut Faults<'_>) -> Option<Span> {
    let span: Span = optional(found, key, Span(Duration::from_secs(default)), faults)?;
    if (least..=600).contains(&span.0.as_secs()) {
        return Some(span);
    }
    let line = found.get(key).map_or(0, |node| node.line);
    faults.within(&format!(".{key}"), |faults| faults.invalid(line, format!("{span} is not between {least}s and 10m")));
    None
}

impl Setting for Vec<WebhookConfig> {
    comparable!();

    fn kind(&self) -> &'static str {
        "list of webhooks"
    }

    fn read(&mut self, node: &Node, faults: &mut Faults<'_>) {
        if let Some(hooks) = named_list(node, "webhook", WebhookConfig::read, |hook| &hook.name, faults) {
            *self = hooks;
        }
    }

    fn read_text(&mut self, text: &str, faults: &mut Faults<'_>) {
        read_variable(self, text, faults);
    }

    fn json(&self) -> serde_json::Value {
        let hidden = |secret: &Secret| if secret.is_empty() { "" } else { HIDDEN };
        let one = |hook: &WebhookConfig| {
            serde_json::json!({
                "name": hook.name, "url": without_path(hook.url.expose()),
                "events": hook.events.iter().map(|topic| topic.as_str()).collect::<Vec<_>>(),
                "filters": hook.filters, "template": hook.template.as_ref().map_or("", Template::as_str),
                "secret": hidden(&hook.secret), "authorization": hidden(&hook.authorization),
                "ca": hook.ca.as_ref().map_or_else(String::new, |path| path.display().to_string()),
                "timeout": hook.timeout.to_string(), "retries": hook.retries, "collect": hook.collect.to_string(),
            })
        };
        self.iter().map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve;
    use std::path::Path;

    fn webhooks(yaml: &str) -> Result<Vec<WebhookConfig>, Vec<String>> {
        let text = format!("notifications:\n  webhooks:\n{yaml}");
        resolve(Some((Path::new("c.yaml"), text.as_bytes())), [])
            .map(|loaded| loaded.config.notifications.webhooks)
            .map_err(|errors| errors.to_string().lines().map(str::to_owned).collect())
    }

    #[test]
    fn a_webhook_needs_a_url_and_has_defaults() {
        let hooks = webhooks("    - url: https://hooks.example.org:8443/a?b=c\n      secret: s3cret\n").unwrap();
        let hook = &hooks[0];
        assert_eq!((hook.name.as_str(), hook.retries, hook.events.len()), ("hooks.example.org:8443", 6, 5));
        assert!(!hooks.json().to_string().contains("s3cret"));
        assert!(!format!("{hook:?}").contains("s3cret"));
    }

    #[test]
    fn only_scheme_and_host_of_a_url_are_shown() {
        let hooks = |path: &str| webhooks(&format!("    - url: https://chat.example.org:8443/{path}\n")).unwrap();
        let (old, new) = (hooks("hook/T01/s3cret"), hooks("hook/T01/an0ther"));
        assert_eq!(old.json()[0]["url"], "https://chat.example.org:8443/(hidden)");
        for shown in [old.text(), format!("{old:?}"), new.text()] {
            assert!(!["T01", "s3cret", "an0ther"].iter().any(|part| shown.contains(part)), "{shown}");
        }
        assert!(!old.equals(&new), "a reload notices the change");
        // A list of URLs instead of webhooks.
        let error = webhooks("    - https://chat.example.org/hook/s3cret\n").unwrap_err().join("\n");
        assert!(error.contains("found text") && !error.contains("chat.example.org"), "{error}");
    }

    #[test]
    fn all_errors_are_reported_at_once() {
        let wrong = "    - url: ftp://x\n      events: [ban, lift]\n      template: \"{{sumary}}\"\n      timeout: 1h\n      \
                     retries: 1000\n      colour: red\n    - name: a\n";
        let errors = webhooks(wrong).unwrap_err().join("\n");
        for part in [
            "c.yaml:3",
            "is not a valid URL",
            "`lift` is not",
            "{{sumary}} is not a placeholder",
            "1h is not",
            "1000 is too many",
            "colour",
            "url",
            "is missing",
        ] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
        let twice = "    - url: http://a/1\n    - url: http://a/2\n";
        assert!(webhooks(twice).unwrap_err().join("\n").contains("is also the name of the webhook in line 3"));
    }
}
