//! Turns the errors of the API into errors of the command line: options and commands instead of JSON fields.

use super::client::Client;
use super::failure::Failure;
use crate::operation::api::views::{ErrorView, FiltersView};
use banmesh_types::target::Target;

/// The error message, in one line.
pub fn error(view: &ErrorView) -> String {
    let error = options(&view.error);
    if view.code == "banned_longer" { format!("{error}; use --replace to shorten it") } else { error }
}

/// What to do about it, in any number of lines.
pub fn hint(view: &ErrorView) -> Vec<String> {
    match view.code.as_str() {
        // `error` includes the hint.
        "banned_longer" => Vec::new(),
        _ => options(&view.hint).lines().map(str::to_owned).collect(),
    }
}

/// The refusal to unban `given`. If it is banned as part of a network, the hint gives the commands to use.
pub fn of_unban(given: &str, view: ErrorView) -> ErrorView {
    let hint = match (&view.banned_by, given.parse::<Target>()) {
        (Some(network), Ok(target)) => commands(**network, target),
        _ => view.hint,
    };
    ErrorView { hint, ..view }
}

/// The commands to use if `target` is banned as part of `network`.
pub fn commands(network: Target, target: Target) -> String {
    format!("to unban the network:   banmesh unban {network}\nto exempt {target}:   banmesh allow {target}")
}

/// Refuses a name that no filter has. Called when nothing was found, because bans of a filter that is no longer in force stay.
///
/// # Errors
/// [`Failure::Refused`] when no filter of the node has this name.
pub async fn unless_filter(client: &mut Client, name: &str) -> Result<(), Failure> {
    let known: FiltersView = client.get("/api/v1/filters").await?;
    let names: Vec<String> = known.filters.into_iter().map(|filter| filter.name).collect();
    // Offences that HAProxy reports have the name `haproxy`. A node without filters cannot know those of the others.
    if names.is_empty() || name == "haproxy" || names.iter().any(|known| known == name) {
        return Ok(());
    }
    let hint = format!("the filters in force are {}; to see all, use `banmesh filter list`", names.join(", "));
    let (error, code) = (format!("there is no filter `{name}`"), "no_such_filter".to_owned());
    Err(Failure::Refused(ErrorView { error, hint, code, banned_by: None }))
}

/// What the API calls by its own words, and the command line by others.
const WORDS: &[(&str, &str)] = &[
    ("`force`", "--force"),
    ("`replace`", "--replace"),
    ("`wide`", "--wide"),
    ("`own`", "--own"),
    ("`duration`", "--for"),
    ("`permanent`", "--permanent"),
    ("`reason`", "--reason"),
    ("`keep`", "--keep-longer"),
    ("`all_or_none`", "a file (--file)"),
    ("`GET /api/v1/why/ADDRESS`", "`banmesh why ADDRESS`"),
    ("send DELETE for its target", "use `banmesh unban`"),
    ("`GET /api/v1/allowlist`", "`banmesh allowlist`"),
    ("`GET /api/v1/cluster`", "`banmesh cluster status`"),
    ("/api/v1/why/{address}", "`banmesh why ADDRESS`"),
    ("/api/v1/bans/{network}", "`banmesh list --all --network NETWORK`"),
    ("see docs/api.md, or /api/v1/openapi.json", "see `banmesh help`"),
    ("see docs/api.md", "see `banmesh help`"),
];

/// `text` with options and commands in place of the API's fields and paths.
fn options(text: &str) -> String {
    WORDS.iter().fold(text.to_owned(), |text, (api, cli)| text.replace(api, cli))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: &str, error: &str, hint: &str) -> ErrorView {
        ErrorView { error: error.to_owned(), hint: hint.to_owned(), code: code.to_owned(), banned_by: None }
    }

    #[test]
    fn refusals_name_options_and_commands_of_the_cli() {
        let longer = refused("banned_longer", "192.0.2.7 is already banned, permanently (by ann)", "with `replace` …");
        let said = "192.0.2.7 is already banned, permanently (by ann); use --replace to shorten it";
        assert_eq!((error(&longer), hint(&longer)), (said.to_owned(), Vec::new()));
        let wide = refused("too_wide", "0.0.0.0/4 is very wide", "check the prefix; `force` does it");
        assert_eq!(hint(&wide), ["check the prefix; --force does it"]);
        let lookup = refused("unknown", "…", "`GET /api/v1/why/ADDRESS` also finds networks");
        assert_eq!(hint(&lookup), ["`banmesh why ADDRESS` also finds networks"]);
        let network = Some(Box::new("2001:db8:0:1::/64".parse().unwrap()));
        let covered = ErrorView { banned_by: network, ..refused("banned_with_network", "…", "unban it") };
        let lines = hint(&of_unban("2001:db8:0:1:0::7", covered));
        assert!(lines[0].ends_with("banmesh unban 2001:db8:0:1::/64"), "{lines:?}");
        assert!(lines[1].ends_with("banmesh allow 2001:db8:0:1::7"), "{lines:?}");
    }
}
