//! Turns the errors of the API into errors of the command line: options and commands instead of JSON fields.

use crate::operation::api::views::ErrorView;
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

/// `text` with options in place of the API's fields.
fn options(text: &str) -> String {
    let text = text.replace("`force`", "--force").replace("`replace`", "--replace");
    text.replace("`wide`", "--wide").replace("`own`", "--own")
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
        let network = Some(Box::new("2001:db8:0:1::/64".parse().unwrap()));
        let covered = ErrorView { banned_by: network, ..refused("banned_with_network", "…", "unban it") };
        let lines = hint(&of_unban("2001:db8:0:1:0::7", covered));
        assert!(lines[0].ends_with("banmesh unban 2001:db8:0:1::/64"), "{lines:?}");
        assert!(lines[1].ends_with("banmesh allow 2001:db8:0:1::7"), "{lines:?}");
    }
}
