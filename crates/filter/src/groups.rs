//! Finds the groups of a match in time linear in its length, with a small constant.
//!
//! A regex engine that reports groups keeps every way in which the expression may still match, at every byte. For an expression with
//! hundreds of alternatives this takes microseconds per byte, and an outsider chooses how many bytes there are. The end of a match, however, is
//! cheap to find. This module goes back from it: a lazy automaton notes at each position which states of the NFA can still reach that
//! end. One walk forward then takes the first alternative that can at every branch, and never has to go back. The result is that of a
//! backtracking engine.

use hashbrown::HashMap;
use regex_automata::nfa::thompson::{self, NFA, State, WhichCaptures};
use regex_automata::util::look::Look;
use regex_automata::util::pool::Pool;
use regex_automata::util::primitives::{NonMaxUsize, StateID};
use regex_automata::util::syntax;

/// The most memory in bytes for the automaton of one expression, per thread that uses it.
const MAX_CACHE: usize = 1 << 20;
/// The number of remembered choices.
const CHOICES: usize = 512;

/// The position of each end of each group; see [`regex_automata::meta::Regex::search_slots`].
pub(super) type Slots = [Option<NonMaxUsize>];

/// Why the groups of a match are not known. The caller must find them in another way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotFound {
    /// The automaton would need more than [`MAX_CACHE`].
    TooManyStates,
    /// The text does not match up to the given end.
    NoMatch,
}

/// The NFA of one expression, with its transitions in the opposite direction.
#[derive(Debug)]
pub(super) struct GroupFinder {
    nfa: NFA,
    /// By state: where its transitions start in `edges`. One more entry marks the end.
    starts: Vec<u32>,
    /// The transitions into each state.
    edges: Vec<Edge>,
    /// The states from which a group is still ahead.
    ahead: BitSet,
    /// The states that end a match.
    ends: Vec<u32>,
    /// The bytes before a position that the assertions of the expression distinguish.
    distinguished: Distinguished,
    caches: Pool<Cache, fn() -> Cache>,
    #[cfg(test)]
    given_up: std::sync::atomic::AtomicBool,
}

#[derive(Clone, Copy, Debug)]
struct Edge {
    from: u32,
    on: On,
}

#[derive(Clone, Copy, Debug)]
enum On {
    /// A byte in this range.
    Byte(u8, u8),
    Nothing,
    Assertion(Look),
}

#[derive(Clone, Copy, Debug, Default)]
struct Distinguished {
    words: bool,
    lines: bool,
}

/// The part of the automaton that has been needed so far, and buffers.
#[derive(Debug, Default)]
struct Cache {
    /// By set: the states of the NFA in it, in ascending order.
    sets: Vec<Box<[u32]>>,
    numbers: HashMap<Box<[u32]>, u16, foldhash::fast::RandomState>,
    /// By set, class of the byte and context: the number of the next set, plus one. 0 if it is not known yet.
    next: Vec<u16>,
    /// What the sets take, in bytes.
    bytes: usize,
    /// By position: the number of the set of states that can reach the end from there.
    trail: Vec<u16>,
    visits: Visits,
    /// The states of the set that is being made. Those from `closed` on still have to be followed.
    states: Vec<u32>,
    closed: usize,
    stack: Vec<Frame>,
    /// Choices of earlier steps, each at a place that depends on what it was made for.
    choices: Vec<Choice>,
}

/// The state that the walk chose where it entered a position in one state. Without groups in between, the choice depends on nothing else.
#[derive(Clone, Copy, Debug, Default)]
struct Choice {
    entered: StateID,
    /// The number of the set of states that can reach the end from the position, plus one. 0 marks an unused place.
    set: u16,
    chosen: StateID,
}

/// The states that the current step has visited.
#[derive(Debug, Default)]
struct Visits {
    /// By state: the last step that visited it.
    last: Vec<u32>,
    step: u32,
}

#[derive(Clone, Copy, Debug)]
enum Frame {
    Explore(StateID),
    /// Undoes a group that belongs to a way that leads nowhere.
    Restore(usize, Option<NonMaxUsize>),
}

impl GroupFinder {
    /// Prepares the search for the groups whose slots `wanted` contains. `None` if the expression has assertions that depend on more than the
    /// bytes around a position.
    pub(super) fn new(expression: &str, syntax: syntax::Config, wanted: &[usize]) -> Option<Self> {
        let config = thompson::Config::new().utf8(false).which_captures(WhichCaptures::All);
        let nfa = thompson::Compiler::new().syntax(syntax).configure(config).build(expression).ok()?;
        let looks = nfa.look_set_any();
        if looks.contains_word_unicode() {
            return None;
        }
        let mut into: Vec<Vec<Edge>> = vec![Vec::new(); nfa.states().len()];
        let mut ends = Vec::new();
        let mut groups = Vec::new();
        for (from, state) in (0_u32..).zip(nfa.states()) {
            let mut edge = |to: StateID, on| {
                if let Some(edges) = into.get_mut(to.as_usize()) {
                    edges.push(Edge { from, on });
                }
            };
            match state {
                State::ByteRange { trans } => edge(trans.next, On::Byte(trans.start, trans.end)),
                State::Sparse(sparse) => {
                    sparse.transitions.iter().for_each(|trans| edge(trans.next, On::Byte(trans.start, trans.end)));
                }
                State::Dense(dense) => {
                    for byte in 0..=u8::MAX {
                        if let Some(next) = dense.matches_byte(byte) {
                            edge(next, On::Byte(byte, byte));
                        }
                    }
                }
                State::Look { look, next } => edge(*next, On::Assertion(*look)),
                State::Union { alternates } => alternates.iter().for_each(|next| edge(*next, On::Nothing)),
                State::BinaryUnion { alt1, alt2 } => {
                    edge(*alt1, On::Nothing);
                    edge(*alt2, On::Nothing);
                }
                State::Capture { next, slot, .. } => {
                    edge(*next, On::Nothing);
                    if wanted.contains(&slot.as_usize()) {
                        groups.push(from);
                    }
                }
                State::Match { .. } => ends.push(from),
                State::Fail => {}
            }
        }
        let mut ahead = BitSet::new(into.len());
        while let Some(state) = groups.pop() {
            if ahead.insert(state) {
                groups.extend(into.get(index(state)).into_iter().flatten().map(|edge| edge.from));
            }
        }
        let mut starts = vec![0];
        let mut edges = Vec::new();
        for mut of_state in into {
            edges.append(&mut of_state);
            starts.push(u32::try_from(edges.len()).ok()?);
        }
        let distinguished = Distinguished { words: looks.contains_word(), lines: looks.contains_anchor_line() };
        Some(Self {
            nfa,
            starts,
            edges,
            ahead,
            ends,
            distinguished,
            caches: Pool::new(Cache::default),
            #[cfg(test)]
            given_up: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Finds the groups of the match of `text` that ends at `end`. All `slots` must be `None`.
    ///
    /// # Errors
    /// The groups are not known.
    pub(super) fn find(&self, text: &[u8], end: usize, slots: &mut Slots) -> Result<(), NotFound> {
        let mut cache = self.caches.get();
        let was_empty = cache.sets.is_empty();
        let mut done = self.go_back(text, end, &mut cache);
        if done.is_err() && !was_empty {
            cache.clear();
            done = self.go_back(text, end, &mut cache);
        }
        let found = done.and_then(|()| self.walk(text, end, slots, &mut cache));
        #[cfg(test)]
        self.given_up.fetch_or(found.is_err(), std::sync::atomic::Ordering::Relaxed);
        found
    }

    /// Fills the trail: which states can reach the end of the match, from each position.
    fn go_back(&self, text: &[u8], end: usize, cache: &mut Cache) -> Result<(), NotFound> {
        let classes = self.nfa.byte_classes();
        let contexts = self.distinguished.contexts();
        let stride = self.stride();
        let before = |at: usize| at.checked_sub(1).and_then(|at| text.get(at)).copied();
        cache.begin(self.nfa.states().len());
        self.ends.iter().for_each(|&state| cache.add(state));
        self.close(before(end), text.get(end).copied(), cache);
        let mut current = cache.number(stride)?;
        cache.trail.clear();
        cache.trail.resize(end + 1, 0);
        for (at, &byte) in text.get(..end).unwrap_or_default().iter().enumerate().rev() {
            if let Some(place) = cache.trail.get_mut(at + 1) {
                *place = current;
            }
            let previous = before(at);
            let column = usize::from(classes.get(byte)) * contexts + self.distinguished.context(previous);
            let cell = usize::from(current) * stride + column;
            current = match cache.next.get(cell).copied().unwrap_or_default().checked_sub(1) {
                Some(known) => known,
                None => {
                    self.step(current, byte, previous, cache);
                    let number = cache.number(stride)?;
                    if let Some(next) = cache.next.get_mut(cell) {
                        *next = number + 1;
                    }
                    number
                }
            };
        }
        if let Some(place) = cache.trail.first_mut() {
            *place = current;
        }
        Ok(())
    }

    /// Makes the set of the states that reach set `current` with `byte`.
    fn step(&self, current: u16, byte: u8, previous: Option<u8>, cache: &mut Cache) {
        cache.begin(self.nfa.states().len());
        let Some(sets) = cache.sets.get_mut(usize::from(current)) else { return };
        let set = std::mem::take(sets);
        for edge in set.iter().flat_map(|state| self.into(*state)) {
            if matches!(edge.on, On::Byte(first, last) if (first..=last).contains(&byte)) {
                cache.add(edge.from);
            }
        }
        if let Some(sets) = cache.sets.get_mut(usize::from(current)) {
            *sets = set;
        }
        self.close(previous, Some(byte), cache);
    }

    /// Adds the states that reach those in the set without a byte, between these two.
    fn close(&self, previous: Option<u8>, next: Option<u8>, cache: &mut Cache) {
        while let Some(&state) = cache.states.get(cache.closed) {
            cache.closed += 1;
            for edge in self.into(state) {
                let holds = match edge.on {
                    On::Byte(..) => false,
                    On::Nothing => true,
                    On::Assertion(look) => self.holds(look, previous, next),
                };
                if holds {
                    cache.add(edge.from);
                }
            }
        }
    }

    fn holds(&self, look: Look, previous: Option<u8>, next: Option<u8>) -> bool {
        let around: &[u8] = match (&previous, &next) {
            (Some(previous), Some(next)) => &[*previous, *next],
            (Some(one), None) | (None, Some(one)) => std::slice::from_ref(one),
            (None, None) => &[],
        };
        self.nfa.look_matcher().matches(look, around, usize::from(previous.is_some()))
    }

    /// Walks from the start of `text` to the end of the match, along states that can reach it.
    fn walk(&self, text: &[u8], end: usize, slots: &mut Slots, cache: &mut Cache) -> Result<(), NotFound> {
        let Cache { sets, trail, visits, stack, choices, .. } = cache;
        let mut state = self.nfa.start_unanchored();
        choices.resize(CHOICES, Choice::default());
        for (at, &number) in trail.iter().enumerate() {
            let choice = choices.get_mut((state.as_usize() * 31 + usize::from(number)) % CHOICES);
            let chosen = choice.as_ref().filter(|choice| choice.entered == state && choice.set == number + 1);
            if let Some(next) = chosen.and_then(|choice| self.onward(choice.chosen, text.get(at))) {
                state = next;
                if !self.ahead.contains(state.as_usize()) {
                    return Ok(());
                }
                continue;
            }
            let live = sets.get(usize::from(number)).ok_or(NotFound::NoMatch)?;
            visits.begin(self.nfa.states().len());
            stack.clear();
            stack.push(Frame::Explore(state));
            let (mut onward, mut without_groups) = (None, true);
            while let Some(frame) = stack.pop() {
                let id = match frame {
                    Frame::Restore(slot, position) => {
                        if let Some(slot) = slots.get_mut(slot) {
                            *slot = position;
                        }
                        continue;
                    }
                    Frame::Explore(id) => id,
                };
                if live.binary_search(&id.as_u32()).is_err() || !visits.is_new(id.as_usize()) {
                    continue;
                }
                match self.nfa.state(id) {
                    State::ByteRange { .. } | State::Sparse(_) | State::Dense(_) => {
                        onward = self.onward(id, text.get(at));
                        if let Some(choice) = choice.filter(|_| without_groups) {
                            *choice = Choice { entered: state, set: number + 1, chosen: id };
                        }
                        break;
                    }
                    State::Look { next, .. } => stack.push(Frame::Explore(*next)),
                    State::Union { alternates } => stack.extend(alternates.iter().rev().copied().map(Frame::Explore)),
                    State::BinaryUnion { alt1, alt2 } => stack.extend([Frame::Explore(*alt2), Frame::Explore(*alt1)]),
                    State::Capture { next, slot, .. } => {
                        without_groups = false;
                        if let Some(known) = slots.get_mut(slot.as_usize()) {
                            stack.push(Frame::Restore(slot.as_usize(), *known));
                            *known = NonMaxUsize::new(at);
                        }
                        stack.push(Frame::Explore(*next));
                    }
                    State::Match { .. } if at == end => return Ok(()),
                    State::Match { .. } | State::Fail => {}
                }
            }
            state = onward.ok_or(NotFound::NoMatch)?;
            if !self.ahead.contains(state.as_usize()) {
                return Ok(());
            }
        }
        Err(NotFound::NoMatch)
    }

    /// Returns the state after `byte` in `state`.
    fn onward(&self, state: StateID, byte: Option<&u8>) -> Option<StateID> {
        match self.nfa.state(state) {
            State::ByteRange { trans } => byte.filter(|byte| trans.matches_byte(**byte)).map(|_| trans.next),
            State::Sparse(sparse) => sparse.matches_byte(*byte?),
            State::Dense(dense) => dense.matches_byte(*byte?),
            _ => None,
        }
    }

    fn into(&self, state: u32) -> &[Edge] {
        let bounds = self.starts.get(index(state)).zip(self.starts.get(index(state) + 1));
        bounds.and_then(|(start, end)| self.edges.get(index(*start)..index(*end))).unwrap_or_default()
    }

    /// The entries of [`Cache::next`] per set.
    fn stride(&self) -> usize {
        self.nfa.byte_classes().alphabet_len() * self.distinguished.contexts()
    }
}

#[cfg(test)]
impl GroupFinder {
    pub(super) fn has_given_up(&self) -> bool {
        self.given_up.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// The number of sets of states that the automaton of this thread has, which is the work that was not only per byte.
    pub(super) fn sets(&self) -> usize {
        self.caches.get().sets.len()
    }
}

impl Distinguished {
    const fn contexts(self) -> usize {
        1 + (1 + self.words as usize) * (1 + 2 * self.lines as usize)
    }

    /// Returns a number below [`Distinguished::contexts`], which differs for bytes that the assertions distinguish.
    fn context(self, previous: Option<u8>) -> usize {
        let Some(byte) = previous else { return 0 };
        let is_word = self.words && (byte.is_ascii_alphanumeric() || byte == b'_');
        let line = match byte {
            b'\n' if self.lines => 1,
            b'\r' if self.lines => 2,
            _ => 0,
        };
        1 + usize::from(is_word) + line * (1 + usize::from(self.words))
    }
}

impl Cache {
    /// Removes all sets, and keeps the buffers.
    fn clear(&mut self) {
        self.sets.clear();
        self.numbers.clear();
        self.next.clear();
        self.choices.clear();
        self.bytes = 0;
    }

    /// Begins a new set of some of `count` states.
    fn begin(&mut self, count: usize) {
        self.visits.begin(count);
        self.states.clear();
        self.closed = 0;
    }

    fn add(&mut self, state: u32) {
        if self.visits.is_new(index(state)) {
            self.states.push(state);
        }
    }

    /// Returns the number of the set that was made. `stride` is the number of its entries in `next`.
    fn number(&mut self, stride: usize) -> Result<u16, NotFound> {
        self.states.sort_unstable();
        if let Some(&number) = self.numbers.get(self.states.as_slice()) {
            return Ok(number);
        }
        self.bytes += stride * size_of::<u16>() + 2 * (self.states.len() * size_of::<u32>() + 32);
        let number = u16::try_from(self.sets.len()).map_err(|_| NotFound::TooManyStates)?;
        if self.bytes > MAX_CACHE || number == u16::MAX {
            return Err(NotFound::TooManyStates);
        }
        let states: Box<[u32]> = self.states.as_slice().into();
        self.sets.push(states.clone());
        self.numbers.insert(states, number);
        self.next.resize(self.sets.len() * stride, 0);
        Ok(number)
    }
}

impl Visits {
    fn begin(&mut self, count: usize) {
        self.step = self.step.wrapping_add(1);
        if self.step == 0 || self.last.len() != count {
            self.last.clear();
            self.last.resize(count, 0);
            self.step = 1;
        }
    }

    /// Whether the current step visits this state for the first time.
    fn is_new(&mut self, state: usize) -> bool {
        match self.last.get_mut(state) {
            Some(last) if *last != self.step => {
                *last = self.step;
                true
            }
            _ => false,
        }
    }
}

/// A set of small numbers.
#[derive(Debug)]
struct BitSet(Box<[u64]>);

impl BitSet {
    fn new(size: usize) -> Self {
        Self(vec![0; size.div_ceil(64)].into())
    }

    /// Returns whether the number was not in the set before.
    fn insert(&mut self, number: u32) -> bool {
        let Some(word) = self.0.get_mut(index(number) / 64) else { return false };
        let bit = 1 << (number % 64);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 != 0)
    }
}

const fn index(number: u32) -> usize {
    number as usize
}

#[cfg(test)]
mod tests;
