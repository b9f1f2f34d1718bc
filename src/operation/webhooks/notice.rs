//! Notices as JSON and as text, templates, and signatures by the Standard Webhooks specification (github.com/standard-webhooks).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::decisions::geo::Origin;
use banmesh_cluster::roster::Presence;
use banmesh_core::alarm::Alarm;
use banmesh_core::ban::By;
use banmesh_core::node::NodeId;
use banmesh_types::target::Target;
use banmesh_types::time::{Expiry, UnixMillis};

/// The kind of a notice, as in `notifications.webhooks[].events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// This node banned a target.
    Ban,
    /// An operator unbanned a target, or removed an allowlist entry, on this node.
    Unban,
    /// An operator allowed a target on this node.
    Allow,
    /// Another node joined, left, or was lost.
    Cluster,
    /// An alarm of this node.
    Alarm,
}

impl Topic {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Ban, Self::Unban, Self::Allow, Self::Cluster, Self::Alarm];

    /// The name in the configuration and in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ban => "ban",
            Self::Unban => "unban",
            Self::Allow => "allow",
            Self::Cluster => "cluster",
            Self::Alarm => "alarm",
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A ban by this node.
    Ban {
        /// The banned address or network.
        target: Target,
        /// The end.
        until: Expiry,
        /// Ordinal of this ban for the target (1 = first).
        bans: u32,
        /// The filter or operator.
        by: By,
        /// The reason.
        reason: String,
    },
    /// A new allowlist entry.
    Allow {
        /// The allowed address or network.
        target: Target,
        /// The end.
        until: Expiry,
        /// The filter or operator.
        by: By,
        /// The reason.
        reason: String,
    },
    /// An unban, or the removal of an allowlist entry.
    Unban {
        /// The address or network.
        target: Target,
        /// The filter or operator.
        by: By,
        /// The reason.
        reason: String,
    },
    /// A membership change.
    Cluster {
        /// The other node.
        node: NodeId,
        /// Its new state.
        presence: Presence,
    },
    /// An alarm that was raised or cleared.
    Alarm(Alarm),
}

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// When it happened.
    pub at: UnixMillis,
    /// What happened.
    pub event: Event,
    /// Where its target is, if the node has files about that.
    pub origin: Origin,
}

impl Notice {
    /// The kind of its event.
    pub const fn topic(&self) -> Topic {
        match self.event {
            Event::Ban { .. } => Topic::Ban,
            Event::Unban { .. } => Topic::Unban,
            Event::Allow { .. } => Topic::Allow,
            Event::Cluster { .. } => Topic::Cluster,
            Event::Alarm(_) => Topic::Alarm,
        }
    }

    /// The filter that caused it, if any.
    pub const fn filter(&self) -> Option<&str> {
        match &self.event {
            Event::Ban { by: By::Filter(name), .. } | Event::Unban { by: By::Filter(name), .. } => Some(name),
            _ => None,
        }
    }

    /// The notice as JSON.
    pub fn json(&self) -> Value {
        let mut value = match &self.event {
            Event::Ban { target, until, bans, by, reason } => {
                let (by_kind, by) = author(by);
                let until = until.to_string();
                json!({ "target": target, "until": until, "bans": bans, "by_kind": by_kind, "by": by, "reason": reason })
            }
            Event::Unban { target, by, reason } => {
                let (by_kind, by) = author(by);
                json!({ "target": target, "by_kind": by_kind, "by": by, "reason": reason })
            }
            Event::Allow { target, until, by, reason } => {
                let (by_kind, by) = author(by);
                let until = until.to_string();
                json!({ "target": target, "until": until, "by_kind": by_kind, "by": by, "reason": reason })
            }
            Event::Cluster { node, presence } => json!({ "member": node, "presence": presence.as_str() }),
            Event::Alarm(alarm) => {
                json!({ "alarm": alarm.name, "raised": alarm.raised, "message": alarm.message })
            }
        };
        value["event"] = self.topic().as_str().into();
        value["at"] = self.at.to_string().into();
        if let (Some(value), Ok(Value::Object(origin))) = (value.as_object_mut(), serde_json::to_value(&self.origin)) {
            value.extend(origin);
        }
        value
    }
}

const fn author(by: &By) -> (&'static str, &str) {
    match by {
        By::Filter(name) => ("filter", name),
        By::Operator(name) => ("operator", name),
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.event {
            Event::Ban { target, until, bans, by, reason } => {
                let origin = if self.origin.is_empty() { String::new() } else { format!(" ({})", self.origin) };
                write!(f, "banned {target}{origin} until {until} by {by}: {reason}")?;
                if *bans > 1 { write!(f, " (ban number {bans})") } else { Ok(()) }
            }
            Event::Unban { target, by, reason } => write!(f, "unbanned {target} by {by}: {reason}"),
            Event::Allow { target, until, by, reason } => {
                write!(f, "allowed {target} until {until} by {by}: {reason}")
            }
            Event::Cluster { node, presence } => write!(f, "node {node} {}", presence.as_str()),
            Event::Alarm(alarm) if alarm.raised => write!(f, "alarm {}: {}", alarm.name, alarm.message),
            Event::Alarm(alarm) => write!(f, "alarm {} cleared", alarm.name),
        }
    }
}

/// Notices that are sent in one request.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The sending node.
    pub node: &'a NodeId,
    /// `cluster.name`.
    pub cluster: &'a str,
    /// When the delivery was put together.
    pub at: UnixMillis,
    /// The notices, oldest first; at least one.
    pub notices: &'a [Notice],
    /// The notices lost since the last delivery, from a full queue or with a delivery that was given up.
    pub left_out: u64,
}

/// The most lines of a summary.
const MAX_LINES: usize = 20;

impl Delivery<'_> {
    /// The notices as text, one per line, at most 20 lines.
    pub fn summary(&self) -> String {
        let mut lines: Vec<String> = self.notices.iter().take(MAX_LINES).map(ToString::to_string).collect();
        let more = self.notices.len().saturating_sub(MAX_LINES) as u64 + self.left_out;
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        lines.join("\n")
    }

    /// The body in banmesh's own format.
    pub fn body(&self) -> String {
        json!({
            "node": self.node, "cluster": self.cluster, "at": self.at.to_string(), "count": self.notices.len(),
            "left_out": self.left_out, "summary": self.summary(), "notices": self.notices_json(),
        })
        .to_string()
    }

    fn notices_json(&self) -> Value {
        self.notices.iter().map(Notice::json).collect()
    }
}

/// A template for bodies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Place(Place),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Summary,
    Count,
    LeftOut,
    Node,
    Cluster,
    At,
    Notices,
}

const PLACES: [(&str, Place); 7] = [
    ("summary", Place::Summary),
    ("count", Place::Count),
    ("left_out", Place::LeftOut),
    ("node", Place::Node),
    ("cluster", Place::Cluster),
    ("at", Place::At),
    ("notices", Place::Notices),
];

/// Why a template is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{{` without `}}`.
    #[error("`{{{{` has no matching `}}}}`")]
    Open,
    /// An unknown placeholder.
    #[error("{{{{{0}}}}} is not a placeholder; use summary, count, left_out, node, cluster, at or notices")]
    Unknown(String),
    /// The result is not JSON.
    #[error(
        "the result is not JSON: {0}; put quotes around {{{{summary}}}}, {{{{node}}}}, {{{{cluster}}}} and {{{{at}}}}, \
         but not around {{{{notices}}}}"
    )]
    NotJson(String),
}

impl Template {
    /// Parses a template: JSON with placeholders `{{name}}`.
    ///
    /// # Errors
    /// When a placeholder is unknown, or the result would not be JSON.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let (name, after) = after.split_once("}}").ok_or(TemplateError::Open)?;
            let name = name.trim();
            let place = PLACES.iter().find(|(known, _)| *known == name);
            let (_, place) = place.ok_or_else(|| TemplateError::Unknown(name.chars().take(40).collect()))?;
            parts.push(Part::Text(before.to_owned()));
            parts.push(Part::Place(*place));
            rest = after;
        }
        parts.push(Part::Text(rest.to_owned()));
        let template = Self { text: text.to_owned(), parts };
        let sample = |place: Place| match place {
            Place::Count | Place::LeftOut => json!(2),
            Place::Notices => json!([{ "a": "b" }]),
            Place::Summary | Place::Node | Place::Cluster | Place::At => json!("a \"b\"\n"),
        };
        match serde_json::from_str::<serde::de::IgnoredAny>(&template.fill(sample)) {
            Ok(_) => Ok(template),
            Err(error) => Err(TemplateError::NotJson(error.to_string())),
        }
    }

    /// The text of the template.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The body for `delivery`.
    pub fn body(&self, delivery: &Delivery<'_>) -> String {
        self.fill(|place| match place {
            Place::Summary => delivery.summary().into(),
            Place::Count => delivery.notices.len().into(),
            Place::LeftOut => delivery.left_out.into(),
            Place::Node => delivery.node.as_str().into(),
            Place::Cluster => delivery.cluster.into(),
            Place::At => delivery.at.to_string().into(),
            Place::Notices => delivery.notices_json(),
        })
    }

    /// Inserts strings without quotes, because the template has them, and other values as JSON.
    fn fill(&self, value: impl Fn(Place) -> Value) -> String {
        let mut body = String::with_capacity(self.text.len());
        for part in &self.parts {
            match part {
                Part::Text(text) => body.push_str(text),
                Part::Place(place) => {
                    let value = value(*place);
                    let json = value.to_string();
                    body.push_str(if value.is_string() { &json[1..json.len() - 1] } else { &json });
                }
            }
        }
        body
    }
}

/// A key that signs bodies.
#[derive(Clone)]
pub struct Signer(Hmac<Sha256>);

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer")
    }
}

impl Signer {
    /// A key from a secret: `whsec_` with base64 as in the specification, or any other text as bytes.
    pub fn new(secret: &str) -> Self {
        let decoded = secret.strip_prefix("whsec_").and_then(|text| STANDARD.decode(text).ok());
        let key = decoded.unwrap_or_else(|| secret.as_bytes().to_vec());
        match Hmac::new_from_slice(&key) {
            Ok(hmac) => Self(hmac),
            Err(_) => unreachable!("HMAC accepts keys of any length"),
        }
    }

    /// The value of `webhook-signature`: HMAC-SHA-256 over `id.seconds.body`.
    pub fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mut hmac = self.0.clone();
        hmac.update(format!("{id}.{seconds}.").as_bytes());
        hmac.update(body);
        format!("v1,{}", STANDARD.encode(hmac.finalize().into_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(target: &str, reason: &str) -> Notice {
        let by = By::Filter("sshd".into());
        let until = Expiry::from_seconds(2_000_000_000);
        let event = Event::Ban { target: target.parse().unwrap(), until, bans: 2, by, reason: reason.to_owned() };
        Notice { at: UnixMillis(1_700_000_000_000), event, origin: Origin::default() }
    }

    fn delivery<'a>(node: &'a NodeId, notices: &'a [Notice]) -> Delivery<'a> {
        Delivery { node, cluster: "mail", at: UnixMillis(1_700_000_000_000), notices, left_out: 3 }
    }

    #[test]
    fn a_body_has_the_notices() {
        let node = "edge-1".parse().unwrap();
        let body: Value =
            serde_json::from_str(&delivery(&node, &[ban("192.0.2.1", "x\"\\\n</script>")]).body()).unwrap();
        assert_eq!(body["node"], "edge-1");
        assert_eq!(body["left_out"], 3);
        assert_eq!(body["notices"][0]["event"], "ban");
        assert_eq!(body["notices"][0]["target"], "192.0.2.1");
        assert_eq!(body["notices"][0]["by"], "sshd");
        assert_eq!(body["notices"][0]["reason"], "x\"\\\n</script>");
        assert!(body["summary"].as_str().unwrap().ends_with("and 3 more"));
    }

    #[test]
    fn templates_escape_hostile_text() {
        let node = "edge-1".parse().unwrap();
        let template =
            Template::parse(r#"{"text": "{{ summary }}", "n": {{count}}, "all": {{notices}}, "from": "{{node}}"}"#)
                .unwrap();
        let notices = [ban("192.0.2.1", "\",\"admin\":true,\"x\":\"\u{0}{{node}}")];
        let body: Value = serde_json::from_str(&template.body(&delivery(&node, &notices))).unwrap();
        assert_eq!(body.as_object().unwrap().len(), 4, "{body}");
        assert!(body["text"].as_str().unwrap().contains("\",\"admin\":true"), "{body}");
        assert_eq!((&body["n"], &body["from"]), (&json!(1), &json!("edge-1")));
    }

    #[test]
    fn invalid_templates_are_refused() {
        assert_eq!(Template::parse("{\"a\": \"{{summary\"}"), Err(TemplateError::Open));
        assert_eq!(Template::parse("{\"a\": \"{{sumary}}\"}"), Err(TemplateError::Unknown("sumary".to_owned())));
        for wrong in ["{\"a\": {{summary}}}", "{\"a\": \"{{notices}}\"}", "text", ""] {
            assert!(matches!(Template::parse(wrong), Err(TemplateError::NotJson(_))), "{wrong}");
        }
    }

    #[test]
    fn summaries_have_at_most_20_lines() {
        let node = "edge-1".parse().unwrap();
        let notices: Vec<Notice> = (0..100).map(|n| ban(&format!("192.0.2.{n}"), "x")).collect();
        let summary = delivery(&node, &notices).summary();
        assert_eq!(summary.lines().count(), 21);
        assert!(summary.ends_with("and 83 more"), "{summary}");
    }

    #[test]
    fn signatures_match_the_specification() {
        // The example of the specification's reference libraries.
        let signer = Signer::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_ne!(Signer::new("other").sign("a", 1, b""), Signer::new("another").sign("a", 1, b""));
    }
}
