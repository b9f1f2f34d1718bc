//! The parameters of bouncers' requests. Unknown ones are ignored, as CrowdSec does.

use banmesh_types::target::Target;

/// Which decisions a bouncer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    hosts: bool,
    networks: bool,
    /// Parts of scenarios that a decision must contain, if there are any.
    containing: Vec<String>,
    not_containing: Vec<String>,
}

/// What `GET /v1/decisions` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Lookup {
    /// Every decision.
    All,
    /// The decisions that cover this target.
    Covering(Target),
    /// The decisions inside this target.
    Inside(Target),
    /// The decision about exactly this target.
    Exactly(Target),
    /// Something that banmesh does not ban, such as a country.
    Nothing,
}

/// The origin of all decisions. Newer firewall bouncers make a set for each.
pub(super) const ORIGIN: &str = "banmesh";

type Parameters = [(String, String)];

impl Filter {
    /// The filter of a stream. The addresses and networks are wanted unless `scopes` says otherwise. One bouncer writes `scope`.
    pub(super) fn of_stream(parameters: &Parameters) -> Self {
        Self::new(parameters, &["scopes", "scope"])
    }

    /// The filter of a lookup, in which `scope` belongs to `value`.
    pub(super) fn of_lookup(parameters: &Parameters) -> Self {
        Self::new(parameters, &["scopes"])
    }

    fn new(parameters: &Parameters, scope_keys: &[&str]) -> Self {
        let scopes = list(parameters, scope_keys);
        let (origins, kinds) = (list(parameters, &["origins"]), list(parameters, &["type"]));
        let wanted = (origins.is_empty() || origins.iter().any(|origin| origin == ORIGIN))
            && (kinds.is_empty() || kinds.iter().any(|kind| kind == "ban"));
        let has = |scope: &str| wanted && (scopes.is_empty() || scopes.iter().any(|one| one == scope));
        Self {
            hosts: has("ip"),
            networks: has("range"),
            containing: list(parameters, &["scenarios_containing"]),
            not_containing: list(parameters, &["scenarios_not_containing"]),
        }
    }

    /// Whether decisions about `value` are wanted.
    pub(super) const fn wants(&self, value: Target) -> bool {
        if value.is_host() { self.hosts } else { self.networks }
    }

    /// Whether decisions with this scenario are wanted.
    pub(super) fn wants_scenario(&self, scenario: &str) -> bool {
        (self.containing.is_empty() || self.containing.iter().any(|part| scenario.contains(part)))
            && !self.not_containing.iter().any(|part| scenario.contains(part))
    }
}

/// An address or a network that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub(super) struct LookupError {
    key: &'static str,
    reason: String,
}

impl Lookup {
    /// Reads `ip`, `range` with `contains`, or `scope` with `value`.
    pub(super) fn read(parameters: &Parameters) -> Result<Self, LookupError> {
        let value = |key| parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        let target = |key: &'static str, text: &str| {
            // Only the end of a long value would be of no help.
            let short: String = text.chars().take(60).collect();
            short.parse::<Target>().map_err(|error| LookupError { key, reason: error.to_string() })
        };
        if let Some(text) = value("ip") {
            return target("ip", text).map(Self::Covering);
        }
        if let Some(text) = value("range") {
            let inside = value("contains") == Some("false");
            return target("range", text).map(if inside { Self::Inside } else { Self::Covering });
        }
        match (value("scope").map(str::to_ascii_lowercase).as_deref(), value("value")) {
            (Some("ip" | "range"), Some(text)) => target("value", text).map(Self::Exactly),
            (Some("ip" | "range") | None, None) => Ok(Self::All),
            (None, Some(text)) => Ok(target("value", text).map_or(Self::Nothing, Self::Exactly)),
            (Some(_), _) => Ok(Self::Nothing),
        }
    }
}

/// The elements of the comma lists of these parameters, in lower case.
fn list(parameters: &Parameters, keys: &[&str]) -> Vec<String> {
    let values = parameters.iter().filter(|(name, _)| keys.contains(&name.as_str()));
    let parts = values.flat_map(|(_, value)| value.split(',')).map(|part| part.trim().to_ascii_lowercase());
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(text: &str) -> Vec<(String, String)> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.into(), value.into()))
            .collect()
    }

    #[test]
    fn addresses_and_networks_are_wanted_unless_the_scopes_say_otherwise() {
        let (host, network): (Target, Target) = ("192.0.2.1".parse().unwrap(), "2001:db8::/64".parse().unwrap());
        for (query, hosts, networks) in [
            ("", true, true),
            ("startup=true", true, true),
            ("scopes=Ip,Range,Country", true, true),
            ("scope=ip,range", true, true),
            ("scopes=ip", true, false),
            ("scopes=country", false, false),
            ("origins=cscli,banmesh", true, true),
            ("origins=cscli", false, false),
            ("type=captcha", false, false),
        ] {
            let filter = Filter::of_stream(&parameters(query));
            assert_eq!((filter.wants(host), filter.wants(network)), (hosts, networks), "{query}");
        }
    }

    #[test]
    fn scenarios_are_filtered_by_parts() {
        let filter = Filter::of_stream(&parameters("scenarios_containing=ssh,mail&scenarios_not_containing=test"));
        assert!(filter.wants_scenario("banmesh/sshd") && !filter.wants_scenario("banmesh/dovecot"));
        assert!(!filter.wants_scenario("banmesh/sshd-test"));
    }

    #[test]
    fn lookups_are_read_or_refused() {
        let read = |query: &str| Lookup::read(&parameters(query));
        let target = |text: &str| text.parse::<Target>().unwrap();
        assert_eq!(read("ip=2001:db8::1"), Ok(Lookup::Covering(target("2001:db8::1"))));
        assert_eq!(read("range=192.0.2.0/24"), Ok(Lookup::Covering(target("192.0.2.0/24"))));
        assert_eq!(read("range=192.0.2.0/24&contains=false"), Ok(Lookup::Inside(target("192.0.2.0/24"))));
        assert_eq!(read("scope=IP&value=192.0.2.1"), Ok(Lookup::Exactly(target("192.0.2.1"))));
        assert_eq!(read("scope=Country&value=DE"), Ok(Lookup::Nothing));
        assert_eq!(read(""), Ok(Lookup::All));
        assert!(read("ip=banana").unwrap_err().to_string().starts_with("ip: `banana` is neither"));
    }
}
