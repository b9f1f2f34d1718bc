use super::*;

const PATIENCE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(name: &str, next: u64) -> Progress {
    Progress { node: id(name), address: ([127, 0, 0, 1], 1).into(), here: true, next, missed: false }
}

fn called(step: &Step) -> Vec<String> {
    match step {
        Step::Wait(to_call) => to_call.iter().map(|(node, _)| node.to_string()).collect(),
        step => panic!("{step:?}"),
    }
}

fn farewell(end: u64) -> (Farewell, Instant) {
    let began = Instant::now();
    (Farewell::new(end, began, PATIENCE, DEADLINE), began)
}

#[test]
fn what_was_acknowledged_needs_no_call() {
    let (mut farewell, began) = farewell(100);
    assert_eq!(called(&farewell.next(&[at("a", 100), at("b", 90)], began)), [""; 0]);
    assert_eq!(farewell.next(&[at("a", 100), at("b", 101)], began), Step::Done);
    // Alone, or with nothing to say, there is nobody to wait for.
    assert_eq!(farewell.next(&[], began), Step::Done);
    assert_eq!(self::farewell(0).0.next(&[at("a", 0)], began), Step::Done);
}

#[test]
fn peers_that_are_silent_or_missed_something_are_called_a_few_at_a_time() {
    let (mut farewell, began) = farewell(100);
    let missed = Progress { missed: true, ..at("missed", 100) };
    let mut others: Vec<Progress> = (0..6).map(|n| at(&format!("n{n}"), 50)).collect();
    others.push(missed);
    assert_eq!(called(&farewell.next(&others, began)), ["missed"]);
    let late = began + PATIENCE;
    assert_eq!(called(&farewell.next(&others, late)), ["n0", "n1", "n2"]);
    farewell.called(id("missed"), true, late);
    farewell.called(id("n0"), true, late);
    farewell.called(id("n1"), false, late);
    assert_eq!(called(&farewell.next(&others, late)), ["n3", "n4", "n5"]);
    farewell.called(id("n2"), true, late);
    assert_eq!(called(&farewell.next(&others, late)), [""; 0]);
    assert_eq!(called(&farewell.next(&others, late + CALL_AGAIN)), ["n1"]);
    for node in ["n1", "n3", "n4", "n5"] {
        farewell.called(id(node), true, late);
    }
    assert_eq!(farewell.next(&others, late + CALL_AGAIN), Step::Done);
}

#[test]
fn after_the_deadline_it_is_said_who_has_not_confirmed_what() {
    let (mut farewell, began) = farewell(100);
    let gone = Progress { here: false, ..at("gone", 10) };
    let others = [at("a", 40), Progress { missed: true, ..at("b", 100) }, gone.clone()];
    let nodes = vec![(id("a"), 60), (id("b"), 0), (id("gone"), 90)];
    let end = began + DEADLINE;
    let given_up = Unconfirmed { nodes, elsewhere: false };
    assert_eq!(given_up.to_string(), "a (60), b (some that it missed), gone (90)");
    assert_eq!(farewell.next(&others, end), Step::GiveUp(given_up));
    let confirmed = [at("a", 40), at("c", 100)];
    let given_up = Unconfirmed { nodes: vec![(id("a"), 60)], elsewhere: true };
    assert_eq!(farewell.next(&confirmed, end), Step::GiveUp(given_up));
    // Nodes that are gone are not waited for, and matter only when nobody else has it.
    assert_eq!(farewell.next(&[at("c", 100), gone.clone()], began), Step::Done);
    let given_up = Unconfirmed { nodes: vec![(id("gone"), 90)], elsewhere: false };
    assert_eq!(farewell.next(&[gone], began), Step::GiveUp(given_up));
}
