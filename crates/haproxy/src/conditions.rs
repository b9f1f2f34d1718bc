//! Conditional blocks, `.if` … `.endif`: the lines that HAProxy reads (configuration.txt, section 2.4).

use std::collections::BTreeMap;

use crate::version::Version;

/// Deeper nested expressions count as false.
const DEPTH_MAX: usize = 32;

/// The blocks that are open at the current line.
#[derive(Debug, Default)]
pub struct Blocks(Vec<Block>);

#[derive(Debug)]
struct Block {
    /// Whether the lines of the current branch are read.
    active: bool,
    /// Whether no further branch can be read, because one was read or the whole block is skipped.
    done: bool,
}

impl Blocks {
    /// Whether the next line is read.
    pub fn are_active(&self) -> bool {
        self.0.iter().all(|block| block.active)
    }

    /// Whether a block is not closed.
    pub fn are_open(&self) -> bool {
        !self.0.is_empty()
    }

    /// Processes a line that begins with a period. `.notice` and other directives that do not affect blocks are ignored.
    pub fn directive(&mut self, words: &[String], version: Version, environment: &BTreeMap<String, String>) {
        let expression = || words.get(1..).unwrap_or_default().join(" ");
        match words.first().map(String::as_str) {
            Some(".if") => {
                let read = self.are_active();
                let holds = read && holds(&expression(), version, environment);
                self.0.push(Block { active: holds, done: holds || !read });
            }
            Some(".elif") => {
                if let Some(block) = self.0.last_mut() {
                    block.active = !block.done && holds(&expression(), version, environment);
                    block.done |= block.active;
                }
            }
            Some(".else") => {
                if let Some(block) = self.0.last_mut() {
                    block.active = !block.done;
                    block.done = true;
                }
            }
            Some(".endif") => drop(self.0.pop()),
            _ => {}
        }
    }
}

/// Whether an expression is true. Predicates about the build of HAProxy, such as its features and its TLS library, count as true.
fn holds(expression: &str, version: Version, environment: &BTreeMap<String, String>) -> bool {
    Expression { rest: expression, version, environment }.any(0)
}

struct Expression<'a> {
    rest: &'a str,
    version: Version,
    environment: &'a BTreeMap<String, String>,
}

impl Expression<'_> {
    fn eat(&mut self, text: &str) -> bool {
        let trimmed = self.rest.trim_start();
        let after = trimmed.strip_prefix(text);
        self.rest = after.unwrap_or(trimmed);
        after.is_some()
    }

    fn any(&mut self, depth: usize) -> bool {
        let mut holds = self.all(depth);
        while self.eat("||") {
            holds |= self.all(depth);
        }
        holds
    }

    fn all(&mut self, depth: usize) -> bool {
        let mut holds = self.term(depth);
        while self.eat("&&") {
            holds &= self.term(depth);
        }
        holds
    }

    fn term(&mut self, depth: usize) -> bool {
        let mut negated = false;
        while self.eat("!") {
            negated = !negated;
        }
        if depth < DEPTH_MAX && self.eat("(") {
            let holds = self.any(depth + 1);
            self.eat(")");
            return holds != negated;
        }
        let end = self.rest.find(['(', '&', '|', ' ', ')']).unwrap_or(self.rest.len());
        let (name, after) = self.rest.split_at(end);
        self.rest = after;
        let Some(after) = after.strip_prefix('(') else {
            return (name.parse::<i64>().is_ok_and(|number| number != 0) || name == "true") != negated;
        };
        let (argument, after) = after.split_once(')').unwrap_or((after, ""));
        self.rest = after;
        self.predicate(name, argument) != negated
    }

    fn predicate(&self, name: &str, argument: &str) -> bool {
        let pair = || argument.split_once(',').map(|(a, b)| (a.trim(), b.trim())).unwrap_or_default();
        match name {
            "version_atleast" => argument.parse::<Version>().is_ok_and(|version| self.version >= version),
            "version_before" => argument.parse::<Version>().is_ok_and(|version| self.version < version),
            "defined" => self.environment.contains_key(argument.trim()),
            "streq" => pair().0 == pair().1,
            "strneq" => pair().0 != pair().1,
            "strstr" => pair().0.contains(pair().1),
            "" => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated_as_in_haproxy() {
        let environment = BTreeMap::from([("HERE".to_owned(), String::new())]);
        for (text, expected) in [
            ("version_atleast(3.1)", false),
            ("version_atleast(2.6)", true),
            ("version_before(3.1) && !0", true),
            ("1 && ( 0 || version_atleast(3.0) )", true),
            ("!( 1 )", false),
            ("defined(HERE) && !defined(THERE)", true),
            ("streq(a,a) && strneq(a,b)", true),
            ("feature(OPENSSL)", true),
            ("", false),
            ("((((", false),
        ] {
            assert_eq!(holds(text, Version::new(3, 0), &environment), expected, "{text}");
        }
        let deep = "(".repeat(10_000);
        assert!(!holds(&deep, Version::NEWEST, &environment));
    }

    #[test]
    fn only_one_branch_of_a_block_is_read() {
        let mut blocks = Blocks::default();
        let mut at = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            blocks.directive(&words, Version::new(3, 0), &BTreeMap::new());
            blocks.are_active()
        };
        assert!(!at(".if 0"));
        assert!(!at(".if 1"), "inside a block that is not read");
        assert!(!at(".else"));
        assert!(!at(".endif"));
        assert!(at(".elif 1"));
        assert!(!at(".else"));
        assert!(at(".endif"));
        assert!(at(".endif"), "an extra .endif does no harm");
    }
}
