//! Writes text from an outsider as the service itself would.

use super::NEXT_LINE;

/// How sshd marks an account that does not exist.
const UNKNOWN: [&str; 2] = ["invalid user ", "illegal user "];

/// Returns `text` as the service of `filter` logs it in `field`, after `before` on the line: escaped, quoted or filtered.
pub(super) fn as_written(filter: &str, field: &str, before: &str, text: &str) -> String {
    let line = before.rsplit(NEXT_LINE).next().unwrap_or_default();
    let quotes = line.replace("\\\"", "").matches('"').count();
    let is_json = line.contains("{\"") || line.contains("{ \"");
    let is_logfmt = ["level=", "lvl="].iter().any(|key| line.starts_with(key) || line.contains(&format!(" {key}")));
    match field {
        // sshd writes these words itself, for an account that does not exist.
        "user" if filter == "sshd" && UNKNOWN.iter().any(|words| text.trim_start().starts_with(words)) => {
            let mut text = text.trim_start();
            while let Some(rest) = UNKNOWN.iter().find_map(|words| text.strip_prefix(words)) {
                text = rest.trim_start();
            }
            text.to_owned()
        }
        // What follows this word looks like the server. It leaves at most another name that the outsider could have tried.
        "user" if filter == "roundcube" => text.replace(" against ", " "),
        // A web server accepts only a valid name as a virtual host.
        "vhost" => text.chars().filter(|c| is_in_host_name(*c)).collect(),
        // Web servers escape quotes in headers.
        "xff" => text.replace('"', "\\\""),
        // A challenge is in base64.
        "challenge" => text.chars().filter(|c| c.is_ascii_alphanumeric() || "+/=".contains(*c)).collect(),
        "json" => text.replace('\\', "\\\\").replace('"', "\\\""),
        "xml" => text.replace('<', "&lt;").replace('>', "&gt;"),
        _ if field.starts_with("word_") => text.split_whitespace().collect(),
        _ if field.starts_with("quoted_") => text.replace('\\', "\\\\").replace('"', "\\\""),
        // Keycloak removes quotes.
        _ if line.contains("type=\"") || line.contains("type=\\\"") => text.replace(['"', '\\'], ""),
        // JSON, and quoted logfmt.
        _ if (is_json || is_logfmt) && quotes % 2 == 1 => text.replace('\\', "\\\\").replace('"', "\\\""),
        // Logfmt quotes text with a space or a quote.
        _ if is_logfmt => text.replace([' ', '"'], ""),
        // Web servers escape quotes in quoted fields.
        _ if ["apache", "nginx"].contains(&filter) && line.contains(" - ") => text.replace('"', "\\\""),
        // CSV.
        _ if line.contains(" UTC,\"") => text.replace('"', "\"\""),
        // In a mail address a `>` must be quoted, in a comment, or escaped.
        "rcpt" | "from" if line.ends_with('<') && text.contains(['>', ' ']) => format!("\"{text}\"@example.org"),
        _ => text.to_owned(),
    }
}

/// Whether the service writes `text` in `field` as it is, whatever the filter.
pub(super) fn is_written_as_is(field: &str, text: &str) -> bool {
    match field {
        "vhost" => text.chars().all(is_in_host_name),
        "xff" => !text.contains('"'),
        "json" => !text.contains(['"', '\\']),
        "xml" => !text.contains(['<', '>']),
        _ => true,
    }
}

/// Whether a host name, or an address with a port in its place, may contain the character.
fn is_in_host_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || ".:-[]".contains(c)
}
