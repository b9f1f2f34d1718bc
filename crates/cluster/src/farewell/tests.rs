use super::*;

const PATIENCE: Duration = Duration::from_secs(1);
const DEADLINE: Duration = Duration::from_secs(10);

fn id(name: &str) -> NodeId {
    name.parse().unwrap()
}

fn at(name: &str, next: u64) -> Progress {
    Progress { node: id(name), address: ([127, 0, 0, 1], 1).into(), live: true, next, missed: false }
}

fn to_repair(step: &Step) -> Vec<String> {
    match step {
        Step::Wait(peers) => peers.iter().map(|(node, _)| node.to_string()).collect(),
        step => panic!("{step:?}"),
    }
}

fn farewell(end: u64) -> (Farewell, Instant) {
    let began = Instant::now();
    (Farewell::new(end, began, PATIENCE, DEADLINE), began)
}

#[test]
fn acknowledged_changes_need_no_repair() {
    let (mut farewell, began) = farewell(100);
    assert_eq!(to_repair(&farewell.next(&[at("a", 100), at("b", 90)], began)), [""; 0]);
    assert_eq!(farewell.next(&[at("a", 100), at("b", 101)], began), Step::Done);
    // Without peers or without changes, there is nothing to wait for.
    assert_eq!(farewell.next(&[], began), Step::Done);
    assert_eq!(self::farewell(0).0.next(&[at("a", 0)], began), Step::Done);
}

#[test]
fn silent_peers_and_those_with_gaps_are_repaired_a_few_at_a_time() {
    let (mut farewell, began) = farewell(100);
    let missed = Progress { missed: true, ..at("missed", 100) };
    let mut others: Vec<Progress> = (0..6).map(|n| at(&format!("n{n}"), 50)).collect();
    others.push(missed);
    assert_eq!(to_repair(&farewell.next(&others, began)), ["missed"]);
    let late = began + PATIENCE;
    assert_eq!(to_repair(&farewell.next(&others, late)), ["n0", "n1", "n2"]);
    farewell.repaired(id("missed"), true, late);
    farewell.repaired(id("n0"), true, late);
    farewell.repaired(id("n1"), false, late);
    assert_eq!(to_repair(&farewell.next(&others, late)), ["n3", "n4", "n5"]);
    farewell.repaired(id("n2"), true, late);
    assert_eq!(to_repair(&farewell.next(&others, late)), [""; 0]);
    assert_eq!(to_repair(&farewell.next(&others, late + RETRY_AFTER)), ["n1"]);
    for node in ["n1", "n3", "n4", "n5"] {
        farewell.repaired(id(node), true, late);
    }
    assert_eq!(farewell.next(&others, late + RETRY_AFTER), Step::Done);
}

#[test]
fn after_the_deadline_the_nodes_that_have_not_acknowledged_are_reported() {
    let (mut farewell, began) = farewell(100);
    let gone = Progress { live: false, ..at("gone", 10) };
    let others = [at("a", 40), Progress { missed: true, ..at("b", 100) }, gone.clone()];
    let nodes = vec![(id("a"), 60), (id("b"), 0), (id("gone"), 90)];
    let end = began + DEADLINE;
    let given_up = Unacknowledged { nodes, elsewhere: false };
    assert_eq!(given_up.to_string(), "a (60), b (some that it missed), gone (90)");
    assert_eq!(farewell.next(&others, end), Step::GiveUp(given_up));
    let confirmed = [at("a", 40), at("c", 100)];
    let given_up = Unacknowledged { nodes: vec![(id("a"), 60)], elsewhere: true };
    assert_eq!(farewell.next(&confirmed, end), Step::GiveUp(given_up));
    // Nodes that are gone are not waited for. They are reported only if no other node has the changes.
    assert_eq!(farewell.next(&[at("c", 100), gone.clone()], began), Step::Done);
    let given_up = Unacknowledged { nodes: vec![(id("gone"), 90)], elsewhere: false };
    assert_eq!(farewell.next(&[gone], began), Step::GiveUp(given_up));
}
