//! Dovecot's auth policy: JSON over HTTP. `allow` asks whether a client may log in, `report` says how a login ended.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::Deserialize;

/// The longest body in bytes. Dovecot sends about 300.
pub const MAX_BODY: usize = 16 * 1024;
/// The most characters of an account that are kept.
pub const MAX_ACCOUNT: usize = 128;

/// The command, which is in the query of the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// May this client log in?
    Allow,
    /// A login ended.
    Report,
}

impl Command {
    /// Reads the query of a URL: `command=allow` or `command=report`. Dovecot appends it with a `?` even to a URL that has a query.
    pub fn of_query(query: &str) -> Option<Self> {
        match query.split(['&', '?']).find_map(|part| part.strip_prefix("command="))? {
            "allow" => Some(Self::Allow),
            "report" => Some(Self::Report),
            _ => None,
        }
    }
}

/// A login, as Dovecot describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// The client. `None` for a login without an address, such as one of a local program.
    pub client: Option<IpAddr>,
    /// The account, which the client chose: printable, and at most [`MAX_ACCOUNT`] characters long.
    pub account: String,
    /// The protocol, such as `imap` or `smtp`.
    pub protocol: String,
    /// How it ended. [`Ended::Unknown`] for [`Command::Allow`].
    pub ended: Ended,
    /// Whether it failed because there is no such account. Dovecot 2.3 does not say.
    pub unknown: bool,
}

/// How a login ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The client is logged in.
    Success,
    /// The password was wrong, or there is no such account.
    Failure,
    /// The client did not get to try a password, or the password was right and the account is locked: refused by the policy, a fault of the
    /// server, or an expired account.
    Unknown,
}

/// Why a body cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It is too long.
    #[error("it is longer than {MAX_BODY} bytes")]
    TooLong,
    /// It is not the JSON of a login.
    #[error("it is not the JSON of a login: {0}")]
    Json(#[from] serde_json::Error),
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    login: Cow<'a, str>,
    #[serde(borrow, default)]
    remote: Cow<'a, str>,
    #[serde(borrow, default)]
    protocol: Cow<'a, str>,
    #[serde(borrow, default)]
    fail_type: Cow<'a, str>,
    success: Option<bool>,
    #[serde(default)]
    policy_reject: bool,
}

/// Reads the body of a request.
///
/// # Errors
/// When it is too long or not the JSON of a login.
pub fn read(body: &[u8]) -> Result<Login, BodyError> {
    if body.len() > MAX_BODY {
        return Err(BodyError::TooLong);
    }
    let body: Body<'_> = serde_json::from_slice(body)?;
    let ended = match (body.success, &*body.fail_type) {
        _ if body.policy_reject => Ended::Unknown,
        (Some(true), _) => Ended::Success,
        // Dovecot 2.3 has no `fail_type`.
        (Some(false), "" | "credentials" | "account") => Ended::Failure,
        _ => Ended::Unknown,
    };
    Ok(Login {
        client: body.remote.trim().parse().ok(),
        account: printable(&body.login, MAX_ACCOUNT),
        protocol: printable(&body.protocol, 16),
        ended,
        unknown: ended == Ended::Failure && body.fail_type == "account",
    })
}

/// Returns the first `most` characters, without those that could begin another line or change a terminal.
fn printable(text: &str, most: usize) -> String {
    text.chars().take(most).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// Returns the body of an answer: `Some` refuses with this text, which the user reads; `None` has no objection.
pub fn answer(refusal: Option<&str>) -> String {
    let (status, text) = refusal.map_or((0, ""), |text| (-1, text));
    serde_json::json!({ "status": status, "msg": text }).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Dovecot 2.3.19 sends it.
    const REPORT: &str = r#"{"device_id":"","login":"alice","protocol":"imap","pwhash":"0cc9","remote":"192.0.2.1","success":false,
        "policy_reject":false,"tls":false,"session_id":"abc"}"#;

    fn ended(report: &str) -> Ended {
        read(report.as_bytes()).unwrap().ended
    }

    #[test]
    fn a_report_names_client_account_and_end() {
        let login = read(REPORT.as_bytes()).unwrap();
        let wanted = Login {
            client: Some("192.0.2.1".parse().unwrap()),
            account: "alice".to_owned(),
            protocol: "imap".to_owned(),
            ended: Ended::Failure,
            unknown: false,
        };
        assert_eq!(login, wanted);
        assert_eq!(ended(&REPORT.replace("\"success\":false", "\"success\":true")), Ended::Success);
    }

    #[test]
    fn only_wrong_passwords_and_unknown_accounts_are_failures() {
        for (kind, wanted) in [
            ("", Ended::Failure),
            ("credentials", Ended::Failure),
            ("account", Ended::Failure),
            ("policy", Ended::Unknown),
            ("internal", Ended::Unknown),
            ("expired", Ended::Unknown),
            ("disabled", Ended::Unknown),
        ] {
            let report = REPORT.replace("\"tls\":false", &format!("\"tls\":\"TLS\",\"fail_type\":\"{kind}\""));
            assert_eq!(ended(&report), wanted, "{kind}");
            assert_eq!(read(report.as_bytes()).unwrap().unknown, kind == "account", "{kind}");
        }
        assert_eq!(ended(&REPORT.replace("\"policy_reject\":false", "\"policy_reject\":true")), Ended::Unknown);
        assert_eq!(ended(&REPORT.replace("\"success\":false,", "")), Ended::Unknown);
    }

    #[test]
    fn accounts_are_bounded_and_printable_and_addresses_may_be_absent() {
        let hostile = REPORT.replace("alice", &format!("a\\n\\u001b{}", "x".repeat(500)));
        let login = read(hostile.as_bytes()).unwrap();
        assert!(login.account.starts_with("a??xx") && login.account.len() == MAX_ACCOUNT);
        assert_eq!(read(REPORT.replace("192.0.2.1", "").as_bytes()).unwrap().client, None);
        assert!(read(b"{}").is_ok());
        for bad in ["", "[]", "{\"login\":1}", "{\"success\":\"yes\"}", "nonsense"] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(matches!(read(&vec![b' '; MAX_BODY + 1]), Err(BodyError::TooLong)));
    }

    #[test]
    fn the_command_is_in_the_query() {
        assert_eq!(Command::of_query("command=allow"), Some(Command::Allow));
        assert_eq!(Command::of_query("command=report"), Some(Command::Report));
        assert_eq!(Command::of_query("k=v?command=allow"), Some(Command::Allow));
        for none in ["", "command=", "command=other", "command"] {
            assert_eq!(Command::of_query(none), None, "{none}");
        }
    }

    #[test]
    fn answers_have_a_number_and_a_text() {
        assert_eq!(answer(None), r#"{"msg":"","status":0}"#);
        assert_eq!(answer(Some("ba\"nned")), r#"{"msg":"ba\"nned","status":-1}"#);
    }

    proptest! {
        #[test]
        fn any_account_is_read_as_it_was_sent(account in "[a-z@.\\\\\"]{0,60}") {
            let body = serde_json::json!({"login": account, "remote": "2001:db8::1", "success": false}).to_string();
            prop_assert_eq!(read(body.as_bytes()).unwrap().account, account);
        }
    }
}
