use proptest::prelude::*;

use super::*;
use crate::table::CellKind;

const EXPIRE: u64 = 60_000;

fn table(key: KeyKind, bits: &[u8]) -> Definition {
    let cells = bits.iter().map(|bit| Cell { bit: *bit, element: 0, kind: CellKind::Number }).collect();
    Definition { id: 1, name: "/failed".to_owned(), key, expire: EXPIRE, cells }
}

fn failed() -> Definition {
    table(KeyKind::Ipv6, &[GPC0])
}

fn take(reports: &mut Reports, key: u8, count: u64, in_lesson: bool, now: Instant) -> Outcome {
    reports.take("lb1", &failed(), &[key; 16], &[Value::Number(count)], in_lesson, now)
}

#[test]
fn only_the_increase_of_a_counter_is_new() {
    let (mut reports, now) = (Reports::new(10), Instant::now());
    reports.taught("lb1");
    for (count, new) in [(1, 1), (1, 0), (4, 3), (2, 2), (0, 0), (1, 1)] {
        assert_eq!(take(&mut reports, 7, count, false, now), Outcome::New(new), "{count}");
    }
    let later = now + Duration::from_millis(EXPIRE) + MARGIN;
    assert_eq!(take(&mut reports, 7, 1, false, later), Outcome::New(1), "a new entry");
}

#[test]
fn what_was_counted_before_this_node_started_is_not_new() {
    let (mut reports, now) = (Reports::new(10), Instant::now());
    assert_eq!(take(&mut reports, 7, 5, true, now), Outcome::New(0));
    reports.taught("lb1");
    assert_eq!(take(&mut reports, 7, 6, false, now), Outcome::New(1));
    assert_eq!(take(&mut reports, 8, 2, false, now), Outcome::New(2));
    // A session that was interrupted: what the process counted meanwhile is new.
    assert_eq!(take(&mut reports, 9, 3, true, now), Outcome::New(3));
    assert_eq!(take(&mut reports, 7, 8, true, now), Outcome::New(2));
}

#[test]
fn processes_tables_and_types_of_keys_are_told_apart() {
    let (mut reports, now) = (Reports::new(10), Instant::now());
    let one = [Value::Number(1)];
    let (v4, array) = (table(KeyKind::Ipv4, &[GPC]), table(KeyKind::Text(9), &[GPC0]));
    let other = Definition { name: "/waf".to_owned(), ..failed() };
    assert!(Reports::is_usable(&v4) && Reports::is_usable(&failed()));
    assert!(!Reports::is_usable(&array) && !Reports::is_usable(&table(KeyKind::Ipv6, &[1])));
    for (process, table, key) in
        [("lb1", &v4, &[192, 0, 2, 1][..]), ("lb2", &v4, &[192, 0, 2, 1]), ("lb1", &other, &[1; 16])]
    {
        assert_eq!(reports.take(process, table, key, &one, false, now), Outcome::New(1));
        assert_eq!(reports.take(process, table, key, &one, false, now), Outcome::New(0));
    }
    assert_eq!(reports.take("lb1", &v4, b"abcde", &one, false, now), Outcome::New(0), "not an address");
    assert_eq!(client(&[192, 0, 2, 1]), Some(Ipv4Addr::new(192, 0, 2, 1).into()));
    assert_eq!(client(&Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets()), client(&[192, 0, 2, 1]));
    assert_eq!(client(&[1; 5]), None);
}

#[test]
fn a_key_that_found_no_room_does_not_count_in_full_later() {
    let (mut reports, now) = (Reports::new(2), Instant::now());
    reports.taught("lb1");
    assert_eq!(take(&mut reports, 1, 1, false, now), Outcome::New(1));
    let second = now + Duration::from_secs(40);
    assert_eq!(take(&mut reports, 2, 1, false, second), Outcome::New(1));
    assert_eq!(take(&mut reports, 3, 8, false, second), Outcome::Dropped);
    // The first entry has ended by now, and the third one has room.
    let third = now + Duration::from_secs(62);
    assert_eq!(take(&mut reports, 3, 9, false, third), Outcome::New(0));
    assert_eq!(take(&mut reports, 3, 10, false, third), Outcome::New(1));
    assert_eq!(reports.len(), 2);
}

#[test]
fn memory_is_bounded() {
    let (mut reports, now, one) = (Reports::new(10), Instant::now(), [Value::Number(1)]);
    for number in 0..1000u32 {
        let table = Definition { name: format!("/{number}"), ..failed() };
        reports.take(&format!("lb{number}"), &failed(), &[1; 16], &one, false, now);
        reports.take("lb1", &table, &[1; 16], &one, false, now);
    }
    assert_eq!((reports.len(), reports.processes.len()), (10, MAX_PROCESSES));
    assert!(reports.processes.values().all(|process| process.tables.len() <= MAX_TABLES));
}

/// What happens to one key in HAProxy, or to the connection.
#[derive(Clone, Debug)]
enum Step {
    Event(u8),
    /// The entry is sent; otherwise it waits, and later events are sent with it.
    Send(u8),
    /// Time passes, so that entries may end in HAProxy.
    Wait(u64),
    /// HAProxy is replaced by a new process with empty tables.
    Restart,
    /// This node loses its memory.
    Forget,
    /// The session ends, and nothing is sent until the next lesson.
    Disconnect,
    /// HAProxy connects again, and sends everything.
    Lesson,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4).prop_map(Step::Event),
        6 => (0u8..4).prop_map(Step::Send),
        2 => (0u64..90_000).prop_map(Step::Wait),
        1 => Just(Step::Restart),
        1 => Just(Step::Forget),
        1 => Just(Step::Disconnect),
        2 => Just(Step::Lesson),
    ]
}

proptest! {
    /// Whatever is sent late, ends, restarts or is forgotten: never more events count than happened.
    #[test]
    fn no_event_counts_twice(steps in prop::collection::vec(step(), 1..200), limit in 1usize..6) {
        let (mut reports, mut now) = (Reports::new(limit), Instant::now());
        let mut happened = [0u64; 4];
        let mut counted = [0u64; 4];
        // HAProxy's table: the count, and when the entry was last touched.
        let mut entries: [Option<(u64, Instant)>; 4] = [None; 4];
        let (life, mut is_connected) = (Duration::from_millis(EXPIRE), true);
        for step in steps {
            let mut send = |reports: &mut Reports, entries: &[Option<(u64, Instant)>; 4], key: usize, in_lesson, now| {
                if let Some((count, _)) = entries[key]
                    && let Outcome::New(new) = take(reports, u8::try_from(key).unwrap(), count, in_lesson, now)
                {
                    counted[key] += u64::from(new);
                }
            };
            match step {
                Step::Event(key) => {
                    let key = usize::from(key);
                    happened[key] += 1;
                    let count = entries[key].map_or(0, |(count, _)| count);
                    entries[key] = Some((count + 1, now));
                    // HAProxy sends an entry within milliseconds of every touch; `Send` repeats it.
                    if is_connected {
                        send(&mut reports, &entries, key, false, now);
                    }
                }
                Step::Send(key) if is_connected => send(&mut reports, &entries, usize::from(key), false, now),
                Step::Wait(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    for entry in &mut entries {
                        *entry = entry.filter(|(_, touched)| now < *touched + life);
                    }
                }
                Step::Send(_) => {}
                Step::Restart => entries = [None; 4],
                Step::Disconnect => {
                    reports.interrupted("lb1");
                    is_connected = false;
                }
                Step::Forget | Step::Lesson => {
                    if matches!(step, Step::Forget) {
                        reports = Reports::new(limit);
                    }
                    reports.interrupted("lb1");
                    (0..4).for_each(|key| send(&mut reports, &entries, key, true, now));
                    reports.taught("lb1");
                    is_connected = true;
                }
            }
            for key in 0..4 {
                prop_assert!(counted[key] <= happened[key], "{} of {} events counted", counted[key], happened[key]);
            }
        }
    }
}
