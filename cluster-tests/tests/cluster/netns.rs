//! The networks of the harness: hosts reach each other, a disconnected host reaches none, and nothing is left behind.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use cluster_tests::netns::{Host, Network};
use cluster_tests::wait;

fn reaches(from: &Host, to: SocketAddr, patience: Duration) -> bool {
    from.enter(|| TcpStream::connect_timeout(&to, patience).is_ok())
}

#[test]
fn a_host_can_be_disconnected_and_reconnected() {
    let Some((network, hosts)) = Network::new(2) else { return };
    let [here, there] = hosts.as_slice() else { panic!("two hosts") };
    let listener = there.enter(|| TcpListener::bind((there.address, 0)).unwrap());
    let to = listener.local_addr().unwrap();
    assert!(reaches(here, to, wait::SOON));
    there.cut();
    assert!(!reaches(here, to, Duration::from_millis(500)));
    there.join();
    assert!(reaches(here, to, wait::SOON), "the host is reached again");

    let names: Vec<String> = hosts.iter().map(|host| host.namespace.clone()).collect();
    drop(network);
    let left = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let left = String::from_utf8_lossy(&left.stdout).into_owned();
    assert!(names.iter().all(|name| !left.contains(name.as_str())), "{left}");
}
