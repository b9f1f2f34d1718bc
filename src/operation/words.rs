//! Numbers and durations in the words of people, for messages of the node and of the command line.

/// A duration in its largest unit, such as `6 min`.
pub fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// A number with separators, such as `5,117`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number with its noun, such as `1 ban`, `5,117 bans` or `2 entries`. `noun` forms a regular plural.
pub fn count(count: u64, noun: &str) -> String {
    let number = number(count);
    match noun.strip_suffix('y') {
        _ if count == 1 => format!("{number} {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None if noun.ends_with("ss") => format!("{number} {noun}es"),
        None => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators_and_nouns_their_plural() {
        for (n, text) in
            [(0, "0 bans"), (1, "1 ban"), (999, "999 bans"), (5117, "5,117 bans"), (1_234_567, "1,234,567 bans")]
        {
            assert_eq!(count(n, "ban"), text);
        }
        assert_eq!(count(1, "entry") + " " + &count(2, "entry"), "1 entry 2 entries");
        assert_eq!(count(2, "address"), "2 addresses");
    }
}
