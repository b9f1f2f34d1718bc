//! Splits a line of HAProxy's configuration into words: quotes, escapes, comments and environment variables (configuration.txt,
//! sections 2.2 and 2.3). HAProxy has no continuation lines, so a quote must be closed on its line.

use std::collections::BTreeMap;

/// The words of a line, and the first error in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Words {
    /// The words, with quotes and escapes resolved. An undefined variable becomes `${NAME}`.
    pub words: Vec<String>,
    /// Why HAProxy rejects the line.
    pub error: Option<&'static str>,
}

/// Splits `line` into words. `environment` has the values of `"${NAME}"`.
pub fn split(line: &str, environment: &BTreeMap<String, String>) -> Words {
    let mut reader = Reader { rest: line, environment, words: Vec::new(), word: None, error: None };
    let error = reader.read();
    reader.end_word();
    Words { words: reader.words, error: reader.error.or(error) }
}

struct Reader<'a> {
    rest: &'a str,
    environment: &'a BTreeMap<String, String>,
    words: Vec<String>,
    /// The current word. An empty quoted word is `Some`.
    word: Option<String>,
    /// The first error in a variable.
    error: Option<&'static str>,
}

impl<'a> Reader<'a> {
    fn read(&mut self) -> Option<&'static str> {
        while let Some(c) = self.take() {
            match c {
                ' ' | '\t' | '\r' => self.end_word(),
                '#' => return None,
                '\'' => {
                    let Some(end) = self.rest.find('\'') else { return Some("a single quote is not closed") };
                    let (text, rest) = self.rest.split_at(end);
                    self.push_str(text);
                    self.rest = rest.strip_prefix('\'').unwrap_or(rest);
                }
                '"' => {
                    self.push_str("");
                    if !self.quoted() {
                        return Some("a double quote is not closed");
                    }
                }
                '\\' => self.escape(),
                c => self.push(c),
            }
        }
        None
    }

    /// Inside double quotes; whether they end.
    fn quoted(&mut self) -> bool {
        while let Some(c) = self.take() {
            match c {
                '"' => return true,
                '\\' => self.escape(),
                '$' => self.variable(),
                c => self.push(c),
            }
        }
        false
    }

    /// Called after a backslash. Before any other character, the backslash is kept.
    fn escape(&mut self) {
        let Some(c) = self.take() else { return self.push('\\') };
        match c {
            ' ' | '\\' | '#' | '\'' | '"' | '$' => self.push(c),
            'n' => self.push('\n'),
            'r' => self.push('\r'),
            't' => self.push('\t'),
            'x' => {
                let code = self.rest.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
                if let Some(code) = code {
                    self.rest = self.rest.get(2..).unwrap_or_default();
                    self.push(char::from(code));
                } else {
                    self.push_str("\\x");
                }
            }
            c => {
                self.push('\\');
                self.push(c);
            }
        }
    }

    /// Called after a `$` in double quotes: `NAME`, `{NAME}`, `{NAME-default}` or `{NAME[*]}`.
    fn variable(&mut self) {
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, otherwise, list) = if let Some(rest) = self.rest.strip_prefix('{') {
            let Some((inner, after)) = rest.split_once('}') else {
                self.error
                    .get_or_insert("in double quotes, `${` begins the name of a variable, but the `}` is missing");
                return self.push('$');
            };
            let (inner, list) = inner.strip_suffix("[*]").map_or((inner, false), |inner| (inner, true));
            self.rest = after;
            let (name, otherwise) = inner.split_once('-').map_or((inner, None), |(name, text)| (name, Some(text)));
            (name, otherwise, list)
        } else {
            // `.LINE` and similar variables are predefined by HAProxy.
            let start = usize::from(self.rest.starts_with('.'));
            let length = self.rest.get(start..).unwrap_or_default().find(|c| !is_name(c));
            let (name, after) = self.rest.split_at(length.map_or(self.rest.len(), |length| start + length));
            self.rest = after;
            (name, None, false)
        };
        match self.environment.get(name).map(String::as_str).or(otherwise) {
            Some(value) if list => {
                for (index, part) in value.split_whitespace().enumerate() {
                    if index > 0 {
                        self.end_word();
                    }
                    self.push_str(part);
                }
            }
            Some(value) => self.push_str(value),
            None if !begins_name(name) => {
                self.error.get_or_insert("in double quotes, `$` begins the name of a variable, but no name follows");
                self.push('$');
                self.push_str(name);
            }
            None => {
                self.push_str("${");
                self.push_str(name);
                self.push('}');
            }
        }
    }

    fn take(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = self.rest.get(c.len_utf8()..).unwrap_or_default();
        Some(c)
    }

    fn push(&mut self, c: char) {
        self.word.get_or_insert_default().push(c);
    }

    fn push_str(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    fn end_word(&mut self) {
        self.words.extend(self.word.take());
    }
}

/// Whether HAProxy accepts `text` as the beginning of a variable's name.
fn begins_name(text: &str) -> bool {
    match text.strip_prefix('.') {
        Some(own) => own.starts_with(|c: char| c.is_ascii_uppercase()),
        None => text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        let environment = [("PORT", "12345"), ("LIST", "a b  c")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        split(line, &environment.into()).words
    }

    #[test]
    fn words_are_split_as_in_haproxy() {
        for (line, expected) in [
            ("  mode\thttp  # comment", vec!["mode", "http"]),
            (r"a\ b c\#d e#f", vec!["a b", "c#d", "e"]),
            (r#"'a "b" #c' "d 'e'" """#, vec![r#"a "b" #c"#, "d 'e'", ""]),
            (r#"x"y z"'w'"#, vec!["xy zw"]),
            (r#""127.0.0.1:${PORT}" $PORT '$PORT' "\$PORT""#, vec!["127.0.0.1:12345", "$PORT", "$PORT", "$PORT"]),
            (r#""$PORT/x" "${NONE-7}" "${NONE}" "$" "a${""#, vec!["12345/x", "7", "${NONE}", "$", "a${"]),
            (r#""${LIST[*]}" "${LIST}""#, vec!["a", "b", "c", "a b  c"]),
            (r"\x41\t\q \xzz", vec!["A\t\\q", "\\xzz"]),
            ("", vec![]),
        ] {
            assert_eq!(words(line), expected, "{line}");
        }
    }

    #[test]
    fn an_unclosed_quote_is_an_error() {
        assert!(split("a \"b c", &BTreeMap::new()).error.is_some());
        assert!(split("a 'b c", &BTreeMap::new()).error.is_some());
        assert_eq!(split("a 'b' \"c\"", &BTreeMap::new()).error, None);
    }

    #[test]
    fn a_dollar_in_double_quotes_must_be_followed_by_a_name() {
        for line in [r#"acl a req.hdr(b) -m reg "^x$""#, r#""$1""#, r#""$.x""#, r#""${A""#, r#""a$)""#] {
            assert!(split(line, &BTreeMap::new()).error.is_some(), "{line}");
        }
        for line in [r#""^x\$""#, "'^x$'", "^x$", r#""$A" "${A}" "${_a-x}" "${.LINE}" "$.LINE""#] {
            assert_eq!(split(line, &BTreeMap::new()).error, None, "{line}");
        }
    }
}
